"""Calls of libc and the kernel that Python does not wrap. It owns no state."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: object) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def become_subreaper() -> None:
    """Orphans below this process become its children instead of init's."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> bool:
    """Asks for a signal when the parent dies. Returns False when `parent` is already gone.

    The kernel sends it when the *thread* that is the parent ends, so the parent must fork from a permanent one.
    """
    _prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def set_name(name: str) -> None:
    """Sets what `ps -o comm` and `top` show; the kernel keeps 15 bytes."""
    _prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


def overwrite_variable(name: str, value: str) -> None:
    """Overwrites an environment variable where the kernel placed it at exec.

    `/proc/<pid>/environ` shows that memory, also for whatever this process forks, and `putenv` does not touch it. The
    variable must have been at least as long at exec; the rest is filled with NULs.
    """
    getenv = _libc.getenv
    getenv.restype = ctypes.c_void_p
    address = getenv(name.encode())
    if not address:
        return
    room = len(ctypes.string_at(address))
    ctypes.memmove(address, value.encode()[:room].ljust(room, b"\0"), room)
