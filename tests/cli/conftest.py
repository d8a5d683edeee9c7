"""Fixtures of the command line's tests."""

from conftest_cli import cli, controller, leftover

__all__ = ["cli", "controller", "leftover"]
