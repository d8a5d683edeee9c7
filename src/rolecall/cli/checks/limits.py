"""Limits of the user, the kernel and the cgroup that runs with many workers may reach."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from rolecall.cli.checks import judged
from rolecall.cli.terminal import format_bytes
from rolecall.guard.oom import OomWatch
from rolecall.guard.proc import read_text
from rolecall.placement.outside import Finding, Severity

CHECK = "limits"
FEW_FILES, ENOUGH_FILES = 1024, 4096
ENOUGH_PROCESSES = 4096
ENOUGH_LOCKED = 64 << 20
LITTLE_MEMORY = 4 << 30
ENOUGH_MAPS = 65530
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


def check_limits() -> Iterator[Finding]:
    """All limits; each is judged by a pure function of its value."""
    yield files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield processes(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    yield locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])
    yield memory(OomWatch().limit)
    for path, judge in (
        ("/proc/sys/kernel/pid_max", pids),
        ("/proc/sys/vm/max_map_count", maps),
        ("/proc/sys/vm/overcommit_memory", overcommit),
        (HUGE_PAGES, huge_pages),
    ):
        if text := read_text(path).strip():
            yield judge(text)
    yield from cgroup_pids(*(read_text(f"/sys/fs/cgroup/pids.{name}").strip() for name in ("max", "current")))


def files(soft: int, hard: int) -> Finding:
    """Open files: the controller and the guard need several per worker, a worker one per peer."""
    seen = f"open files: {_amount(soft)} (hard limit {_amount(hard)})"
    advice = "each worker needs some in the controller and the guard; raise it in the shell that starts the run"
    command = f"ulimit -n {min(65536, hard) if hard >= 0 else 65536}"
    return judged(CHECK, seen, Severity.ERROR if 0 <= soft < FEW_FILES else 0 <= soft < ENOUGH_FILES, advice, command)


def processes(soft: int) -> Finding:
    """Processes and threads of this user together."""
    seen, advice = f"processes and threads of this user: {_amount(soft)}", "a torch worker has dozens; raise it"
    return judged(CHECK, seen, 0 <= soft < ENOUGH_PROCESSES, advice, f"ulimit -u {ENOUGH_PROCESSES * 4}")


def locked_memory(soft: int) -> Finding:
    """Lockable memory, which RDMA needs."""
    seen = f"lockable memory: {'unlimited' if soft < 0 else format_bytes(soft)}"
    advice = "NCCL over InfiniBand needs more; other transports do not"
    severity = Severity.INFO if 0 <= soft < ENOUGH_LOCKED else Severity.OK
    return judged(CHECK, seen, severity, advice, "ulimit -l unlimited")


def memory(limit: int) -> Finding:
    """The memory limit of this cgroup, or the memory of the machine."""
    advice = "each torch worker takes 0.3 GiB before its model; raise the container's limit"
    return judged(CHECK, f"memory for this cgroup: {format_bytes(limit)}", limit < LITTLE_MEMORY, advice)


def pids(text: str) -> Finding:
    """Maximum number of pids, threads included."""
    command = "sudo sysctl kernel.pid_max=4194304"
    return judged(CHECK, f"kernel.pid_max: {text}", int(text) < 32768, "threads count too; raise it", command)


def maps(text: str) -> Finding:
    """Memory mappings per process; each mapped tensor is one."""
    advice, command = "each mapped tensor takes one; raise it", "sudo sysctl vm.max_map_count=262144"
    return judged(CHECK, f"vm.max_map_count: {text}", int(text) < ENOUGH_MAPS, advice, command)


def overcommit(text: str) -> Finding:
    """Memory overcommit, which forks rely on."""
    advice = "with 2, forks of a process with much memory are refused"
    return judged(CHECK, f"vm.overcommit_memory: {text}", text == "2", advice, "sudo sysctl vm.overcommit_memory=0")


def huge_pages(text: str) -> Finding:
    """The setting for shared memory; the active choice is in brackets."""
    seen = f"transparent huge pages for shared memory: {text}"
    severity = Severity.INFO if "[never]" in text or "[deny]" in text else Severity.OK
    advice = "`advise` makes mapping large tensors faster"
    return judged(CHECK, seen, severity, advice, f"echo advise | sudo tee {HUGE_PAGES}")


def cgroup_pids(limit: str, current: str) -> Iterator[Finding]:
    """The container's limit of processes and threads."""
    if limit.isdigit():
        seen = f"processes and threads in this cgroup: {current or '?'} of {limit}"
        advice = "raise the container's limit, for instance --pids-limit=-1"
        yield judged(CHECK, seen, int(limit) - int(current or 0) < 1024, advice)


def _amount(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
