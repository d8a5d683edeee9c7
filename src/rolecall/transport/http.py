"""The HTTP side of a listener: requests, responses, routes, and one connection served by h11.

The order of the checks is the promise: token, then `Host` and `Origin`, then the route and its method, then the body's
size, then the body. The token is looked for in the bytes of a request's head: without it nothing is parsed, and what is
malformed is refused as what is well formed. A connection that fails one of the first two is closed after the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from rolecall.errors import AuthenticationError, RPCConnectionError
from rolecall.protocol.token import Token
from rolecall.transport import address as addresses

MAX_BODY = 64 << 20
MAX_HEAD = 16 << 10
FIRST_REQUEST_S = 10.0
IDLE_S = 75.0  # between two requests of one connection
BODY_S = 300.0
RECEIVE = 64 << 10
LINGER_S = 1.0

_HEAD_ENDS = re.compile(rb"\n\r?\n")
_SHOWN = re.compile(rb"^authorization:[ \t]*bearer[ \t]+(\S+)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_TRIED = re.compile(rb"^authorization:", re.IGNORECASE | re.MULTILINE)
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]*))(?::\d*)?")


@dataclass(frozen=True)
class Request:
    """One request. Header names are lower case, of repeated ones the last counts; `authorization` is taken out."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    params: dict[str, str] = field(default_factory=dict)

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
    """One answer; `json_response` makes the usual kind."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class HttpError(Exception):
    """Raised in a route to answer with `status` and `{"error": sentence}`, and further `facts` beside it."""

    def __init__(self, status: int, sentence: str, **facts: Any) -> None:
        self.status, self.sentence, self.facts = status, sentence, facts
        super().__init__(f"{status}: {sentence}")


Route = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, status: int = 200) -> Response:
    """A response with `value` as JSON."""
    return Response(status, {"content-type": "application/json"}, json.dumps(value).encode() + b"\n")


class Routes:
    """Which function answers which method and path. A path's part `{name}` matches anything and becomes a parameter."""

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


class _Glimpse(NamedTuple):
    """What the bytes of a request's head say before they are parsed; never the token itself."""

    to_head: bool  # HEAD asks for the head of the answer alone
    token: str  # `right`, `wrong` or `missing`


class HttpConnection:
    """Serves one connection until it is closed, refused or idle for long."""

    def __init__(
        self,
        sock: socket.socket,
        begun: bytes,
        loop: asyncio.AbstractEventLoop,
        token: Token,
        routes: Routes,
        hosts: frozenset[str],
        authenticated: Callable[[], None],
    ) -> None:
        self._sock, self._loop, self._token, self._routes, self._hosts = sock, loop, token, routes, hosts
        self._authenticated = authenticated
        self._unix = sock.family == socket.AF_UNIX
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._http.receive_data(begun)

    async def run(self) -> None:
        """Answers one request after another.

        Raises:
            OSError, TimeoutError: The connection broke, or was silent too long.
        """
        patience = FIRST_REQUEST_S
        while True:
            async with asyncio.timeout(patience):
                seen = await self._glimpse()
            if seen is None or not await self._send(await self._response(seen), to_head=seen.to_head):
                return
            patience = IDLE_S

    async def _glimpse(self) -> _Glimpse | None:
        """Waits for the next request's head; None when the connection ended instead."""
        while True:
            raw = self._http.trailing_data[0].lstrip(b"\r\n")
            end = _HEAD_ENDS.search(raw)
            if end or len(raw) > MAX_HEAD:
                return self._seen_in(raw[: end.end() if end else None])
            data = await self._loop.sock_recv(self._sock, RECEIVE)
            self._http.receive_data(data)
            if not data:
                return self._seen_in(raw) if raw else None

    def _seen_in(self, raw: bytes) -> _Glimpse:
        right = any(self._token.matches(shown) for shown in _SHOWN.findall(raw))
        token = "right" if right else "wrong" if _TRIED.search(raw) else "missing"
        return _Glimpse(raw.startswith(b"HEAD "), token)

    async def _response(self, seen: _Glimpse) -> Response:
        try:
            if seen.token != "right":
                raise HttpError(401, str(AuthenticationError(seen=seen.token)))
            self._authenticated()
            return await self._answered(self._checked(await self._next_event()))
        except HttpError as e:
            return _error(e)
        except h11.RemoteProtocolError as e:
            return _error(HttpError(e.error_status_hint or 400, str(e)))

    async def _answered(self, request: Request) -> Response:
        route, max_body, params = self._routes.find(request.method, request.path)
        async with asyncio.timeout(BODY_S):
            body = await self._body(request, max_body)
        return await self._handled(route, _with(request, body, params))

    def _checked(self, head: Any) -> Request:
        """The request, once its host and origin are right, and the token as it was parsed is the one that was seen."""
        if not isinstance(head, h11.Request):
            raise RPCConnectionError("the client", "it hung up before the request was complete")
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        scheme, _, secret = headers.pop("authorization", "").partition(" ")  # taken out: no route ever sees it
        if scheme.lower() != "bearer" or not self._token.matches(secret.strip().encode("latin-1")):
            raise HttpError(401, str(AuthenticationError(seen="wrong")))
        host = _hostname(headers.get("host", ""))
        if host not in self._hosts and not (self._unix and not host):
            raise HttpError(403, f"foreign Host {host!r}; use the address this listens on")
        if "origin" in headers:
            raise HttpError(403, f"requests of web pages are not answered (Origin {headers['origin']!r})")
        target = _split(head.target.decode("latin-1"))
        return Request(head.method.decode(), target.path, dict(parse_qsl(target.query)), headers)

    async def _body(self, request: Request, max_body: int) -> bytes:
        announced = int(request.headers.get("content-length", 0))  # h11 has made sure that it is a number
        if announced > max_body:
            raise _too_large(max_body)
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            await self._loop.sock_sendall(self._sock, self._http.send(go_on) or b"")
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > max_body:
                raise _too_large(max_body)
        if not isinstance(event, h11.EndOfMessage):
            raise RPCConnectionError("the client", "it hung up before the request was complete")
        return bytes(body)

    async def _handled(self, route: Route, request: Request) -> Response:
        try:
            return await route(request)
        except HttpError:
            raise
        except Exception as e:  # a route's mistake is this request's answer, not the end of the server
            raise HttpError(500, self._token.scrub(f"{type(e).__name__}: {e}")) from e

    async def _send(self, response: Response, *, to_head: bool) -> bool:
        """Sends an answer, to HEAD without its body; False when the connection cannot be used again."""
        http = self._http
        ends = to_head or response.status in (401, 403) or http.their_state is not h11.DONE
        headers = {**response.headers, "content-length": str(len(response.body))}
        if ends:
            headers["connection"] = "close"
        data = http.send(h11.Response(status_code=response.status, headers=list(headers.items()))) or b""
        if not to_head:
            data += http.send(h11.Data(data=response.body)) or b""
            data += http.send(h11.EndOfMessage()) or b""
        async with asyncio.timeout(BODY_S):
            await self._loop.sock_sendall(self._sock, data)
        if ends or http.our_state is h11.MUST_CLOSE:
            await self._linger()
            return False
        http.start_next_cycle()
        return True

    async def _linger(self) -> None:
        """Reads what is still coming, for a moment; closing over it would reset the connection and lose the answer."""
        self._sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(LINGER_S):
                while await self._loop.sock_recv(self._sock, RECEIVE):
                    await asyncio.sleep(0)  # a fast sender must not keep the loop to itself

    async def _next_event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._loop.sock_recv(self._sock, RECEIVE))
        return event


