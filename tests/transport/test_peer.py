"""What a conversation between two processes promises, on uvloop and on asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import (
    AuthenticationError,
    CallCancelledError,
    EncodeError,
    ProtocolError,
    RPCConnectionError,
    WorkerFailedError,
)
from rolecall.protocol.token import Token
from rolecall.transport.client import Client
from rolecall.transport.handshake import Hello
from rolecall.transport.link import Link
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Incoming, Peer
from rolecall.transport.session.caller import WINDOW
from tests.transport.rpc_program import TOKEN, Running, running, until


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def program(flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("s") / "s.sock"
    with running(path, *(["--asyncio"] if flavour == "asyncio" else [])) as program:
        yield program


@pytest.fixture
def io(flavour: str) -> Iterator[IOThread]:
    with IOThread(uvloop=flavour == "uvloop") as io:
        yield io


class Doubler:
    """Answers the other side's calls back."""

    def dispatch(self, incoming: Incoming) -> None:
        incoming.finish(2 * incoming.args())


@pytest.fixture
def client(program: Running, io: IOThread) -> Iterator[Client]:
    with connect(program, io) as client:
        yield client


def connect(program: Running, io: IOThread, name: str = "", **options: Any) -> Client:
    options = {"handler": Doubler(), "probe": 0.1, **options}
    return Client(Peer("program", loop=io.loop, **options), program.addresses, TOKEN, Hello(name=name))


def test_a_value_comes_back(client: Client) -> None:
    """Any value of the closed set goes to another process and back."""
    value = {"a": [1, 2.5, None, ("x", {3, 4})], b"k": b"v" * 10_000}
    assert client.peer.request("echo", value).result() == value


def test_a_call_made_before_the_connection_leaves_with_it(program: Running, io: IOThread) -> None:
    """A request does not need a link yet."""
    with connect(program, io) as client:
        assert client.peer.request("echo", 1).result() == 1


def test_many_threads_share_one_connection(client: Client) -> None:
    """Frames of several threads never mix, small and large ones together."""
    wrong: list[Any] = []

    def work(number: int) -> None:
        for i in range(100):
            value = [number, i, bytes([number]) * (300_000 if i % 10 == 0 else 10)]
            if client.peer.request("echo", value).result() != value:
                wrong.append(value[:2])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert client.peer.waiting == 0


def test_thousands_of_calls_may_be_under_way(client: Client) -> None:
    """Calls need not wait for each other."""
    calls = [client.peer.request("echo", i) for i in range(5000)]
    assert [call.result() for call in calls] == list(range(5000))


def test_a_call_is_awaited_from_any_loop(client: Client, io: IOThread) -> None:
    """From a foreign event loop and from the I/O thread's own."""

    async def many() -> list[Any]:
        async def one(i: int) -> Any:
            return await client.peer.request("echo", i)

        return await asyncio.gather(*(one(i) for i in range(1000)))

    assert asyncio.run(many()) == list(range(1000))
    assert io.run(many()) == list(range(1000))


def test_both_sides_call(client: Client) -> None:
    """The callee may call its caller while it answers."""
    assert client.peer.request("call_back", 21).result() == 42


def test_blocking_the_loop_that_brings_the_answer_is_refused(client: Client, io: IOThread) -> None:
    """`result()` on the I/O thread would wait for ever; it says so instead."""

    async def wrong() -> Any:
        return client.peer.request("echo", 1).result()

    with pytest.raises(RuntimeError, match="await it"):
        io.run(wrong())


def test_an_error_comes_back_as_itself(client: Client) -> None:
    """Ours and the builtin ones keep their type."""
    with pytest.raises(ValueError, match="what it said"):
        client.peer.request("fail", "what it said").result()


def test_what_does_not_travel_is_named_with_its_place(client: Client) -> None:
    """On the way there nothing is sent; on the way back the answer is the EncodeError."""
    with pytest.raises(EncodeError) as there:
        client.peer.request("echo", {"a": [1, lambda: None]})
    assert "a" in there.value.place
    with pytest.raises(EncodeError) as back:
        client.peer.request("bad_result").result()
    assert back.value.place.startswith("result") and "bad" in back.value.place
    with pytest.raises(EncodeError, match="meta"):
        client.peer.request("echo", 1, meta={"x": object()})
    assert client.peer.waiting == 0
    assert client.peer.request("echo", 1).result() == 1


