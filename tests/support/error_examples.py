"""Brings every error about as a user would, so that docs/errors.md shows messages as they really look."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rolecall
from rolecall import LocalScheduler
from rolecall.cli.logs import logs
from rolecall.cli.runs import read_state, select_run
from rolecall.cli.stop import ForeignRunError, stop
from rolecall.errors import InternalError, RolecallError, ShardExistsError, WorkerCreationError
from rolecall.guard.ports import PortLeases
from rolecall.placement.slurm.commands import Slurm
from rolecall.transport import codec
from rolecall.transport.client import Client
from rolecall.transport.frames import Limits, pack
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from tests.support import sample_engines
from tests.support.waiting import wait_for

Example = tuple[str, Callable[[], object]]


class Odd:
    """Holds an exception of a type that no other process can find."""

    def make(self) -> Any:
        kind = type("Odd", (Exception,), {"__module__": __name__, "__qualname__": "Odd.make.<locals>.Odd"})
        return kind("strange")


def examples(folder: Path) -> dict[str, str]:
    """The message of each error, by the name of its class, with what differs from run to run replaced."""
    options: dict[str, Any] = {"fileroot": folder, "preload": [], "devices": ["0", "1"]}
    with LocalScheduler(experiment="demo", trial="t0", **options) as s:
        found = dict(_caught(folder, name, cause) for name, cause in _causes(s, folder))
    return found


def _caught(folder: Path, name: str, cause: Callable[[], object]) -> tuple[str, str]:
    try:
        value = cause()
    except RolecallError as e:
        error: Exception = e
    else:
        assert isinstance(value, RolecallError), f"{name}: nothing was raised but {value!r} returned"
        error = value
    assert type(error).__name__ == name, f"{name}: {type(error).__name__}: {error}"
    return name, settled(str(error), folder)


def settled(message: str, folder: Path) -> str:
    """A message without what is another one in each run: host, pids, paths, ids, ports."""
    message = message.replace(str(folder), "~/.rolecall").replace(os.uname().nodename, "host")
    message = re.sub(r"pid \d+", "pid 4711", message)
    message = re.sub(r"Process \d+:.*", "Process 4711: python -m rolecall.guard.template ...", message)
    message = re.sub(r"stopped by a signal for \d+ s", "stopped by a signal for 5 s", message)
    message = re.sub(r"was lost: .*", "was lost: its connection closed", message)  # or reset, as it happens
    message = re.sub(r"\b[0-9a-f]{32}\b", "0f9c...", message)
    message = re.sub(r'File "[^"]*/', 'File ".../', message)
    return message


def _causes(s: LocalScheduler, folder: Path) -> Iterator[Example]:
    actor = s.start("actor", replicas=2, gpu=1)
    actor.create_engine(sample_engines.Echo)
    yield "WorkerNotFoundError", lambda: s.get_workers("actr")
    yield "WorkerConfigurationError", lambda: s.start("big", gpus=2)  # type: ignore[call-arg]
    yield "WorkerCreationError", lambda: s.start("server", cmd=["no-such-program", "--port", "{port}"])
    yield "GPUAllocationError", lambda: s.start("rollout", gpu=1)
    yield "EngineNotFoundError", lambda: actor[0].with_options(engine="critic").call("greet")
    yield "MethodNotFoundError", lambda: actor[0].call("ecko", 1)
    yield "EngineCallError", lambda: actor[0].call("fail", "the batch is empty")
    yield "EngineImportError", lambda: actor[0].with_options(engine="second").create_engine("my_package.Trainer")
    yield "EngineCreationError", lambda: actor[0].create_engine(sample_engines.Echo)
    yield "EncodeError", lambda: actor[0].call("echo", {"reward": [lambda x: x]})
    yield "WorkerTimeoutError", lambda: actor[0].with_options(timeout=0.2).call("later", 1, 30.0)
    yield "CallCancelledError", lambda: _cancelled(actor)
    yield "ShardNotFoundError", lambda: _freed(s)
    yield "TensorError", lambda: rolecall.remotize({"x": 1})
    yield "InternalError", lambda: InternalError("actor/0", "call", "builtins.KeyError", "'engine'")
    yield "ShardExistsError", lambda: ShardExistsError("0f9c...", "actor/0")
    yield "RemoteError", lambda: _stand_in(s)
    yield "RPCConnectionError", lambda: _deleted(s)
    yield "PortAllocationError", lambda: _no_ports(folder)
    yield "AuthenticationError", lambda: _wrong_token(s)
    yield "ProtocolError", lambda: pack(b"x" * 200, limits=Limits(max_header=100))
    yield "DecodeError", lambda: codec.decode(b"\xc1", [])
    yield "WorkerStalledError", lambda: _stopped(s)
    yield "WorkerFailedError", lambda: actor[0].call("leave", 3)
    yield "RunNotFoundError", lambda: select_run("demo/t9", folder)
    yield "BrokenStateError", lambda: _broken_state(folder)
    yield "NoAnswerError", lambda: select_run("demo/t0", folder).client.table("g9")
    yield "NoLogError", lambda: logs("critic", run="demo/t0", fileroot=folder)
    yield "UnconfirmedError", lambda: stop(run="demo/t0", fileroot=folder)
    yield "ForeignRunError", lambda: ForeignRunError(str(folder / "demo" / "t0"))
    yield "SlurmError", lambda: Slurm({"PATH": str(folder)}).nodes(None, "gpu")
    yield "GuardLostError", lambda: _without_guard(s)


def _broken_state(folder: Path) -> object:
    directory = folder / "demo" / "t1"
    directory.mkdir()
    (directory / "state.json").write_text("{run_id")
    return read_state(directory)


def _cancelled(actor: rolecall.Role) -> object:
    call = actor[0].submit("later", 1, 30.0)
    call.cancel()
    return call.result()


def _freed(s: LocalScheduler) -> object:
    maker = s.start("rollout").with_options(tensors="remote")
    maker.create_engine(sample_engines.Tensors)
    batch = maker[0].call("make", 4)
    ids = {"ids": batch["ids"]}
    rolecall.clear(ids)
    return rolecall.localize(ids)


def _stand_in(s: LocalScheduler) -> object:
    odd = s.start("odd")
    odd.create_engine("tests.support.error_examples.Odd")
    return odd[0].call("make")


def _deleted(s: LocalScheduler) -> object:
    judge = s.start("judge")
    judge.create_engine(sample_engines.Echo)
    call = judge[0].submit("later", 1, 30.0)
    judge.delete()
    return call.result()


def _no_ports(folder: Path) -> object:
    leases = PortLeases("x", path=folder / "ports.lock", span=(20000, 20001))
    try:
        return leases.lease("actor/0", 3)
    finally:
        leases.close()


def _wrong_token(s: LocalScheduler) -> None:
    (worker,) = s.get_workers("odd")
    address = f"tcp:{worker.ip}:{worker.worker_ports[0]}"
    with IOThread() as io, Client(Peer(worker.id, loop=io.loop), [address], "not the token") as client:
        client.peer.request("health", timeout=10.0).result()


def _stopped(s: LocalScheduler) -> object:
    stuck = s.start("stuck")
    stuck.create_engine(sample_engines.Echo)
    pid = stuck[0].call("pid")
    os.kill(pid, signal.SIGSTOP)
    try:
        return stuck[0].call("greet")
    finally:
        os.kill(pid, signal.SIGCONT)


def _without_guard(s: LocalScheduler) -> object:
    program = ["sh", "-c", "echo begun; sleep 3600"]
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(s.start, "late", cmd=program, ready={"log": "never"})
        wait_for(lambda: "begun" in Path(s.run_dir, "logs", "merged.log").read_text(), 30, "program")
        os.kill(s.inspect().guards[0].pid, signal.SIGKILL)
        try:
            return starting.result()
        except WorkerCreationError as e:
            assert e.__cause__ is not None
            raise e.__cause__ from None
