"""Routes: which function answers which method and path. It calls none of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from rolecall.errors import AuthenticationError
from rolecall.transport.http.asgi import AsgiRoute
from rolecall.transport.http.messages import HttpError, Request, Response

MAX_BODY = 64 << 20
MAX_PUBLIC_BODY = 1 << 20  # of a request that does not show the token

Route = Callable[[Request], Awaitable[Response]]


class Routes:
    """Functions by method and path. A path's part `{name}` matches anything and becomes a parameter.

    Args:
        app: Answers what has no route.
    """

    def __init__(self, app: AsgiRoute | None = None) -> None:
        self._app = app
        self._routes: dict[tuple[str, ...], dict[str, tuple[Route, int]]] = {}

    def add(self, method: str, path: str, fn: Route, *, max_body: int = MAX_BODY) -> None:
        """Answers `method path` with `fn`; a larger body is refused with 413 before it is read."""
        methods = self._routes.setdefault(_parts(path), {})
        methods[method.upper()] = fn, max_body

    def is_public(self, path: str) -> bool:
        """Whether the app answers requests for a path that do not show the token. None of a route is public."""
        if self._app is None or not self._app.is_public(path):
            return False
        return all(_matched(pattern, _parts(path)) is None for pattern in self._routes)

    def find(self, method: str, path: str, *, known: bool = True) -> tuple[Route, int, dict[str, str]]:
        """The function, its body limit and the path's parameters.

        Args:
            known: The request has shown the token; others get to the app alone.

        Raises:
            HttpError: 404 or 405; 401 for what is not public.
        """
        if not (known or self.is_public(path)):
            raise HttpError(401, str(AuthenticationError()))
        parts = _parts(path)
        for pattern in (parts, *self._routes):
            params = _matched(pattern, parts) if pattern in self._routes else None
            if params is None:
                continue
            methods = self._routes[pattern]
            if method not in methods:
                allowed = ", ".join(sorted(methods))
                raise HttpError(405, f"{path} does not take {method} (it takes {allowed})", allow=sorted(methods))
            return *methods[method], params
        if self._app is not None:
            return self._app, MAX_BODY if known else MAX_PUBLIC_BODY, {}
        raise HttpError(404, f"no route {path}")


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.strip("/").split("/"))


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
