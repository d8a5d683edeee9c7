"""Where a worker is, as its program learns it: by variables, and by placeholders in its arguments.

Everything else in an argument is left unchanged. Pure; no shell is involved.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rolecall.errors import WorkerConfigurationError
from rolecall.protocol.environment import EXPERIMENT, HOST, INDEX, PORTS, ROLE, TARGET_HOST, TARGET_PORTS, TRIAL

PLACEHOLDERS = (
    *("{host}", "{port}", "{ports[N]}", "{role}", "{index}", "{experiment}", "{trial}"),
    *("{devices}", "{python}", "{target.host}", "{target.port}", "{target.ports[N]}"),
)
# Only a name in single braces, with an optional number in brackets: JSON and templates in an argument do not match.
_PLACEHOLDER = re.compile(r"(?<!\{)\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?)(?:\[(\d+)\])?\}(?!\})")


@dataclass(frozen=True)
class Place:
    """Where a worker is. `target_ports`: of the worker in whose slot it lives, on the same host; empty for none."""

    worker_id: str
    host: str
    ports: Sequence[int]
    experiment: str = ""
    trial: str = ""
    target_ports: Sequence[int] = ()

    def variables(self) -> dict[str, str]:
        """The same for its environment."""
        role, _, index = self.worker_id.rpartition("/")
        found = {HOST: self.host, PORTS: _listed(self.ports), ROLE: role, INDEX: index}
        found |= {EXPERIMENT: self.experiment, TRIAL: self.trial}
        return found | ({TARGET_HOST: self.host, TARGET_PORTS: _listed(self.target_ports)} if self.target_ports else {})


def fill(argv: Sequence[str], place: Place, *, devices: str, python: str) -> list[str]:
    """Fills the placeholders of a program's arguments.

    Raises:
        WorkerConfigurationError: A name in braces is unknown, or a number exceeds that of ports.
    """
    if not argv:
        raise WorkerConfigurationError("empty command", list(argv), "give a program and its arguments")
    role, _, index = place.worker_id.rpartition("/")
    values = {"host": place.host, "role": role, "index": index, "devices": devices, "python": python}
    values |= {"experiment": place.experiment, "trial": place.trial}
    if place.target_ports:
        values["target.host"] = place.host

    def value(match: re.Match[str]) -> str:
        name, number = match.groups()
        if name in values and number is None:
            return values[name]
        ports = place.target_ports if name.startswith("target.") else place.ports
        if name.removeprefix("target.") != ("port" if number is None else "ports"):
            raise WorkerConfigurationError("unknown placeholder", match.group(), f"use one of {' '.join(PLACEHOLDERS)}")
        if name.startswith("target.") and not ports:
            raise WorkerConfigurationError("placeholder without a target", match.group(), "only forks have one")
        if int(number or 0) >= len(ports):
            expected = f"the worker has {len(ports)} port(s); raise port_count"
            raise WorkerConfigurationError("placeholder without a port", match.group(), expected)
        return str(ports[int(number or 0)])

    return [_PLACEHOLDER.sub(value, argument) for argument in argv]


def _listed(ports: Sequence[int]) -> str:
    return ",".join(map(str, ports))
