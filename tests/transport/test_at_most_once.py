"""A call runs at most once and its answer arrives, whatever the network loses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.errors import RPCConnectionError
from rolecall.transport.client import Client
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from tests.transport.chaos_proxy import ChaosProxy
from tests.transport.rpc_program import TOKEN, Running, running, until


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "s.sock") as program:
        yield program


@pytest.fixture
def io() -> Iterator[IOThread]:
    with IOThread() as io:
        yield io


def connect(path: Path, io: IOThread) -> Client:
    return Client(Peer("program", loop=io.loop, probe=0.05), [f"unix:{path}"], TOKEN)


@pytest.mark.slow("a thousand calls over a bad line")
@pytest.mark.parametrize(("drop", "cut"), [(0.25, 0.0), (0.0, 0.25), (0.2, 0.05)])
def test_a_thousand_calls_run_a_thousand_times(
    program: Running, io: IOThread, tmp_path: Path, drop: float, cut: float
) -> None:
    """A quarter of all frames is lost in each direction; every result is right and the counter says 1,000."""
    with ChaosProxy(tmp_path / "p.sock", program.path, drop=drop, cut=cut, seed=7) as proxy:
        client = connect(proxy.path, io)
        results: dict[int, object] = {}

        def work(start: int) -> None:
            for i in range(start, 1000, 20):
                results[i] = client.peer.request("count", i).result()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {i: i for i in range(1000)}
        proxy.calm()
        assert client.peer.request("counted").result() == 1000
        for way in ("to target", "from target"):
            assert proxy.counts["dropped", way] + proxy.counts["cut", way] > 100
        until(lambda: client.peer.request("stored").result() <= 2)
        client.close()


def test_pipelined_calls_run_once_each(program: Running, io: IOThread, tmp_path: Path) -> None:
    """A thousand calls under way at once through a line that loses a quarter."""
    with ChaosProxy(tmp_path / "p.sock", program.path, drop=0.249, cut=0.001, seed=11) as proxy:
        client = connect(proxy.path, io)
        calls = [client.peer.request("count", i) for i in range(1000)]
        assert [call.result() for call in calls] == list(range(1000))
        proxy.calm()
        assert client.peer.request("counted").result() == 1000
        client.close()


@pytest.mark.slow("streams over a bad line")
@pytest.mark.parametrize(("drop", "cut"), [(0.25, 0.0), (0.2, 0.05)])
@pytest.mark.parametrize("method", ["numbers", "async_numbers"])
def test_streams_lose_and_repeat_nothing(
    program: Running, io: IOThread, tmp_path: Path, method: str, drop: float, cut: float
) -> None:
    """Every item arrives once and in order."""
    with ChaosProxy(tmp_path / "p.sock", program.path, drop=drop, cut=cut, seed=13) as proxy:
        client = connect(proxy.path, io)
        call = client.peer.request(method, 300, streaming=True)
        assert list(call) == list(range(300))
        assert call.result() == "end"
        if method == "numbers":
            proxy.calm()
            assert client.peer.request("counted").result() == 300
        client.close()


@pytest.mark.slow("large tensors over a bad line")
def test_large_tensors_survive_cuts(program: Running, io: IOThread, tmp_path: Path) -> None:
    """A frame that was cut in the middle is sent again, the same bytes."""
    import torch

    with ChaosProxy(tmp_path / "p.sock", program.path, drop=0.15, cut=0.1, seed=17) as proxy:
        client = connect(proxy.path, io)
        there = torch.randn(1 << 20)
        for _ in range(10):
            assert torch.equal(client.peer.request("echo", there).result(), there)
        client.close()


def test_cancellation_gets_through(program: Running, io: IOThread, tmp_path: Path) -> None:
    """Cancelled calls end at the callee although the word of it may be lost."""
    with ChaosProxy(tmp_path / "p.sock", program.path, drop=0.25, cut=0.02, seed=19) as proxy:
        client = connect(proxy.path, io)
        calls = [client.peer.request("async_sleep", 600) for _ in range(20)]
        until(lambda: client.peer.request("seen").result() is not None)
        for call in calls:
            call.cancel()
        proxy.calm()
        until(lambda: client.peer.request("stored").result() <= 2)
        until(lambda: client.peer.remembered <= 1)
        client.close()


def test_a_restarted_process_is_not_sent_what_the_former_one_may_have_run(io: IOThread, tmp_path: Path) -> None:
    """Calls that were under way fail; calls made later go to the new process."""
    path = tmp_path / "s.sock"
    first = Running(path)
    client = connect(path, io)
    assert client.peer.request("echo", 1).result() == 1
    call = client.peer.request("async_sleep", 600)
    client.peer.request("seen").result()
    first.process.kill()
    first.close()
    with running(path):
        with pytest.raises(RPCConnectionError, match="may have run"):
            call.result()
        assert client.peer.request("counted").result() == 0
        client.close()
