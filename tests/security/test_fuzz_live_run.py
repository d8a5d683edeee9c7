"""Whatever is sent to a live run's sockets, its processes live, stay small, and serve everybody else."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import msgspec
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.transport import codec
from tests.security.live_run import LiveRun, live_run
from tests.support.attacker import PREFIX, connect, frame, hello, read_frame, read_to_end, request, send_http

pytestmark = pytest.mark.slow("a live run is sent hundreds of things", seconds=5)

EXAMPLES = 600
GROWTH = 96 << 20  # bytes; what a fuzzed process may take more than before
STRANGERS = 300
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Bystander:
    """Another connection's calls, going on all the while; each must be right, and none slow."""

    PAUSE_S = 0.02  # calls one after the other would take half a processor from what is watched

    def __init__(self, run: LiveRun) -> None:
        self._run = run
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call, name="bystander")
        self.calls = 0
        self.slowest = 0.0
        self.error: BaseException | None = None

    def _call(self) -> None:
        try:
            while not self._over.is_set():
                begun = time.monotonic()
                assert self._run.actor.with_options(timeout=30).call("add", self.calls, b=1) == [self.calls + 1]
                self.slowest = max(self.slowest, time.monotonic() - begun)
                self.calls += 1
                self._over.wait(self.PAUSE_S)
        except BaseException as e:
            self.error = e

    def go_on(self) -> None:
        """Returns after some more calls."""
        enough = self.calls + 30
        while self.calls < enough and self.error is None:
            self._over.wait(0.01)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LiveRun]:
    with live_run(tmp_path) as run:
        yield run


@contextmanager
def unharmed(run: LiveRun) -> Iterator[Bystander]:
    """Afterwards: the same processes, not much larger, no traceback in their logs; nobody was disturbed; all works."""
    names = ("rc:guard", "rc:actor/0", "rc:reaper")
    before = {p: p.memory_info().rss for p in run.processes() if p.name() in names}
    assert len(before) == 3
    run.actor.call("greet")
    with Bystander(run) as bystander:
        yield bystander
        bystander.go_on()
    assert bystander.error is None, bystander.error
    assert bystander.slowest < 10
    for process, rss in before.items():
        assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE, process
        assert process.memory_info().rss < rss + GROWTH, process
    for address in (run.worker, run.worker_tcp, run.guard):
        assert send_http(address, "GET", "/health", token=run.token).status == 200
    assert send_http(run.controller, "GET", "/health", token=run.token).status == 404
    for name in ("actor-0.log", "guard-g0.log"):
        log = (run.run_dir / "logs" / name).read_text()
        assert "Traceback" not in log, log[-4000:]
    good = ask_over_frames(run.worker, run.token)
    assert good[:3] == [2, 0, True]
    assert run.actor.call("greet") == ["hello"]


def ask_over_frames(address: str, token: str) -> list[object]:
    """A new connection's first answer."""
    with connect(address) as sock:
        sock.sendall(hello(token, session=f"good{time.monotonic_ns()}"))
        assert read_frame(sock)[0] == 1
        sock.sendall(request(0, "health", codec.encode(None).header))
        answer: list[object] = read_frame(sock)
        return answer


def throw(address: str, data: bytes) -> None:
    """Sends bytes, ends its side, and waits a moment for what comes back."""
    with connect(address) as sock, contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            read_to_end(sock, 0.5)


# What is thrown