def _split(target: str) -> Any:
    try:
        return urlsplit(target if target.startswith("/") else f"/{target}")
    except ValueError as e:
        raise HttpError(400, f"bad request target: {e}") from e


def _with(request: Request, body: bytes, params: dict[str, str]) -> Request:
    return Request(request.method, request.path, request.query, request.headers, body, params)


def _hostname(host: str) -> str:
    """The name without brackets and port; all of it when it is malformed, so that it equals no name of ours."""
    host = host.strip().lower()
    found = _HOST.fullmatch(host)
    return host if found is None else found[1] or found[2] or ""


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than {limit} bytes")


def _error(error: HttpError) -> Response:
    response = json_response({"error": error.sentence, **error.facts}, error.status)
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if error.status == 405:
        response.headers["allow"] = ", ".join(error.facts["allow"])
    return response


async def http_get(
    address: str, path: str, headers: dict[str, str] | None = None, timeout: float | None = 10.0
) -> Response:
    """Sends one GET to `unix:/path` or `tcp:host:port`; for readiness checks.

    Raises:
        OSError: Nobody listens there, or it hung up.
        TimeoutError: No answer within `timeout` seconds.
    """
    loop = asyncio.get_running_loop()
    where = addresses.parse(address)
    async with asyncio.timeout(timeout):
        sock = await addresses.dial(where, loop)
        try:
            return await _get(sock, loop, where.host or "localhost", path, headers or {})
        except h11.RemoteProtocolError as e:
            raise ConnectionError(f"{address} does not speak HTTP: {e}") from e
        finally:
            sock.close()


async def _get(
    sock: socket.socket, loop: asyncio.AbstractEventLoop, host: str, path: str, headers: dict[str, str]
) -> Response:
    http = h11.Connection(h11.CLIENT)
    sent = {"host": host, "connection": "close", **{name.lower(): value for name, value in headers.items()}}
    request = http.send(h11.Request(method="GET", target=path, headers=list(sent.items()))) or b""
    await loop.sock_sendall(sock, request + (http.send(h11.EndOfMessage()) or b""))
    status, answer, body = 0, {}, bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await loop.sock_recv(sock, RECEIVE))
        elif isinstance(event, h11.Response):
            status = event.status_code
            answer = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Response(status, answer, bytes(body))
        elif isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("the server hung up before its answer was complete")
