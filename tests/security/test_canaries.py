"""Nothing that arrives is ever run: pickles and their kin, wherever they are put into what is sent."""

from __future__ import annotations

import ast
import base64
import io
import marshal
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
import torch

import rolecall
from rolecall.errors import EncodeError, EngineCallError
from rolecall.transport.codec.arrays import ARRAY, DTYPE, SCALAR
from rolecall.transport.codec.reader import DECODERS
from tests.security.live_run import LiveRun, live_run
from tests.support.attacker import connect, exchange, frame, hello, read_frame, request, send_http

SOURCE = Path(rolecall.__file__).parent
POSTS = (
    "/call",
    "/create_engine",
    "/alloc_ports",
    "/fork",
    "/kill_forked_worker",
    "/set_env",
    "/configure",
    "/data/batch",
)


PROTOCOLS = (0, 2, pickle.HIGHEST_PROTOCOL)  # of text, of bytes, of frames


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def payloads(path: Path) -> list[bytes]:
    """The same canary in every form that some library would run when it reads it."""
    canary = Canary(path)
    numpys, torches = io.BytesIO(), io.BytesIO()
    numpy.save(numpys, numpy.array([canary], dtype=object), allow_pickle=True)
    torch.save(canary, torches)
    code = compile(f"import os; os.system('touch {path}')", "canary", "exec")
    return [
        *(pickle.dumps(canary, protocol) for protocol in PROTOCOLS),
        marshal.dumps(code),
        numpys.getvalue(),
        torches.getvalue(),
        f'!!python/object/apply:os.system ["touch {path}"]'.encode(),
        f"__import__('os').system('touch {path}')".encode(),
        f"$(touch {path})".encode(),
    ]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LiveRun]:
    with live_run(tmp_path) as run:
        yield run


def test_the_canary_sings(canary: Path) -> None:
    """What the other tests are measured against: unpickled, it makes its file."""
    for payload in payloads(canary)[: len(PROTOCOLS)]:
        pickle.loads(payload)
        canary.unlink()


def test_http_runs_no_canary(run: LiveRun, canary: Path) -> None:
    """As a body, inside JSON, as a tensor, as a shard's id and in headers; without the token and with it."""
    for payload in payloads(canary):
        text = base64.b64encode(payload).decode()
        nested = {
            "method": "echo",
            "args": [text, payload.decode("latin-1"), {"py/reduce": [{"py/function": "os.system"}, f"touch {canary}"]}],
            "kwargs": {},
            "rpc_meta": {"pickled": text},
        }
        for name, address in run.listeners.items():
            for token in (None, "wrong", run.token):
                for path in POSTS:
                    assert send_http(address, "POST", path, payload, token=token).status in (400, 401, 404, 405), (
                        name,
                        path,
                    )
                kind = {"Content-Type": "application/python-pickle", "X-Dtype": text, "X-Shape": text}
                send_http(address, "PUT", f"/data/{'0' * 32}", payload, token=token, headers=kind)
                send_http(address, "POST", "/call", nested, token=token)
                send_http(address, "POST", "/configure", {"config": {"seed": text}, "role": text}, token=token)
                exchange(address, payload + b"\r\n\r\n")
        assert not canary.exists()
    assert run.actor.call("greet") == ["hello"]


def bodies(payload: bytes) -> Iterator[bytes]:
    """Arguments `((x,), {})` in which x is the payload, in each form that a value may have on the wire."""
    ext, pack = msgspec.msgpack.Ext, msgspec.msgpack.encode
    forms: list[Any] = [payload, payload.decode("latin-1"), {"__reduce__": payload}, [payload]]
    for code in {*DECODERS, -128, -99, 0, 99, 127}:
        forms += [ext(code, payload), ext(code, pack(payload)), ext(code, pack([payload] * 2))]
        forms += [
            ext(code, pack(["posix:system", [f"touch {payload!r}"]])),
            ext(code, pack(["os:system", "touch", "", payload])),
        ]
    for dtype in ("|O", "O", "|O8", [["a"], ["|O"], [0], 8], ["|O", [2]]):
        forms += [
            ext(ARRAY, pack([dtype, [1], False, 0])),
            ext(SCALAR, pack([dtype, payload])),
            ext(DTYPE, pack(dtype)),
        ]
    for form in forms:
        yield pack(ext(-2, pack([ext(-2, pack([form])), {}])))
        yield pack(form)
    yield payload


