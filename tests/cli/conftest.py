"""Fixtures of the command line's tests."""

from cli_rig import cli, controller, leftover

__all__ = ["cli", "controller", "leftover"]