def test_a_deadline_fails_the_call_and_tells_the_callee(client: Client) -> None:
    """TimeoutError here, cancellation there, for threads and tasks, and for calls nobody waits for."""
    before = len(client.peer.request("seen").result()["cancelled"])
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="async_sleep"):
        client.peer.request("async_sleep", 60, timeout=0.1).result()

    async def awaited() -> None:
        await client.peer.request("async_sleep", 60, timeout=0.1)

    with pytest.raises(TimeoutError):
        asyncio.run(awaited())
    assert time.monotonic() - begun < 5
    forgotten = client.peer.request("async_sleep", 60, timeout=0.1)
    until(lambda: forgotten.done)
    until(lambda: len(client.peer.request("seen").result()["cancelled"]) == before + 3)


def test_cancellation_reaches_the_callee(client: Client) -> None:
    """`cancel()` and the cancelling of a task that awaits both do."""
    before = len(client.peer.request("seen").result()["cancelled"])
    call = client.peer.request("async_sleep", 60)
    call.cancel()
    with pytest.raises(CallCancelledError):
        call.result()

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.peer.request("async_sleep", 60), 0.05)

    asyncio.run(cancelled())
    until(lambda: len(client.peer.request("seen").result()["cancelled"]) == before + 2)
    assert client.peer.waiting == 0


def test_pending_calls_fail_at_once_and_alike(client: Client, tmp_path: Path) -> None:
    """`fail_pending` reaches threads and tasks; the peer stays usable."""
    error = WorkerFailedError("actor/0", exit_code=3)
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            client.peer.request("async_sleep", 60).result()
        except WorkerFailedError as e:
            seen.append(e)

    async def awaited() -> None:
        await client.peer.request("async_sleep", 60)

    def wait_in_loop() -> None:
        try:
            asyncio.run(awaited())
        except WorkerFailedError as e:
            seen.append(e)

    threads = [threading.Thread(target=t) for t in (wait, wait, wait_in_loop)]
    for thread in threads:
        thread.start()
    until(lambda: client.peer.waiting == 3)
    client.peer.fail_pending(error)
    for thread in threads:
        thread.join(timeout=5)
    assert [e.exit_code for e in seen if isinstance(e, WorkerFailedError)] == [3, 3, 3]
    assert len({id(e) for e in seen}) == 3
    assert client.peer.request("echo", 1).result() == 1


def test_ctrl_c_ends_the_waiting_and_nothing_else(client: Client, tmp_path: Path) -> None:
    """KeyboardInterrupt in `result()` leaves call and peer usable."""
    flag = tmp_path / "flag"
    call = client.peer.request("wait_for_file", str(flag))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        call.result()
    flag.touch()
    assert call.result() == "there"
    assert client.peer.request("echo", 1).result() == 1


def test_streams_arrive_in_order_and_end_with_their_value(client: Client) -> None:
    """From a thread's and from a task's generator, read by a thread and by a task."""
    call = client.peer.request("numbers", 500, streaming=True)
    assert list(call) == list(range(500))
    assert call.result() == "end"

    async def read() -> list[int]:
        return [i async for i in client.peer.request("async_numbers", 500, streaming=True)]

    assert asyncio.run(read()) == list(range(500))


def test_a_stream_waits_for_its_reader(client: Client) -> None:
    """No more than the window is made ahead; leaving the loop cancels the stream."""
    before = client.peer.request("counted").result()
    for item in client.peer.request("numbers", 100_000, streaming=True):
        if item == 20:
            break
    made = client.peer.request("counted").result() - before
    assert 20 <= made <= 20 + 2 * WINDOW


def test_a_notification_arrives_once(client: Client) -> None:
    """And in order."""
    before = len(client.peer.request("seen").result()["notes"])
    for i in range(10):
        client.peer.notify("topic", i)
    notes = client.peer.request("seen").result()["notes"][before:]
    assert notes == [["topic", i] for i in range(10)]


@pytest.mark.slow("a process that imports torch")
def test_tensors_keep_their_bits(client: Client) -> None:
    """A tensor larger than every buffer on the way comes back equal."""
    import torch

    there = torch.randn(4 << 20)
    back = client.peer.request("echo", {"x": there, "y": there.to(torch.bfloat16)}).result()
    assert torch.equal(back["x"], there)
    assert torch.equal(back["y"], there.to(torch.bfloat16))


def test_a_result_is_not_torn_by_the_next_call(client: Client) -> None:
    """An engine that changes in place what it has returned does not change what the caller gets."""
    calls = []
    for _ in range(5):
        calls.append(client.peer.request("lend", 8 << 20))
        calls.append(client.peer.request("change"))
    for call in calls[::2]:
        assert float(call.result().abs().sum()) == 0.0


