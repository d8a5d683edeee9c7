"""Devices: which exist, which this user may open, and whether the visible-devices variables name others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from rolecall.cli.checks import judged
from rolecall.placement.outside import Finding, error, info, ok
from rolecall.protocol.devices import VARIABLES, parse_visible

CHECK = "devices"


def check_devices(folder: Path = Path("/dev"), env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Device files, then the variables."""
    found = {kind: sorted(folder.glob(f"{kind}[0-9]*")) for kind in VARIABLES}
    for kind, files in found.items():
        if files:
            yield _files(kind, files)
    if not any(found.values()):
        yield info(CHECK, "no accelerator was found; roles with gpu=0 work")
    for kind, name in VARIABLES.items():
        if name in env:
            count = len(found[kind])
            beyond = [device for device in parse_visible(env[name]) if device.isdigit() and int(device) >= count]
            more = f" names device(s) {', '.join(beyond)}, but there are {count}" if beyond else ""
            advice = "workers would not find these devices; correct the variable"
            yield judged(CHECK, f"{name}={env[name]}{more}", bool(beyond), advice, f"unset {name}")


def _files(kind: str, files: list[Path]) -> Finding:
    closed = [path for path in files if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        seen = f"{', '.join(map(str, closed))} may not be opened by this user"
        advice = "join the group that may, or start the container with the devices"
        return error(CHECK, seen, advice, f"ls -l {closed[0]}")
    return ok(CHECK, f"{len(files)} {kind} device(s): {', '.join(path.name for path in files)}")
