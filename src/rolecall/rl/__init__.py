"""Reinforcement learning of language models on the runtime's public interface. Losses, advantages and dispatch are
pure."""
