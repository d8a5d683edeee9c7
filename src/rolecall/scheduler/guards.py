"""The controller's view of one guard: a conversation, and what the guard said of itself when it called home."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from rolecall.errors import GuardLostError, RolecallError
from rolecall.transport.call import fresh
from rolecall.transport.hosts import this_host
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Call, Peer

log = logging.getLogger("rolecall")
EventSink = Callable[["GuardProxy", str, dict[str, Any]], None]
SILENT_LOOKS = 3
# A caller knows within 15 s what happened: silence is noticed after 12 s at the most, a closed connection at once.
SILENT_TOLD_S, CLOSED_TOLD_S = 2.0, 10.0


class Explain(Protocol):
    """Asks why a guard is gone, and has `then` called on the I/O thread with the answer, which may be empty."""

    def __call__(self, guard: GuardProxy, then: Callable[[str], None], *, patient: bool, limit_s: float) -> None: ...


class GuardProxy:
    """One guard as the controller knows it.

    Args:
        explain: Who knows why it ended; None where only its process could tell.

    Attributes:
        info: Its hello: pid, host, ip, cores, memory_gib, devices. Empty until it called.
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
        self._explain = explain
        self._unanswered = 0
        self.info: dict[str, Any] = {}
        self.lost: GuardLostError | None = None
        self.ending = False
        self.peer = Peer(f"guard {guard_id}", loop=io.loop, on_notify=self._notified, on_detached=self._disconnected)
        self._arrived = threading.Event()
        self._on_event, self._on_lost = on_event, on_lost

    def arrive(self, info: dict[str, Any]) -> None:
        """It called home; `info` is what it said of itself."""
        self.info = info
        self._arrived.set()

    @property
    def here(self) -> bool:
        """True when it is on the controller's own host, whose files and processes they share."""
        return bool(self.info.get("host_id") == this_host())

    def renew(self) -> None:
        """Renews its lease. A guard elsewhere that has not answered the last few times is lost."""
        if not self.info or self.lost is not None or self.cut:
            return
        if not self.here and self._unanswered >= SILENT_LOOKS:
            self._gone("nothing was heard of it: its host or the network failed, or it was stopped", SILENT_TOLD_S)
            return
        self._unanswered += 1
        self.peer.notify("lease")

    def wait(self, timeout: float) -> bool:
        """Waits until it has called home or was lost; says whether it is there."""
        self._arrived.wait(timeout)
        return bool(self.info) and self.lost is None

    def ask(self, method: str, value: dict[str, Any] | None = None, *, timeout: float | None = None) -> Call:
        """Sends a request. A lost guard answers at once with GuardLostError."""
        self.check()
        return self.peer.request(method, value or {}, timeout=timeout)

    def start(self, specs: list[dict[str, Any]], timeout: float) -> AsyncIterator[dict[str, Any]]:
        """Asks for workers and yields each one's result as soon as it is known. On the I/O loop."""
        self.check()
        return aiter(self.peer.request("start", {"specs": specs}, timeout=timeout, streaming=True))

    def check(self) -> None:
        """Raises GuardLostError once it is lost."""
        if self.lost is not None:
            raise fresh(self.lost)

    def lose(self, reason: str) -> None:
        """Its connection is gone for good. Everything it owned is dead or dying."""
        if self.lost is not None:
            return
        self.lost = GuardLostError(self.guard_id, self.info.get("host", ""), self.info.get("pid"), reason)
        self.peer.fail(self.lost)
        self._arrived.set()
        self._on_lost(self)

    def stall(self, reason: str) -> None:
        """It lives but does not run: what was asked of it fails now, later requests may work again."""
        facts = {"guard": self.guard_id, "pid": self.info.get("pid"), "reason": reason}
        self.peer.fail_pending(GuardLostError(self.guard_id, self.info.get("host", ""), self.info.get("pid"), reason))
        self._on_event(self, "guard_stalled", facts)

    def _disconnected(self, error: Exception | None) -> None:
        if self.ending:  # as it should; who still asks it for something gets no answer any more
            self.peer.fail(GuardLostError(self.guard_id, self.info.get("host", ""), self.info.get("pid"), "it ended"))
        else:
            self._gone("its connection closed", CLOSED_TOLD_S, patient=True)

    def _gone(self, reason: str, limit_s: float, *, patient: bool = False) -> None:
        self.cut = True
        if self._explain is None:
            self.lose(reason)
        else:
            told = lambda words: self.lose(f"{words} ({reason})" if words else reason)  # noqa: E731
            self._explain(self, told, patient=patient, limit_s=limit_s)

    def _notified(self, topic: str, value: Any) -> None:
        self._unanswered = 0
        if topic != "alive":
            self._on_event(self, topic, value)


class Question(NamedTuple):
    """What to ask of one guard."""

    guard: GuardProxy
    method: str
    value: dict[str, Any]
    timeout: float


def ask_all(questions: Sequence[Question]) -> list[Any]:
    """Asks guards at the same time; returns their answers, None for who gave none.

    For ends, which must go on: a guard that is lost has killed its workers, or its reaper has.
    """
    calls = [_asked(question) for question in questions]
    return [_answer(question, call) for question, call in zip(questions, calls, strict=True)]


def _asked(question: Question) -> Call | None:
    try:
        return question.guard.ask(question.method, question.value, timeout=question.timeout)
    except RolecallError:
        return None


def _answer(question: Question, call: Call | None) -> Any:
    try:
        return call.result() if call is not None else None
    except (RolecallError, TimeoutError) as e:
        log.warning("guard %s did not confirm %r: %s", question.guard.guard_id, question.method, e)
        return None
