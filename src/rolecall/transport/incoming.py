"""Incoming is the callee's side of one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from rolecall.errors import CallCancelledError, EncodeError, ProtocolError, RolecallError
from rolecall.transport import codec
from rolecall.transport.channel import Channel
from rolecall.transport.codec.exceptions import message_of, said
from rolecall.transport.session.callee import AcceptedCall
from rolecall.transport.session.messages import Body, Buffers, Invocation
from rolecall.transport.waiting import Waitable

_NOTHING, _NO_FIELDS = b"\xc0", b"\x80"  # None and {} as msgpack
T = TypeVar("T")


class Answerer(Protocol):
    """What a request needs of the peer that received it."""

    @property
    def channel(self) -> Channel: ...
    def answer(self, incoming: Incoming, ok: bool, encoded: codec.Encoded, *, stable: bool) -> None: ...
    def emit(self, incoming: Incoming, encoded: codec.Encoded) -> None: ...


class Incoming(Waitable):
    """One accepted request. Each call id gives at most one.

    Answer it with `finish` or `fail`, from any thread; the first answer counts.

    Attributes:
        method: Name of the method.
        meta: Options of the call, plain values.
        streaming: Whether the caller takes items (`emit`).
        accepted: Its state in the session. Only the peer uses it.
    """

    __slots__ = ("_answerer", "_body", "_callbacks", "accepted", "meta", "method", "streaming")

    def __init__(
        self, answerer: Answerer, invocation: Invocation, buffers: Buffers, accepted: AcceptedCall[Incoming]
    ) -> None:
        self._waiters = []
        self._answerer, self.accepted = answerer, accepted
        self.method, self.meta, self.streaming = invocation.method, invocation.meta, accepted.stream is not None
        self._body: Body | None = (invocation.body, buffers)
        self._callbacks: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        """Whether the caller has cancelled."""
        return self.accepted.cancelled

    def args(self) -> Any:
        """Decodes the request's value, once, and drops the received bytes.

        Raises:
            CodecError: They are not an encoded value.
        """
        return codec.decode(*self._taken(), context=self._answerer.channel.context)

    def message(self, kind: type[T], sender: str) -> T:
        """As `args`, where the value is a struct of `protocol`; none is one without fields.

        Raises:
            ProtocolError: It is another value; see `from_plain`.
        """
        body, buffers = self._taken()
        return codec.decode_message(kind, _NO_FIELDS if body == _NOTHING else body, buffers, sender)

    def received(self) -> codec.Received:
        """As `args`, but decodes the references only; the value is decoded once it is known what replaces them."""
        return codec.Received(*self._taken(), context=self._answerer.channel.context)

    def _taken(self) -> Body:
        body, self._body = self._body, None
        if body is None:
            raise ProtocolError("the arguments of a call were taken twice", self.method)
        return body

    def on_cancel(self, fn: Callable[[], object]) -> None:
        """Calls `fn` on the loop's thread when the caller cancels; at once, in this thread, when it already has."""
        self._callbacks.append(fn)
        if self.cancelled:
            self._run_callbacks()

    def finish(self, value: Any, *, stable: bool = False) -> None:
        """Answers with `value`, encoded in this thread. What cannot be encoded is answered with an EncodeError.

        Arrays and tensors of more than 1 MiB are sent without a copy: the calling thread waits until they have arrived,
        so that the engine may change them afterwards. On an event loop, which must not wait, they are copied.

        Args:
            stable: The value's memory will never change; neither copy nor wait.
        """
        try:
            self._answerer.answer(self, True, codec.encode(value, "result"), stable=stable)
        except BaseException as e:  # encoding runs hooks of the user's types, which may raise anything
            self.fail(e)

    def fail(self, exc: BaseException) -> None:
        """Answers with an error; one that is not serializable is answered with an EncodeError."""
        error = exc
        if isinstance(exc, asyncio.CancelledError):
            error = CallCancelledError(self._answerer.channel.name, self.method)
        try:
            self._answerer.answer(self, False, codec.encode(error, "error"), stable=False)
        except BaseException as e:  # as above; the second attempt has only text in it
            hint = f"it said: {message_of(error)}" if isinstance(e, RolecallError) else f"encoding it raised {said(e)}"
            encoded = codec.encode(EncodeError("error", type(error).__qualname__, hint), "error")
            self._answerer.answer(self, False, encoded, stable=False)

    async def emit(self, item: Any) -> None:
        """Sends one item of the stream; waits while the caller's window is full.

        Raises:
            CallCancelledError: The caller has cancelled.
            EncodeError: The item is not serializable; the stream may go on.
        """
        await self.wait_async(self._has_room, self._answerer.channel.wakers)
        self._push(item)

    def emit_blocking(self, item: Any) -> None:
        """As `emit`, for a thread."""
        self.wait(self._has_room)
        self._push(item)

    def __repr__(self) -> str:
        return f"<Incoming {self.accepted.seq} {self.method} {'answered' if self.accepted.answered else 'running'}>"

    def _has_room(self) -> bool:
        return self.accepted.has_room

    def _push(self, item: Any) -> None:
        if not self.streaming:
            raise ProtocolError("items of a call that is not a stream", self.method)
        self._answerer.emit(self, codec.encode(item, f"item[{self.accepted.emitted}]"))

    def changed(self) -> None:
        """Wakes the engine, and runs the callbacks of a cancelled call. Called by the peer, on the loop's thread."""
        if self._callbacks and self.cancelled:
            self._run_callbacks()
        self.wake()

    def _run_callbacks(self) -> None:
        while self._callbacks:
            try:
                fn = self._callbacks.pop()
            except IndexError:  # another thread took the last one
                return
            try:
                fn()
            except Exception as e:  # the engine's own code; the connection and the other callbacks go on
                self._answerer.channel.report(f"a cancel callback of {self.method}", e)
