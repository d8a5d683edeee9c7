"""The Slurm and Ray clusters that a benchmark runs on: those that the environment names, else the tests' own."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "tests" / "clusters"


@contextlib.contextmanager
def slurm() -> Iterator[None]:
    """SLURM_CONF names a cluster meanwhile."""
    with _cluster("slurm", "SLURM_CONF"):
        yield


@contextlib.contextmanager
def ray(*options: str) -> Iterator[None]:
    """RAY_ADDRESS names a cluster meanwhile."""
    with _cluster("ray", "RAY_ADDRESS", *options):
        yield


@contextlib.contextmanager
def _cluster(kind: str, variable: str, *options: str) -> Iterator[None]:
    if variable in os.environ:
        yield
        return
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix=f"rcb-{kind}-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # munge's clients must reach its socket
        script = [sys.executable, str(SCRIPTS / kind)]
        where = f"--dir={folder}/c"
        try:
            told = subprocess.run([*script, "up", where, *options], check=True, stdout=subprocess.PIPE, text=True)
            os.environ |= dict(_exports(told.stdout))
            yield
        finally:
            os.environ.clear()
            os.environ |= before
            subprocess.run([*script, "down", where], check=True, stdout=subprocess.DEVNULL)


def _exports(text: str) -> Iterator[tuple[str, str]]:
    """`export NAME='a value'`, line by line."""
    for line in text.splitlines():
        word, _, assignment = line.partition(" ")
        name, equals, value = assignment.partition("=")
        if word == "export" and equals:
            yield name, "".join(shlex.split(value))
