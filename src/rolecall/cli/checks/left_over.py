"""What outlived its run: processes, allocations of a cluster, runtime directories, files in /dev/shm."""

from __future__ import annotations

import os
import re
import shlex
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path

import psutil

from rolecall.cli.checks import listed
from rolecall.cli.runs import FoundRun, age, find_runs, on_another_host
from rolecall.cli.terminal import format_bytes
from rolecall.guard.claims import abandoned
from rolecall.guard.proc import Stat, ancestors, environ, read_text, snapshot
from rolecall.guard.sweep import GUARD_NAME, RunProcess, run_processes
from rolecall.placement.outside import Finding, Left, Severity, error, info, ok, warning
from rolecall.placement.registry import PLACEMENTS
from rolecall.scheduler.run import private_root
from rolecall.tensors.shard import grouped
from rolecall.transport.address import listens

PROCESSES, DIRECTORIES, MEMORY = "processes", "runtime directories", "shared memory"
SHOWN = 8
ENDING_S = 2.0
YOUNG_S = 60.0  # a run that is starting creates its directory before it has a process
FOLDER = Path("/dev/shm")
SMALL = 1 << 30  # containers often have 64 MiB, too little for a data loader or NCCL
YOUNG_FILE_S = 60.0  # a file looks unused between its creation and its mapping
_OURS = re.compile(r"(rolecall|torch_)")


def check_left_processes(fileroot: Path) -> Iterator[Finding]:
    """One finding per run with processes on this host."""
    findings = _look(fileroot)
    if any(finding.severity in (Severity.ERROR, Severity.WARNING) for finding in findings):
        time.sleep(ENDING_S)  # those of a run that has just ended are ending
        findings = _look(fileroot)
    yield from findings or [ok(PROCESSES, "no process of any run")]


def _look(fileroot: Path) -> list[Finding]:
    table = snapshot()
    runs = {run.run_id: run for run in find_runs(fileroot)}
    findings = []
    own = [item for item in run_processes() if item.uid == os.getuid()]
    for run_id, items in grouped(own, attrgetter("run_id")).items():
        # A process below a guard is supervised, not left over.
        above = set[int]().union(*(ancestors(item.stat.pid, table) for item in items))
        guards = [table[pid] for pid in above if table[pid].name == GUARD_NAME]
        findings.append(_judge_processes(run_id, items, runs.get(run_id), guards))
    return findings


def _judge_processes(run_id: str, items: list[RunProcess], directory: FoundRun | None, guards: list[Stat]) -> Finding:
    name = f"run {directory.name} (id {run_id})" if directory else f"run {run_id}"
    controller = directory.controller if directory else None
    left_by = run_id if _controller_is_dead(run_id, items, directory) else ""
    stop = f"rolecall stop --run {run_id} --yes"
    shown = listed([item.describe() for item in items], SHOWN)
    stopped = [guard for guard in guards if guard.state in "Tt"]
    if stopped:
        seen = f"{name}: its guard {stopped[0].pid} is stopped and supervises nothing: {shown}"
        return error(PROCESSES, seen, "continue it (kill -CONT), or end the run", stop, left_by)
    if controller is not None:
        return ok(PROCESSES, f"{name}: {len(items)} processes, controller {controller} is running")
    if directory is None and (guards or not left_by):
        return info(PROCESSES, f"{name} has its directories under another fileroot or TMPDIR: {shown}")
    if guards:
        advice = "if the controller is not on another host, the guard ends them when its lease expires; or end them now"
        seen = f"{name} has no controller here but {len(items)} process(es): {shown}"
        return warning(PROCESSES, seen, advice, stop, left_by)
    seen = f"{name} left {len(items)} process(es) without a {'controller' if directory else 'guard'}: {shown}"
    return error(PROCESSES, seen, "end them", stop, left_by)


def _controller_is_dead(run_id: str, items: list[RunProcess], directory: FoundRun | None) -> bool:
    """For sure: one on another host, or whose directories are elsewhere, may live."""
    if directory is not None:
        return directory.controller is None and not on_another_host(directory.state.controller.host)
    folder = private_root() / run_id
    theirs = [env.get("TMPDIR") for item in items if (env := environ(item.stat.pid))]
    elsewhere = os.environ.get("TMPDIR") not in theirs  # a role may have a TMPDIR of its own
    return abandoned(folder) or not (folder.exists() or elsewhere)


def check_left_allocations(fileroot: Path) -> Iterator[Finding]:
    """One finding for each run that has any."""
    held = [(name, left) for name, placement in PLACEMENTS.items() for left in placement.left()]
    directories = {run.run_id: run for run in find_runs(fileroot)} if held else {}
    for name, left in held:
        yield _judge_allocations(name, left, directories.get(left.run_id))


