"""Fixtures of the command line's tests."""

from tests.cli.cli_rig import cli, controller, leftover

__all__ = ["cli", "controller", "leftover"]
