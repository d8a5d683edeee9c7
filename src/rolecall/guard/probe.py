"""Observes a worker from outside: `/proc`, its progress page, and on demand its Python stacks."""

import asyncio
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

from rolecall.errors import RolecallError
from rolecall.guard import logs
from rolecall.guard.children import Children
from rolecall.guard.proc import Process, read_stat, read_text, send
from rolecall.guard.spawn import spawn
from rolecall.guard.stall import Sample
from rolecall.guard.table import Record
from rolecall.protocol.guard import NoArguments
from rolecall.protocol.worker_methods import TASKS
from rolecall.transport.files import read_within

TASKS_S = 1.0
PY_SPY_S = 15.0
FAULTHANDLER_S = 2.0
STACKS_SIGNAL = signal.SIGUSR2  # workers register it with faulthandler


def sample(record: Record) -> Sample | None:
    """A sample of a worker; None if it has no process."""
    stat = read_stat(record.process.pid) if record.process else None
    if stat is None or stat.process != record.process:
        return None
    return Sample(time.monotonic(), stat.state, stat.cpu, record.page.read(), record.answers, stat.stack)


async def stacks(record: Record, children: Children) -> str:
    """The Python stacks of a worker's threads, by py-spy where installed, else by its own faulthandler; its tasks'.

    Never raises: if there are no stacks, the text says why.
    """
    process = record.process
    if process is None or record.exit is not None:
        return "no stacks: the worker has no process"
    text, failure = await _by_py_spy(process, children)
    threads = text or await _by_faulthandler(record, process, failure)
    return threads.rstrip() + "\n" + await _tasks(record)


async def _tasks(record: Record) -> str:
    """Those of its event loop's tasks, which threads' stacks do not show, if the loop answers."""
    if record.peer is None:
        return ""
    try:
        return str(await record.peer.request(TASKS.name, NoArguments(), answer=TASKS.answer, timeout=TASKS_S))
    except (RolecallError, TimeoutError):
        return ""


def py_spy(pid: int) -> list[str]:
    """The command that prints a process's stacks; empty without py-spy, beside the interpreter or on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    # Non-blocking: it also reads a stopped process, and does not pause a running one.
    return [program, "dump", "--nonblocking", "--pid", str(pid)] if program else []


async def _by_py_spy(process: Process, children: Children) -> tuple[str, str]:
    argv = py_spy(process.pid)
    if not argv:
        return "", "py-spy is not installed"
    output = os.memfd_create("rolecall-stacks", os.MFD_CLOEXEC)
    try:
        spy = spawn("py-spy", argv, os.environ, log=output)
        ended, _ = await asyncio.wait([children.watch(spy)], timeout=PY_SPY_S)
        if not ended:
            send(spy, signal.SIGKILL)
            return "", f"py-spy did not finish within {PY_SPY_S:g} s"
        text = os.pread(output, 1 << 20, 0).decode(errors="replace")
        return (text, "") if ended.pop().result().code == 0 else ("", f"py-spy failed: {text.strip()}")
    finally:
        os.close(output)


async def _by_faulthandler(record: Record, process: Process, failure: str) -> str:
    stat = read_stat(process.pid)
    if stat is None or stat.state in "Tt":
        return f"no stacks: {failure}, and a stopped process cannot write them itself"
    if not _handles(process.pid, STACKS_SIGNAL):
        return f"no stacks: {failure}, and the worker has not registered faulthandler"
    start = await read_within(logs.TAIL_S, partial(logs.size, record.log_path), 0)
    send(process, STACKS_SIGNAL)
    for _ in range(int(FAULTHANDLER_S / 0.05)):
        await asyncio.sleep(0.05)
        written = await read_within(logs.TAIL_S, partial(logs.read_from, record.log_path, start), b"")
        text = written.decode(errors="replace")
        if "File " in text:
            return text
    return f"no stacks: {failure}, and faulthandler wrote nothing within {FAULTHANDLER_S:g} s"


def _handles(pid: int, number: int) -> bool:
    """True when the process catches a signal, which would end it otherwise."""
    lines = read_text(f"/proc/{pid}/status").splitlines()
    mask = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(mask >> (number - 1) & 1)
