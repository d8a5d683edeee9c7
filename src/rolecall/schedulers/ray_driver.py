"""A run's Ray driver: the process that talks to Ray for the controller. `python -m rolecall.schedulers.ray_driver N`.

Ray ends the process of a driver whose head is lost, takes over its signals and prints on its output; and its calls may
block. None of that must happen to a controller. Orders come in, and news go out, as lines of JSON over descriptor N.
When the other side is gone, so is all that was placed: Ray ends what a driver leaves behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rolecall.schedulers import ray_guard, ray_words

LOCAL_CPUS = 1024  # of a cluster of our own: on one machine cores set thread counts and keep no worker waiting
LOCAL_STORE_BYTES = 1 << 30
CALL_S = 5.0
STOP_S = 20.0
END_S = 30.0  # after which an end that waits for Ray is no longer waited for
GONE_S = 5.0
PROBE_S = 0.5
LOOK_S = 0.2
Say = Callable[[str, Any], None]


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    lock = threading.Lock()

    def say(key: str, value: Any) -> None:
        with lock, contextlib.suppress(OSError):  # nobody is there any more
            channel.sendall(json.dumps([key, value]).encode() + b"\n")

    orders = _orders(channel)
    folder = Path("/nonexistent")
    try:
        hello = next(orders)
        folder = Path(hello["folder"])
        try:
            say("joined", _join(hello))
        except Exception as e:
            say("refused", [type(e).__name__, str(e)])
            return
        _obey(orders, say)
    except (StopIteration, ConnectionError):
        pass  # nobody is there any more
    finally:
        import ray

        ray.shutdown(wait_for_processes=True)
        shutil.rmtree(folder, ignore_errors=True)


def _orders(channel: socket.socket) -> Iterator[dict[str, Any]]:
    """What the controller wants. When it is gone nobody is left to end us, should Ray not answer either."""
    try:
        yield from (json.loads(line) for line in channel.makefile("rb"))
    finally:
        end = threading.Timer(END_S, os._exit, [1])
        end.daemon = True
        end.start()


def _join(hello: dict[str, Any]) -> dict[str, Any]:
    """Connects to the cluster that is named, else RAY_ADDRESS's, else one that runs here, else one of our own."""
    import ray

    ray.cloudpickle.register_pickle_by_value(ray_guard)
    address = hello["address"] or os.environ.get("RAY_ADDRESS") or _running_here()
    how = {"namespace": hello["namespace"], "log_to_driver": False, "configure_logging": False, **hello["init"]}
    if address is not None:
        _call_on(address)
        ray.init(address=address, **how)
    else:
        _init_own(how, Path(hello["folder"]))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {
        "address": ray.get_runtime_context().gcs_address,
        "ip": "127.0.0.1" if address is None else ray.util.get_node_ip_address(),
        "devices": {key: int(max(node["Resources"].get(key, 0) for node in nodes)) for key in ("GPU", "NPU")},
    }


def _running_here() -> str | None:
    """The cluster that this user has started on this host, if it still answers.

    It is known from a file, in a folder that others may write to: theirs would get the run's token.
    """
    from ray._private.utils import get_ray_address_file

    file = Path(get_ray_address_file(None))
    try:
        address = file.read_text().strip() if file.lstat().st_uid == os.getuid() else ""
        _dial(address)
    except (OSError, ValueError):
        return None
    return address


def _dial(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon:
        raise ValueError("an address is host:port, and this host must be a node of the cluster")
    socket.create_connection((host.strip("[]"), int(port)), CALL_S).close()


def _call_on(address: str) -> None:
    """Sees that a head is there and lets us in; `ray.init` repeats either question for minutes."""
    from ray import _raylet

    try:
        _dial(address)
    except OSError as e:
        raise ConnectionError(f"its head does not answer ({e})") from e
    _raylet.GcsClient(address=address)  # type: ignore[attr-defined]


def _init_own(how: dict[str, Any], folder: Path) -> None:
    """Starts a cluster that nobody else finds: its own folder, and its own token unless the user has said otherwise."""
    import ray
    from ray import _raylet

    folder.mkdir(mode=0o700)
    if "RAY_AUTH_MODE" not in os.environ:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        _raylet.Config.initialize("")  # type: ignore[attr-defined] # Ray has read its variables when it was imported
        _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]
    own = {"num_cpus": LOCAL_CPUS, "object_store_memory": LOCAL_STORE_BYTES, "include_dashboard": False}
    # One below, since Ray opens its own folder to everybody.
    ray.init(address="local", _temp_dir=str(folder / "r"), **{**own, **how})


