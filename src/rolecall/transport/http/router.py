"""What answers HTTP requests: functions by method and path, and an ASGI application (version 3) for the rest.

It knows nothing of sockets and workers. The body of a request is read before the application is called. A response is
passed on as it comes, a few parts ahead of a slow client. An application learns of a client that is gone by
`http.disconnect`, and by an OSError of `send`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import unquote

import h11

from rolecall.errors import AuthenticationError, WorkerConfigurationError
from rolecall.transport.http.messages import HttpError, Parts, Request, Response
from rolecall.transport.loop import Tasks

MAX_BODY = 64 << 20
MAX_PUBLIC_BODY = 1 << 20  # of a request that does not show the token
CLOSE_S = 1.0  # for requests under way, whose cancellation the application may ignore
ASGI = {"version": "3.0", "spec_version": "2.3"}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
Route = Callable[[Request], Awaitable[Response]]

log = logging.getLogger("rolecall")


class Routes:
    """Functions by method and path. A path's part `{name}` matches anything and becomes a parameter.

    Args:
        app: Answers what has no route.
    """

    def __init__(self, app: AsgiRoute | None = None) -> None:
        self._app = app
        self._routes: dict[str, dict[str, tuple[Route, int]]] = {}  # by path, then by method

    def add(self, method: str, path: str, fn: Route, *, max_body: int = MAX_BODY) -> None:
        """Answers `method path` with `fn`; a larger body is refused with 413 before it is read."""
        self._routes.setdefault(path.strip("/"), {})[method.upper()] = fn, max_body

    def is_public(self, path: str) -> bool:
        """Whether the app answers requests for a path that do not show the token. None of a route is public."""
        return self._app is not None and self._app.is_public(path) and self._matched(path) is None

    def find(self, method: str, path: str, *, known: bool = True) -> tuple[Route, int, dict[str, str]]:
        """The function, its body limit and the path's parameters.

        Args:
            known: The request has shown the token; others get to the app alone.

        Raises:
            HttpError: 404 or 405; 401 for what is not public.
        """
        if not (known or self.is_public(path)):
            raise HttpError(401, str(AuthenticationError()))
        if (found := self._matched(path)) is not None:
            methods, params = found
            if method not in methods:
                allowed = sorted(methods)
                raise HttpError(405, f"{path} does not take {method} (it takes {', '.join(allowed)})", allow=allowed)
            return *methods[method], params
        if self._app is not None:
            return self._app, MAX_BODY if known else MAX_PUBLIC_BODY, {}
        raise HttpError(404, f"no route {path}")

    def _matched(self, path: str) -> tuple[dict[str, tuple[Route, int]], dict[str, str]] | None:
        """The functions of a path, and its parameters; a path without parameters comes first."""
        path = path.strip("/")
        for template in (path, *self._routes):
            if template in self._routes and (found := _pattern(template).fullmatch(path)):
                return self._routes[template], {name: unquote(seen) for name, seen in found.groupdict().items()}
        return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]*)", template))


class AsgiRoute:
    """A route that calls an ASGI application. All methods on the loop's thread.

    Args:
        public: Paths that need no token: those named, and those below a name that ends with `/`.

    Raises:
        WorkerConfigurationError: The application cannot be called, or `public` is a text, or has a path that does not
            begin with `/`.
    """

    def __init__(self, app: Application, public: Sequence[str] = ()) -> None:
        if not callable(app):
            raise WorkerConfigurationError(
                "no ASGI application", app, "pass one: Starlette's, FastAPI's, or a function"
            )
        if isinstance(public, str) or not all(path.startswith("/") for path in public):
            raise WorkerConfigurationError("bad public=", public, 'a list of paths that begin with "/", as in ["/v1/"]')
        self._app = app
        self._paths = {path for path in public if not path.endswith("/")}
        self._folders = tuple(path for path in public if path.endswith("/"))
        self._state: dict[str, Any] = {}
        self._tasks = Tasks()
        self._lifespan: _Lifespan | None = None

    def is_public(self, path: str) -> bool:
        """Whether a request for a path as it was sent needs no token."""
        return (path in self._paths or path.startswith(self._folders)) and ".." not in unquote(path).split("/")

    async def start(self) -> None:
        """Runs the application's startup, where it has one.

        Raises:
            WorkerConfigurationError: It failed.
        """
        lifespan = _Lifespan(self._app, self._state)
        if await lifespan.ask("startup"):
            self._lifespan = lifespan

    async def close(self) -> None:
        """Ends the requests under way and runs the application's shutdown. May be called twice."""
        await self._tasks.cancel(CLOSE_S)
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            await lifespan.ask("shutdown")

    async def __call__(self, request: Request) -> Response:
        exchange = _Exchange(request)
        task = self._tasks.start(self._run(request, exchange))
        task.add_done_callback(exchange.ended)
        try:
            return await exchange.response
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _run(self, request: Request, exchange: _Exchange) -> None:
        path, _, query = request.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": unquote(request.path),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": request.raw_headers,
            "client": None,
            "server": None,
            "state": dict(self._state),
        }
        await self._app(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its response, between a connection and the application's task."""

    def __init__(self, request: Request) -> None:
        self._request, self._unread = request, True
        self._over = asyncio.Event()  # the response is complete, or nobody waits for it
        self._parts = Parts(request.disconnect)
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        request.disconnect.add_callback(self._end)

    async def receive(self) -> Message:
        if self._unread:
            self._unread = False
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            # Raises, in the application, where HTTP forbids it.
            h11.Response(status_code=message["status"], headers=headers)
            self.response.set_result(Response(message["status"], raw_headers=headers, chunks=self._parts.chunks()))
            return
        if (body := message.get("body", b"")) and self._request.method != "HEAD":
            await self._parts.put(bytes(body))
        if not message.get("more_body", False):
            self._end()

    def ended(self, task: asyncio.Task[None]) -> None:
        """The application has ended."""
        error = None if task.cancelled() else task.exception()
        if not self.response.done():
            if self._request.disconnect.happened:
                self.response.set_result(Response(499))
            else:
                self.response.set_exception(error or RuntimeError("the application ended without a response"))
            return
        if not self._over.is_set():
            error = error or ConnectionAbortedError("the application ended in the middle of its response")
            self._end(ConnectionAbortedError(str(error)))
        if error is not None and not self._request.disconnect.happened:
            log.error("%s %s: the application failed", self._request.method, self._request.path, exc_info=error)

    def _end(self, error: OSError | None = None) -> None:
        self._over.set()
        self._parts.end(error)


class _Lifespan:
    """The application's task for its startup and shutdown, and what it is asked and answers."""

    def __init__(self, app: Application, state: dict[str, Any]) -> None:
        self._asked: asyncio.Queue[Message] = asyncio.Queue()
        self._answered: asyncio.Queue[Message] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._run(app, {"type": "lifespan", "asgi": ASGI, "state": state}))

    async def _run(self, app: Application, scope: Message) -> None:
        await app(scope, self._asked.get, self._send)

    async def _send(self, message: Message) -> None:
        if not message["type"].startswith("lifespan."):
            raise RuntimeError(f"{message['type']} is no answer to a lifespan")
        self._answered.put_nowait(message)

    async def ask(self, phase: str) -> bool:
        """Asks for a phase; False when the application does not know of it."""
        self._asked.put_nowait({"type": f"lifespan.{phase}"})
        answered = asyncio.ensure_future(self._answered.get())
        await asyncio.wait({answered, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():  # an application without a lifespan raises, or returns
            answered.cancel()
            return self._task.exception() is None and phase == "shutdown"
        message = answered.result()
        if message["type"].endswith(".failed"):
            said = message.get("message")  # a traceback, often, which `seen` would show on one line
            raise WorkerConfigurationError(f"the app's {phase} failed" + (f": {said}" if said else ""))
        return True
