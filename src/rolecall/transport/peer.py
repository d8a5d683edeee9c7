"""Peer owns one end of a conversation that outlives its links: calls, their records, and what makes them at most once.

A call's id is (session of the caller, sequence). The callee remembers every sequence it has taken, for ever (a few
intervals), and the answer until the caller says that it has it. So a request may be sent again whenever it is unclear
what became of it, and the caller asks (a probe) whenever a call is long without an answer and whenever a link was
replaced: what the callee does not know is sent again, byte for byte; what runs goes on; what was answered is answered
again from the record. Nothing else is ever repeated.

Why no id is run twice: a link keeps its order, and frames of a link that was replaced are not looked at. A new session
on the other side (its process was restarted) has no records, so calls sent to the old one fail instead of being resent.

Memory: a thread that calls waits in `request` while more than `max_in_flight` bytes of its side's requests are
unanswered; a thread that answers waits while much is unsent. Reading never stops, so answers, cancellations and probes
always get through and two full sides cannot block each other. Code on an event loop is not made to wait; it bounds its
own number of calls.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from asyncio.events import _get_running_loop
from collections.abc import Callable
from typing import Any, Protocol

from rolecall.errors import CallCancelledError, ProtocolError, RPCConnectionError
from rolecall.transport import codec
from rolecall.transport.call import Body, Call
from rolecall.transport.frames import pack
from rolecall.transport.incoming import Incoming, Parts
from rolecall.transport.link import Link
from rolecall.transport.session import messages
from rolecall.transport.session.messages import Ack, Asked, Cancel, Credit, Item, Probe, Reply, Request, Settled, Status
from rolecall.transport.session.pending import ACKS_AT_ONCE, Pending
from rolecall.transport.session.records import Records
from rolecall.transport.unread import let_go
from rolecall.transport.waiting import Wakers

__all__ = ["Call", "Handler", "Incoming", "Peer"]

PROBE_S = 1.0
PROBE_MAX_S = 15.0
LARGE_REPLY = 256 << 10  # its record is worth a frame of its own to be rid of
MAX_IN_FLIGHT = 256 << 20
UNKNOWN = 1 << 62  # the position of a frame that is just being sent


class Handler(Protocol):
    """Who answers the other side's requests."""

    def dispatch(self, incoming: Incoming) -> None:
        """Starts the work. On the loop's thread; must not block."""


