"""What a check found."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Severity(StrEnum):
    """`ERROR`: runs fail or something is left over. `WARNING`: some runs may fail. `INFO`: worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    OK = "ok"


class Finding(NamedTuple):
    """One finding: what was seen, what to do about it, and a command line that does it (empty when there is none)."""

    check: str
    severity: Severity
    seen: str
    advice: str = ""
    command: str = ""


def ok(check: str, seen: str) -> Finding:
    return Finding(check, Severity.OK, seen)


def info(check: str, seen: str, advice: str = "", command: str = "") -> Finding:
    return Finding(check, Severity.INFO, seen, advice, command)


def warning(check: str, seen: str, advice: str, command: str = "") -> Finding:
    return Finding(check, Severity.WARNING, seen, advice, command)


def error(check: str, seen: str, advice: str, command: str = "") -> Finding:
    return Finding(check, Severity.ERROR, seen, advice, command)
