"""The template process: imports the heavy modules once, then forks workers in milliseconds.

`python -m rolecall.guard.template <socket> <module,...> <sys.path as JSON>`. It has one thread, no event loop and no
device context. Each request is one packet with descriptors: the births in a memory file, the write end of the
birth pipe, then one control socket for each child. It never answers: the guard reads the births from the pipe, whose
end tells it that nobody of the request is still about to be born.
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
from rolecall.guard.proc import identify, numbers, open_files
from rolecall.protocol.fork import ForkSpec, TemplateReady, decode

MAX_CHILDREN = 200  # the kernel passes at most 253 descriptors in one message
TEMPLATE_NAME = "rc:template"  # also of a child until it is a worker


def _preload(names: list[str]) -> TemplateReady:
    began = time.monotonic()
    loaded, skipped = [], {}
    for name in names:
        try:
            importlib.import_module(name)
            loaded.append(name)
        except Exception as error:  # an import may raise anything; workers repeat it and see the error
            skipped[name] = f"{type(error).__name__}: {error}"
    openblas_setters()
    gc.collect()
    gc.freeze()  # so that a child's collections do not touch, and thereby copy, the template's pages
    threads = len(numbers("/proc/self/task"))
    return TemplateReady(loaded=loaded, skipped=skipped, threads=threads, seconds=time.monotonic() - began)


class Newborn(Exception):
    """Unwinds the stack of the forked child out of the template's loop, so that it ends as any interpreter does."""

    def __init__(self, birth: ForkSpec, control: int, keep: set[int]) -> None:
        self.birth, self.control, self.keep = birth, control, keep


def _serve(guard: socket.socket, keep: set[int]) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(guard, 64, MAX_CHILDREN + 2)
        if not message:
            return
        _fork(descriptors, keep)


def _fork(descriptors: list[int], keep: set[int]) -> None:
    """Forks an intermediate process, which forks the children and ends, so that the guard becomes their parent."""
    try:
        intermediate = os.fork()
    except OSError as error:
        for index in range(len(descriptors) - 2):
            _refuse(descriptors[1], index, error)
    else:
        if intermediate == 0:
            _bear(descriptors, keep)
        os.waitpid(intermediate, 0)
    for descriptor in descriptors:
        os.close(descriptor)


def _refuse(pipe: int, index: int, error: OSError) -> None:
    os.write(pipe, f"{index} - {error.strerror}\n".encode())


def _bear(descriptors: list[int], keep: set[int]) -> None:
    births, pipe, *controls = descriptors
    raw = os.pread(births, os.fstat(births).st_size, 0)
    parent = os.getpid()
    gate, held_open = os.pipe2(os.O_CLOEXEC)  # its end tells the children that this process is ending
    for index, control in enumerate(controls):
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(pipe, index, error)
            continue
        if pid == 0:
            os.close(held_open)
            me = identify(os.getpid())
            assert me is not None
            os.write(pipe, f"{index} {me.pid} {me.start}\n".encode())  # below PIPE_BUF: whole or not at all
            os.close(pipe)
            birth = decode(raw)[index]
            if not _wait_for_guard(gate, parent, birth.guard):
                os._exit(1)
            raise Newborn(birth, control, keep)
    os._exit(0)


def _wait_for_guard(gate: int, intermediate: int, guard: int) -> bool:
    # Blocks until the intermediate ends: a hundred polling children would slow its forking.
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
    keep = open_files() - {guard.fileno()}  # descriptors that the preloaded modules have opened
    guard.send(msgspec.json.encode(ready))
    try:
        _serve(guard, keep)
    except Newborn as newborn:
        guard.detach()
        become_worker(newborn.birth, newborn.control, newborn.keep)
        birth, control = newborn.birth, newborn.control
    else:
        return 0
    return run_entry(birth.entry, control)


if __name__ == "__main__":
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.exit(main(sys.argv[1:]))
