"""A module that tests run as a worker: an ASGI app that calls the engine made beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import rolecall

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
MADE: list[Counter] = []
SEEN: list[str] = []


class Counter:
    """The engine. The app knows it, since both are of one module."""

    def __init__(self, first: int = 0) -> None:
        self.value = first
        MADE.append(self)

    def add(self, number: int) -> int:
        self.value += number
        return self.value

    def count(self, number: int) -> Iterator[int]:
        yield from range(number)

    def seen(self) -> list[str]:
        return SEEN

    async def wait(self) -> None:
        await asyncio.sleep(3600)

    def destroy(self) -> None:
        print("destroyed", flush=True)


async def app(scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    body = (await receive())["body"]
    worker = rolecall.current_worker()
    match scope["path"]:
        case "/told" | "/open/told":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            told: dict[str, Any] = {"id": worker.id, "targets": worker.target_ports, "colour": os.environ.get("COLOUR")}
            told |= {"headers": headers, "body": body.decode(), "query": scope["query_string"].decode()}
            await answer(send, json.dumps(told).encode())
        case "/add":
            await answer(send, str(MADE[0].add(int(body))).encode())
        case "/open/stream":
            await stream(receive, send)
        case "/broken":
            raise ValueError("broken on purpose")
        case "/cut":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ValueError("cut on purpose")
        case "/half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        case "/bad-header":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"bad name", b"x")]})
        case "/open/stubborn":
            await stubborn(send)
        case path:
            await answer(send, path.encode(), 404)


async def lifespan(receive: Callable[[], Awaitable[Message]], send: Send) -> None:
    await receive()
    if why := os.environ.get("FAIL"):
        await send({"type": "lifespan.startup.failed", "message": why})
        return
    SEEN.append(f"up as {rolecall.current_worker().id}")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("shut down", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def answer(send: Send, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", str(len(body)).encode()), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def events() -> AsyncIterator[bytes]:
    number = 0
    while True:
        yield f"data: {number}\n\n".encode()
        number += 1
        await asyncio.sleep(0.01)


async def stream(receive: Callable[[], Awaitable[Message]], send: Send) -> None:
    """Server-sent events without an end, until the client is gone."""
    gone = asyncio.ensure_future(receive())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    async for event in events():
        if gone.done():
            SEEN.append((await gone)["type"])
            return
        await send({"type": "http.response.body", "body": event, "more_body": True})


async def stubborn(send: Send) -> None:
    """Sends on after its client is gone, and ignores its cancellation."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    refused = 0
    while refused < 3:
        try:
            await send({"type": "http.response.body", "body": b"on and on", "more_body": True})
        except OSError:
            refused += 1
    SEEN.append("refused 3 times")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


if __name__ == "__main__":
    rolecall.serve(app, public=[os.environ.get("PUBLIC", "/open/")])
