"""Routes: which function answers which method and path. It calls none of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from rolecall.transport.http.messages import HttpError, Request, Response

MAX_BODY = 64 << 20

Route = Callable[[Request], Awaitable[Response]]


class Routes:
    """Functions by method and path. A path's part `{name}` matches anything and becomes a parameter."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, ...], dict[str, tuple[Route, int]]] = {}

    def add(self, method: str, path: str, fn: Route, *, max_body: int = MAX_BODY) -> None:
        """Answers `method path` with `fn`; a larger body is refused with 413 before it is read."""
        methods = self._routes.setdefault(tuple(path.strip("/").split("/")), {})
        methods[method.upper()] = fn, max_body

    def find(self, method: str, path: str) -> tuple[Route, int, dict[str, str]]:
        """The function, its body limit and the path's parameters.

        Raises:
            HttpError: 404 or 405.
        """
        parts = tuple(path.strip("/").split("/"))
        for pattern in (parts, *self._routes):
            params = _matched(pattern, parts) if pattern in self._routes else None
            if params is None:
                continue
            methods = self._routes[pattern]
            if method not in methods:
                allowed = ", ".join(sorted(methods))
                raise HttpError(405, f"{path} does not take {method} (it takes {allowed})", allow=sorted(methods))
            return *methods[method], params
        raise HttpError(404, f"no route {path}")


def _matched(pattern: tuple[str, ...], parts: tuple[str, ...]) -> dict[str, str] | None:
    if len(pattern) != len(parts):
        return None
    params = {}
    for expected, seen in zip(pattern, parts, strict=True):
        if expected.startswith("{") and expected.endswith("}"):
            params[expected[1:-1]] = unquote(seen)
        elif expected != seen:
            return None
    return params
