"""The controller's view of one guard: a conversation, and what the guard said of itself when it connected."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, Generic, TypeVar

from rolecall.errors import GuardLostError, ProtocolError, RolecallError
from rolecall.placement.base import Explain
from rolecall.protocol.events import ALIVE, EVENTS, FROM_GUARDS, LEASE, Event, GuardStalled
from rolecall.protocol.guard import START, Method, ProcessSpec, Start, StartResult
from rolecall.protocol.guard_hello import GuardHello
from rolecall.protocol.message import Message, from_plain, to_plain
from rolecall.protocol.state import GuardState
from rolecall.transport.call import fresh
from rolecall.transport.hosts import this_host
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Call, Peer

log = logging.getLogger("rolecall")
EventSink = Callable[["GuardProxy", Event], None]
Q = TypeVar("Q", bound=Message)
A = TypeVar("A")
SILENT_LOOKS = 3
# A caller knows within 15 s what happened: silence is noticed after 12 s at the most, a closed connection at once.
SILENT_TOLD_S, CLOSED_TOLD_S = 2.0, 10.0


class GuardProxy:
    """One guard as the controller knows it.

    Args:
        explain: Who knows why it ended; None where only its process could tell.

    Attributes:
        hello: What it said of itself when it connected; None before.
        cut: Its connection closed. What it or its workers say from then on belongs to the past.
    """

    def __init__(
        self,
        guard_id: str,
        io: IOThread,
        on_event: EventSink,
        on_lost: Callable[[GuardProxy], None],
        explain: Explain | None = None,
    ) -> None:
        self.guard_id = guard_id
        self.cut = False
        self.explain = explain
        self._unanswered = 0
        self.hello: GuardHello | None = None
        self.lost: GuardLostError | None = None
        self.ending = False
        self.peer = Peer(f"guard {guard_id}", loop=io.loop, on_notify=self._notified, on_detached=self._disconnected)
        self._arrived = threading.Event()
        self._on_event, self._on_lost = on_event, on_lost

    def arrive(self, hello: GuardHello) -> None:
        """It has connected."""
        self.hello = hello
        self._arrived.set()

    @property
    def pid(self) -> int:
        """0 until it has connected."""
        return self.hello.pid if self.hello else 0

    @property
    def host(self) -> str:
        """Name of its host, empty until it has connected."""
        return self.hello.host if self.hello else ""

    @property
    def ip(self) -> str:
        """Address of its host, empty until it has connected."""
        return self.hello.ip if self.hello else ""

    @property
    def here(self) -> bool:
        """True when it is on the controller's own host, whose files and processes they share."""
        return self.hello is not None and self.hello.host_id == this_host()

    def view(self) -> GuardState:
        """It as a value, as it is now."""
        if self.hello is None:
            return GuardState(id=self.guard_id)
        said = self.hello
        return GuardState(
            id=self.guard_id,
            pid=said.pid,
            host=said.host,
            host_id=said.host_id,
            ip=said.ip,
            devices=said.devices,
            python=said.python,
        )

    def renew(self) -> None:
        """Renews its lease. A guard elsewhere that has not answered the last few times is lost."""
        if self.hello is None or self.lost is not None or self.cut:
            return
        if not self.here and self._unanswered >= SILENT_LOOKS:
            self._gone("nothing was heard of it: its host or the network failed, or it was stopped", SILENT_TOLD_S)
            return
        self._unanswered += 1
        self.peer.notify(LEASE)

    def wait(self, timeout: float) -> bool:
        """Waits until it has connected or was lost; says whether it is there."""
        self._arrived.wait(timeout)
        return self.hello is not None and self.lost is None

    def ask(self, method: Method[Q, A], request: Q, *, timeout: float | None = None) -> Answer[A]:
        """Sends a request. A lost guard answers at once with GuardLostError."""
        self.check()
        call = self.peer.request(method.name, to_plain(request), timeout=timeout)
        return Answer(call, method.answer, str(self))

    async def start(self, specs: list[ProcessSpec], timeout: float) -> AsyncIterator[StartResult]:
        """Asks for workers and yields each one's result as soon as it is known. On the I/O loop."""
        self.check()
        async for result in self.peer.request(
            START.name, to_plain(Start(specs=specs)), timeout=timeout, streaming=True
        ):
            yield from_plain(StartResult, result, str(self))

    def __str__(self) -> str:
        return f"guard {self.guard_id}"

    def check(self) -> None:
        """Raises GuardLostError once it is lost."""
        if self.lost is not None:
            raise fresh(self.lost)

    def lose(self, reason: str) -> None:
        """Its connection is gone for good. Everything it owned is dead or dying."""
        if self.lost is not None:
            return
        self.lost = self._loss(reason)
        self.peer.fail(self.lost)
        self._arrived.set()
        self._on_lost(self)

    def stall(self, reason: str) -> None:
        """It lives but does not run: what was asked of it fails now, later requests may work again."""
        self.peer.fail_pending(self._loss(reason))
        self._on_event(self, GuardStalled(guard=self.guard_id, pid=self.pid, reason=reason))

    def _loss(self, reason: str) -> GuardLostError:
        return GuardLostError(self.guard_id, self.host, self.pid or None, reason)

    def _disconnected(self, error: Exception | None) -> None:
        if self.ending:  # as it should; who still asks it for something gets no answer any more
            self.peer.fail(self._loss("it ended"))
        else:
            self._gone("its connection closed", CLOSED_TOLD_S, patient=True)

    def _gone(self, reason: str, limit_s: float, *, patient: bool = False) -> None:
        self.cut = True
        if self.explain is None:
            self.lose(reason)
        else:
            told = lambda cause: self.lose(f"{cause} ({reason})" if cause else reason)  # noqa: E731
            self.explain(self, told, patient=patient, limit_s=limit_s)

    def _notified(self, topic: str, value: Any) -> None:
        self._unanswered = 0
        if topic == ALIVE:
            return
        try:
            self._on_event(self, self._event(topic, value))
        except ProtocolError as e:
            log.error("%s", e)

    def _event(self, topic: str, value: Any) -> Event:
        if topic not in FROM_GUARDS:
            raise ProtocolError(f"{self} notified of an unknown event", topic)
        return from_plain(EVENTS[topic], value, str(self))


