"""The variables that say which accelerators a process sees, and the one way to read them."""

from collections.abc import Mapping
from pathlib import Path

CUDA = "CUDA_VISIBLE_DEVICES"
ASCEND = "ASCEND_RT_VISIBLE_DEVICES"
# The variable of each kind of device, by the beginning of its files' names in /dev.
VARIABLES: Mapping[str, str] = {"nvidia": CUDA, "davinci": ASCEND}


def parse_visible(value: str) -> list[str]:
    """The devices that a visible-devices variable lists: indices, UUIDs (`GPU-8c1f`) or MIG names, as they stand there.

    As the CUDA runtime reads it: spaces around a name do not count, an empty name or `-1` ends the list, so `""` and
    `"-1"` hide all devices and `"0,-1,1"` shows the first alone. A name that comes twice counts once.
    """
    names: list[str] = []
    for part in value.split(","):
        name = part.strip()
        if name in ("", "-1"):
            break
        if name not in names:
            names.append(name)
    return names


def device_variable(env: Mapping[str, str], folder: Path = Path("/dev")) -> str:
    """The variable of the kind of device that a host has: one that is set there, else by what is in `/dev`."""
    counts = {variable: len(list(folder.glob(f"{kind}[0-9]*"))) for kind, variable in VARIABLES.items()}
    return next((name for name in VARIABLES.values() if name in env), max(counts, key=lambda name: counts[name]))


def listed(env: Mapping[str, str]) -> list[str] | None:
    """What the first visible-devices variable that is set lists; None when none is set."""
    return next((parse_visible(env[name]) for name in VARIABLES.values() if name in env), None)


def visible_devices(env: Mapping[str, str], folder: Path = Path("/dev")) -> list[str]:
    """The devices that the visible-devices variable names; without one, all that are in `/dev`."""
    named = listed(env)
    counts = [len(list(folder.glob(f"{kind}[0-9]*"))) for kind in VARIABLES]
    return [str(index) for index in range(max(counts))] if named is None else named
