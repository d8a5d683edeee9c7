"""The other process of the transport's tests: serves a few methods on a Unix socket and on TCP until stdin closes.

python rpc_program.py <socket> [--asyncio]
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from rolecall.errors import ProtocolError
from rolecall.transport.http.messages import Request, Response, json_response
from rolecall.transport.http.router import Routes
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Incoming, Peer
from rolecall.transport.server import Hello, PeerRegistry, Server

TOKEN = "a-token-that-must-never-show-0123456789abcdef"


class Program:
    """Answers on a thread of its own, as an engine does; `counter` counts executions."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.counter = 0
        self.notes: list[Any] = []
        self.cancelled: list[str] = []
        self.tensor: Any = None
        self._work: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._run, daemon=True).start()

    def dispatch(self, incoming: Incoming) -> None:
        if incoming.method.startswith("async_"):
            self.start(getattr(self, incoming.method)(incoming), incoming)
        else:
            self._work.put(incoming)

    def start(self, coro: Coroutine[Any, Any, None], incoming: Incoming) -> None:
        """Answers on the loop."""
        task = self.loop.create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, incoming))
        incoming.on_cancel(task.cancel)

    def _ended(self, task: asyncio.Task[None], incoming: Incoming) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before its first step, so that it cannot say so itself
            self.cancelled.append(incoming.method)
            incoming.fail(asyncio.CancelledError())

    def _run(self) -> None:
        while True:
            incoming = self._work.get()
            try:
                value = getattr(self, incoming.method)(incoming)
            except Exception as e:
                incoming.fail(e)
            else:
                incoming.finish(value)

    def echo(self, incoming: Incoming) -> Any:
        return incoming.args()

    def count(self, incoming: Incoming) -> Any:
        self.counter += 1
        return incoming.args()

    def counted(self, incoming: Incoming) -> int:
        return self.counter

    def fail(self, incoming: Incoming) -> None:
        raise ValueError(incoming.args())

    def bad_result(self, incoming: Incoming) -> Any:
        return {"fine": 1, "bad": [lambda: None]}

    def numbers(self, incoming: Incoming) -> str:
        """A stream that stops where its caller stops taking."""
        for i in range(incoming.args()):
            self.counter += 1
            incoming.emit_blocking(i)
        return "end"

    def lend(self, incoming: Incoming) -> Any:
        """Answers with a tensor that the next call changes."""
        import torch

        self.tensor = torch.zeros(incoming.args(), dtype=torch.float32)
        return self.tensor

    def change(self, incoming: Incoming) -> None:
        self.tensor.add_(1)

    def wait_for_file(self, incoming: Incoming) -> str:
        path = Path(incoming.args())
        while not path.exists():
            time.sleep(0.005)
        return "there"

    def seen(self, incoming: Incoming) -> dict[str, Any]:
        return {"notes": self.notes, "cancelled": self.cancelled, "pid": os.getpid()}

    async def async_sleep(self, incoming: Incoming) -> None:
        await asyncio.sleep(incoming.args())
        incoming.finish("slept")

    async def async_numbers(self, incoming: Incoming) -> None:
        for i in range(incoming.args()):
            await incoming.emit(i)
        incoming.finish("end")


class OfOneCaller:
    """The program as one of its callers finds it: two methods are about the caller's own peer."""

    def __init__(self, program: Program, name: str) -> None:
        self._program = program
        self.peer = Peer(
            name,
            loop=program.loop,
            handler=self,
            on_notify=lambda noted: program.notes.append([noted.method, noted.args()]),
            probe=0.1,
        )

    def dispatch(self, incoming: Incoming) -> None:
        if incoming.method == "stored":
            incoming.finish(self.peer.incoming.kept)
        elif incoming.method == "call_back":
            self._program.start(self._call_back(incoming), incoming)
        else:
            self._program.dispatch(incoming)

    async def _call_back(self, incoming: Incoming) -> None:
        incoming.finish(await self.peer.request("double", incoming.args()))


def routes() -> Routes:
    found = Routes()

    async def health(request: Request) -> Response:
        return json_response({"status": "ok", "query": request.query})

    async def echo(request: Request) -> Response:
        return Response(200, {"content-type": "application/octet-stream"}, request.body)

    async def item(request: Request) -> Response:
        return json_response(request.params)

    async def boom(request: Request) -> Response:
        raise RuntimeError(f"it broke; {TOKEN}")

    found.add("GET", "/health", health)
    found.add("POST", "/echo", echo, max_body=1 << 20)
    found.add("PUT", "/data/{id}", item)
    found.add("DELETE", "/data/{id}", item)
    found.add("POST", "/boom", boom)
    return found


def main(path: str, *flags: str) -> None:
    with IOThread(uvloop="--asyncio" not in flags) as io:
        program = Program(io.loop)

        def make(hello: Hello) -> Peer:
            if hello.name == "refused":
                raise ProtocolError("refused as asked")
            return OfOneCaller(program, "caller").peer

        async def listen() -> tuple[Server, int]:
            server = Server(TOKEN, loop=io.loop, on_peer=PeerRegistry(make), http=routes())
            server.listen_unix(path)
            return server, server.listen_tcp()

        server, port = io.run(listen())
        print(port, flush=True)
        sys.stdin.read()
        io.run(server.close())
    os._exit(0)  # the engine thread may be in the middle of something


class Running:
    """One running program: where it listens, and its process."""

    def __init__(self, path: Path, *flags: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.addresses = [f"unix:{path}"]

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=10)
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def running(path: Path, *flags: str) -> Iterator[Running]:
    program = Running(path, *flags)
    try:
        yield program
    finally:
        program.close()


def until(happened: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for what another process reports only when asked."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


if __name__ == "__main__":
    main(*sys.argv[1:])