class Peer:
    """One end of a conversation. Symmetric: it calls, is called, and notifies.

    `request`, `notify`, `fail_pending` and `close` may be used from any thread, `attach` and `detach` on the loop's.

    Args:
        name: The other side's name, for messages.
        handler: Answers requests; without one they are refused.
        on_notify: Gets topic and value of each notification, on the loop's thread, once.
        context: Handed to the codec's decoders.
        window: Items of a stream that may be under way.
        probe: Seconds after which a silent call is asked after; doubles up to 15 s.
        max_in_flight: Bytes of unanswered requests above which calling threads wait.
        on_attached: Called on the loop's thread after a link was attached.
        on_detached: Called on the loop's thread with the link's error after it was lost.

    Attributes:
        session: The id of this end.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: asyncio.AbstractEventLoop,
        handler: Handler | None = None,
        on_notify: Callable[[str, Any], None] | None = None,
        context: Any = None,
        window: int = 16,
        probe: float = PROBE_S,
        max_in_flight: int = MAX_IN_FLIGHT,
        on_attached: Callable[[], None] | None = None,
        on_detached: Callable[[Exception | None], None] | None = None,
    ) -> None:
        self.name, self.loop, self.handler, self.on_notify, self.context = name, loop, handler, on_notify, context
        self.window, self.on_attached, self.on_detached = window, on_attached, on_detached
        self.session = secrets.token_hex(8)
        self._probe_s = probe
        self._remote = ""
        self._link: Link | None = None
        self._wakers = Wakers()
        self._tick_handle: asyncio.TimerHandle | None = None
        self._pending = Pending(max_in_flight)
        self._records = Records()

    # Calling

    @property
    def pending(self) -> int:
        """Calls of this side without an answer."""
        return len(self._pending.calls)

    @property
    def attached(self) -> bool:
        return self._link is not None

    def request(
        self,
        method: str,
        value: Any = None,
        *,
        meta: dict[str, Any] | None = None,
        timeout: float | None = None,
        streaming: bool = False,
    ) -> Call:
        """Sends a request; without a link it leaves as soon as there is one.

        Args:
            meta: Options beside the value; plain msgpack values only.
            timeout: Seconds until the call fails with TimeoutError and the callee is told to give up.

        Raises:
            EncodeError: The value does not travel. Nothing was sent.
            RPCConnectionError: The peer is closed, or what it was failed with.
        """
        encoded = codec.encode(value)
        self._wait_for_room(timeout)
        call = Call(self, method, value, timeout, streaming=streaming)
        return self._post(messages.STREAM if streaming else messages.CALL, call, encoded, meta or {})

    def notify(self, topic: str, value: Any = None) -> None:
        """Tells the other side something, once, without an answer. In order as long as nothing is lost on the way."""
        call = Call(self, topic, value, None, streaming=False)
        self._post(messages.NOTIFICATION, call, codec.encode(value), {})

    def _post(self, kind: int, call: Call, encoded: codec.Encoded, meta: dict[str, Any]) -> Call:
        call.size = len(encoded.header) + sum(b.nbytes for b in encoded.buffers)
        seq = self._pending.admit(call, note=kind == messages.NOTIFICATION)
        try:
            acks = self._pending.take_acks()
            header = messages.encode_request(Request(seq, kind, call.method, meta, self.window, acks, encoded.header))
            call.parts = parts = pack(header, encoded.buffers)
            link = self._link
            if link is not None:
                call.sent = link, UNKNOWN  # before sending: from here on it may have been taken
                call.sent = link, link.send(parts)
        except BaseException:  # Ctrl-C too: nobody will ever ask for this call
            self._pending.claim(seq)
            raise
        return call

    def _wait_for_room(self, timeout: float | None = None) -> None:
        """Makes a thread wait that outruns the other side; see the module's text."""
        link = self._link
        if link is not None:
            link.wait_for_room()
        self._pending.wait_for_room(None if timeout is None else time.monotonic() + timeout)

    def _give_up(self, call: Call, error: BaseException) -> None:
        if self._pending.give_up(call):
            call._failed(error)
            self._say(Cancel(call.seq))
            unread = call._inflow.take_unread() if call._inflow is not None else []
            self._soon(lambda: let_go(unread, self.loop, self.context))

    def _expire(self, call: Call) -> None:
        self._give_up(call, TimeoutError(f"{self.name}: {call.method}() had no answer within {call.timeout:g} s"))

    def _cancel(self, call: Call) -> None:
        self._give_up(call, CallCancelledError(self.name, call.method))

    def _credit(self, seq: int, consumed: int) -> None:
        self._say(Credit(seq, consumed))

    def fail_pending(self, exc: BaseException) -> None:
        """Fails every call that waits, at once, with `exc`; later calls are not touched. Any thread."""
        for call in self._pending.take_all():
            call._failed(exc)

    def fail(self, exc: BaseException) -> None:
        """Ends the conversation: pending and later calls raise `exc`. Any thread."""
        for call in self._pending.take_all(failure=exc):
            call._failed(exc)
        self._soon(self._end)

    def close(self) -> None:
        """Ends the conversation: pending and later calls raise RPCConnectionError. Any thread, any number of times."""
        self.fail(RPCConnectionError(self.name, "closed on this side"))

    @property
    def failure(self) -> BaseException | None:
        """What later calls raise, once this end was closed or failed."""
        return self._pending.failure

    @property
    def closed(self) -> bool:
        return self._pending.failure is not None

    def _end(self) -> None:
        if self._tick_handle is not None:
            self._tick_handle.cancel()
            self._tick_handle = None
        lent = any(record.lent is not None for record in self._records.all())
        link, self._link = self._link, None
        if link is not None and lent:
            link.abort()  # its queue views memory whose owner is about to be let go
        elif link is not None:
            link.close()
        self._records.clear(forget_ids=False)

    # The link

    def attach(self, link: Link, remote: str = "") -> None:
        """Continues the conversation over `link`; a former link is dropped, and what it still carries is ignored.

        Args:
            remote: The other side's session, where known. Another one than before remembers nothing: calls that were
                sent to the former one fail.
        """
        if self._pending.failure is not None:
            link.close()
            return
        former, self._link = self._link, None
        if former is not None:
            former.abort()
            self._wake_lenders()
        if remote and self._remote and remote != self._remote:
            self._forget_remote()
        self._remote = remote or self._remote
        link.on_frame = lambda header, buffers: self._on_frame(link, header, buffers)
        link.on_closed = lambda exc: self.detach(link, exc)
        self._link = link
        link.start()
        self._resume(link)
        if self._tick_handle is None:
            self._tick_handle = self.loop.call_later(self._probe_s / 4, self._tick)
        if self.on_attached is not None:
            self.on_attached()

    def detach(self, link: Link, exc: Exception | None) -> None:
        """Takes note that `link` is gone; calls wait for the next one."""
        if link is not self._link:
            return
        self._link = None
        link.abort()
        self._wake_lenders()
        if self.on_detached is not None:
            self.on_detached(exc)

    def _wake_lenders(self) -> None:
        for record in self._records.all():
            record.wake()

    def _forget_remote(self) -> None:
        """The other side was restarted: what the former one had taken may have run and will not be answered."""
        self._records.clear(forget_ids=True)
        for call in self._pending.all():
            if call.sent is not None and self._pending.claim(call.seq) is not None and not call._done:
                call._failed(RPCConnectionError(self.name, "the process was restarted; the call may have run"))

    def _resume(self, link: Link) -> None:
        """Sends what was never sent and asks after the rest."""
        now = time.monotonic()
        asked = []
        for call in self._pending.all():
            if call.sent is not None or call._done:
                asked.append(self._asked(call))
            elif call.parts is not None:
                call.sent = link, link.send(call.parts)
            call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
        self._ask(asked)

    def _send(self, parts: Parts) -> tuple[Link, int] | None:
        link = self._link
        return None if link is None else (link, link.send(parts))

    def _say(self, message: messages.Message) -> None:
        self._send(pack(messages.encode(message)))

    def _report(self, what: str, exc: Exception) -> None:
        self.loop.call_exception_handler({"message": f"{self.name}: {what} failed", "exception": exc})

    def _soon(self, fn: Callable[[], None]) -> None:
        if _get_running_loop() is self.loop:
            fn()
            return
        try:
            self.loop.call_soon_threadsafe(fn)
        except RuntimeError:  # the loop is closed; nothing of this peer runs there any more
            self._link = None

    # Asking after what is silent

    def _tick(self) -> None:
        if self._link is None and not self.pending:
            self._tick_handle = None  # an idle peer costs nothing; the next link starts it again
            return
        self._tick_handle = self.loop.call_later(self._probe_s / 4, self._tick)
        now = time.monotonic()
        asked = []
        for call in self._pending.all():
            if call._deadline is not None and call._deadline <= now and not call._done:
                self._expire(call)
            elif call.probe_wait == 0.0:
                call.probe_at, call.probe_wait = now + self._probe_s, self._probe_s
            elif call.probe_at <= now and not self._on_its_way(call.sent) and (call.sent is not None or call._done):
                call.probe_at = now + call.probe_wait
                asked.append(self._asked(call))
        self._ask(asked)
        self._say_settled()

    def _on_its_way(self, sent: tuple[Link, int] | None) -> bool:
        """Whether the frame is still queued on this side; then there is no need to ask after it or to repeat it."""
        return sent is not None and sent[0] is self._link and sent[1] > sent[0].written

    def _asked(self, call: Call) -> Asked:
        inflow = call._inflow
        if inflow is None:
            return Asked(call.seq, 0, 0, call._done)
        return Asked(call.seq, inflow.arrived, inflow.consumed, call._done)

    def _ask(self, asked: list[Asked]) -> None:
        for start in range(0, len(asked), 1024):
            self._say(Probe(asked[start : start + 1024]))

    def _say_settled(self) -> None:
        acks = self._pending.take_acks()
        if acks:
            self._say(Ack(acks))
        if self._link is not None and (settled := self._pending.settled()) is not None:
            self._say(settled)

    # Frames that come in

    def _on_frame(self, link: Link, header: bytes | memoryview, buffers: list[memoryview]) -> None:
        if link is not self._link:
            return
        message = messages.decode(header)
        if isinstance(message, Reply):
            self._on_reply(message, buffers)
        elif isinstance(message, Request):
            self._on_request(message, buffers)
        elif isinstance(message, Item):
            self._on_item(message, buffers)
        else:
            self._on_control(message)

    def _on_control(self, message: Credit | Cancel | Ack | Settled | Probe | Status) -> None:
        if isinstance(message, Ack):
            self._records.drop(message.seqs)
        elif isinstance(message, Credit):
            record = self._records.get(message.seq)
            if record is not None:
                record._credit(message.consumed)
        elif isinstance(message, Cancel):
            record = self._records.get(message.seq)
            if record is not None:
                record._cancel()
        elif isinstance(message, Settled):
            self._records.drop_settled(message.below, message.waiting)
        elif isinstance(message, Probe):
            self._on_probe(message)
        else:
            self._on_status(message)

    # as caller

    def _on_reply(self, message: Reply, buffers: list[memoryview]) -> None:
        call = self._pending.calls.get(message.seq)
        inflow = call._inflow if call is not None else None
        if inflow is not None and call is not None:
            inflow.final = message.items, message.ok, (message.body, buffers)
            if inflow.arrived < message.items:
                self._probe_gap(call)
                return
        self._answer(message.seq, message.ok, (message.body, buffers))

    def _answer(self, seq: int, ok: bool, body: Body) -> None:
        call = self._pending.claim(seq)
        self._acknowledge(seq, sum(map(len, body[1])))
        if call is not None and not call._done:
            call._answered(ok, body)
        elif call is not None and ok:
            let_go([body], self.loop, self.context)

    def _on_item(self, message: Item, buffers: list[memoryview]) -> None:
        call = self._pending.calls.get(message.seq)
        if call is None or call._inflow is None:
            if message.seq in self._pending.given_up:
                let_go([(message.body, buffers)], self.loop, self.context)
            return
        inflow = call._inflow
        whole = inflow.put(message.index, (message.body, buffers), self.window)
        call.probe_wait, call.probe_at = self._probe_s, time.monotonic() + self._probe_s
        call.wake()
        if not whole:
            self._probe_gap(call)
        elif inflow.final is not None and inflow.arrived >= inflow.final[0]:
            self._answer(call.seq, inflow.final[1], inflow.final[2])

    def _probe_gap(self, call: Call) -> None:
        """Asks at once for what is missing of a stream, but not for each item that comes behind the same gap."""
        inflow = call._inflow
        now = time.monotonic()
        if inflow is not None and now - inflow.probed_at > self._probe_s / 20:
            inflow.probed_at = now
            self._ask([self._asked(call)])

    def _acknowledge(self, seq: int, size: int) -> None:
        waiting = self._pending.answered(seq)
        if size >= LARGE_REPLY or waiting >= ACKS_AT_ONCE:
            self._say(Ack(self._pending.take_acks()))

    def _on_status(self, status: Status) -> None:
        for seq in status.running:
            call = self._pending.calls.get(seq)
            if call is not None:
                call.parts = None  # taken for certain: it will never have to be sent again
                call.probe_wait = min(call.probe_wait * 2, PROBE_MAX_S)
        for seq in status.unknown:
            call = self._pending.calls.get(seq) or self._pending.notes.get(seq)
            if call is None:
                self._pending.claim(seq)
            elif call.parts is not None:
                call.probe_wait, call.probe_at = self._probe_s, time.monotonic() + self._probe_s
                call.sent = self._send(call.parts)

    # as callee

    def _on_request(self, request: Request, buffers: list[memoryview]) -> None:
        if request.acks:
            self._records.drop(request.acks)
        if not self._records.take(request.seq):
            record = self._records.get(request.seq)
            if record is None:
                self._say_gone(request.seq)
            elif record.reply is not None:
                self._send_again(record, 0)
            return
        incoming = Incoming(self, request, buffers)
        self._records.enter(incoming)
        if request.kind == messages.NOTIFICATION:
            self._on_notification(incoming)
            return
        try:
            if self.handler is None:
                raise ProtocolError("this side answers no calls", request.method)
            self.handler.dispatch(incoming)
        except Exception as e:  # the handler's own mistake is the answer to this call, not the end of the link
            incoming.fail(e)

    def _on_notification(self, incoming: Incoming) -> None:
        try:
            if self.on_notify is not None:
                self.on_notify(incoming.method, incoming.args())
        except Exception as e:  # nobody waits for the answer, so the loop's handler is told
            self._report(f"notification {incoming.method}", e)
        incoming.finish(None)

    def _on_probe(self, probe: Probe) -> None:
        running, unknown = [], []
        for asked in probe.calls:
            record = self._records.get(asked.seq)
            if record is None:
                if self._records.was_taken(asked.seq):
                    self._say_gone(asked.seq)
                else:
                    unknown.append(asked.seq)
                continue
            if asked.cancelled:
                record._cancel()
            if record.streaming:
                record._credit(asked.consumed)
            if record.reply is None:
                running.append(asked.seq)
            self._send_again(record, asked.arrived)
        if running or unknown:
            self._say(Status(running, unknown))

    def _send_again(self, record: Incoming, arrived: int) -> None:
        link = self._link
        if link is None or self._on_its_way(record.sent):
            return
        for parts in record._stored_items(arrived):
            record.sent = link, link.send(parts)
        if record.reply is not None and record.lent in (None, link):
            record.sent = link, link.send(record.reply)

    def _say_gone(self, seq: int) -> None:
        error = RPCConnectionError(self.name, f"the result of call {seq} is no longer kept; it was not run again")
        encoded = codec.encode(error, "error")
        self._say(Reply(seq, False, 0, encoded.header))
