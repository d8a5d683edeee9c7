"""A controller of the tests' own: it starts a guard, listens for it, and keeps what it hears."""

import asyncio
import json
import os
import queue
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from rolecall.guard.proc import identify
from rolecall.rpc.loop import IOThread
from rolecall.rpc.peer import Peer
from rolecall.rpc.server import Hello, Server

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src"


class Controller:
    """One guard and the connection to it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.run_id = f"t{secrets.token_hex(4)}"
        self.guard_id = "g0"
        self.token = secrets.token_hex(32)
        self.runtime_dir = Path(f"/tmp/rolecall-{os.getuid()}") / self.run_id
        self.runtime_dir.mkdir(mode=0o700, parents=True)
        self.run_dir = folder
        self.events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.hello: dict[str, Any] = {}
        self.io = IOThread()
        self.peer = Peer("guard", loop=self.io.loop, on_notify=lambda *event: self.events.put(event))
        self.connected: queue.Queue[None] = queue.Queue()
        self.io.run(self._listen())
        me = identify(os.getpid())
        assert me is not None
        self.config = {
            "run_id": self.run_id,
            "guard_id": self.guard_id,
            "token": self.token,
            "controller": [f"unix:{self.runtime_dir}/controller.sock"],
            "run_dir": str(folder),
            "runtime_dir": str(self.runtime_dir),
            "env": {"PYTHONPATH": os.pathsep.join([str(SOURCES), str(HERE)])},
            "cwd": str(folder),
            "controller_pid": me.pid,
            "controller_start": me.start,
            "entry": "stand_in_worker:run",
            "cold_module": "stand_in_worker",
        } | options
        self.process = self._start_guard()

    async def _listen(self) -> None:
        self.server = Server(self.token, loop=asyncio.get_running_loop(), on_peer=self._on_peer)
        self.server.listen_unix(self.runtime_dir / "controller.sock")

    def _on_peer(self, hello: Hello) -> Peer:
        self.hello = dict(hello.info)
        self.connected.put(None)
        return self.peer

    def _start_guard(self) -> "subprocess.Popen[bytes]":
        read_end, write_end = os.pipe()
        with os.fdopen(write_end, "wb") as pipe:
            process = subprocess.Popen(
                [sys.executable, "-m", "rolecall.guard", "--config-fd", str(read_end)],
                pass_fds=[read_end],
                env=os.environ | {"PYTHONPATH": str(SOURCES)},
                start_new_session=True,
            )
            os.close(read_end)
            pipe.write(json.dumps(self.config).encode())
        return process

    def ask(self, method: str, **value: Any) -> Any:
        """Calls a method of the guard."""
        return self.peer.request(method, value, timeout=60).result()

    def start(self, *specs: dict[str, Any]) -> list[Any]:
        return list(self.ask("start", specs=list(specs)))

    def do(self, result: dict[str, Any], source: str) -> Any:
        """Runs Python text in a stand-in worker and returns what it named `answer`."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(result["socket"])
            with sock.makefile("rw") as stream:
                stream.write(json.dumps(source) + "\n")
                stream.flush()
                return json.loads(stream.readline())

    def event(self, topic: str, timeout: float = 10) -> Any:
        """The next event of a topic."""
        while True:
            seen, value = self.events.get(timeout=timeout)
            if seen == topic:
                return value

    def close(self) -> None:
        """Ends the guard if it still runs, and this end."""
        self.process.terminate()
        self.process.wait(20)
        self.peer.close()
        self.io.run(self.server.close())
        self.io.close()
