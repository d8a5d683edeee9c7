"""Starts a program as a child of the guard: own session, parent-death signal, only the named descriptors inherited."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rolecall.guard.proc import Process, identify

_SHIM = str(Path(__file__).with_name("shim.py"))


def spawn(
    name: str, argv: Sequence[str], env: Mapping[str, str], *, log: int, cwd: str = "", keep: Sequence[int] = ()
) -> Process:
    """Starts a program. Call it in the main thread: the parent-death signal is sent when the calling thread ends.

    Args:
        name: For a message in the log when it cannot be run.
        argv: Program and arguments; the program is looked up in the PATH of `env`.
        env: Its whole environment.
        log: Descriptor for stdout and stderr.
        cwd: Working directory, empty for the guard's.
        keep: Descriptors to inherit under their own number. All others are closed.
    """
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        actions: list[tuple[int, int, int]] = [(os.POSIX_SPAWN_DUP2, null, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, log, number) for number in (1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, number, number) for number in keep]  # onto itself: clears close-on-exec
        shim = [sys.executable, "-I", "-S", _SHIM, str(os.getpid()), name, cwd, "--", *argv]
        pid = os.posix_spawn(
            sys.executable,
            shim,
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}),
        )
    finally:
        os.close(null)
    process = identify(pid)
    assert process is not None, "an unreaped child is always in /proc"
    return process
