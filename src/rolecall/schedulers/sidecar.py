"""A process beside the controller, for a library that must not live in it. Orders go in, news come out.

Both travel as lines of JSON over a pair of sockets: an order is an object, a piece of news is `[key, value]`. The
process ends when the controller is gone, and the controller learns of its end as of any other news.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rolecall.schedulers.launching import python_path
from rolecall.schedulers.plan import base_environment

ANSWER = "answer "
ANSWER_S = 5.0
SHORT_S = 1.0  # once an answer did not come
END_S = 30.0  # after which an end that waits for the library is no longer waited for


class Sidecar:
    """The controller's end. Methods may be called from any thread.

    Args:
        module: Run as `python -m module N`, where N is the descriptor of its end.
        log_path: Takes all that it prints.
        env: Variables of its environment, beside the controller's own.

    Attributes:
        news: The latest of each key. Keys that begin with `answer ` are taken.
        lost: Why there will be no more news; None while it lives.
    """

    def __init__(self, module: str, log_path: Path, env: Mapping[str, str]) -> None:
        self.news: dict[str, Any] = {}
        self.lost: str | None = None
        self._asked = itertools.count(1)
        self._awaited: set[str] = set()
        self._patience: float | None = None
        self._orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._log = log_path
        self._fresh = threading.Condition()
        self._channel, theirs = socket.socketpair()
        with theirs, log_path.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is for the controller
                env={**base_environment(os.environ, python_path()), **env},
            )
        self._threads = [
            threading.Thread(target=work, name="rolecall-sidecar", daemon=True) for work in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def tell(self, **order: Any) -> None:
        """Sends an order, whole even when Ctrl-C comes now; one that the process can no longer take is lost."""
        self._orders.put(json.dumps(order).encode() + b"\n")

    def wait_for(self, key: str, timeout: float, *, unless: str = "") -> bool:
        """Waits for news of a key, no longer than until there are news of the other; False when they did not come."""
        with self._fresh:
            keys = {key, unless}
            self._fresh.wait_for(lambda: keys & self.news.keys() or self.lost is not None, timeout)
            return key in self.news

    def ask(self, do: str, *, timeout: float = ANSWER_S, **facts: Any) -> tuple[bool, Any]:
        """Sends an order that is answered; returns whether an answer came in time, and the answer.

        Who has once waited in vain does not wait so long again.
        """
        reply = f"{ANSWER}{next(self._asked)}"
        self._awaited.add(reply)
        self.tell(do=do, reply=reply, **facts)
        answered = self.wait_for(reply, timeout if self._patience is None else min(timeout, self._patience))
        self._patience = None if answered else SHORT_S
        with self._fresh:
            self._awaited.discard(reply)
            return answered, self.news.pop(reply, None)

    def close(self, patience: float) -> bool:
        """Ends it; False when it had to be killed. May be called twice."""
        self._orders.put(None)
        try:
            self._process.wait(patience)
            ended = True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            ended = False
        for thread in self._threads:
            thread.join()
        self._channel.close()
        return ended

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # it has ended, which is news
            while (order := self._orders.get()) is not None:
                self._channel.sendall(order)
            self._channel.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._channel.makefile("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):  # else it died as it wrote this
                    self._learn(*json.loads(line))
        with self._fresh:
            self.lost = self._last_words()
            self._fresh.notify_all()

    def _learn(self, key: str, value: Any) -> None:
        with self._fresh:
            if key in self._awaited or not key.startswith(ANSWER):  # else nobody waits for it any more
                self.news[key] = value
                self._fresh.notify_all()

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"see {self._log}"


class Post:
    """The sidecar's own end: what comes from the controller, and what goes to it.

    Attributes:
        last: Called when the controller is gone and the process has not ended in time, before it is ended.
    """

    def __init__(self, fd: int) -> None:
        self.last: Callable[[], object] = bool
        self._channel = socket.socket(fileno=fd)
        self._sending = threading.Lock()

    def orders(self) -> Iterator[dict[str, Any]]:
        """What the controller wants, until it is gone. The process then has END_S to end by itself."""
        try:
            with contextlib.suppress(ConnectionError):
                yield from (json.loads(line) for line in self._channel.makefile("rb"))
        finally:
            end = threading.Timer(END_S, self._end)
            end.daemon = True
            end.start()

    def _end(self) -> None:
        try:
            self.last()
        finally:
            os._exit(1)

    def say(self, key: str, value: Any) -> None:
        """Sends news. From any thread."""
        with self._sending, contextlib.suppress(OSError):  # nobody is there any more
            self._channel.sendall(json.dumps([key, value]).encode() + b"\n")
