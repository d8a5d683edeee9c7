"""Two ways to ask a worker, over frames and over HTTP, with one interface. HTTP is spoken by the standard library."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any, Protocol

from rolecall.errors import EngineCallError, EngineCreationError, InternalError, RolecallError
from rolecall.protocol.worker_methods import METHODS
from rolecall.transport.client import Client
from rolecall.transport.peer import Call

PATIENCE_S = 30.0


@dataclass
class FailedError(Exception):
    """What a worker said instead of an answer. `status` is None over frames."""

    kind: str
    message: str
    status: int | None = None
    type: str = ""
    traceback: str = ""


class Pending(Protocol):
    """A call under way."""

    def result(self) -> Any: ...
    def give_up(self) -> None: ...


class Caller(Protocol):
    """Whoever asks a worker. `named`: what is said beside the engine's arguments (`engine_name`, `tensors`, ...)."""

    def ask(self, method: str, **fields: Any) -> Any: ...
    def create(self, engine: str, *args: Any, name: str | None = None, **kwargs: Any) -> Any: ...
    def begin(self, method: str, *args: Any, named: dict[str, Any] | None = None, **kwargs: Any) -> Pending: ...
    def call(self, method: str, *args: Any, named: dict[str, Any] | None = None, **kwargs: Any) -> Any: ...
    def stream(self, method: str, *args: Any, named: dict[str, Any] | None = None) -> Iterator[Any]: ...


class FramesPending:
    def __init__(self, call: Call) -> None:
        self._call = call

    def result(self) -> Any:
        try:
            return self._call.result()
        except RolecallError as e:
            raise _failed(e) from e

    def give_up(self) -> None:
        self._call.cancel()


def _failed(error: RolecallError) -> FailedError:
    failed = FailedError(type(error).__name__, str(error))
    if isinstance(error, EngineCallError):
        failed.type, failed.traceback = error.remote_type, error.traceback
    elif isinstance(error, EngineCreationError):
        failed.traceback = error.traceback
    elif isinstance(error, InternalError):
        failed.type = error.error_type
    return failed


class FramesCaller:
    """Asks over a client's connection."""

    def __init__(self, client: Client) -> None:
        self._peer = client.peer

    def ask(self, method: str, **fields: Any) -> Any:
        return FramesPending(self._peer.request(method, fields, timeout=PATIENCE_S)).result()

    def create(self, engine: str, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        meta = {"engine": engine, "engine_name": name}
        return FramesPending(self._peer.request("create_engine", (args, kwargs), meta=meta)).result()

    def begin(self, method: str, *args: Any, named: dict[str, Any] | None = None, **kwargs: Any) -> FramesPending:
        meta = {"method": method, **(named or {})}
        return FramesPending(self._peer.request("call", (args, kwargs), meta=meta, timeout=PATIENCE_S))

    def call(self, method: str, *args: Any, named: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return self.begin(method, *args, named=named, **kwargs).result()

    def stream(self, method: str, *args: Any, named: dict[str, Any] | None = None) -> Iterator[Any]:
        meta = {"method": method, **(named or {})}
        call = self._peer.request("call", (args, {}), meta=meta, streaming=True)
        try:
            yield from call
        except RolecallError as e:
            raise _failed(e) from e
        finally:
            call.cancel()


class _Connection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class HttpPending:
    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection

    def result(self) -> Any:
        with self._connection.getresponse() as response:
            return _value(response)

    def give_up(self) -> None:
        self._connection.close()


def _value(response: HTTPResponse) -> Any:
    body = response.read()
    found = json.loads(body) if response.headers["content-type"] == "application/json" else body.decode("latin-1")
    if response.status != 200:
        raise _refused(json.loads(body), response.status)
    return found


def _refused(facts: dict[str, Any], status: int | None) -> FailedError:
    return FailedError(facts["kind"], facts["error"], status, facts.get("type", ""), facts.get("traceback", ""))


class HttpCaller:
    """Asks over a connection of its own each time."""

    def __init__(self, path: str, token: str) -> None:
        self._path, self._headers = path, {"Authorization": f"Bearer {token}"}

    def send(self, verb: str, path: str, body: Any = None, **headers: str) -> HttpPending:
        return self.send_text(verb, path, None if body is None else json.dumps(body), **headers)

    def send_text(self, verb: str, path: str, body: str | None, **headers: str) -> HttpPending:
        connection = _Connection(self._path)
        connection.request(verb, path, body, self._headers | headers)
        return HttpPending(connection)

    def ask(self, method: str, **fields: Any) -> Any:
        route = METHODS[method].routes[0]
        return self.send(route.verb, route.path, fields).result()

    def create(self, engine: str, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        return self.ask("create_engine", engine=engine, engine_name=name, init_args=args, init_kwargs=kwargs)

    def begin(self, method: str, *args: Any, named: dict[str, Any] | None = None, **kwargs: Any) -> HttpPending:
        return self.send("POST", "/call", {"method": method, "args": args, "kwargs": kwargs, **(named or {})})

    def call(self, method: str, *args: Any, named: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return self.begin(method, *args, named=named, **kwargs).result()["result"]

    def stream(self, method: str, *args: Any, named: dict[str, Any] | None = None) -> Iterator[Any]:
        connection = _Connection(self._path)
        body = {"method": method, "args": args, "stream": True, **(named or {})}
        connection.request("POST", "/call", json.dumps(body), self._headers)
        response = connection.getresponse()
        try:
            if response.status != 200:
                _value(response)
            for line in response:
                said = json.loads(line)
                if "item" in said:
                    yield said["item"]
                elif "error" in said:
                    raise _refused(said, response.status)
                else:
                    assert said == {"result": None}
                    return
            raise ConnectionError("the stream broke off without a last line")
        finally:
            connection.close()
            response.close()


def until(happened: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Waits for what another process says only when it is asked."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found


def path(engine: type) -> str:
    """The path of an engine's class."""
    return f"{engine.__module__}:{engine.__qualname__}"
