"""At most once from end to end: a scheduler calls a worker process over a line that loses a quarter of everything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rolecall import LocalScheduler, Role
from rolecall.transport.client import Client
from rolecall.transport.loop import IOThread
from rolecall.transport.peer import Peer
from tests.support import live, sample_engines
from tests.support.waiting import wait_for
from tests.transport.chaos_proxy import ChaosProxy

pytestmark = pytest.mark.slow("hundreds of calls over a bad line", seconds=4)

CALLS = 300
LOSSES = [(0.25, 0.0), (0.2, 0.05), (0.0, 0.25)]  # shares of the frames, each way, that vanish and that are cut


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[LocalScheduler]:
    with LocalScheduler(experiment="chaos", trial="t", fileroot=tmp_path, preload=[]) as scheduler:
        yield scheduler


@pytest.fixture
def actor(scheduler: LocalScheduler) -> Role:
    actor = scheduler.start("actor", cpu=1)
    actor.create_engine(sample_engines.Echo)
    return actor


@contextmanager
def bad_line(scheduler: LocalScheduler, *, drop: float, cut: float) -> Iterator[ChaosProxy]:
    """Puts a proxy in the place of the worker's socket, and has the controller dial anew."""
    place = live.runtime_dir(scheduler) / "w" / "actor-0.sock"
    real = place.rename(place.with_name("real.sock"))
    with ChaosProxy(place, real, drop=drop, cut=cut, seed=23) as proxy:
        client = scheduler._table.member("actor/0").conversation
        assert isinstance(client, Client) and client.peer.link is not None
        former = client.peer.link
        former.abort()
        wait_for(lambda: client.peer.link not in (None, former), 30, "a link through the proxy")
        yield proxy
    real.rename(place)


def lost(proxy: ChaosProxy) -> dict[str, int]:
    """Frames that did not arrive, by direction."""
    counts = {"to target": 0, "from target": 0}
    for (fate, way), number in proxy.counts.items():
        counts[way] += number if fate != "passed" else 0
    return counts


@pytest.mark.parametrize(("drop", "cut"), [LOSSES[0], LOSSES[2]])
def test_calls_of_a_role_run_once_each(scheduler: LocalScheduler, actor: Role, drop: float, cut: float) -> None:
    """All under way at once: each has its own result, and the engine has counted each."""
    with bad_line(scheduler, drop=drop, cut=cut) as proxy:
        pending = [actor[0].submit("echo", i) for i in range(CALLS)]
        assert [call.result() for call in pending] == list(range(CALLS))
        proxy.calm()
        assert actor.call("calls") == [CALLS]
        assert min(lost(proxy).values()) >= (CALLS / 10 if not cut else 3), lost(proxy)


@pytest.mark.parametrize(("drop", "cut"), LOSSES)
def test_calls_of_twenty_threads_run_once_each(
    scheduler: LocalScheduler, actor: Role, tmp_path: Path, drop: float, cut: float
) -> None:
    """Each thread waits for its answer before it asks again, so that nearly every frame is a request or its answer."""
    directory = live.runtime_dir(scheduler)
    token = (directory / "token").read_text()
    results: dict[int, object] = {}
    with (
        ChaosProxy(tmp_path / "p.sock", directory / "w" / "actor-0.sock", drop=drop, cut=cut, seed=29) as proxy,
        IOThread() as io,
        Client(Peer("actor/0", loop=io.loop, probe=0.05), [f"unix:{proxy.path}"], token) as client,
    ):

        def work(start: int) -> None:
            for i in range(start, CALLS, 20):
                meta = {"method": "echo", "engine_name": None, "tensors": "local"}
                results[i] = client.peer.request("call", ((i,), {}), meta=meta).result()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {i: i for i in range(CALLS)}
        assert min(lost(proxy).values()) > CALLS / 5, lost(proxy)
    assert actor.call("calls") == [CALLS]


def test_streams_over_a_bad_line_lose_and_repeat_nothing(scheduler: LocalScheduler, actor: Role) -> None:
    """Every item once and in order."""
    with bad_line(scheduler, drop=0.2, cut=0.02) as proxy:
        assert list(actor[0].stream("numbers", 50)) == list(range(50))
        proxy.calm()


def test_a_handle_is_made_once(scheduler: LocalScheduler, actor: Role) -> None:
    """A call whose answer was lost leaves its tensors once: what is freed leaves nothing behind."""
    tensors = actor.with_options(engine="tensors", tensors="remote")
    tensors.create_engine(sample_engines.Tensors)
    with bad_line(scheduler, drop=0.25, cut=0.0) as proxy:
        made = [call.result() for call in [tensors[0].submit("make", 100, value=i) for i in range(20)]]
        assert tensors[0].call("total", made[7]["x"]) == 7 * 400
        proxy.calm()
        assert len({shard.id for each in made for handle in each.values() for shard in handle.shards}) == 40
        assert live.shards(scheduler, "w/real.sock")["put"] == 40
