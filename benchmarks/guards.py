"""A controller with 1,024 guards: how long until all have registered, and how long one call to each takes.

    python benchmarks/guards.py [--guards 1024] [--rounds 5] [--repeat 20] [--only tcp,unix] [--json FILE]

The controller's side is the product's own `GuardListener`. The guards are light stand-ins: a few processes, each with
many connections that say a guard's hello, answer the lease, and answer requests, in the structs of `protocol/`. They
are on this machine and share its cores with the controller. In every round both ways to connect are measured, each with
a run and stand-ins of its own; the order rotates. Medians of:

registered_s    from the word to dial until the controller has all guards
call_ms         one request to each guard at once, until all answers are there
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parent.parent)

import msgspec

from benchmarks import rounds
from rolecall.guard import host
from rolecall.protocol.events import ALIVE
from rolecall.protocol.guard import TABLE, NoArguments
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import to_plain
from rolecall.scheduler.guards import ask_all
from rolecall.scheduler.keywords import RunOptions
from rolecall.scheduler.listener import GuardListener
from rolecall.scheduler.run import Run
from rolecall.transport.client import Client
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Incoming, Peer

CONTENDERS = ("tcp", "unix")
MEASURES = ("registered_s", "call_ms")
GUARDS, REPEAT, QUICK_REPEAT = 1024, 20, 5
PROCESSES = 2
STAND_IN = "stand-in"
PATIENCE_S = 60.0


def main() -> None:
    parser = rounds.parser(__doc__, CONTENDERS)
    parser.add_argument("--guards", type=int, default=GUARDS, help="default: %(default)s")
    parser.add_argument("--repeat", type=int, help=f"calls in a round ({REPEAT}; with --quick {QUICK_REPEAT})")
    options = rounds.parsed(parser, CONTENDERS)
    repeat = options.repeat or (QUICK_REPEAT if options.quick else REPEAT)
    contest = rounds.Contest(MEASURES, "call_ms", "unix", {"guards": options.guards, "repeat": repeat})
    measured: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(_measured, name, options.guards, repeat) for name in CONTENDERS
    }
    contest.run(measured, options)


def _measured(contender: str, count: int, repeat: int) -> dict[str, float]:
    with ExitStack() as up:
        run = Run("bench", "guards", up.enter_context(tempfile.TemporaryDirectory()))
        run.open()
        up.callback(run.close)
        io = up.enter_context(IOThread())
        listener = GuardListener(run, io, RunOptions(preload=(), start_timeout=PATIENCE_S))
        listener.open(lambda guard, event: None)
        up.callback(listener.close)
        if contender == "tcp":
            listener.listen("127.0.0.1")
            del listener.addresses[0]
        guards = [listener.expect(f"g{number}") for number in range(count)]
        configs = [listener.guard_config(guard.guard_id, ip="127.0.0.1") for guard in guards]
        ready = [up.enter_context(_StandIns(configs[n::PROCESSES])) for n in range(PROCESSES)]

        begun = time.perf_counter()
        for process in ready:
            _told(process, "dial")
        if not all(guard.wait(PATIENCE_S) for guard in guards):
            raise RuntimeError(f"{sum(not guard.connected for guard in guards)} guards have not registered")
        registered = time.perf_counter() - begun

        calls = []
        for _ in range(repeat + 1):
            begun = time.perf_counter()
            answers = ask_all(TABLE, [(guard, NoArguments()) for guard in guards], PATIENCE_S)
            calls.append((time.perf_counter() - begun) * 1e3)
            if answers != [[]] * count:
                raise RuntimeError("a guard gave another answer")
        for guard in guards:
            guard.ending = True  # what closes from here on is no loss
        return {"registered_s": round(registered, 3), "call_ms": round(statistics.median(calls[1:]), 2)}


class _StandIns(subprocess.Popen[str]):
    """A process of stand-ins, which is ready to dial."""

    def __init__(self, configs: list[GuardConfig]) -> None:
        super().__init__([sys.executable, __file__, STAND_IN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        _told(self, json.dumps([to_plain(config) for config in configs]))
        if self.stdout is None or self.stdout.readline() != "ready\n":
            raise RuntimeError("the stand-ins did not start")

    def __exit__(self, *exc: object) -> None:
        if self.stdin is not None:
            self.stdin.close()  # which ends it
        super().__exit__(*exc)  # type: ignore[arg-type]


def _told(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def stand_in() -> None:
    """The guards of one process; they end with its stdin."""
    configs = msgspec.json.decode(sys.stdin.readline(), type=list[GuardConfig])
    with IOThread() as io:
        print("ready", flush=True)
        sys.stdin.readline()
        clients = [_dialled(config, io) for config in configs]
        sys.stdin.read()
        for client in clients:
            client.close()


def _dialled(config: GuardConfig, io: IOThread) -> Client:
    hello = host.hello(config)
    assert hello.guard is not None
    guard = msgspec.structs.replace(hello.guard, host_id="elsewhere")
    hello = msgspec.structs.replace(hello, guard=guard)

    def renewed(incoming: Incoming) -> None:
        client.peer.notify(ALIVE)

    peer = Peer("controller", loop=io.loop, handler=_EmptyTable(), on_notify=renewed)
    client = Client(peer, config.controller, config.token, hello)
    return client


class _EmptyTable:
    """Answers every request as a guard without workers answers `table`."""

    def dispatch(self, incoming: Incoming) -> None:
        incoming.finish([])


if __name__ == "__main__":
    stand_in() if sys.argv[1:] == [STAND_IN] else main()