any_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)
bodies = (
    any_value.map(msgspec.msgpack.encode) | st.binary(max_size=60) | any_value.map(lambda v: codec.encode(v).header)
)
METHODS = """call create_engine configure set_env health metrics data.get data.put data.clear table stacks
fork kill_forked_worker alloc_ports __class__"""
methods = st.sampled_from([*METHODS.split(), ""])
small = st.integers(-2, 5)
sequences = small | st.integers(-(2**63), 2**63 - 1)
metas = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["echo", "add", "tokens", "numbers", "nothing"]) | any_value,
        "engine": st.none() | any_value,
        "path": st.sampled_from(["os.system", "nowhere.X"]) | any_value,
        "tensors": st.sampled_from(["local", "remote"]) | any_value,
    },
)
requests = st.builds(
    lambda seq, kind, method, meta, window, acks, body: [1, seq, kind, method, meta, window, acks, body],
    sequences, st.integers(-1, 4), methods, metas, sequences, st.lists(sequences, max_size=4), bodies,
)  # fmt: skip
progress = st.builds(lambda *f: [4, *f], sequences, sequences, sequences, st.booleans())
others = st.one_of(
    st.builds(lambda *f: [2, *f], sequences, st.booleans(), sequences, bodies),
    st.builds(lambda *f: [3, *f], sequences, sequences, bodies),
    progress,
    st.builds(lambda s: [5, s], st.lists(sequences, max_size=6)),
    st.builds(lambda *f: [6, *f], sequences, st.lists(sequences, max_size=6)),
    st.builds(lambda c: [7, c], st.lists(progress, max_size=4)),
    st.builds(lambda *f: [8, *f], *(st.lists(sequences, max_size=4) for _ in range(3))),
    st.lists(any_value, max_size=9),
)
messages = st.builds(
    lambda message, buffers: frame(msgspec.msgpack.encode(message), *buffers),
    requests | others,
    st.lists(st.binary(max_size=200), max_size=3),
)
claims = st.builds(
    lambda header, count, total, rest: PREFIX.pack(b"RC01", header, count, total) + rest,
    st.sampled_from([0, 1, 100, 64 << 20, (64 << 20) + 1, 2**32 - 1]),
    st.sampled_from([0, 1, 3, 65536, 65537, 2**32 - 1]),
    st.sampled_from([0, 1, 1 << 20, 256 << 30, (256 << 30) + 1, 2**63, 2**64 - 1]),
    st.binary(max_size=300)
    | st.lists(st.sampled_from([0, 1, 256 << 30, 2**64 - 1]), max_size=9).map(
        lambda sizes: struct.pack(f"!{len(sizes)}Q", *sizes)
    ),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid frame or two with bytes changed, cut out, doubled, or cut off."""
    data = bytearray(b"".join(draw(st.lists(messages, min_size=1, max_size=3))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["change", "insert", "cut", "end"]))
        if what == "change" and at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        elif what == "insert":
            data[at:at] = draw(st.binary(max_size=30))
        elif what == "cut":
            del data[at : at + draw(st.integers(1, 30))]
        else:
            del data[at:]
    return bytes(data)


garbage = st.binary(max_size=400) | mutated() | claims | messages | st.binary(max_size=300).map(lambda b: b"RC01" + b)
LINES = (
    b"GET /health HTTP/1.1",
    b"POST /call HTTP/1.1",
    b"POST /fork HTTP/1.1",
    b"PUT /data/%ff HTTP/1.0",
    b"DELETE //// HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"GET http://[/ HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"GET /?%%%=& HTTP/1.1",
)
HEADERS = (
    b"Host: localhost",
    b"Host: [",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: 99999999999",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b": x",
    b"a:",
    b"Authorization: Bearer \xff",
    b"Authorization:",
    b"X: " + b"y" * 5000,
    b" fold",
)
lines = st.sampled_from(LINES) | st.binary(max_size=60)
headers = st.sampled_from(HEADERS) | st.binary(max_size=40)
http_requests = st.builds(
    lambda line, head, token, body: (line + b"\r\n" + b"\r\n".join(head) + b"\r\n", token, body),
    lines, st.lists(headers, max_size=6), st.booleans(), st.binary(max_size=200) | any_value.map(msgspec.json.encode),
)  # fmt: skip


def test_strangers_bytes_do_no_harm(run: LiveRun) -> None:
    """Without the token: anything at all, to every listener in turn."""
    addresses = list(run.listeners.values())

    @FUZZ
    @given(garbage, st.integers(0, len(addresses) - 1))
    def attack(data: bytes, which: int) -> None:
        throw(addresses[which], data)

    with unharmed(run):
        attack()


def test_http_of_any_shape_does_no_harm(run: LiveRun) -> None:
    """Requests with everything wrong about them, half of them with the token."""
    addresses = list(run.listeners.values())
    shown = f"Authorization: Bearer {run.token}\r\n".encode()

    @FUZZ
    @given(http_requests, st.integers(0, len(addresses) - 1))
    def attack(parts: tuple[bytes, bool, bytes], which: int) -> None:
        head, token, body = parts
        throw(addresses[which], head + (shown if token else b"") + b"\r\n" + body)

    with unharmed(run):
        attack()


def test_a_broken_peer_harms_only_its_own_connection(run: LiveRun) -> None:
    """A valid hello, then garbage, hostile messages, or frames that claim to be huge."""
    welcomes = 0

    @FUZZ
    @given(st.lists(garbage | messages, min_size=1, max_size=4), st.sampled_from([run.worker, run.worker_tcp]))
    def attack(parts: list[bytes], address: str) -> None:
        nonlocal welcomes
        welcomes += 1
        with connect(address) as sock, contextlib.suppress(OSError):
            sock.sendall(hello(run.token, session=f"fuzz{welcomes}"))
            assert read_frame(sock)[0] == 1
            sock.sendall(b"".join(parts))
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(TimeoutError):
                read_to_end(sock, 0.5)

    with unharmed(run):
        attack()
    assert welcomes >= EXAMPLES


def test_claims_of_hugeness_take_no_memory(run: LiveRun) -> None:
    """Fifty connections that announce 256 GiB each, with and without the token, and send nothing of it."""
    claim = PREFIX.pack(b"RC01", 10, 1, 256 << 30) + struct.pack("!Q", 256 << 30) + b"x" * 10
    header = PREFIX.pack(b"RC01", 64 << 20, 0, 0)
    with unharmed(run) as bystander, contextlib.ExitStack() as stack:
        for number in range(25):
            for address in (run.worker, run.guard):
                sock = stack.enter_context(connect(address))
                sock.sendall(hello(run.token, session=f"claim{number}"))
                assert read_frame(sock)[0] == (2 if address == run.guard else 1)  # guards refuse frames
                with contextlib.suppress(BrokenPipeError):
                    sock.sendall(claim if number % 2 else header)
                stranger = stack.enter_context(connect(address))
                stranger.sendall(claim)
        bystander.go_on()
        assert ask_over_frames(run.worker, run.token)[0] == 2


def test_slow_openings_are_given_up(run: LiveRun) -> None:
    """A byte now and then, of a hello or of a request, keeps no connection open beyond its time."""
    openings = (b"", b"R", b"RC01", hello(run.token)[:30], b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
    with unharmed(run):
        socks = [(connect(address), opening) for address in run.listeners.values() for opening in openings]
        for sock, opening in socks:
            sock.sendall(opening)
        deadline = time.monotonic() + 30
        left = [sock for sock, _ in socks]
        while left:
            assert time.monotonic() < deadline, f"{len(left)} slow connections are still served"
            left = [sock for sock in left if not _hung_up(sock, trickle=b"x")]
            threading.Event().wait(0.25)  # the pace of the attack
        for sock, _ in socks:
            sock.close()


def _hung_up(sock: socket.socket, trickle: bytes) -> bool:
    try:
        sock.send(trickle)
        sock.settimeout(0.001)
        return sock.recv(4096) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_idle_strangers_keep_nobody_out(run: LiveRun) -> None:
    """With 300 silent connections to each listener, calls go on and who has the token gets in at once."""
    with unharmed(run) as bystander, contextlib.ExitStack() as stack:
        for address in run.listeners.values():
            for _ in range(STRANGERS):
                stack.enter_context(connect(address))
        for address in (run.worker, run.worker_tcp, run.guard):
            begun = time.monotonic()
            assert send_http(address, "GET", "/health", token=run.token).status == 200
            assert time.monotonic() - begun < 5, "before the strangers' time is over"
        assert ask_over_frames(run.worker, run.token)[0] == 2
        bystander.go_on()
        worker = next(p for p in run.processes() if p.name() == "rc:actor/0")
        assert worker.num_fds() < 2 * STRANGERS


def test_a_thousand_visitors_leave_nothing(run: LiveRun) -> None:
    """Sessions that come with the token and go again are forgotten, with their descriptors."""
    worker = next(p for p in run.processes() if p.name() == "rc:actor/0")
    descriptors = worker.num_fds()
    with unharmed(run):
        for _ in range(1000):
            ask_over_frames(run.worker, run.token)
    assert worker.num_fds() < descriptors + 20
