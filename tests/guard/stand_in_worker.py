"""A worker of the tests' own: it speaks the control channel, and runs the Python text sent to its socket."""

import contextlib
import json
import os
import socket
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from rolecall.transport.link import Link
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Incoming, Peer


class Worker:
    def __init__(self, control: socket.socket) -> None:
        self.io = IOThread()
        self.closed = threading.Event()
        self.config: dict[str, Any] = {}
        self.peer = Peer("guard", loop=self.io.loop, handler=self, on_detached=lambda _: self.closed.set())
        self.io.call_soon(lambda: self.peer.attach(Link(control, loop=self.io.loop)))

    def dispatch(self, incoming: Incoming) -> None:
        if incoming.method == "configure":
            threading.Thread(target=self._configure, args=(incoming,), daemon=True).start()
        elif incoming.method == "set_env":
            os.environ.update(incoming.args()["env"])
            incoming.finish(None)

    def _configure(self, incoming: Incoming) -> None:
        self.config = incoming.args()
        exec(os.environ.get("STAND_IN_BEFORE_READY", ""), {"worker": self, "os": os, "threading": threading})
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            Path(self.config["socket"]).unlink()
        listener.bind(self.config["socket"])
        listener.listen()
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        incoming.finish(None)

    def _beat(self) -> None:
        with Path(self.config["progress"]).open("r+b", buffering=0) as page:
            beats = 0
            while not os.environ.get("STAND_IN_NO_BEAT"):
                beats += 1
                os.pwrite(page.fileno(), struct.pack("<Q", beats), 0)
                threading.Event().wait(0.1)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rw") as stream:
            source = json.loads(stream.readline())
            scope: dict[str, Any] = {"worker": self}
            try:
                exec(source, scope)
                stream.write(json.dumps(scope.get("answer")) + "\n")
            except BaseException:
                stream.write(json.dumps({"error": traceback.format_exc()}) + "\n")


def run(control: socket.socket) -> int:
    """The entry: runs until the guard closes the control channel."""
    worker = Worker(control)
    worker.closed.wait()
    return 0


def main() -> int:
    control = socket.socket(fileno=int(os.environ["ROLECALL_CONTROL"]))
    control.set_inheritable(False)
    return run(control)


if __name__ == "__main__":
    sys.exit(main())
