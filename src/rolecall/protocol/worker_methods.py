"""The methods of a worker, each described once: its request, its answer, its errors and its HTTP routes.

A worker derives both of its listeners from `METHODS`. Over frames a request's value is the request struct, as a dict;
over HTTP it is the body, as JSON. Where a request carries an engine's arguments, they travel beside the struct: over
frames they are the value, `[args, kwargs]`, and the struct is the call's `meta`; over HTTP they are two further members
of the body, and `"stream": true` asks for a stream.

Calls over frames run at most once, also when a connection breaks. Over HTTP that is not promised: a client that sends a
request again runs it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Annotated, Any, Literal

import msgspec

from rolecall import errors
from rolecall.protocol.guard import Method, NoArguments, PortCount, Ports
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import Message, from_plain, malformed
from rolecall.types import TensorPolicy

CALLER = "the caller"  # in errors about its requests
DESTROY_TIMEOUT_S = 10.0
DESTROY_MARGIN_S = 1.0  # so much later whoever asks gives up: what took too long is told by the worker
MAX_BODY = 64 << 20
MAX_TENSOR = 1 << 30  # bytes that one PUT takes; larger tensors go over a framed connection

ShardId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class WorkerRequest(Message, frozen=True, kw_only=True):
    """Base of the requests, and the request of methods without arguments."""


class CreateEngine(WorkerRequest, frozen=True, kw_only=True):
    """Makes an object of the class that `engine` names. `engine_name` defaults to the worker's id."""

    engine: str
    engine_name: str | None = None


class CallMethod(WorkerRequest, frozen=True, kw_only=True, omit_defaults=True):
    """Calls an engine's method.

    Attributes:
        tensors: `remote` leaves the result's tensors on the worker and answers with handles.
        rpc_meta: Handed to methods that declare a parameter of that name.
    """

    method: str
    engine_name: str | None = None
    tensors: TensorPolicy = "local"
    rpc_meta: Any = None


class Destroy(WorkerRequest, frozen=True, kw_only=True):
    """Ends engines, all at the same time. `engines`: None means all; `timeout`: seconds for each."""

    engines: list[str] | None = None
    timeout: float = DESTROY_TIMEOUT_S


class Configure(WorkerRequest, frozen=True, kw_only=True):
    """Seeds the worker from its role and rank; `config["seed"]` is the run's seed (default 0)."""

    config: dict[str, Any] = {}
    role: str = ""
    rank: int = 0


class SetEnv(WorkerRequest, frozen=True, kw_only=True):
    """Changes the environment of the worker and of its later forks."""

    env: dict[str, str]


class AllocPorts(WorkerRequest, frozen=True, kw_only=True):
    """Leases ports on the worker's host until the worker ends."""

    count: PortCount


class Fork(WorkerRequest, frozen=True, kw_only=True):
    """Starts worker `role/worker_index` in the worker's slot.

    Attributes:
        command: A dotted module to run as a program; with `raw_cmd` None too, the fork hosts engines.
        raw_cmd: A program with its arguments.
    """

    role: str
    worker_index: int
    command: str | None = None
    raw_cmd: list[str] | None = None
    env: dict[str, str] = {}


class KillFork(WorkerRequest, frozen=True, kw_only=True):
    """Ends a worker that was started by `fork` of this one."""

    role: str
    worker_index: int


class GetShards(WorkerRequest, frozen=True, kw_only=True):
    """Asks for stored tensors. `ranges`: for each id the elements `(start, stop)` wanted; the tensors are flat then."""

    shard_ids: list[str]
    ranges: list[tuple[int, int]] | None = None


class StoreShard(WorkerRequest, frozen=True, kw_only=True):
    """Stores a tensor under an id of the caller's: its elements row by row, as the host has them."""

    shard_id: ShardId
    dtype: str
    shape: list[int]
    data: bytes


class ClearShards(WorkerRequest, frozen=True, kw_only=True):
    """Frees shards; unknown ids are ignored. `owner`: the worker that owns them; None is the one asked."""

    shard_ids: list[str]
    owner: str | None = None


class Done(Message, frozen=True, kw_only=True):
    """Answer of a method that has nothing else to say."""

    status: str = "ok"


class EngineCreated(Message, frozen=True, kw_only=True):
    """Answer to `create_engine`."""

    engine_name: str
    status: str = "ok"


class Seeded(Message, frozen=True, kw_only=True):
    """Answer to `configure`: what the worker's generators were seeded with."""

    seed: int


class Health(Message, frozen=True, kw_only=True):
    """Answer to `health`. `forked_children`: ids of the living workers in the same slot."""

    worker: str
    pid: int
    engines: list[str]
    forked_children: list[str]
    status: str = "ok"


class Forked(Message, frozen=True, kw_only=True):
    """Answer to `fork`. `port`: the first of its ports, 0 when it has none."""

    host: str
    port: int
    pid: int


class Stored(Message, frozen=True, kw_only=True):
    """Answer to `data.store`."""

    shard_id: str
    nbytes: int


class Cleared(Message, frozen=True, kw_only=True):
    """Answer to `data.clear`: what was freed, and what is left of this worker's."""

    cleared_count: int
    num_tensors: int
    total_bytes: int


Form = Literal["json", "call", "tensor", "upload", "frame", "metrics", "text"]


