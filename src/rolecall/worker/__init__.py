"""The process in a slot that hosts engines. It knows no reinforcement learning and no scheduler."""
