"""Requests and responses of HTTP as values, and the error that a route raises to answer with a status."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"


class HangUp:
    """Tells a route that the client of its request has closed the connection. On the loop's thread, but for `seen`.

    A client that closes only its sending side counts as hung up, too; the answer is sent all the same.

    Args:
        look: Whether the client has closed the connection by now, where that can be seen.
    """

    def __init__(self, look: Callable[[], bool] = lambda: False) -> None:
        self._look = look
        self._happened = False
        self._callbacks: list[Callable[[], object]] = []

    @property
    def seen(self) -> bool:
        """Whether the client has hung up, also when the callbacks have not been run yet. Any thread."""
        return self._happened or self._look()

    def then(self, fn: Callable[[], object]) -> None:
        """Calls `fn` when the client hangs up; at once when it already has."""
        if self._happened:
            fn()
        else:
            self._callbacks.append(fn)

    def happen(self) -> None:
        """Runs the callbacks. May be called twice."""
        self._happened = True
        callbacks, self._callbacks = self._callbacks, []
        for fn in callbacks:
            fn()


@dataclass(frozen=True)
class Request:
    """One request. Header names are lower case, of repeated ones the last counts; `authorization` is taken out."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    params: dict[str, str] = field(default_factory=dict)
    hang_up: HangUp = field(default_factory=HangUp, compare=False)

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            HttpError: It is not (400).
        """
        try:
            return json.loads(self.body or b"null")
        except (ValueError, RecursionError) as e:
            raise HttpError(400, f"the body is not JSON: {e}") from e


@dataclass(frozen=True)
class Response:
    """One answer; `json_response` makes the usual kind.

    Attributes:
        chunks: Where the body is not known beforehand: its parts as they come, instead of `body`.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: AsyncGenerator[bytes, None] | None = None

    def json(self) -> Any:
        return json.loads(self.body)


class HttpError(Exception):
    """Raised in a route to answer with `status` and `{"error": sentence}`, and further `facts` beside it."""

    def __init__(self, status: int, sentence: str, **facts: Any) -> None:
        self.status, self.sentence, self.facts = status, sentence, facts
        super().__init__(f"{status}: {sentence}")

    def response(self) -> Response:
        """The answer that it stands for."""
        response = json_response({"error": self.sentence, **self.facts}, self.status)
        if self.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        if self.status == 405:
            response.headers["allow"] = ", ".join(self.facts["allow"])
        return response


def json_response(value: Any, status: int = 200) -> Response:
    """A response with `value` as JSON."""
    return Response(status, {"content-type": JSON}, json.dumps(value).encode() + b"\n")
