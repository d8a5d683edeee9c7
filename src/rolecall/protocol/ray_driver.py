"""What a controller and its Ray driver, the process that talks to Ray for it, say to each other."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal

from rolecall.protocol.guard import Method, NoArguments
from rolecall.protocol.guard_config import GuardConfig
from rolecall.protocol.message import Message
from rolecall.types import RayPlacementStrategy

Resources = dict[str, float]


class JoinCluster(Message, frozen=True, kw_only=True):
    """Asks the driver to join a cluster, or to start one of the run's own.

    Attributes:
        address: Of the head, `host:port`; None for RAY_ADDRESS's, else one that runs here, else one of the run's own.
        folder: Where a cluster of the run's own keeps its files.
        init: Further keywords of `ray.init`.
    """

    address: str | None
    folder: str
    namespace: str
    init: dict[str, Any] = {}


class Joined(Message, frozen=True, kw_only=True):
    """The cluster that was joined, or why it was not.

    Attributes:
        ip: The controller's address in it.
        most: That one of its nodes has, by Ray's name of the resource: `GPU`, `NPU`, `CPU`, `memory` (bytes).
        may_grow: Nodes may be added on demand, as far as Ray knows.
        error: Type of the exception that Ray refused with; empty when it did not.
        reason: Its message.
    """

    address: str = ""
    ip: str = ""
    most: Resources = {}
    may_grow: bool = True
    error: str = ""
    reason: str = ""


class Group(Message, frozen=True):
    """A placement group. Ray puts all of its bundles somewhere, or none; PACK means on few nodes."""

    name: str
    bundles: tuple[Resources, ...]
    strategy: str = "PACK"


class Actor(Message, frozen=True, kw_only=True):
    """The actor of a worker's guard.

    Attributes:
        group: Index of its placement group.
        bundle: Index of its bundle there.
        resources: What it holds of that bundle.
    """

    name: str
    worker_id: str
    group: int
    bundle: int
    resources: Resources


class RoleGroups(Message, frozen=True):
    """All that a role asks of Ray. `actors[i]` is the guard of worker `i`."""

    strategy: RayPlacementStrategy
    groups: tuple[Group, ...]
    actors: tuple[Actor, ...]


class PlaceRole(Message, frozen=True, kw_only=True):
    """Asks for a role's placement groups, and for guards in them.

    Attributes:
        name: Guard `n` calls itself `<name>-<n>`.
        config: The configuration of all guards, with `name` for an id.
        kind: Ray's name of the devices, `GPU` or `NPU`.
    """

    name: str
    config: GuardConfig
    kind: str
    wanted: RoleGroups


class OfRole(Message, frozen=True, kw_only=True):
    """The role that was placed under this name."""

    name: str


class OfGuard(Message, frozen=True, kw_only=True):
    """A guard of the role that was placed under this name."""

    name: str
    ordinal: int


class RoleNews(Message, frozen=True, kw_only=True):
    """Where a role stands; the driver tells of it under the name of the role's request.

    Attributes:
        state: Of its placement groups and actors.
        reason: Why they wait or have ended.
        guards: Each worker's guard, by its ordinal, once all are there.
        devices: Each worker's.
        ends: What became of guards that have ended, by id.
        left: Names of actors and groups that could not be ended; None before they were released.
    """

    state: Literal["queued", "running", "ended"] = "queued"
    reason: str = ""
    guards: list[int] = []
    devices: list[list[str]] = []
    ends: dict[str, str] = {}
    left: list[str] | None = None


JOIN = Method("join", JoinCluster, Joined)
COUNT_NODES = Method("count_nodes", NoArguments, int)
PLACE = Method("place", PlaceRole, NoneType)
LOOK = Method("look", OfGuard, str)  # what became of a guard; "" while it runs, as far as Ray knows
RELEASE = Method("release", OfRole, NoneType)
