"""Numbers as people read them. Pure."""

from __future__ import annotations


def size(count: float | None) -> str:
    """Bytes in binary units: `1.5 GiB`; `-` when unknown."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float | None) -> str:
    """The two largest units: `45 s`, `3 m 20 s`, `2 d 4 h`; `-` when unknown."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    for unit, length, below, short in (("d", 86400, 3600, "h"), ("h", 3600, 60, "m"), ("m", 60, 1, "s")):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // below} {short}"
    return f"{whole} s"


def number(value: float | None, digits: int = 1) -> str:
    """A number with few digits; `-` when unknown."""
    return "-" if value is None else f"{value:.{digits}f}"
