"""A role's placement groups on Ray, and the actors in them, as the run's driver holds them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from rolecall.placement.ray import guard as ray_guard
from rolecall.placement.ray import messages
from rolecall.placement.sidecar import SidecarServer
from rolecall.protocol.environment import RAY_PLACEMENT_GROUP, marks
from rolecall.protocol.message import to_plain
from rolecall.protocol.ray_driver import Actor, PlaceRole, RoleNews
from rolecall.transport.address import dial_host
from rolecall.transport.ray_internals import actor_state, free_resources

STOP_S = 20.0
GONE_S = 5.0
PROBE_S = 0.5
LOOK_S = 0.2


class RoleActors:
    """The placement groups and guards' actors of a role.

    Where the group is shared, one guard on each node owns the slots of all bundles there: torch is imported once on a
    node and not in front of each worker. Other bundles' devices are held by actors that do nothing else.

    Attributes:
        news: What was told last, under the name of the request.
    """

    def __init__(self, request: PlaceRole, server: SidecarServer) -> None:
        self._name, self._request, self._server = request.name, request, server
        self._wanted = request.wanted
        self._groups: list[Any] = []
        self._homes: list[str] = []  # the node of each worker's bundle
        self._owners: list[int] = []  # of each worker's slot: the worker that its guard is named after
        self._actors: dict[int, Any] = {}
        self._runs: dict[Any, int] = {}
        self.news, self._telling = RoleNews(), threading.Lock()
        self._releasing, self._idle = threading.Event(), threading.Event()

    def place(self) -> None:
        """Asks for the groups, waits for them, starts the guards in them, and reports those that end."""
        try:
            self._ask()
            if self._wait_for_groups():
                self._tell(state="running", reason="")
                self._start()
                self._tell_layout()
        except Exception as e:
            self._tell(state="ended", reason=messages.error_text(e))
        finally:
            self._idle.set()
        self._watch()

    def _ask(self) -> None:
        from ray.util.placement_group import placement_group

        for group in self._wanted.groups:
            if not self._releasing.is_set():
                self._groups.append(placement_group(list(group.bundles), strategy=group.strategy, name=group.name))

    def _wait_for_groups(self) -> bool:
        """True when all are placed; False when they are no longer wanted."""
        import ray

        pause = 0.02
        while not self._releasing.wait(pause):
            tables = [_table(group) for group in self._groups]
            waiting = [table for table in tables if table["state"] != "CREATED"]
            if not waiting:
                return True
            living = [node for node in ray.nodes() if node["Alive"]]
            reason = messages.why(waiting, len(tables), living, free_resources())
            if reason != self.news.reason:
                self._tell(reason=reason)
            pause = min(pause * 2, 0.5)
        return False

    def _start(self) -> None:
        """An actor for each guard, and for each other bundle that has devices."""
        actors, shared = self._wanted.actors, self._wanted.strategy == "shared"
        nodes = [_table(group)["bundles_to_node_id"] for group in self._groups]
        self._homes = [nodes[actor.group][actor.bundle] for actor in actors]
        self._owners = [self._homes.index(home) if shared else n for n, home in enumerate(self._homes)]
        for n, actor in enumerate(actors):
            if self._owners[n] == n:
                self._actors[n] = self._actor(ray_guard.Guard, actor)
                config = self._config(n, actor)
                # The token in it goes to the actor itself; what a constructor is given is kept by Ray's head.
                mark = marks(config["run_id"], config["guard_id"])
                run = self._actors[n].run.remote(config, mark, self._request.kind)
            elif self._has_devices(actor):
                self._actors[n] = self._actor(ray_guard.Holder, actor)
                run = self._actors[n].run.remote()
            else:
                continue
            self._runs[run] = n

    def _config(self, n: int, actor: Actor) -> dict[str, Any]:
        """A guard's own configuration, as plain values, since its node may be without our modules: what is said of all,
        its id, and the group that its workers are in.
        """
        of_all = self._request.config
        env = of_all.env | {RAY_PLACEMENT_GROUP: self._wanted.groups[actor.group].name}
        return dict(to_plain(msgspec.structs.replace(of_all, guard_id=f"{self._name}-{n}", env=env)))

    def _actor(self, kind: type, actor: Actor) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup

        held = dict(actor.resources)
        options = {
            "name": actor.name,
            "num_cpus": held.pop("CPU", 0),
            "num_gpus": held.pop("GPU", 0),
            "memory": held.pop("memory", None),
            "resources": held,
            "max_concurrency": 3,  # `run`, `devices` and `stop`
            "max_restarts": 0,
            "scheduling_strategy": InGroup(self._groups[actor.group], actor.bundle),
        }
        return ray.remote(kind).options(**options).remote(actor.worker_id)

    def _has_devices(self, actor: Actor) -> bool:
        return bool(actor.resources.get(self._request.kind))

    def _tell_layout(self) -> None:
        """Which guard and which devices each worker has, as soon as the actors that hold devices are there."""
        import ray

        kind, actors = self._request.kind, self._wanted.actors
        asked = {n: self._actors[n].devices.remote(kind) for n, actor in enumerate(actors) if self._has_devices(actor)}
        left = list(asked.values())
        while left and not self._releasing.is_set():
            _, left = ray.wait(left, num_returns=len(left), timeout=LOOK_S)
        if not left:
            devices = [ray.get(asked[n]) if n in asked else [] for n in range(len(actors))]
            self._tell(guards=self._owners, devices=devices)

    def _tell(self, **changes: Any) -> None:
        with self._telling:
            self.news = msgspec.structs.replace(self.news, **changes)
            self._server.say(self._name, self.news)

    def _watch(self) -> None:
        import ray

        left = list(self._runs)
        while left:
            ended, left = ray.wait(left, timeout=None)
            for run in ended:
                self._note(self._runs[run], run)

    def _note(self, ordinal: int, run: Any) -> None:
        import ray

        words = messages.or_error(ray.get, run)
        with contextlib.suppress(Exception):  # whatever Ray raises, there are words already
            words = (not self._releasing.is_set() and self._cause(ordinal)) or words
        owner, worker = self._owners[ordinal], self._wanted.actors[ordinal].worker_id
        if owner != ordinal:
            words = f"the actor that held the devices of {worker} ended: {words}"
            self._actors[owner].stop.remote()  # Ray gives those devices to others now
        ends = {f"{self._name}-{owner}": words or "it was stopped"} | self.news.ends
        self._tell(state="ended", reason=f"{worker}: {words}", ends=ends)

    def look(self, ordinal: int) -> str | None:
        """What is known of a guard's end, or to be seen of it before Ray reports it."""
        return self.news.ends.get(f"{self._name}-{ordinal}") or self._cause(ordinal)

    def _cause(self, ordinal: int) -> str | None:
        """What has taken a guard with it: a dying node kills it before anything is heard of the node."""
        import ray

        table = _table(self._groups[self._wanted.actors[ordinal].group])
        if table["state"] == "REMOVED":
            return f"its placement group {table['name']} was removed"
        nodes, home = ray.nodes(), self._homes[ordinal]
        living = [node for node in nodes if node["NodeID"] == home and node["Alive"]]
        if not living:
            return messages.lost(home, nodes)
        where = living[0]["NodeManagerAddress"]
        try:
            dial_host(f"{where}:{living[0]['NodeManagerPort']}", PROBE_S)
        except OSError:
            return f"the raylet of its Ray node {where} does not answer"
        return None

    def release(self) -> None:
        """Ends guards, actors and groups, and reports what of them is left."""
        self._releasing.set()
        self._idle.wait()
        try:
            left = self._end_actors() + self._remove_groups()
        except Exception as e:
            left = [messages.error_text(e)]
        self._tell(left=left)

    def _end_actors(self) -> list[str]:
        import ray

        actors = list(self._actors.values())
        stops = [actor.stop.remote() for actor in actors if actor_state(actor) == "ALIVE"]
        if stops:
            ray.wait(stops, num_returns=len(stops), timeout=STOP_S)
        for actor in actors:
            actor.__ray_terminate__.remote()
        _until(lambda: all(actor_state(actor) == "DEAD" for actor in actors))
        for actor in actors:
            ray.kill(actor)  # also who is dead: an actor's name is free only then
        _until(lambda: all(actor_state(actor) == "DEAD" for actor in actors))
        names = [actor.name for actor in self._wanted.actors]
        return [f"actor {names[n]}" for n, actor in self._actors.items() if actor_state(actor) != "DEAD"]

    def _remove_groups(self) -> list[str]:
        from ray.util.placement_group import remove_placement_group

        for group in self._groups:
            remove_placement_group(group)
        _until(lambda: all(_table(group)["state"] == "REMOVED" for group in self._groups))
        return [f"placement group {t['name']}" for t in map(_table, self._groups) if t["state"] != "REMOVED"]


def _table(group: Any) -> dict[str, Any]:
    from ray.util.placement_group import placement_group_table

    found: dict[str, Any] = placement_group_table(group)
    return found


def _until(condition: Callable[[], bool]) -> None:
    deadline, pause = time.monotonic() + GONE_S, 0.01
    while not condition() and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(1.5 * pause, 0.2)
