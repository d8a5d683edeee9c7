"""Who uses a runtime directory, and what its guards own without a mark: files in it, for those who outlive all of them.

A runtime directory is claimed by its controller, each guard's part of it by the guard and its reaper.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from rolecall.guard.proc import Process, alive, identify, read_text
from rolecall.transport.address import this_host

CLAIMS = "claims"  # `host pid start` of each process that uses the directory, a line each
CGROUP = "cgroup"  # a guard's, if it has one
SEEN = "seen"  # `pid start` of what is below the guard without its mark


def write_private(path: Path, text: str, mode: str = "w") -> None:
    """Writes a file that is this user's alone, never wider than 0600; mode `a`: at its end, `x`: it must be new."""
    with open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
        file.write(text)


def claim(folder: str | Path) -> None:
    """Names this process in a directory as one that uses it."""
    me = identify(os.getpid())
    assert me is not None
    write_private(Path(folder, CLAIMS), f"{this_host()} {me.pid} {me.start}\n", "a")


def note_seen(runtime_dir: str | Path, guard_id: str, processes: Iterable[Process]) -> None:
    """Has a sweep find these as the guard's, also when it and its reaper are dead and no cgroup holds them."""
    fresh = Path(runtime_dir, guard_id, f"{SEEN}.new")
    write_private(fresh, "".join(f"{process.pid} {process.start}\n" for process in processes))
    fresh.replace(fresh.with_suffix(""))


def found_in(folder: Path, pattern: str) -> list[Path]:
    """What there is, or nothing where the folder is being removed: `glob` raises then."""
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def abandoned(folder: str | Path) -> bool:
    """Whether all who have claimed a directory, or a part of it, are dead. Those of another host count as alive."""
    claims = _read_all(found_in(Path(folder), f"**/{CLAIMS}"))
    return bool(claims) and all(map(_is_dead, claims))


def _is_dead(claim: str) -> bool:
    match claim.split():
        case [host, pid, start] if host == this_host():
            return not alive(Process(int(pid), int(start)))
        case _:  # also a line that a full disk has cut off
            return False


def seen(runtime_dir: str | Path, guard_id: str | None = None) -> list[Process]:
    """What `note_seen` was told, by all guards of this host or one."""
    return [Process(*map(int, line.split())) for line in of_guards(runtime_dir, guard_id, SEEN)]


def of_guards(runtime_dir: str | Path, guard_id: str | None, name: str) -> list[str]:
    """Lines of a file that guards of this host have in their parts of a runtime directory."""
    parts = [file.parent for file in found_in(Path(runtime_dir), f"{guard_id or '*'}/{CLAIMS}")]
    here = [part for part in parts if any(line.startswith(this_host()) for line in _read_all([part / CLAIMS]))]
    return _read_all(part / name for part in here)


def _read_all(files: Iterable[Path]) -> list[str]:
    return [line for file in files for line in read_text(file).splitlines()]