class Answer(Generic[A]):
    """The answer of a guard that is under way: wait for it, or await it. `call`: the same, as plain values."""

    def __init__(self, call: Call, kind: type[A], guard: str) -> None:
        self.call, self._kind, self._guard = call, kind, guard

    def result(self) -> A:
        """Waits in this thread.

        Raises:
            GuardLostError: The guard is gone.
            ProtocolError: Its answer is not what the method answers.
            TimeoutError: The time limit passed.
        """
        return from_plain(self._kind, self.call.result(), self._guard)

    def __await__(self) -> Generator[Any, None, A]:
        value = yield from self.call.__await__()
        return from_plain(self._kind, value, self._guard)


def ask_all(method: Method[Q, A], requests: Sequence[tuple[GuardProxy, Q]], timeout: float) -> list[A | None]:
    """Asks guards at the same time; returns their answers, None for a guard that gave none.

    For ends, which must go on: a guard that is lost has killed its workers, or its reaper has.
    """
    answers = [_asked(guard, method, request, timeout) for guard, request in requests]
    return [_answer(guard, method, answer) for (guard, _), answer in zip(requests, answers, strict=True)]


def _asked(guard: GuardProxy, method: Method[Q, A], request: Q, timeout: float) -> Answer[A] | None:
    try:
        return guard.ask(method, request, timeout=timeout)
    except RolecallError:
        return None


def _answer(guard: GuardProxy, method: Method[Q, A], answer: Answer[A] | None) -> A | None:
    try:
        return answer.result() if answer is not None else None
    except (RolecallError, TimeoutError) as e:
        log.warning("%s did not confirm %r: %s", guard, method.name, e)
        return None
