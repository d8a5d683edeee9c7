"""What every test stands on: the fixture that proves that nothing of a test is left when it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from rolecall import Role, Scheduler
from tests.support import sample_engines
from tests.support.backend import Backend
from tests.support.ray_cluster import SharedRay, running_ray
from tests.support.schedulers_under_test import BACKENDS, CLUSTERS, exported, make_scheduler
from tests.support.slurm_cluster import SlurmCluster, running_slurm
from tests.support.waiting import poll

# Every process that a test starts inherits this mark, however far it strays, and is found by it.
MARK = "RC_TEST_SESSION"
_SESSION = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
GONE_WITHIN_S = 5.0
OF_A_RUN = "rolecall-exit-causes"  # the thread of a run that asks a cluster's manager; the first lost guard begins it
TARGET = "target"
# By pid and inode of its folder in /proc: since when a process is known to be without the mark. A new one may get it
# when it executes a program.
_strangers: dict[tuple[str, int], float] = {}
STRANGER_AFTER_S = 30.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster(name): the fixture of the cluster that the test needs")
    config.addinivalue_line("markers", "slow(reason, seconds=3): too long for `make check`; how long, about")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # else every controller of a test would ignore it too
    os.environ[MARK] = _SESSION
    # Short, since a Unix socket's path holds 107 bytes, and ours alone, so that what is left in it is of this session.
    private = tempfile.mkdtemp(prefix="rct-", dir="/tmp")
    os.environ["TMPDIR"] = private
    tempfile.tempdir = None


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # ours, by time, instead of one by number of tests
    return SideBySide(config, log)


class SideBySide(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of one file and one backend run one after the other. Ray's cluster is large, so the suites of all backends
    share one, the tests of Ray alone another, and those of its hosts a third.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid)


def _scope(nodeid: str) -> str:
    file, _, test = nodeid.partition("::")
    backend = test.rpartition("[")[2].rstrip("]").split("-")[0]
    if "/ray/" in file or "test_ray_store" in file:
        return "tests of ray alone"
    if "/hosts/" in file and (backend == "ray" or "ray_hosts" in file):
        return "hosts of ray"
    if backend == "ray":
        return "suites on ray"
    if "/demo/" in file:
        return file  # its runs are compared with one that they share
    return f"{file} {backend}" if backend in BACKENDS else file


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in CLUSTERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster(name))
    lasts = {scope: _lasts(group) for scope, group in _by_scope(items).items()}
    items.sort(key=lambda item: -lasts[_scope(item.nodeid)])


def _by_scope(items: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
    found: dict[str, list[pytest.Item]] = {}
    for item in items:
        found.setdefault(_scope(item.nodeid), []).append(item)
    return found


def _lasts(items: list[pytest.Item]) -> float:
    """About how many seconds tests take together: what is begun last should be short."""
    return sum(map(_seconds, items))


def _seconds(item: pytest.Item) -> float:
    slow = item.get_closest_marker("slow")
    return max(float(slow.kwargs.get("seconds", 3)) if slow else 0.2, 4.0 if _cluster(item) else 0.0)


def _cluster(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker("cluster")
    return str(mark.args[0]) if mark is not None else None


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Two nodes of 4 GPUs."""
    with running_slurm() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[SharedRay]:
    """Two nodes of 4 GPUs and 4 NPUs."""
    with running_ray() as cluster:
        yield cluster


@pytest.fixture
def make(backend: str, tmp_path: Path) -> Iterator[Callable[..., Scheduler]]:
    """Makes schedulers of the backend that the test's file parametrizes, and ends them."""
    made: list[Scheduler] = []

    def build(**options: Any) -> Scheduler:
        made.append(make_scheduler(backend, fileroot=tmp_path, **options))
        return made[-1]

    yield build
    for scheduler in made:
        scheduler.close()


