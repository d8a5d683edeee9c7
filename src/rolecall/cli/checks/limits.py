"""Limits of the user, the kernel and the cgroup that runs with many workers may reach."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping

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
# When a setting of the kernel is bad, what to know of it, and a better one.
SYSCTLS: Mapping[str, tuple[Callable[[str], bool], str, int]] = {
    "kernel.pid_max": (lambda text: int(text) < 32768, "threads count too; raise it", 4194304),
    "vm.max_map_count": (lambda text: int(text) < 65530, "each mapped tensor takes one; raise it", 262144),
    "vm.overcommit_memory": (lambda text: text == "2", "with 2, forks of a process with much memory are refused", 0),
}
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


def check_limits() -> Iterator[Finding]:
    """All limits; each is judged by a pure function of its value."""
    yield files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield processes(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    yield locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])
    yield memory(OomWatch().limit)
    for name in SYSCTLS:
        if text := read_text(f"/proc/sys/{name.replace('.', '/')}").strip():
            yield sysctl(name, text)
    if text := read_text(HUGE_PAGES).strip():
        yield huge_pages(text)
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


def sysctl(name: str, text: str) -> Finding:
    """A setting of the kernel."""
    is_bad, advice, better = SYSCTLS[name]
    return judged(CHECK, f"{name}: {text}", is_bad(text), advice, f"sudo sysctl {name}={better}")


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