def _obey(orders: Iterator[dict[str, Any]], say: Say) -> None:
    """Carries out orders, each beside the others, since any may have to wait for Ray."""
    placed: dict[str, Allocation] = {}
    try:
        for order in orders:
            name = order["name"]
            if order["do"] == "place":
                placed[name] = Allocation(name, order, say)
                work: Callable[[], None] = placed[name].place
            elif order["do"] == "ping":
                work = _pong(say, order["reply"])
            elif order["do"] == "look":
                work = placed[name].looking(order["ordinal"], order["reply"])
            else:
                work = placed[name].release
            _beside(work, f"{order['do']} {name}")
    finally:
        _release_all([allocation for allocation in placed.values() if not allocation.released.is_set()])


def _pong(say: Say, reply: str) -> Callable[[], None]:
    import ray

    return lambda: say(reply, len(ray.nodes()))  # which the head has to be asked for


def _release_all(left: Sequence[Allocation]) -> None:
    """The controller has died. Its guards end too and clean up: Ray gives them no time for it when a driver goes."""
    releases = [_beside(allocation.release, "release") for allocation in left]
    for release in releases:
        release.join(STOP_S)


def _beside(work: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


class Allocation:
    """The placement groups and guards' actors of a role.

    Where the group is shared, one guard on each node owns the slots of all bundles there: torch is imported once on a
    node and not in front of each worker. Other bundles' devices are held by actors that do nothing else.

    News: `state NAME` is [state, reason], `layout NAME` each worker's guard and devices, `fate NAME ORDINAL` a guard's
    end, `released NAME` a list of what is left.
    """

    def __init__(self, name: str, order: dict[str, Any], say: Say) -> None:
        self._name, self._order, self._say = name, order, say
        self._groups: list[Any] = []
        self._owners: list[int] = []  # of each worker's slot: the worker that its guard is named after
        self._actors: dict[int, Any] = {}
        self._runs: dict[Any, int] = {}
        self._fates: dict[int, str] = {}
        self._releasing = threading.Event()
        self.released = threading.Event()
        self._idle = threading.Event()

    def place(self) -> None:
        """Asks for the groups, waits for them, starts the guards in them, and reports those that end."""
        try:
            self._ask()
            if self._wait_for_groups():
                self._say(f"state {self._name}", ["running", ""])
                self._start()
                self._tell_layout()
        except Exception as e:
            self._say(f"state {self._name}", ["ended", ray_words.ending(e)])
        finally:
            self._idle.set()
        self._watch()

    def _ask(self) -> None:
        from ray.util.placement_group import placement_group

        for group in self._order["groups"]:
            if not self._releasing.is_set():
                self._groups.append(placement_group(group["bundles"], strategy=group["strategy"], name=group["name"]))

    def _wait_for_groups(self) -> bool:
        """True when all are placed; False when they are no longer wanted."""
        pause, told = 0.02, ""
        while not self._releasing.wait(pause):
            tables = [_table(group) for group in self._groups]
            waiting = [table for table in tables if table["state"] != "CREATED"]
            if not waiting:
                return True
            reason = _why(waiting, len(tables))
            if reason != told:
                self._say(f"state {self._name}", ["queued", reason])
            pause, told = min(pause * 2, 0.5), reason
        return False

    def _start(self) -> None:
        """An actor for each guard, and for each other bundle that has devices."""
        homes: dict[str, int] = {}
        for n, actor in enumerate(self._order["actors"]):
            home = _table(self._groups[actor["group"]])["bundles_to_node_id"][actor["bundle"]]
            self._owners.append(homes.setdefault(home, n) if self._order["shared"] else n)
        for n, actor in enumerate(self._order["actors"]):
            if self._owners[n] == n:
                self._actors[n] = self._actor(ray_guard.Guard, actor)
                # The token in it goes to the actor itself; what a constructor is given is kept by Ray's head.
                run = self._actors[n].run.remote(actor["config"], actor["marks"], self._order["kind"])
            elif self._has_devices(actor):
                self._actors[n] = self._actor(ray_guard.Holder, actor)
                run = self._actors[n].run.remote()
            else:
                continue
            self._runs[run] = n

    def _actor(self, kind: type, actor: dict[str, Any]) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup

        held = dict(actor["resources"])
        options = {
            "name": actor["name"],
            "num_cpus": held.pop("CPU", 0),
            "num_gpus": held.pop("GPU", 0),
            "memory": held.pop("memory", None),
            "resources": held,
            "max_concurrency": 3,  # `run`, `devices` and `stop`
            "max_restarts": 0,
            "scheduling_strategy": InGroup(self._groups[actor["group"]], actor["bundle"]),
        }
        return ray.remote(kind).options(**options).remote(actor["worker_id"])

    def _has_devices(self, actor: dict[str, Any]) -> bool:
        return bool(actor["resources"].get(self._order["kind"]))

    def _tell_layout(self) -> None:
        """Which guard and which devices each worker has, as soon as the actors that hold devices are there."""
        import ray

        kind, actors = self._order["kind"], self._order["actors"]
        asked = {n: self._actors[n].devices.remote(kind) for n, actor in enumerate(actors) if self._has_devices(actor)}
        left = list(asked.values())
        while left and not self._releasing.is_set():
            _, left = ray.wait(left, num_returns=len(left), timeout=LOOK_S)
        if not left:
            devices = [ray.get(asked[n]) if n in asked else [] for n in range(len(actors))]
            self._say(f"layout {self._name}", {"guards": self._owners, "devices": devices})

    def _watch(self) -> None:
        import ray

        left = list(self._runs)
        while left:
            ended, left = ray.wait(left, timeout=None)
            for run in ended:
                self._note(self._runs[run], run)

    def _note(self, ordinal: int, run: Any) -> None:
        import ray

        try:
            words = ray.get(run)
        except Exception as e:
            words = ray_words.ending(e)
        owner, worker = self._owners[ordinal], self._order["actors"][ordinal]["worker_id"]
        if owner != ordinal:
            words = f"the actor that held the devices of {worker} ended: {words}"
            self._actors[owner].stop.remote()  # Ray gives those devices to others now
        self._fates.setdefault(owner, words)
        self._say(f"fate {self._name} {owner}", self._fates[owner])
        self._say(f"state {self._name}", ["ended", f"{worker}: {words}"])

    def looking(self, ordinal: int, reply: str) -> Callable[[], None]:
        """Says, as news `reply`, what there is to see of a guard's end before Ray reports it."""
        return lambda: self._say(reply, self._look(ordinal))

    def _look(self, ordinal: int) -> str | None:
        import ray

        if ordinal in self._fates:
            return self._fates[ordinal]
        actor = self._order["actors"][ordinal]
        table = _table(self._groups[actor["group"]])
        if table["state"] == "REMOVED":
            return f"its placement group {table['name']} was removed"
        home = table["bundles_to_node_id"][actor["bundle"]]
        (node,) = [node for node in ray.nodes() if node["NodeID"] == home]
        if not node["Alive"]:
            return f"its Ray node {node['NodeManagerAddress']} died: {node['DeathReasonMessage'] or 'no reason known'}"
        if not _answers(node["NodeManagerAddress"], node["NodeManagerPort"]):
            return f"the raylet of its Ray node {node['NodeManagerAddress']} does not answer"
        return None

    def release(self) -> None:
        """Ends guards, actors and groups, and reports what of them is left."""
        self._releasing.set()
        self._idle.wait()
        try:
            left = self._end_actors() + self._remove_groups()
        except Exception as e:
            left = [ray_words.ending(e)]
        self.released.set()
        self._say(f"released {self._name}", left)

    def _end_actors(self) -> list[str]:
        import ray

        actors = list(self._actors.values())
        stops = [actor.stop.remote() for actor in actors if _state(actor) == "ALIVE"]
        if stops:
            ray.wait(stops, num_returns=len(stops), timeout=STOP_S)
        for actor in actors:
            actor.__ray_terminate__.remote()
        _until(lambda: all(_state(actor) == "DEAD" for actor in actors))
        for actor in actors:
            ray.kill(actor)  # also who is dead: an actor's name is free only then
        _until(lambda: all(_state(actor) == "DEAD" for actor in actors))
        names = [order["name"] for order in self._order["actors"]]
        return [f"actor {names[n]}" for n, actor in self._actors.items() if _state(actor) != "DEAD"]

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


def _state(actor: Any) -> str:
    from ray._private.state import actors

    return str(actors(actor._actor_id.hex()).get("State", "DEAD"))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GONE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), PROBE_S).close()
    except OSError:
        return False
    return True


def _why(waiting: list[dict[str, Any]], total: int) -> str:
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return ray_words.why(waiting, total, [node for node in ray.nodes() if node["Alive"]], free)


if __name__ == "__main__":
    main()