@dataclass(frozen=True)
class HttpRoute:
    """How a method is asked for over HTTP.

    Attributes:
        form: How request and answer are written: `json` as the structs are; `call` with the value as `{"result": ...}`;
            `tensor` (the answer) and `upload` (the request) as raw bytes with the headers `x-dtype` and `x-shape`;
            `frame` as one frame of the codec; `metrics` as Prometheus text or JSON; `text` as it is.
        statuses: Of errors whose status differs from `STATUS`.
    """

    verb: str
    path: str
    form: Form = "json"
    max_body: int = MAX_BODY
    statuses: Mapping[type[errors.RolecallError], int] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerMethod(Method[Any, Any]):
    """One method of a worker. Its `request` is `object` where the value is anything that the codec takes.

    Attributes:
        arguments: What an engine's arguments are called over HTTP, where the request carries any.
    """

    routes: tuple[HttpRoute, ...] = ()
    arguments: tuple[str, str] | None = None

    def parsed(self, value: Any) -> Any:
        """The request that a decoded value holds.

        Raises:
            ProtocolError: A field is missing, unknown or of another type.
        """
        if self.request is object:
            return value
        return from_plain(self.request, {} if value is None else value, CALLER, f"request {self.name!r}")

    def malformed(self, problem: str) -> errors.ProtocolError:
        """The error for a request that `parsed` does not get to see."""
        return malformed(f"request {self.name!r}", CALLER, problem)


STATUS: Mapping[type[errors.RolecallError], int] = {  # of an error or its nearest base
    errors.RolecallError: 400,
    errors.EngineNotFoundError: 404,
    errors.MethodNotFoundError: 400,
    errors.EngineCallError: 500,
    errors.InternalError: 500,
    errors.WorkerNotFoundError: 404,
    errors.ShardExistsError: 409,
}

CREATE_ENGINE = WorkerMethod(
    "create_engine",
    CreateEngine,
    EngineCreated,
    (HttpRoute("POST", "/create_engine"),),
    arguments=("init_args", "init_kwargs"),
)
CALL = WorkerMethod("call", CallMethod, Any, (HttpRoute("POST", "/call", "call"),), arguments=("args", "kwargs"))
DESTROY = WorkerMethod("destroy", Destroy, dict[str, str], (HttpRoute("POST", "/destroy"),))
GET_SHARDS = WorkerMethod(
    "data.get",
    GetShards,
    list[Any],
    (
        HttpRoute("POST", "/data/batch", "frame"),
        HttpRoute("GET", "/data/{shard_id}", "tensor", statuses={errors.ShardNotFoundError: 404}),
    ),
)
PUT_VALUE = WorkerMethod("data.put", object, Any)
CLEAR_SHARDS = WorkerMethod("data.clear", ClearShards, Cleared, (HttpRoute("DELETE", "/data/clear"),))

_METHODS = (
    WorkerMethod("health", WorkerRequest, Health, (HttpRoute("GET", "/health"),)),
    WorkerMethod("metrics", WorkerRequest, dict[str, Any], (HttpRoute("GET", "/metrics", "metrics"),)),
    WorkerMethod("stacks", WorkerRequest, str, (HttpRoute("GET", "/stacks", "text"),)),
    CREATE_ENGINE,
    CALL,
    DESTROY,
    WorkerMethod("configure", Configure, Seeded, (HttpRoute("POST", "/configure"),)),
    WorkerMethod("set_env", SetEnv, Done, (HttpRoute("POST", "/set_env"),)),
    WorkerMethod("alloc_ports", AllocPorts, Ports, (HttpRoute("POST", "/alloc_ports"),)),
    WorkerMethod("fork", Fork, Forked, (HttpRoute("POST", "/fork"),)),
    WorkerMethod("kill_forked_worker", KillFork, Done, (HttpRoute("POST", "/kill_forked_worker"),)),
    GET_SHARDS,
    WorkerMethod("data.store", StoreShard, Stored, (HttpRoute("PUT", "/data/{shard_id}", "upload", MAX_TENSOR),)),
    PUT_VALUE,
    CLEAR_SHARDS,
)

METHODS: Mapping[str, WorkerMethod] = {method.name: method for method in _METHODS}


class WorkerConfig(Message, frozen=True, kw_only=True):
    """What a worker needs to serve: the value of the request `configure`.

    Attributes:
        guard: Its guard's configuration, with what concerns the run.
        socket: The Unix path to listen on.
        ports: All that were leased for it; it listens on the first.
        target_ports: Of the worker in whose slot a fork lives.
        devices: Its slot's.
        replicas: Number of workers of its role.
        progress: Path of the progress page; empty where nobody reads one.
    """

    guard: GuardConfig
    worker_id: str
    socket: str
    ports: list[int] = []
    target_ports: list[int] = []
    devices: list[str] = []
    replicas: int = 1
    progress: str = ""


class ForkOf(Fork, frozen=True, kw_only=True):
    """A fork that a client of the guard's socket requests. `target`: the worker in whose slot it is started."""

    target: str


CONFIGURE = Method("configure", WorkerConfig, NoneType)  # answered when it listens
SET_ENV = Method("set_env", SetEnv, NoneType)
TASKS = Method("tasks", NoArguments, str)  # the stacks of its event loop's tasks
FORK_OF = Method("fork", ForkOf, Forked)
FORKED_CHILDREN = Method("forked_children", NoArguments, list[str])
