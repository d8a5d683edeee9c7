"""The interface of a request to a worker: the same over frames and over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rolecall.transport.codec import Received


class Request(Protocol):
    """One request. It is answered once, by `finish` or `fail`, from any thread; the first answer counts.

    `transport.incoming.Incoming` is one that came over frames, `http_request.HttpRequest` one that came over HTTP.

    Attributes:
        method: Name of the worker's method.
        meta: Plain values sent beside the value.
        streaming: Whether the caller asked for a stream.
    """

    @property
    def method(self) -> str: ...

    @property
    def meta(self) -> dict[str, Any]: ...

    @property
    def streaming(self) -> bool: ...

    @property
    def cancelled(self) -> bool:
        """Whether the caller has cancelled the request, or has disconnected."""
        ...

    def args(self) -> Any:
        """Decodes the value, once; handles in it are not fetched yet."""
        ...

    def received(self) -> Received:
        """As `args`, but decodes the handles only; the value is decoded once their tensors are known."""
        ...

    def on_cancel(self, fn: Callable[[], object]) -> None:
        """Calls `fn` on the loop's thread when the request is cancelled."""
        ...

    def finish(self, value: Any, *, stable: bool = False) -> None:
        """Answers with a value. `stable`: its memory will never change."""
        ...

    def fail(self, exc: BaseException) -> None:
        """Answers with an error."""
        ...

    async def emit(self, item: Any) -> None:
        """Sends one item of a stream; waits while the caller is behind."""
        ...

    def emit_blocking(self, item: Any) -> None:
        """As `emit`, for a thread."""
        ...
