"""A controller of the tests' own: it starts a guard, listens for it, and keeps what it hears."""

import asyncio
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rolecall.guard import runtime
from rolecall.guard.proc import Process, alive, identify
from rolecall.guard.sweep import run_processes
from rolecall.protocol.state import GuardState
from rolecall.transport.incoming import Incoming
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from rolecall.transport.server import Hello, Server
from tests.support.checkout import PYTHONPATH, SOURCES
from tests.support.waiting import poll


def wait_for(what: Callable[[], Any], timeout: float = 10.0) -> Any:
    """Looks until `what` is true, and returns it."""
    value = poll(what, timeout)
    assert value, f"not so within {timeout} s"
    return value


class Rig:
    """One guard and a controller's connection to it. Options are fields of `GuardConfig`."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.run_id = f"t{secrets.token_hex(4)}"
        self.guard_id = "g0"
        self.token = secrets.token_hex(32)
        self.runtime_dir = Path(tempfile.gettempdir(), f"rolecall-{os.getuid()}", self.run_id)
        self.runtime_dir.mkdir(mode=0o700, parents=True)
        self.run_dir = folder
        self.hello = Hello()
        self.connected: queue.Queue[None] = queue.Queue()
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.io = IOThread()
        self.peer = Peer("guard", loop=self.io.loop, on_notify=self._told)
        self.io.run(self._listen())
        self.config = self._config() | options
        self.reaper = self._start_guard()
        self.connected.get(timeout=30)

    def _config(self) -> dict[str, Any]:
        me = identify(os.getpid())
        assert me is not None
        return {
            "run_id": self.run_id,
            "guard_id": self.guard_id,
            "token": self.token,
            "controller": [f"unix:{self.runtime_dir}/controller.sock"],
            "run_dir": str(self.run_dir),
            "runtime_dir": str(self.runtime_dir),
            "env": {"PYTHONPATH": PYTHONPATH},
            "cwd": str(self.run_dir),
            "controller_pid": me.pid,
            "controller_start": me.start,
            "entry": "tests.guard.stand_in_worker:run",
            "cold_module": "tests.guard.stand_in_worker",
        }

    async def _listen(self) -> None:
        self.server = Server(self.token, loop=asyncio.get_running_loop(), on_peer=self._on_peer)
        self.server.listen_unix(self.runtime_dir / "controller.sock")

    def _on_peer(self, hello: Hello) -> Peer:
        self.hello = hello
        self.connected.put(None)
        return self.peer

    def _told(self, incoming: Incoming) -> None:
        self._events.put((incoming.method, incoming.args()))

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

    # Speaking with the guard

    @property
    def said(self) -> GuardState:
        """What the guard said of itself."""
        assert self.hello.guard is not None
        return self.hello.guard

    @property
    def guard_pid(self) -> int:
        return self.said.pid

    def ask(self, method: str, **value: Any) -> Any:
        """Calls a method of the guard."""
        return self.peer.request(method, value, timeout=60).result()

    def start(self, *specs: dict[str, Any]) -> list[dict[str, Any]]:
        """Starts workers; each result as it came."""
        return list(self.ask("start", specs=list(specs)))

    def worker(self, worker_id: str = "actor/0", **spec: Any) -> dict[str, Any]:
        """Starts one worker, which must succeed."""
        (result,) = self.start({"worker_id": worker_id, **spec})
        assert result["ok"], result
        return result

    def do(self, result: dict[str, Any], source: str) -> Any:
        """Runs Python text in a stand-in worker; returns what it named `answer`."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(result["socket"])
            with sock.makefile("rw") as stream:
                stream.write(json.dumps(source) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def event(self, topic: str, timeout: float = 10) -> dict[str, Any]:
        """The next event of a topic; others are dropped."""
        while True:
            seen, value = self._events.get(timeout=timeout)
            if seen == topic:
                return dict(value)

    def events(self) -> list[tuple[str, Any]]:
        """What has come so far and was not asked for yet."""
        seen = []
        while not self._events.empty():
            seen.append(self._events.get())
        return seen

    def template_pid(self) -> int:
        """The template process, once there is one."""
        return int(
            wait_for(lambda: [item.stat.pid for item in run_processes(self.run_id) if item.stat.name == "rc:template"])[
                0
            ]
        )

    def process(self, pid: int) -> Process:
        found = identify(pid)
        assert found is not None
        return found

    # Ending

    def left(self) -> list[Any]:
        """Processes of the run that still live."""
        return run_processes(self.run_id)

    def close(self) -> None:
        """Ends the guard if it still runs, and this end; proves that nothing of the run remains."""
        if self.reaper.poll() is None:
            self.reaper.terminate()
        self.reaper.wait(30)
        self.peer.close()
        self.io.run(self.server.close())
        self.io.close()
        assert not self.left()
        (self.runtime_dir / "controller.sock").unlink(missing_ok=True)
        if self.reaper.returncode == -signal.SIGKILL:  # then it is the controller who cleans up
            runtime.clean(str(self.runtime_dir), self.guard_id)
        if self.runtime_dir.exists():  # the guard leaves it to a controller that lives
            assert list(self.runtime_dir.iterdir()) == []
            self.runtime_dir.rmdir()


def gone(process: Process) -> bool:
    """True when a process has ended."""
    return not alive(process)
