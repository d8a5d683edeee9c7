"""`python -m rolecall.guard (--config-fd N | --config-file F) [--ordinal-from VARIABLE]`: a guard below its reaper."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from rolecall.guard import reaper

USAGE = "usage: python -m rolecall.guard (--config-fd N | --config-file F) [--ordinal-from VARIABLE]"


def _read_config(arguments: list[str]) -> bytes:
    """The configuration. Guards that get the same one are told apart by a variable that their launcher sets."""
    match arguments:
        case [*source, "--ordinal-from", variable]:
            config, ordinal = json.loads(_read_source(source)), int(os.environ[variable])
            # All of them are told the same on their stdin; one is enough to pass it on.
            own = {
                "guard_id": f"{config['guard_id']}-{ordinal}",
                "notices": bool(config.get("notices") and not ordinal),
            }
            return json.dumps(config | own).encode()
        case _:
            return _read_source(arguments)


def _read_source(arguments: list[str]) -> bytes:
    """It holds the run's token, so it comes by a descriptor or a private file that is removed."""
    match arguments:
        case ["--config-fd", number] if number.isdigit():
            return _first_line(int(number))
        case ["--config-file", name]:
            path = Path(name)
            status = path.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o077:
                sys.exit(f"{path} holds the run's token but others may read it; make it 0600 and your own")
            raw = path.read_bytes()
            path.unlink()
            return raw
        case _:
            sys.exit(USAGE)


def _first_line(fd: int) -> bytes:
    """Not a byte more, since notices may follow."""
    line = b""
    while (byte := os.read(fd, 1)) not in (b"", b"\n"):
        line += byte
    return line


def _guard(config: bytes) -> int:
    # Imported below the fork: the reaper stays small and knows nothing of event loops.
    status: int = import_module("rolecall.guard.supervisor").main(config)
    return status


if __name__ == "__main__":
    raw = _read_config(sys.argv[1:])
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what our starter left open belongs to neither of us
    sys.exit(reaper.run(raw, _guard))
