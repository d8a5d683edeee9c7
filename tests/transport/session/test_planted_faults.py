"""The property check finds faults: each machine here has one planted in it, and the same rules fail on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from rolecall.transport.session import callee, caller
from rolecall.transport.session.callee import AcceptedCall, Callee, SequenceSet
from rolecall.transport.session.caller import Caller
from rolecall.transport.session.messages import Buffers, CumulativeAck, Invocation, Sending

from .conversation import Step, conversations, hold
from .world import Asking, Running

BOUNDED = settings(
    max_examples=5000,  # which histories come depends on what else is imported: hypothesis draws from its constants too
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # one failure is enough; it need not be small
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


class DuplicateAccepted(Callee[Running]):
    """Remembers an id only as long as its answer."""

    def _on_invocation(self, invocation: Invocation, buffers: Buffers, written: int) -> callee.Output[Running]:
        if invocation.seq not in self._calls:
            self._accepted = SequenceSet()
        return super()._on_invocation(invocation, buffers, written)


class AcknowledgementIgnored(Callee[Running]):
    """Keeps answers that have arrived."""

    def _on_ack(self, seqs: Sequence[int]) -> Sequence[callee.Event[Running]]:
        return ()


class AnswerDroppedEarly(Callee[Running]):
    """Takes an answer that was sent for one that has arrived."""

    def answer(
        self, call: AcceptedCall[Running], ok: bool, body: bytes, buffers: Buffers, *, zero_copy: bool = False
    ) -> callee.Output[Running]:
        events, sendings = super().answer(call, ok, body, buffers, zero_copy=zero_copy)
        return [*events, *self._drop(call.seq)], sendings


class FormerLinkBelieved(Callee[Running]):
    """Takes what a replaced link still carries, of a former session too."""

    def receive(self, link: int, *rest: Any) -> callee.Output[Running]:
        return super().receive(self._link, *rest)


class ZeroCopyOnAnotherLink(Callee[Running]):
    """Repeats an answer of the engine's memory on another link."""

    def _send_again(self, call: AcceptedCall[Running], arrived: int, written: int) -> Sequence[Sending]:
        call.zero_copy_link = 0
        return super()._send_again(call, arrived, written)


class RestartOverlooked(Caller[Asking]):
    """Sends to a new process what the former one may have run."""

    def _restarted(self) -> Sequence[caller.Event[Asking]]:
        return ()


class AcknowledgedTooMuch(Caller[Asking]):
    """Says that every answer has arrived, those it waits for too."""

    def _acknowledgements(self) -> list[Sending]:
        return [(CumulativeAck(self._next, []), (), None)]


class GapOverlooked(Caller[Asking]):
    """Ends a stream with its answer, whether or not all items have come."""

    def _on_reply(self, *rest: Any) -> caller.Output[Asking]:
        reply = rest[0]
        reply.items = 0
        return super()._on_reply(*rest)


class SilenceAccepted(Caller[Asking]):
    """Does nothing about a call that the callee says it never saw."""

    def _on_status(self, *rest: Any) -> caller.Output[Asking]:
        return (), ()


@pytest.mark.slow("thousands of histories")
@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (DuplicateAccepted, "run twice"),
        (AcknowledgementIgnored, "keeps answers that have arrived"),
        (AnswerDroppedEarly, "GONE, which did not happen"),
        (FormerLinkBelieved, "another session's call|run twice"),
        (ZeroCopyOnAnotherLink, "memory on another link"),
        (RestartOverlooked, "run twice"),
        (AcknowledgedTooMuch, "GONE, which did not happen"),
        (GapOverlooked, "before the last item|after the end"),
        (SilenceAccepted, "did not end|remembers calls"),
    ],
)
def test_a_planted_fault_is_found(fault: type[Callee[Running]] | type[Caller[Asking]], seen: str) -> None:
    """The rules that the machines pass fail on a machine with a fault, and say what the fault does."""

    @BOUNDED
    @given(conversations)
    def check(conversation: tuple[int | None, list[tuple[Step, int]]]) -> None:
        if issubclass(fault, Caller):
            hold(conversation, caller=fault)
        else:
            hold(conversation, callee=fault)

    with pytest.raises(AssertionError, match=seen):
        check()
