"""A worker that answers its controller with what no engine returns: it makes it import, run, dial and keep nothing."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from rolecall import Role
from rolecall.errors import ProtocolError, RemoteError, RolecallError
from rolecall.tensors.handle import RTensor
from rolecall.tensors.shard import Shard, Where
from rolecall.transport import codec
from rolecall.transport.codec.arrays import ARRAY
from rolecall.transport.codec.exceptions import EXCEPTION, OWN_ERROR
from rolecall.transport.codec.tensors import TENSOR
from rolecall.transport.codec.user_types import DATACLASS, DATACLASSES, ENUM, MODEL, NAMEDTUPLE, STRUCT
from rolecall.transport.codec.writer import Writer
from rolecall.transport.session import messages
from tests.security.live_run import LiveRun, live_run
from tests.support.attacker import exchange, frames_in, guard_hello
from tests.support.hostile_answers import Liar

MIB = 1 << 20
PLANTED = "rolecall_planted_module"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    """Its controller could import a module that leaves a mark."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / f"{PLANTED}.py").write_text(
        f"import dataclasses, pathlib\npathlib.Path({str(folder / 'mark')!r}).touch()\n"
        "@dataclasses.dataclass\nclass Result:\n    x: int = 0\nclass Failed(Exception):\n    pass\n"
    )
    sys.path.insert(0, str(folder))
    try:
        with live_run(tmp_path_factory.mktemp("run"), "hostile", 2) as run:
            yield run
        assert not (folder / "mark").exists()
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def role(run: LiveRun) -> Role:
    """Of the two workers the first is hostile."""
    role = run.actor.with_options(timeout=30.0, engine="liar")
    role.create_engine(Liar)
    return role


@pytest.fixture(autouse=True)
def survives(role: Role) -> Iterator[None]:
    """Whatever was tried, both workers can be called afterwards."""
    yield
    assert role.call("greet") == ["hello", "hello"]


def forged(code: int, payload: Any) -> bytes:
    return msgspec.msgpack.encode(Writer().extension(code, payload))


NAMES = [f"{PLANTED}:Result", "antigravity:x", "os:system", "subprocess:Popen", "builtins:eval", "pip._internal.cli:x"]
BY_NAME: dict[int, Callable[[str], list[Any]]] = {
    DATACLASS: lambda name: [name, {}],
    DATACLASSES: lambda name: [name, ["x"], [1]],
    NAMEDTUPLE: lambda name: [name, 1],
    STRUCT: lambda name: [name, {}],
    MODEL: lambda name: [name, {}, [], None, None],
    ENUM: lambda name: [name, "x"],
    OWN_ERROR: lambda name: [name, [], {}, "", []],
}


def test_no_answer_has_a_module_imported(role: Role) -> None:
    """Whatever it names, in results, items of streams and errors; what cannot be made is a typed error."""
    loaded = set(sys.modules)
    for name in NAMES:
        for code, payload in BY_NAME.items():
            with pytest.raises(RolecallError):
                role[0].call("answer", forged(code, payload(name)), [])
            with pytest.raises(RolecallError):
                list(role[0].stream("items", forged(code, payload(name))))
        state = msgspec.msgpack.encode([Writer().plain(("ls",)), {}])
        failed = role[0].call("answer", forged(EXCEPTION, [name, "words", "", state]), [])
        assert type(failed) is RemoteError, name
    assert {module for module in set(sys.modules) - loaded if not module.startswith("rolecall.")} == set()


NONSENSE = {
    "no msgpack": b"\xc1",
    "nothing": b"",
    "nesting": b"\x91" * 100_000 + b"\xc0",
    "nested extensions": forged(DATACLASS, [PLANTED, forged(DATACLASS, forged(ENUM, []))]),
    "a map of unlimited length": b"\xdf\xff\xff\xff\xff",
    "a text of unlimited length": b"\xdb\xff\xff\xff\xff",
    "a buffer that is not there": forged(ARRAY, ["<f4", [2], False, 7]),
    "an array of another size": forged(ARRAY, ["<f4", [1 << 20], False, b"12345678"]),
    "an array of negative size": forged(ARRAY, ["<f4", [-2], False, b"12345678"]),
    "an array whose size overflows": forged(ARRAY, ["<f4", [1 << 62, 4], False, b""]),
    "an array of objects": forged(ARRAY, ["|O", [1], False, b"12345678"]),
    "a tensor of another size": forged(TENSOR, ["float32", [1 << 20], 0, b"12345678"]),
    "a tensor of negative size": forged(TENSOR, ["float32", [-2], 0, b"12345678"]),
    "an unknown extension": forged(-99, []),
}


@pytest.mark.parametrize("header", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_an_error_of_its_call(role: Role, header: bytes) -> None:
    """Broken bytes, lengths that are not there, nesting, arrays and tensors whose shape is not that of their bytes."""
    with pytest.raises(RolecallError):
        role[0].call("answer", header, [])


def test_answers_to_calls_that_are_none_are_passed_over(role: Role) -> None:
    """Wrong numbers, repeated answers, items nobody asked for, and lists without end; no other worker's call ends."""
    pending = role[1].submit("sleep", 1.0)
    five = b"\x05"
    replies = [[2, seq, True, 0, five] for seq in (-1, 1 << 40, *range(200))]
    role[0].call("say", [*replies, *replies, *([3, seq, index, five] for seq in range(20) for index in range(200))])
    role[0].call("say", [[8, list(range(1 << 20)), [], []]])
    with pytest.raises(ProtocolError):  # which closes the connection, and is not looked through on the I/O thread
        messages.decode(messages.encode(messages.Status(list(range(1025)), [], [])))
    assert pending.result() is None


def test_requests_to_a_controller_are_not_kept(role: Role) -> None:
    """It answers none: the link is closed at the first, whether or not anybody reads answers."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    role[0].call("request", 200_000)
    assert psutil.Process().memory_info().rss - before < 100 * MIB


def test_a_handle_takes_its_controller_nowhere(role: Role, tmp_path: Path) -> None:
    """Its controller asks the worker of that name alone, and never an address that a handle has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        there = (f"tcp:127.0.0.1:{listener.getsockname()[1]}", f"unix:{tmp_path}/there.sock")
        secret: Where = {"host": "", "pid": 1, "fd": 0, "inode": 1, "offset": 64, "path": "../../../etc/shadow"}
        for number, owner in enumerate(("actor/0", "actor/1", "nobody/7", "../../x")):
            shard = Shard(f"{number:032x}", owner, there, "shm", secret, "float32", (1 << 40,))
            handle = role[0].call("answer", *codec.encode(RTensor.of(shard)))
            with pytest.raises(RolecallError):
                handle.localize()
            del handle
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_worker_cannot_take_its_guards_place(run: LiveRun) -> None:
    """It has the token and knows the guard's name; while the guard is there, another is refused."""
    answer = exchange(run.controller, guard_hello(run.token, "g0", run.scheduler.run_id))
    assert frames_in(answer)[0][0] == 2
