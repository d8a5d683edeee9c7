"""One connection that speaks HTTP, served by h11.

Checks are made in this order: token, `Host` and `Origin`, route and method, size of the body, body. The token is looked
for in the raw bytes of a request's head: without it nothing is parsed but requests for public paths, and malformed
requests are refused like well-formed ones. A connection that fails one of the first two checks is closed after the
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import h11

from rolecall.errors import AuthenticationError, RPCConnectionError
from rolecall.protocol.token import Token
from rolecall.transport.http.messages import Disconnect, HttpError, Request, Response
from rolecall.transport.http.router import Routes

MAX_HEAD = 16 << 10
FIRST_REQUEST_S = 10.0
IDLE_S = 75.0  # between two requests of one connection
BODY_S = 300.0
RECEIVE = 64 << 10
LINGER_S = 1.0

log = logging.getLogger("rolecall")

_HEAD_ENDS = re.compile(rb"\n\r?\n")
_SHOWN = re.compile(rb"^authorization:[ \t]*bearer[ \t]+(\S+)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_TARGET = re.compile(rb"[A-Z]+ ([^ ?]+)")
_TRIED = re.compile(rb"^authorization:", re.IGNORECASE | re.MULTILINE)
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]*))(?::\d*)?")


class _Head(NamedTuple):
    """What is read from a request's head before it is parsed; never the token itself."""

    is_head_request: bool
    token: str  # `right`, `wrong` or `missing`
    path: str  # as it was sent


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
        if not self._unix:  # a response is sent in parts, and none shall wait for the client's acknowledgement
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        if text := begun.lstrip(b"\r\n"):
            self._http.receive_data(text)

    async def run(self) -> None:
        """Answers one request after another.

        Raises:
            OSError, TimeoutError: The connection broke, or was silent too long.
        """
        timeout = FIRST_REQUEST_S
        while True:
            async with asyncio.timeout(timeout):
                head = await self._read_head()
            if head is None or not await self._serve(head):
                return
            timeout = IDLE_S

    async def _serve(self, head: _Head) -> bool:
        """Answers one request; False when the connection cannot be used again."""
        self._disconnect = Disconnect(self._disconnected)
        try:
            reusable = await self._send(await self._response(head), without_body=head.is_head_request)
        except BaseException:
            self._disconnect.notify()
            raise
        finally:
            self._loop.remove_reader(self._sock.fileno())
        if not reusable:
            await linger(self._sock, self._loop)
        return reusable

    def _readable(self) -> None:
        self._loop.remove_reader(self._sock.fileno())  # an early next request stays in the socket until its turn
        if self._disconnected():
            self._disconnect.notify()

    def _disconnected(self) -> bool:
        """Whether the client has closed the connection; reads no byte. Any thread."""
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    async def _read_head(self) -> _Head | None:
        """Waits for the head of the next request; None when the connection was closed instead, or floods."""
        blank = 0  # bytes of line ends before the head; clients may send a few
        while blank <= MAX_HEAD:
            raw = self._http.trailing_data[0].lstrip(b"\r\n")
            end = _HEAD_ENDS.search(raw)
            if end or len(raw) > MAX_HEAD:
                return self._head_of(raw[: end.end() if end else None])
            data = await self._loop.sock_recv(self._sock, RECEIVE)
            if not data:
                self._http.receive_data(data)
                return self._head_of(raw) if raw else None
            text = data if raw else data.lstrip(b"\r\n")
            blank += len(data) - len(text)
            if text:
                self._http.receive_data(text)
        return None

    def _head_of(self, raw: bytes) -> _Head:
        right = any(self._token.matches(shown) for shown in _SHOWN.findall(raw))
        token = "right" if right else "wrong" if _TRIED.search(raw) else "missing"
        target = _TARGET.match(raw)
        return _Head(raw.startswith(b"HEAD "), token, target[1].decode("latin-1") if target else "")

    async def _response(self, head: _Head) -> Response:
        try:
            known = head.token == "right"
            if not (known or self._routes.is_public(head.path)):
                raise HttpError(401, str(AuthenticationError(seen=head.token)))
            if known:
                self._authenticated()
            return await self._answered(self._checked(await self._next_event(), known), known)
        except HttpError as e:
            return e.response()
        except h11.RemoteProtocolError as e:
            return HttpError(e.error_status_hint or 400, self._token.scrub(str(e))).response()

    async def _answered(self, request: Request, known: bool) -> Response:
        route, max_body, params = self._routes.find(request.method, request.path, known=known)
        async with asyncio.timeout(BODY_S):
            body = await self._body(request, max_body)
        self._loop.add_reader(self._sock.fileno(), self._readable)  # tells of a disconnect
        try:
            return await route(replace(request, body=body, params=params, disconnect=self._disconnect))
        except HttpError:
            raise
        except Exception as e:  # a bug of a route fails this request, not the server
            report = "".join(traceback.format_exception(e))
            log.error("%s %s: %s", request.method, request.path, self._token.scrub(report))
            message = f"internal error ({type(e).__name__}): {e}; the traceback is in this process's log"
            raise HttpError(500, self._token.scrub(message)) from e

    def _checked(self, head: Any, known: bool) -> Request:
        """The request, after its host, origin and, of one that has shown the token, the parsed token were checked."""
        raw_headers = list(head.headers)
        headers = {name.decode(): value.decode("latin-1") for name, value in raw_headers}
        if known:
            scheme, _, secret = headers.pop("authorization", "").partition(" ")  # removed, so that no route sees it
            if scheme.lower() != "bearer" or not self._token.matches(secret.strip().encode("latin-1")):
                raise HttpError(401, str(AuthenticationError(seen="wrong")))
            raw_headers = [(name, value) for name, value in raw_headers if name != b"authorization"]
        if head.method == b"CONNECT" or {"content-length", "transfer-encoding"} <= headers.keys():
            raise HttpError(400, "CONNECT, and a body of two lengths, are refused: a proxy may read them otherwise")
        host = _hostname(headers.get("host", ""))
        if host not in self._hosts and not (self._unix and not host):
            raise HttpError(403, f"foreign Host {host!r}; use the address that this server listens on")
        if "origin" in headers:
            raise HttpError(403, f"requests from web pages are refused (Origin {headers['origin']!r})")
        target = _split(head.target.decode("latin-1"))
        query = dict(parse_qsl(target.query))
        return Request(head.method.decode(), target.path, query, headers, head.target, raw_headers)

    async def _body(self, request: Request, max_body: int) -> bytes:
        announced, body = int(request.headers.get("content-length", 0)), bytearray()  # a number, as h11 has made sure
        while max(announced, len(body)) <= max_body:
            if self._http.they_are_waiting_for_100_continue:
                await self._send_events(h11.InformationalResponse(status_code=100, headers=[]))
            if not isinstance(event := await self._next_event(), h11.Data):
                return bytes(body)
            body += event.data
        raise HttpError(413, f"the body is larger than {max_body} bytes")

    async def _send(self, response: Response, *, without_body: bool) -> bool:
        """Sends a response, for HEAD without its body; False when the connection cannot be used again."""
        http = self._http
        ends = without_body or response.status in (401, 403) or http.their_state is not h11.DONE
        headers = dict(response.headers)
        if response.chunks is None:
            headers["content-length"] = str(len(response.body))
        if ends:
            headers["connection"] = "close"
        plain = [(name.encode(), value.encode()) for name, value in headers.items()]
        head = h11.Response(status_code=response.status, headers=[*plain, *response.raw_headers])
        if without_body:
            await self._send_events(head)
        elif response.chunks is None:
            await self._send_events(head, h11.Data(data=response.body), h11.EndOfMessage())
        else:
            await self._send_events(head)
            async with contextlib.aclosing(response.chunks) as chunks:
                async for chunk in chunks:
                    await self._send_events(h11.Data(data=chunk))
            await self._send_events(h11.EndOfMessage())
        if ends or http.our_state is h11.MUST_CLOSE:
            return False
        http.start_next_cycle()
        return True

    async def _send_events(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        async with asyncio.timeout(BODY_S):
            await self._loop.sock_sendall(self._sock, data)

    async def _next_event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._loop.sock_recv(self._sock, RECEIVE))
        if isinstance(event, h11.ConnectionClosed):
            raise RPCConnectionError("the client", "it closed the connection before the request was complete")
        return event


async def linger(sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    """Reads what still arrives, for a moment, before the end: closing with unread bytes would reset the connection."""
    sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(LINGER_S):
            while await loop.sock_recv(sock, RECEIVE):
                await asyncio.sleep(0)  # a fast sender must not keep the loop to itself


def _split(target: str) -> Any:
    try:
        return urlsplit(target if target.startswith("/") else f"/{target}")
    except ValueError as e:
        raise HttpError(400, f"bad request target: {e}") from e


def _hostname(host: str) -> str:
    """The name without brackets and port; a malformed one unchanged, so that it equals none of the allowed names."""
    host = host.strip().lower()
    found = _HOST.fullmatch(host)
    return host if found is None else found[1] or found[2] or ""