@pytest.fixture(scope="module")
def kept(request: pytest.FixtureRequest, backend: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    """A scheduler of the backend, for a whole file whose fixture `backend` is of scope `module`."""
    with pytest.MonkeyPatch.context() as patch:
        if (name := BACKENDS[backend].cluster) is not None:
            exported(patch, request.getfixturevalue(name))
        with make_scheduler(backend, fileroot=tmp_path_factory.mktemp("kept")) as scheduler:
            if not BACKENDS[backend].guards_of_roles:
                scheduler.start("first")  # its guard and template stay, and so must be there before the first test
                scheduler.delete_workers("first")
            yield scheduler


@pytest.fixture(scope="module")
def targets(kept: Scheduler) -> Role:
    """Two workers with engines, for all tests of a file that only fork from them; they leave them as they are."""
    role = kept.start(TARGET, 2, cpu=1, mem=1)
    role.create_engine(sample_engines.Echo)
    return role


@pytest.fixture
def shared(kept: Scheduler) -> Iterator[Scheduler]:
    """The same scheduler for all tests of a file that need no run of their own; no role and no log is left in it."""
    yield kept
    while further := [role.name for role in kept.inspect().roles if role.name != TARGET]:
        kept.delete_workers(further[-1])
    for log in Path(kept.run_dir, "logs").glob("*-[0-9]*.log"):  # no test reads what another one's worker has written
        if not log.name.startswith("guard-"):
            log.unlink()


@pytest.fixture
def facts(backend: str) -> Backend:
    """What may differ between backends."""
    return BACKENDS[backend]


@pytest.fixture(autouse=True, scope="session")
def nothing_left_at_all() -> Iterator[None]:
    """After the last test: nothing that fixtures of modules had started either."""
    yield from _clean()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: no process, runtime directory, /dev/shm file or thread that was not there before it.

    Where it needs a cluster: no further job, actor or placement group of ours, and no node that was taken out of
    service.
    """
    lasting = (OF_A_RUN,)  # while a run that tests share goes on; after the last test it is looked for
    name = _cluster(request.node)
    cluster = request.getfixturevalue(name) if name is not None else None  # before we look what there is
    if cluster is None:
        yield from _clean(lasting=lasting)
        return
    exported(monkeypatch, cluster)
    kept = cluster.of_runs()
    yield from _clean(lambda: _of_runs(tmp_path), lasting)
    cluster.check_clean(kept)


def _clean(also: Callable[[], list[str]] = list, lasting: tuple[str, ...] = ()) -> Iterator[None]:
    threads, shm, before = (
        set(threading.enumerate()),
        set(Path("/dev/shm").iterdir()),
        set(_ours() + _runtime_dirs()),
    )

    def left() -> list[str]:
        found = _ours() + _runtime_dirs() + _shm(shm) + _threads(threads, lasting) + also()
        return [thing for thing in found if thing not in before]

    yield
    if not poll(lambda: not left(), GONE_WITHIN_S):
        assert not (seen := left()), f"left behind: {seen}"


def _of_runs(folder: Path) -> list[str]:
    """What a cluster has started for runs below a folder: it need not have handed our mark on."""
    states = (json.loads(path.read_text()) for path in folder.rglob("state.json"))
    return [line for state in states for line in _processes(f"ROLECALL_RUN={state['run_id']}")]


def _ours() -> list[str]:
    """Processes that bear our mark. What has long been without it is not looked at again, since each look costs."""
    found, now = [], time.monotonic()
    with os.scandir("/proc") as entries:
        for entry in entries:
            known = (entry.name, entry.inode())
            if entry.name.isdigit() and now - _strangers.get(known, now) < STRANGER_AFTER_S:
                process = _marked(Path(entry.path), f"{MARK}={_SESSION}")
                found += process
                if not process:
                    _strangers.setdefault(known, now)
    return found


def _processes(mark: str) -> list[str]:
    return [line for entry in Path("/proc").iterdir() if entry.name.isdigit() for line in _marked(entry, mark)]


def _marked(entry: Path, mark: str) -> list[str]:
    """A process of /proc, in words, if it lives, is not this one, and bears the mark."""
    try:
        mine = entry.name != str(os.getpid()) and mark.encode() in (entry / "environ").read_bytes().split(b"\0")
        if mine and not _zombie(entry):
            return [f"process {entry.name}: {(entry / 'cmdline').read_bytes()[:200]!r}"]
    except OSError:
        pass  # it ended while we looked
    return []


def _zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _runtime_dirs() -> list[str]:
    return [f"runtime directory {p}" for p in Path(os.environ["TMPDIR"]).glob("rolecall-*/*")]


def _shm(before: set[Path]) -> list[str]:
    mine = [p for p in set(Path("/dev/shm").iterdir()) - before if "rolecall" in p.name or "torch" in p.name]
    return [f"shared memory {p}" for p in mine]


def _threads(before: set[threading.Thread], lasting: tuple[str, ...]) -> list[str]:
    names = [t.name for t in set(threading.enumerate()) - before if t.name.startswith(("rolecall", "engine "))]
    return [f"thread {name}" for name in names if not name.startswith(lasting)]
