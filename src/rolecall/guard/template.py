"""The template process: imports the heavy modules once, then forks workers in milliseconds.

`python -m rolecall.guard.template <socket> <module,...> <sys.path as JSON>`. It has one thread, no event loop and no
device context. Each request is one packet with descriptors: the fork specs in a memory file, the write end of a pipe,
then one control socket for each child. Each child writes `index pid start` to the pipe; when the pipe is closed in all
processes, the guard knows that no further child will come. Nothing of the template's state is kept in a child.
"""

import ctypes
import gc
import importlib
import io
import os
import random
import signal
import socket
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from rolecall.errors import explained
from rolecall.guard.kernel import die_with_parent, overwrite_variable, set_name
from rolecall.guard.proc import identify, numeric_entries, open_descriptors
from rolecall.protocol.environment import WORKER
from rolecall.protocol.fork import ForkSpec, TemplateReady, decode

MAX_CHILDREN = 200  # the kernel passes at most 253 descriptors in one message
TEMPLATE_NAME = "rc:template"  # forked children have it too until they are workers
_OPENBLAS_SETTERS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")


def _preload(names: list[str]) -> TemplateReady:
    skipped = {}
    gc.disable()  # hardly anything of what an import makes is garbage, and looking for it takes a tenth of torch's
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # an import may raise anything; the worker that needs it imports again and raises
            skipped[name] = f"{type(error).__name__}: {error}"
    openblas_setters()
    gc.collect()
    gc.freeze()  # so that a collection in a child does not write to, and thereby copy, shared pages
    gc.enable()
    return TemplateReady(skipped=skipped, threads=len(numeric_entries("/proc/self/task")))


class ForkedChild(Exception):
    """Raised in the forked child to leave the template's loop, so that it exits as any interpreter does."""

    def __init__(self, spec: ForkSpec, control: int) -> None:
        self.spec, self.control = spec, control


def _serve(guard: socket.socket) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(guard, 64, MAX_CHILDREN + 2)
        if not message:
            return
        _fork(descriptors)


def _fork(descriptors: list[int]) -> None:
    """Forks an intermediate process, which forks the children and ends, so that the guard becomes their parent."""
    try:
        intermediate = os.fork()
    except OSError as error:
        for index in range(len(descriptors) - 2):
            _report_failure(descriptors[1], index, error)
    else:
        if intermediate == 0:
            _fork_children(descriptors)
        os.waitpid(intermediate, 0)
    for descriptor in descriptors:
        os.close(descriptor)


def _report_failure(pipe: int, index: int, error: OSError) -> None:
    os.write(pipe, f"{index} - {explained(error)}\n".encode())


def _fork_children(descriptors: list[int]) -> None:
    file, pipe, *controls = descriptors
    specs = decode(os.pread(file, os.fstat(file).st_size, 0))
    parent = os.getpid()
    gate, held_open = os.pipe2(os.O_CLOEXEC)  # closed by the end of this process, which the children wait for
    for index, (spec, control) in enumerate(zip(specs, controls, strict=True)):
        try:
            pid = os.fork()
        except OSError as error:
            _report_failure(pipe, index, error)
            continue
        if pid == 0:
            os.close(held_open)
            me = identify(os.getpid())
            assert me is not None
            os.write(pipe, f"{index} {me.pid} {me.start}\n".encode())  # below PIPE_BUF, so atomic
            os.close(pipe)
            if not _wait_until_reparented(gate, parent, spec.guard):
                os._exit(1)
            raise ForkedChild(spec, control)
    os._exit(0)


def _wait_until_reparented(gate: int, intermediate: int, guard: int) -> bool:
    # Blocks until the intermediate ends: polling in a hundred children would slow its forks.
    os.read(gate, 1)
    os.close(gate)
    while os.getppid() == intermediate:  # a process closes its descriptors shortly before its children are reparented
        time.sleep(0.0002)
    return os.getppid() == guard


def main(arguments: list[str]) -> int:
    """Serves until the guard closes its end. In a child: runs the worker, and returns its exit code."""
    number, modules, sys_path = arguments
    set_name(TEMPLATE_NAME)
    known = set(sys.path)
    sys.path.extend(path for path in msgspec.json.decode(sys_path, type=list[str]) if path not in known)
    ready = _preload([name for name in modules.split(",") if name])
    guard = socket.socket(fileno=int(number))
    guard.set_inheritable(False)
    keep = open_descriptors() - {guard.fileno()}  # descriptors that the preloaded modules have opened
    guard.send(msgspec.json.encode(ready))
    try:
        _serve(guard)
        return 0
    except ForkedChild as child:
        spec, control = child.spec, child.control
    guard.detach()
    become_worker(spec, control, keep)
    return run_entry(spec.entry, control)


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
    Path(log_path).parent.mkdir(parents=True, exist_ok=True)
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


if __name__ == "__main__":
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.exit(main(sys.argv[1:]))