def _judge_allocations(check: str, left: Left, directory: FoundRun | None) -> Finding:
    what = ", ".join(left.names)
    if directory is None:
        where = "with its directory under another fileroot, or replaced by a later one of its name"
        seen, advice = f"run {left.run_id}, {where}, has {what}", "end it by hand if it is none of yours"
        return info(check, seen, advice, left.command)
    if directory.controller is not None:
        return ok(check, f"run {directory.name}: {what}, and its controller lives")
    if on_another_host(host := directory.state.controller.host):
        return info(check, f"run {directory.name}: {what}, and a controller on {host}")
    advice = "what waits would end as soon as it starts; end it now"
    stop = f"rolecall stop --run {shlex.quote(str(directory.path))} --yes"
    seen = f"run {directory.name} has no controller any more but left {what}"
    return warning(check, seen, advice, stop, left.run_id)


def check_runtime_dirs(root: Path | None = None) -> Iterator[Finding]:
    """The private root and all runtime directories in it."""
    root = root or private_root()
    if not root.exists() and not root.is_symlink():
        yield ok(DIRECTORIES, f"{root} does not exist yet")
        return
    findings = list(_check_root(root))
    if not findings:
        living = {item.run_id for item in run_processes()}
        for directory in sorted(root.iterdir()):
            with suppress(FileNotFoundError):  # its run has ended in the meantime
                findings += [*_secrecy(directory), *_staleness(directory, living)]
    yield from findings or [ok(DIRECTORIES, f"{root} is private and contains nothing left over")]


def _check_root(root: Path) -> Iterator[Finding]:
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        advice = "no run can start until it is removed (by its owner, or root) or TMPDIR names another directory"
        yield error(DIRECTORIES, f"{root} is not a directory of this user", advice, _rm(root))


def _secrecy(directory: Path) -> Iterator[Finding]:
    for path, allowed in ((directory.parent, 0o700), (directory, 0o700), (directory / "token", 0o600)):
        try:
            mode = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:
            continue
        if mode & ~allowed:
            seen = f"{path} has mode {mode:04o}; other users may access the run's token or sockets"
            yield error(DIRECTORIES, seen, f"set it to {allowed:04o}", f"chmod {allowed:o} {shlex.quote(str(path))}")


def _staleness(directory: Path, living: set[str]) -> Iterator[Finding]:
    if abandoned(directory):
        left = [item.describe() for item in run_processes(directory.name, runtime_dir=directory)]
        seen = f"{directory} is left over, its controller and guards were killed; of their processes: "
        stop = f"rolecall stop --run {directory.name} --yes"
        yield warning(DIRECTORIES, seen + (listed(left, SHOWN) or "none"), "end and remove it", stop, directory.name)
        return
    sockets = [*directory.glob("*.sock"), *directory.glob("w/*.sock")]
    young = age(directory.lstat().st_mtime) < YOUNG_S
    if young or directory.name in living or any(listens(str(path)) for path in sockets):
        return
    seen = f"{directory} is left over: no process listens on its sockets or has its run id"
    yield warning(DIRECTORIES, seen, "remove it", _rm(directory))


def _rm(path: Path) -> str:
    return f"rm -r {shlex.quote(str(path))}"


def check_shared_memory(folder: Path = FOLDER) -> Iterator[Finding]:
    """Size, then left-over files."""
    if not folder.is_dir():
        yield warning(MEMORY, f"{folder} is missing", "torch and NCCL need it", f"sudo mount -t tmpfs tmpfs {folder}")
        return
    space = os.statvfs(folder)
    yield _shm_size(folder, space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize)
    yield from _stale_shm(folder)


def _shm_size(folder: Path, total: int, free: int) -> Finding:
    seen = f"{folder} has {format_bytes(total)}, {format_bytes(free)} free"
    if total < SMALL:
        advice = "data loaders and NCCL need more; in a container pass --shm-size=8g"
        return warning(MEMORY, seen, advice, f"sudo mount -o remount,size=8G {folder}")
    if free < total / 20:
        return warning(MEMORY, seen, "check what fills it", f"ls -lS {folder} | head")
    return ok(MEMORY, seen)


def _stale_shm(folder: Path) -> Iterator[Finding]:
    candidates = {str(p): p for p in folder.iterdir() if _OURS.match(p.name) and _old(p)}
    stale = sorted(set(candidates) - in_use(candidates)) if candidates else []
    if stale:
        total = sum(candidates[path].lstat().st_size for path in stale)
        seen = f"{len(stale)} file(s) that no process of this user uses, {format_bytes(total)}: {', '.join(stale[:5])}"
        yield warning(MEMORY, seen, "remove them", shlex.join(["rm", "--", *stale]))


def _old(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return found.st_uid == os.getuid() and age(found.st_mtime) > YOUNG_FILE_S


def in_use(paths: Iterable[str]) -> set[str]:
    """The paths that some process has mapped or open, as far as /proc is readable."""
    used: set[str] = set()
    for pid in psutil.pids():
        mapped = {line.split(maxsplit=5)[-1] for line in read_text(f"/proc/{pid}/maps").splitlines()}
        used |= set(paths) & (mapped | opened(pid))
    return used


def opened(pid: int) -> set[str]:
    """What files a process has open; none when it has ended or belongs to another user."""
    with suppress(psutil.Error):
        return {file.path for file in psutil.Process(pid).open_files()}
    return set()
