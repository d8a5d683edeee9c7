"""What a backend says without a run of its own: findings of checks, and what runs hold with its manager."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class Severity(StrEnum):
    """`ERROR`: runs fail or something is left over. `WARNING`: some runs may fail. `INFO`: worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    OK = "ok"


class Finding(NamedTuple):
    """One finding: what was seen, what to do about it, and a command line that does it (empty when there is none).

    `left_by`: the id of a run whose controller is dead, if the finding is something that it left.
    """

    check: str
    severity: Severity
    seen: str
    advice: str = ""
    command: str = ""
    left_by: str = ""


def ok(check: str, seen: str) -> Finding:
    return Finding(check, Severity.OK, seen)


def info(check: str, seen: str, advice: str = "", command: str = "") -> Finding:
    return Finding(check, Severity.INFO, seen, advice, command)


def warning(check: str, seen: str, advice: str, command: str = "", left_by: str = "") -> Finding:
    return Finding(check, Severity.WARNING, seen, advice, command, left_by)


def error(check: str, seen: str, advice: str, command: str = "", left_by: str = "") -> Finding:
    return Finding(check, Severity.ERROR, seen, advice, command, left_by)


def is_private(directory: Path) -> bool:
    """True for a directory that only this user can access."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


class Left(NamedTuple):
    """What a run holds with a backend's manager: `job 7`, `job 8`; `command` ends such things by hand."""

    run_id: str
    names: Sequence[str]
    command: str


@dataclass
class Removal:
    """What was done about what a run held with a backend's manager.

    Attributes:
        asked: The manager was asked and has answered.
        ended: Names of what is gone now: `job 7`.
        left: The same of what is not.
        unknown: Why a manager that has something of the run, or had, could not be asked; empty when it was.
        advice: A command that shows what is left.
    """

    asked: bool = False
    ended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unknown: str = ""
    advice: str = ""

    @property
    def clean(self) -> bool:
        return not (self.left or self.unknown)
