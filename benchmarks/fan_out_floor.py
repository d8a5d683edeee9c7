"""How fast many workers could be asked at once if rolecall did nothing: forked processes that only echo.

    python benchmarks/fan_out_floor.py [--json] [--processes 8 64 256] [--rounds 40]

`loop` answers on a uvloop event loop; `thread` hands each message to another thread, which answers, since an engine's
methods run on a thread of their own. The controller writes to all sockets, then reads all answers with
epoll. Nothing is encoded. Medians in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import select
import socket
import statistics
import threading
import time
from contextlib import ExitStack

import uvloop

MESSAGE = b"x" * 200
HOWS = ("loop", "thread")


class Echo(asyncio.Protocol):
    def __init__(self, sock: socket.socket, how: str) -> None:
        self._sock = sock
        self._messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._take = sock.send if how == "loop" else self._messages.put
        self.ended = asyncio.Event()
        if how == "thread":
            threading.Thread(target=self._answer, daemon=True).start()

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()

    def _answer(self) -> None:
        while True:
            self._sock.send(self._messages.get())


async def echo(sock: socket.socket, how: str) -> None:
    protocol = Echo(sock, how)
    await asyncio.get_running_loop().create_connection(lambda: protocol, sock=sock)
    await protocol.ended.wait()


def measured(processes: int, how: str, rounds: int) -> float:
    """The median of `rounds` rounds, in milliseconds."""
    pids: list[int] = []
    with ExitStack() as open_files:
        sockets: dict[int, socket.socket] = {}
        poll = open_files.enter_context(select.epoll())
        for _ in range(processes):
            ours, theirs = socket.socketpair()
            if not (pid := os.fork()):
                try:
                    for sock in (ours, *sockets.values()):
                        sock.close()
                    theirs.setblocking(False)
                    uvloop.run(echo(theirs, how))
                finally:
                    os._exit(0)
            pids.append(pid)
            theirs.close()
            sockets[ours.fileno()] = open_files.enter_context(ours)
            poll.register(ours, select.EPOLLIN)
        took = [round_of(sockets, poll) for _ in range(rounds)]
    for pid in pids:
        os.waitpid(pid, 0)
    return statistics.median(took[rounds // 4 :]) * 1e3  # the first ones wait for processes that are being made


def round_of(sockets: dict[int, socket.socket], poll: select.epoll) -> float:
    begun = time.perf_counter()
    for sock in sockets.values():
        sock.send(MESSAGE)
    waiting = len(sockets)
    while waiting:
        for descriptor, _ in poll.poll():
            sockets[descriptor].recv(4096)
            waiting -= 1
    took = time.perf_counter() - begun
    time.sleep(0.02)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--processes", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    found = {
        f"{how} {count}": round(measured(count, how, options.rounds), 2) for count in options.processes for how in HOWS
    }
    if options.json:
        print(json.dumps(found))
    else:
        for name, milliseconds in found.items():
            print(f"{name:>12} {milliseconds:8.2f} ms")


if __name__ == "__main__":
    main()
