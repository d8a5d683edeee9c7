"""What `rolecall doctor` looks at, one noun per file. A check changes nothing and yields findings."""

from collections.abc import Sequence

from rolecall.placement.outside import Finding, Severity


def listed(items: Sequence[object], count: int) -> str:
    """The first of them, separated by commas; dots for the others."""
    return ", ".join(map(str, items[:count])) + (" ..." if len(items) > count else "")


def judged(check: str, seen: str, severity: Severity | bool, advice: str, command: str = "") -> Finding:
    """A finding with what to do about it, unless it is in order.

    Args:
        severity: True for a warning, False for nothing wrong.
    """
    if isinstance(severity, bool):
        severity = Severity.WARNING if severity else Severity.OK
    return Finding(check, severity, seen, *((advice, command) if severity is not Severity.OK else ()))