def test_answers_are_not_kept_after_they_have_arrived(client: Client) -> None:
    """The callee's records are gone soon after the last call."""
    for i in range(200):
        client.peer.request("echo", i).result()
    until(lambda: client.peer.request("stored").result() <= 2)


def test_a_closed_client_refuses_and_may_be_closed_again(program: Running, io: IOThread) -> None:
    """Pending and later calls raise RPCConnectionError."""
    client = connect(program, io)
    client.peer.request("echo", 1, timeout=5).result()
    call = client.peer.request("async_sleep", 60)
    client.close()
    client.close()
    with pytest.raises(RPCConnectionError):
        call.result()
    with pytest.raises(RPCConnectionError):
        client.peer.request("echo", 1)


@pytest.mark.parametrize("address", ["unix", "tcp"])
def test_a_wrong_token_fails_for_good(program: Running, io: IOThread, address: str) -> None:
    """AuthenticationError at once, for the waiting and the later calls; the token is in no message."""
    addresses = program.addresses if address == "unix" else [f"tcp:127.0.0.1:{program.port}"]
    with Client(Peer("program", loop=io.loop), addresses, "wrong-" + TOKEN) as client:
        with pytest.raises(AuthenticationError) as refused:
            client.peer.request("echo", 1).result()
        with pytest.raises(AuthenticationError):
            client.peer.request("echo", 1)
        assert TOKEN not in str(refused.value)


def test_a_refused_hello_fails_for_good(program: Running, io: IOThread) -> None:
    """What the listener objects to is what the calls raise."""
    with (
        connect(program, io, "refused") as client,
        pytest.raises(ProtocolError, match="as asked"),
    ):
        client.peer.request("echo", 1).result()


def test_tcp_serves_as_well(program: Running, io: IOThread) -> None:
    """The same over TCP, when the Unix path is not there."""
    addresses = [f"tcp:127.0.0.1:{program.port}", "unix:/nonexistent/s.sock"]
    with Client(Peer("program", loop=io.loop), addresses, TOKEN) as client:
        assert client.peer.request("echo", b"x" * 5_000_000).result() == b"x" * 5_000_000


def test_a_socketpair_is_a_link(io: IOThread) -> None:
    """Two peers without server or client; the end of one is told to the other."""
    here, there = socket.socketpair()
    gone = threading.Event()

    async def pair() -> tuple[Peer, Peer]:
        one = Peer("there", loop=io.loop, on_detached=lambda exc: gone.set())
        two = Peer("here", loop=io.loop, handler=Doubler())
        one.attach(Link(here, loop=io.loop))
        two.attach(Link(there, loop=io.loop))
        return one, two

    one, two = io.run(pair())
    assert one.request("any", 4).result() == 8
    two.close()
    assert gone.wait(5)
    one.close()


def test_a_caller_that_outruns_the_callee_waits(program: Running, io: IOThread, tmp_path: Path) -> None:
    """Unanswered requests of a thread are bounded in bytes."""
    flag = tmp_path / "flag"
    client = connect(program, io, max_in_flight=1 << 20)
    blocked = client.peer.request("wait_for_file", str(flag))
    sent = []

    def send() -> None:
        for _ in range(64):
            sent.append(client.peer.request("echo", b"x" * (256 << 10)))

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: len(sent) >= 4)
    thread.join(timeout=0.2)
    assert len(sent) <= 5
    flag.touch()
    thread.join(timeout=10)
    assert [len(call.result()) for call in sent] == [256 << 10] * 64
    assert blocked.result() == "there"
    client.close()


def test_closing_leaves_no_descriptor_and_no_task(program: Running, flavour: str) -> None:
    """Connecting and closing a hundred times leaves the process as it was."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with IOThread(uvloop=flavour == "uvloop") as io:
            for _ in range(5):
                with connect(program, io) as client:
                    assert client.peer.request("echo", 1).result() == 1
    until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= descriptors)


def test_a_token_does_not_show_itself() -> None:
    """Not in its repr, nor by pickling."""
    import pickle

    token = Token(TOKEN)
    assert TOKEN not in repr(token) + str(token) + f"{[token]}"
    with pytest.raises(TypeError):
        pickle.dumps(token)


def test_no_traceback_shows_the_token(program: Running, io: IOThread) -> None:
    """Not even one that prints the variables of its frames."""
    with connect(program, io, "refused") as client:
        with pytest.raises(ProtocolError):
            client.peer.request("echo", 1).result()
        failure = client.peer.failure
        assert failure is not None
        shown = "".join(traceback.TracebackException.from_exception(failure, capture_locals=True).format())
        assert "say_hello" in shown
        assert TOKEN not in shown
