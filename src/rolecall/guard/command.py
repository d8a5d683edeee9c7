"""Fills the placeholders in a program's arguments; everything else is left unchanged. Pure; no shell is involved."""

import re
from collections.abc import Sequence

from rolecall.errors import WorkerConfigurationError

PLACEHOLDERS = ("{host}", "{port}", "{ports[N]}", "{role}", "{index}", "{devices}", "{python}")
# Only a name in single braces, with an optional number in brackets: JSON and templates in an argument do not match.
_PLACEHOLDER = re.compile(r"(?<!\{)\{([A-Za-z_]\w*)(?:\[(\d+)\])?\}(?!\})")


def fill(
    argv: Sequence[str], *, host: str, ports: Sequence[int], worker_id: str, devices: str, python: str
) -> list[str]:
    """Fills the placeholders of a program's arguments.

    Raises:
        WorkerConfigurationError: A name in braces is unknown, or `{ports[N]}` exceeds the number of ports.
    """
    role, _, index = worker_id.rpartition("/")
    values = {"host": host, "role": role, "index": index, "devices": devices, "python": python}

    def value(match: re.Match[str]) -> str:
        name, number = match.groups()
        if name in values and number is None:
            return values[name]
        if (name == "port" and number is None) or (name == "ports" and number is not None):
            place = int(number or 0)
            if place < len(ports):
                return str(ports[place])
            expected = f"the worker has {len(ports)} port(s); raise port_count"
            raise WorkerConfigurationError("placeholder without a port", match.group(), expected)
        raise WorkerConfigurationError("unknown placeholder", match.group(), f"use one of {' '.join(PLACEHOLDERS)}")

    if not argv:
        raise WorkerConfigurationError("empty command", list(argv), "give a program and its arguments")
    return [_PLACEHOLDER.sub(value, argument) for argument in argv]
