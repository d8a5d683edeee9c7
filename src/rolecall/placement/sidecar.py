"""A process beside the controller, for a library that must not live in it. It takes requests, and tells news.

It ends when the controller is gone, and the controller learns of its end as of any other news.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from rolecall.errors import RolecallError, RPCConnectionError
from rolecall.guard.proc import read_text
from rolecall.placement.launching import python_path
from rolecall.placement.plan import base_environment
from rolecall.protocol.guard import Method
from rolecall.protocol.message import Message
from rolecall.transport.files import opener
from rolecall.transport.incoming import Incoming
from rolecall.transport.link import Link
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer

CONTROLLER = "the controller"
ANSWER_S = 5.0
SILENT_S = 5.0
END_S = 30.0  # after which an end that waits for the library is no longer waited for
Q = TypeVar("Q", bound=Message)
A = TypeVar("A")
T = TypeVar("T")
Handler = Callable[[Q], Callable[[], A]]


class Sidecar(Generic[T]):
    """The controller's end. Methods may be called from any thread but the I/O thread.

    Args:
        module: Run as `python -m module N`, where N is the descriptor of its end.
        log_path: Takes all that it prints.
        env: Variables of its environment, beside the controller's own.
        io: Where the conversation takes place: Ctrl-C interrupts nothing there.
        kind: What news are.

    Attributes:
        lost: Why there will be no more news; None while it lives.
    """

    def __init__(self, module: str, log_path: Path, env: Mapping[str, str], io: IOThread, kind: type[T]) -> None:
        self._kind = kind
        self._news: dict[str, T] = {}
        self.lost: str | None = None
        self._unanswered_at = float("-inf")
        self._log, self._io = log_path, io
        self._fresh = threading.Condition()
        self._peer = Peer(module, loop=io.loop, on_notify=self._learn, on_detached=self._detached)
        ours, theirs = socket.socketpair()
        with theirs, open(log_path, "ab", opener=opener) as out:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is for the controller
                env={**base_environment(os.environ, python_path()), **env},
            )
        io.run(_attach(self._peer, ours))

    def tell(self, method: Method[Q, None], request: Q) -> None:
        """Sends a request that has no answer; one that the process can no longer take is lost."""
        self._io.call_soon(self._tell, method.name, request)

    def ask(self, method: Method[Q, A], request: Q, *, timeout: float = ANSWER_S) -> A | None:
        """Returns the answer, None when none came in time, or raises what the process failed with."""
        try:
            answer: A = self._peer.request(method.name, request, timeout=timeout, answer=method.answer).result()
        except (TimeoutError, RPCConnectionError):
            self._unanswered_at = time.monotonic()
            return None
        self._unanswered_at = float("-inf")
        return answer

    def latest(self, name: str) -> T | None:
        """The latest news under a name, if there were any."""
        return self._news.get(name)

    @property
    def silent(self) -> bool:
        """Whether somebody has waited in vain just now, so that the next one need not."""
        return time.monotonic() < self._unanswered_at + SILENT_S

    def wait_for(self, name: str, wanted: Callable[[T], bool], timeout: float) -> bool:
        """Waits for news under a name, of a kind that is wanted; False when they did not come."""

        def there() -> bool:
            return (news := self.latest(name)) is not None and wanted(news)

        with self._fresh:
            self._fresh.wait_for(lambda: there() or self.lost is not None, timeout)
            return there()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self, patience: float) -> bool:
        """Ends it; False when it had to be killed. May be called twice."""
        self._peer.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True

    def _tell(self, method: str, value: Message) -> None:
        with contextlib.suppress(RolecallError):  # it has ended, which is news
            self._peer.notify(method, value)

    def _learn(self, incoming: Incoming) -> None:
        news = incoming.message(self._kind, self._peer.name)
        with self._fresh:
            self._news[incoming.method] = news
            self._fresh.notify_all()

    def _detached(self, error: Exception | None) -> None:
        with self._fresh:
            self.lost = self._last_words() or f"see {self._log}"
            self._fresh.notify_all()
        self._peer.fail(RPCConnectionError(self._peer.name, self.lost))

    def _last_words(self) -> str:
        lines = read_text(self._log).splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")


class SidecarServer:
    """The sidecar's own end. `fd`: the descriptor that it was started with."""

    def __init__(self, fd: int) -> None:
        self._handlers: dict[str, Callable[[Incoming], Callable[[], Any]]] = {}
        self._channel = socket.socket(fileno=fd)
        self._channel.set_inheritable(False)
        self._gone = threading.Event()
        self._io = IOThread("rolecall-sidecar")
        self._peer = Peer("controller", loop=self._io.loop, handler=self, on_notify=self._told, on_detached=self._over)

    def handle(self, method: Method[Q, A], handler: Handler[Q, A]) -> None:
        """Has requests of a method handled, one after the other as they come, without waiting.

        Args:
            handler: What it returns is then done in a thread of its own, since it may have to wait for the library;
                that returns the answer.
        """
        self._handlers[method.name] = lambda incoming: handler(incoming.message(method.request, CONTROLLER))

    def serve(self, last: Callable[[], object]) -> None:
        """Returns when the controller is gone. The process then has END_S to end by itself.

        Args:
            last: Called before the process is ended because it did not.
        """
        self._last = last
        beside(self._watch_parent)
        self._io.run(_attach(self._peer, self._channel))
        self._gone.wait()

    def say(self, name: str, news: Message) -> None:
        """Sends news under a name. From any thread."""
        with contextlib.suppress(RolecallError):  # nobody is there any more
            self._peer.notify(name, news)

    def dispatch(self, incoming: Incoming) -> None:
        work = self._handlers[incoming.method](incoming)
        beside(lambda: _answer(incoming, work))

    def _told(self, incoming: Incoming) -> None:
        beside(self._handlers[incoming.method](incoming))

    def _watch_parent(self) -> None:
        """The connection outlives the controller where that had forked, as `multiprocessing` does."""
        look = select.poll()
        look.register(os.pidfd_open(os.getppid()), select.POLLIN)
        look.poll()
        self._over()

    def _over(self, error: Exception | None = None) -> None:
        if self._gone.is_set():
            return
        self._gone.set()
        end = threading.Timer(END_S, self._end)
        end.daemon = True
        end.start()

    def _end(self) -> None:
        try:
            self._last()
        finally:
            os._exit(1)


def beside(work: Callable[[], object]) -> threading.Thread:
    """Does something in a thread that nobody needs to wait for."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _answer(incoming: Incoming, work: Callable[[], Any]) -> None:
    try:
        answer = work()
    except Exception as e:
        incoming.fail(e)
    else:
        incoming.finish(answer)


async def _attach(peer: Peer, channel: socket.socket) -> None:
    peer.attach(Link(channel, loop=peer.loop))
