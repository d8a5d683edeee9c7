"""The template process: imports the heavy modules once, then forks workers in milliseconds.

`python -m rolecall.guard.template <socket> <module,...> <sys.path as JSON>`. It has one thread, no event loop and no
device context. Each request is one packet with descriptors: the fork specs in a memory file, the write end of a pipe,
then one control socket for each child. Each child writes `index pid start` to the pipe; when the pipe is closed in all
processes, the guard knows that no further child will come.
"""

import gc
import importlib
import io
import os
import socket
import sys
import time

import msgspec

from rolecall.guard.child import become_worker, openblas_setters, run_entry
from rolecall.guard.kernel import set_name
from rolecall.guard.proc import identify, numeric_entries, open_descriptors
from rolecall.protocol.fork import ForkSpec, TemplateReady, decode

MAX_CHILDREN = 200  # the kernel passes at most 253 descriptors in one message
TEMPLATE_NAME = "rc:template"  # forked children have it too until they are workers


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
    os.write(pipe, f"{index} - {error.strerror}\n".encode())


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


if __name__ == "__main__":
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.exit(main(sys.argv[1:]))
