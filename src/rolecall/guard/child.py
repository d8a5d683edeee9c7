"""Turns a forked child of the template into a worker: nothing of the template's state is kept."""

import ctypes
import importlib
import os
import random
import signal
import socket
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any

from rolecall.guard.kernel import die_with_parent, overwrite_variable, set_name
from rolecall.guard.proc import open_descriptors
from rolecall.protocol.environment import WORKER
from rolecall.protocol.fork import ForkSpec
from rolecall.transport.files import make_directories

_OPENBLAS_SETTERS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")


def become_worker(spec: ForkSpec, control: int, keep: set[int]) -> None:
    """Turns this forked child, whose parent is the guard by now, into the worker of `spec`.

    Args:
        spec: The worker.
        control: The worker's end of the control channel.
        keep: Descriptors of the modules that were imported before the fork; all others but `control` are closed.
    """
    os.setsid()
    if not die_with_parent(spec.guard):
        os._exit(1)
    set_name(f"rc:{spec.worker_id}")
    for number in open_descriptors() - keep - {0, 1, 2, control}:
        os.close(number)
    os.set_inheritable(control, False)
    _reset_signals()
    _redirect(spec.log_path)
    overwrite_variable(WORKER, spec.worker_id)
    os.environb.clear()
    os.environb.update(spec.env)
    if spec.cwd:
        os.chdir(spec.cwd)
    _reseed()
    _limit_threads(spec.threads)


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect(log_path: str) -> None:
    make_directories(Path(log_path).parent)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((null, log, log)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    streams: Any = (sys.stdout, sys.stderr)  # TextIOWrappers, as at every start
    for stream in streams:
        stream.reconfigure(line_buffering=True)


def _reseed() -> None:
    """Seeds the generators again: their states were copied from the template, so all workers would draw the same."""
    random.seed()
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()


def _limit_threads(threads: int) -> None:
    """Sets thread counts by call: libraries imported before the fork do not read their variables again."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and threads > 0:
        torch.set_num_threads(threads)
    for setter in openblas_setters() if threads > 0 else ():
        setter(threads)


@cache
def openblas_setters() -> list[Any]:
    """OpenBLAS's `set_num_threads`, under any of its names, from every mapped library. It has no Python binding.

    The template calls this once, after its imports, and its children inherit the cached result.
    """
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split()[-1] for line in maps if "openblas" in line}
    libraries = [ctypes.CDLL(path) for path in sorted(paths)]
    return [getattr(library, name) for library in libraries for name in _OPENBLAS_SETTERS if hasattr(library, name)]


def run_entry(entry: str, control: int) -> int:
    """Imports `module:function` and calls it with the control socket; returns the exit code."""
    module, _, name = entry.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(socket.socket(fileno=control))
    except Exception:
        traceback.print_exc()
        return 1
    return result if isinstance(result, int) else 0
