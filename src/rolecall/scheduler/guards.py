"""The controller's view of one guard: a conversation, and what the guard said of itself when it connected."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from rolecall.errors import GuardLostError, ProtocolError, RolecallError
from rolecall.placement.base import Explain
from rolecall.protocol.events import ALIVE, EVENTS, FROM_GUARDS, LEASE, Event, GuardLost, GuardStalled
from rolecall.protocol.guard import KILL, START, Kill, Method, ProcessSpec, Start, StartResult
from rolecall.protocol.message import Message
from rolecall.protocol.state import GuardState
from rolecall.transport.address import this_host
from rolecall.transport.call import fresh
from rolecall.transport.incoming import Incoming
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
        state: What it said of itself when it connected; empty before.
        connected: Whether it has, though it may be lost since.
        cut: Its connection closed. What it or its workers say from then on belongs to the past.
    """

    def __init__(self, guard_id: str, io: IOThread, on_event: EventSink, explain: Explain | None = None) -> None:
        self.guard_id, self.explain, self._on_event = guard_id, explain, on_event
        self.state = GuardState(id=guard_id)
        self.lost: GuardLostError | None = None
        self.connected = self.cut = self.ending = False
        self._unanswered = 0
        self.peer = Peer(str(self), loop=io.loop, on_notify=self._notified, on_detached=self._disconnected)
        self._arrived = threading.Event()

    def arrive(self, said: GuardState) -> None:
        """It has connected."""
        self.state, self.connected = said, True
        self._arrived.set()

    @property
    def here(self) -> bool:
        """True when it is on the controller's own host, whose files and processes they share."""
        return self.state.host_id == this_host()

    def renew(self) -> None:
        """Renews its lease. A guard elsewhere that has not answered the last few times is lost."""
        if not self.connected or self.lost is not None or self.cut:
            return
        if not self.here and self._unanswered >= SILENT_LOOKS:
            self._gone("nothing was heard of it: its host or the network failed, or it was stopped", SILENT_TOLD_S)
            return
        self._unanswered += 1
        self.peer.notify(LEASE)

    def wait(self, timeout: float) -> bool:
        """Waits until it has connected or was lost; says whether it is there."""
        self._arrived.wait(timeout)
        return self.connected and self.lost is None

    def ask(self, method: Method[Q, Any], request: Q, *, timeout: float | None = None) -> Call:
        """Sends a request; its result is the method's answer. A lost guard answers at once with GuardLostError."""
        self.check()
        return self.peer.request(method.name, request, timeout=timeout, answer=method.answer)

    async def start(self, specs: list[ProcessSpec], timeout: float) -> AsyncIterator[StartResult]:
        """Asks for workers and yields each one's result as soon as it is known. On the I/O loop."""
        self.check()
        start = Start(specs=specs)
        async for result in self.peer.request(START.name, start, timeout=timeout, streaming=True, answer=StartResult):
            yield result

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
        self._on_event(self, GuardLost(guard=self.guard_id, reason=str(self.lost)))

    def stall(self, reason: str) -> None:
        """It lives but does not run: what was asked of it fails now, later requests may work again."""
        self.peer.fail_pending(self._loss(reason))
        self._on_event(self, GuardStalled(guard=self.guard_id, pid=self.state.pid, reason=reason))

    def _loss(self, reason: str) -> GuardLostError:
        return GuardLostError(self.guard_id, self.state.host, self.state.pid or None, reason)

    def _disconnected(self, error: Exception | None) -> None:
        if self.ending:  # as it should; who still asks it for something gets no answer any more
            self.peer.fail(self._loss("it ended"))
        else:
            self._gone("its connection closed", CLOSED_TOLD_S, patient=True)

    def _gone(self, reason: str, limit_s: float, *, patient: bool = False) -> None:
        self.cut = True
        if self.explain is None:
            return self.lose(reason)
        told = lambda cause: self.lose(f"{cause} ({reason})" if cause else reason)  # noqa: E731
        self.explain(self, told, patient=patient, limit_s=limit_s)

    def _notified(self, incoming: Incoming) -> None:
        self._unanswered, topic = 0, incoming.method
        if topic == ALIVE:
            return
        try:
            if topic not in FROM_GUARDS:
                raise ProtocolError(f"{self} notified of an unknown event", topic)
            self._on_event(self, incoming.message(EVENTS[topic], str(self)))
        except ProtocolError as e:
            log.error("%s", e)


def ask_all(method: Method[Q, A], requests: Sequence[tuple[GuardProxy, Q]], timeout: float) -> list[A | None]:
    """Asks guards at the same time; returns their answers, None for a guard that gave none.

    For ends, which must go on: a guard that is lost has killed its workers, or its reaper has.
    """
    calls: list[Call | None] = []
    for guard, request in requests:
        try:
            calls.append(guard.ask(method, request, timeout=timeout))
        except RolecallError:
            calls.append(None)
    answers: list[A | None] = []
    for (guard, _), call in zip(requests, calls, strict=True):
        try:
            answers.append(call.result() if call is not None else None)
        except (RolecallError, TimeoutError) as e:
            log.warning("%s did not confirm %r: %s", guard, method.name, e)
            answers.append(None)
    return answers


def kill(owners: Mapping[str, GuardProxy], grace_s: float, timeout: float) -> list[str]:
    """Has guards end workers, given with the guard of each, all at once; returns what outlived that."""
    workers: dict[GuardProxy, list[str]] = defaultdict(list)
    for worker, guard in owners.items():
        workers[guard].append(worker)
    kills = [(guard, Kill(workers=ids, grace_s=grace_s)) for guard, ids in workers.items()]
    return [survivor for report in ask_all(KILL, kills, timeout) if report for survivor in report.survivors]