@pytest.mark.slow("hundreds of payloads on a live run")
def test_frames_run_no_canary(run: LiveRun, canary: Path) -> None:
    """Before the hello, in it, behind it; as messages, arguments, buffers, replies and notifications."""
    for address in run.listeners.values():
        for payload in payloads(canary):
            packed = msgspec.msgpack.encode(payload)
            for data in (frame(payload[:4000]), frame(packed[:4000]), hello(payload[:3000])):
                exchange(address, data)
            exchange(address, hello(run.token, "attacker", "nobody", payload[:1000]) + frame(payload, payload))
            assert not canary.exists()
    for number, payload in enumerate(payloads(canary)):
        converse(run.worker, run.token, ("call", "data.put")[number % 2], payload)
        assert not canary.exists()
    assert run.actor.call("greet") == ["hello"]


def converse(address: str, token: str, method: str, payload: bytes) -> None:
    """Asks for the same in every form, by calls and notifications in turn, and reads until the last has its answer."""
    with connect(address) as sock:
        sock.sendall(hello(token, session=f"{method}{hash(payload)}"))
        assert read_frame(sock)[0] == 1
        asked = [(number // 2 % 2 * 2, body) for number, body in enumerate(bodies(payload))]
        last = len(asked)
        for seq, (kind, body) in enumerate(asked):
            sock.sendall(request(seq, method, body, payload, kind=kind, meta={"method": "echo"}))
        for message in ([2, 5, True, 0, payload], [3, 5, 0, payload]):  # a reply and an item that nobody asked for
            sock.sendall(frame(msgspec.msgpack.encode(message), payload))
        sock.sendall(request(last, "health", msgspec.msgpack.encode(None)))
        while True:
            answer = read_frame(sock)
            if answer[0] == 2 and answer[1] == last:
                return


def test_an_object_that_would_be_pickled_does_not_travel(run: LiveRun, canary: Path) -> None:
    """Neither as an argument nor as a result; its `__reduce__` is not asked."""
    with pytest.raises(EncodeError):
        run.actor.call("echo", Canary(canary))
    with pytest.raises((EncodeError, EngineCallError)):
        run.actor.call("unencodable")
    assert not canary.exists()


# The source

FORBIDDEN_MODULES = {
    "pickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "jsonpickle",
    "joblib",
    "yaml",
    "code",
    "pty",
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "os.startfile",
    "torch.load",
    "numpy.load",
    "np.load",
    "asyncio.create_subprocess_shell",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
}
# File and what is allowed there, with the reason.
ALLOWED = {
    (
        "worker/loading.py",
        "spec.loader.exec_module",
    ),  # the controller's own script, whose path came with the configuration
    ("tensors/backends/ray_session.py", "pickle"),  # its PickleBuffer says that Ray shall store bytes as they are
    ("guard/shim.py", "os.execvpe"),  # the shim turns into the program it was given, arguments as they are
}


def found_in(path: Path) -> Iterator[tuple[str, str]]:
    """What a file does that must stand in the list above."""
    where = path.relative_to(SOURCE).as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)] if str(node.module).partition(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Call):
            names = [text for text in [ast.unparse(node.func)] if _is_forbidden(text)]
            names += [f"{k.arg}=" for k in node.keywords if k.arg in ("shell", "allow_pickle", "executable")]
        for name in names:
            yield where, name


def _is_forbidden(call: str) -> bool:
    last = call.rpartition(".")[2]
    runs_code = call in FORBIDDEN_CALLS or last.startswith(
        ("exec_module", "load_module", "execv", "execl", "spawnl", "spawnv")
    )
    return runs_code or last in ("read_pickle", "from_pickle", "create_subprocess_shell")


def test_the_source_unpickles_evaluates_and_asks_no_shell() -> None:
    """Apart from the few places in the list, each with its reason; and the list holds nothing that is gone."""
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 100
    assert {found for path in files for found in found_in(path)} == ALLOWED
