"""`python -m rolecall.guard (--config-fd N | --config-file F) [--ordinal-from VARIABLE]`: a guard below its reaper."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from rolecall.errors import explained
from rolecall.guard import reaper

USAGE = "usage: python -m rolecall.guard (--config-fd N | --config-file F) [--ordinal-from VARIABLE]"


def _read_config(arguments: list[str]) -> bytes:
    """The configuration. Guards that share one get their ids from a variable that their launcher sets."""
    match arguments:
        case [*source, "--ordinal-from", variable]:
            config, ordinal = json.loads(_read_source(source)), int(os.environ[variable])
            # All of them receive the same notices on stdin; one is enough to forward them.
            own = {
                "guard_id": f"{config['guard_id']}-{ordinal}",
                "notices": bool(config.get("notices") and not ordinal),
            }
            return json.dumps(config | own).encode()
        case _:
            return _read_source(arguments)


def _read_source(arguments: list[str]) -> bytes:
    """Reads the configuration, which holds the run's token, from a descriptor or a private file, which it deletes."""
    match arguments:
        case ["--config-fd", number] if number.isdigit():
            # Unbuffered, so that it reads no further than the first line: notices may follow.
            return os.fdopen(int(number), "rb", buffering=0, closefd=False).readline()
        case ["--config-file", name]:
            path = Path(name)
            status = path.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o077:
                sys.exit(
                    f"{path} holds the run's token but others may read it; set its mode to 0600 and its owner to you"
                )
            raw = path.read_bytes()
            path.unlink()
            return raw
        case _:
            sys.exit(USAGE)


if __name__ == "__main__":
    raw = _read_config(sys.argv[1:])
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # descriptors that the launching process left open
    # Imported after the fork, so that the reaper stays small and has no event loop.
    try:
        sys.exit(reaper.run(raw, lambda config: import_module("rolecall.guard.guard").main(config)))
    except OSError as e:
        sys.exit(f"the guard was not started: {explained(e)}")
