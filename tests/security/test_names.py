"""Names, variables and arguments are checked or taken as they are: no path leaves its folder, and no shell sees any."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rolecall import Job, LocalScheduler, SchedulingSpec
from rolecall.errors import RolecallError, WorkerConfigurationError, WorkerNotFoundError
from tests.security.live_run import LiveRun, live_run
from tests.support import sample_engines

pytestmark = pytest.mark.slow("a live run for each test")

BAD_NAMES = (
    "",
    ".",
    "..",
    "../x",
    "a/../b",
    "a/b",
    "/etc",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\n",
    "\ra",
    "a b",
    " a",
    "a;b",
    "a|b",
    "a&b",
    "$(id)",
    "`id`",
    "a$b",
    "a*",
    "a?",
    "~",
    "~root",
    "-a",
    "--help",
    "a'b",
    'a"b',
    "{host}",
    "é",
    "\u202e",
    "\ud800",
    "a" * 64,
    "a" * 100_000,
)
METAS = [
    "$HOME",
    "$(touch {dir}/canary)",
    "`touch {dir}/canary`",
    "; touch {dir}/canary",
    "&& touch {dir}/canary",
    "*",
    "~",
]
METAS += [
    "'",
    '"',
    "\\",
    "a b",
    "\n",
    "\t",
    "",
    "-c",
    "é",
    "\udcff",
    "|tee {dir}/canary",
    ">{dir}/canary",
    "$IFS",
    "#x",
    "!!",
]
ECHO = "import json, os, sys; json.dump([os.fsencode(a).hex() for a in sys.argv[1:]], open({path!r}, 'w'))"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LiveRun]:
    with live_run(tmp_path) as run:
        yield run


def test_bad_names_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    """Of experiments, trials and jobs: separators, `..`, NUL, newlines, shell's characters, too long, not ASCII."""
    attempts: tuple[Callable[[Any], object], ...] = (
        lambda name: LocalScheduler(experiment=name, trial="t", fileroot=tmp_path / "root", preload=[]),
        lambda name: LocalScheduler(experiment="e", trial=name, fileroot=tmp_path / "root", preload=[]),
        lambda name: Job(name),
    )
    for name in (*BAD_NAMES, 5, b"a", ["a"]):
        for attempt in attempts:
            with pytest.raises(WorkerConfigurationError, match=r"bad (experiment|trial|role) name"):
                attempt(name)
    assert not (tmp_path / "root").exists()


def test_bad_names_start_nothing_in_a_run(run: LiveRun) -> None:
    """Of roles and forks, and as the names of what is looked up; the run goes on."""
    before = {p.pid for p in run.processes()}
    files = set(run.run_dir.rglob("*")) | set(run.runtime_dir.rglob("*"))
    for name in BAD_NAMES:
        for attempt in (
            lambda name: run.scheduler.start(name),
            lambda name: run.scheduler.fork_workers(name, "actor"),
            lambda name: run.scheduler.fork_workers("x", name),
            lambda name: run.scheduler.get_workers(name),
            lambda name: run.scheduler.delete_workers(name),
        ):
            with pytest.raises((WorkerConfigurationError, WorkerNotFoundError)):
                attempt(name)
        for worker in (name, f"{name}/0", f"actor/{name}"):
            with pytest.raises(RolecallError):
                run.scheduler.call_engine(worker, "greet")
    assert {p.pid for p in run.processes()} == before
    assert set(run.run_dir.rglob("*")) | set(run.runtime_dir.rglob("*")) == files
    assert run.actor.call("greet") == ["hello"]


def test_the_longest_names_work(tmp_path: Path) -> None:
    """63 characters, whatever they do to the length of a socket's path."""
    name = "x" * 63
    with LocalScheduler(experiment=name, trial=name, fileroot=tmp_path, preload=[]) as scheduler:
        role = scheduler.start(name, replicas=2, cpu=1)
        role.create_engine(sample_engines.Echo)
        assert role.call("greet") == ["hello"] * 2
        other = scheduler.start("x" * 62 + "y", cpu=1)
        other.create_engine(sample_engines.Echo)
        assert other.call("greet") == ["hello"]


def test_engines_and_methods_of_any_name(run: LiveRun) -> None:
    """They are keys and never paths: an engine may be called anything, and what is unknown is not found."""
    for name in BAD_NAMES[:-2]:
        if name and name != "\ud800":
            engine = run.actor.with_options(engine=name)
            engine.create_engine(sample_engines.Echo, name)
            assert engine.call("greet") == [name]
            with pytest.raises(RolecallError):
                run.actor.call(name)


def test_variables_that_no_environment_can_hold_are_refused(run: LiveRun) -> None:
    """When a role is started and when a living worker's environment is changed, and then nothing is changed."""
    wrong: list[tuple[Any, Any]] = [
        ("A", "a\0b"),
        ("A\0", "b"),
        ("A=B", "c"),
        ("", "x"),
        ("A", None),
        ("A", 5),
        (5, "A"),
        ("A", b"bytes"),
        ("ROLECALL_RUN", "other"),
        ("ROLECALL_TOKEN", "x"),
    ]
    for key, value in wrong:
        with pytest.raises(WorkerConfigurationError):
            SchedulingSpec(env_vars={key: value})
        with pytest.raises(WorkerConfigurationError):
            asyncio.run(run.scheduler.set_worker_env("actor/0", {"GOOD": "x", key: value}))
    assert run.actor.call("environment", "GOOD") == [{"GOOD": None}]
    assert run.actor.fork("ref").workers, "forks still start"


def test_variables_arrive_as_they_are(run: LiveRun) -> None:
    """Nothing expands them."""
    values = {f"V{i}": text.format(dir="/nonexistent") for i, text in enumerate(METAS) if "\udcff" not in text}
    role = run.scheduler.start("env", cpu=1, env_vars=values)
    role.create_engine(sample_engines.Echo)
    assert role.call("environment", *values) == [values]
    role.set_env({"V0": "$(id) `id` \n ; x"})
    assert role.call("environment", "V0") == [{"V0": "$(id) `id` \n ; x"}]


def test_arguments_arrive_as_they_are(run: LiveRun, tmp_path: Path) -> None:
    """A program gets its arguments literally: no shell reads them, as a role's command and as a fork's."""
    arguments = [text.format(dir=tmp_path) for text in METAS]
    starts: dict[str, Callable[[list[str]], object]] = {
        "own": lambda argv: run.scheduler.start("own", cpu=1, cmd=argv, ready={"log": "^done$"}),
        "fork": lambda argv: run.actor.fork("fork", command=argv, ready={"log": "^done$"}),
    }
    for role, start in starts.items():
        path = tmp_path / f"{role}.json"
        script = ECHO.format(path=str(path)) + "; print('done', flush=True); import time; time.sleep(3600)"
        start([sys.executable, "-c", script, *arguments])
        assert [bytes.fromhex(a) for a in json.loads(path.read_text())] == [os.fsencode(a) for a in arguments]
    assert not (tmp_path / "canary").exists()


def test_what_the_kernel_would_cut_short_is_refused(run: LiveRun) -> None:
    """A NUL in an argument, an empty command, one that is no list; and a module that is an option."""
    for command in (["echo", "a\0b"], ["ec\0ho"], [], ["echo", 5], [b"echo"], "-c", "os; print()", "../x", "a b", ""):
        with pytest.raises(WorkerConfigurationError):
            run.actor.fork("program", command=command)  # type: ignore[arg-type]
    assert run.actor.fork("program", command=["sleep", "60"]).workers


def listening(pid: int) -> list[str]:
    """The TCP and UDP addresses and abstract Unix names at which a process can be reached, from `/proc`."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))  # noqa: PTH115
        except OSError:
            continue
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (fields[3] == "0A" or table.startswith("udp")):
                found.append(f"{table} {fields[1].partition(':')[0]}")
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in inodes and len(fields) > 7 and fields[7].startswith("@"):
            found.append(f"abstract {fields[7]}")
    return found


def test_nothing_listens_but_on_loopback_and_private_files(run: LiveRun) -> None:
    """Every process of the run, with forks and tensors about: TCP on 127.0.0.1 alone, no UDP, no abstract name."""
    run.actor.fork("ref").create_engine(sample_engines.Echo)
    tensors = run.actor.with_options(engine="tensors", tensors="remote")
    tensors.create_engine(sample_engines.Tensors)
    (made,) = tensors.call("make", 1000)
    before = listening(os.getpid())
    below = [p for p in run.processes() if p.pid != os.getpid()]
    assert made["x"].shape == (1000, 4) and len(below) >= 5
    seen = {p.name(): listening(p.pid) for p in below}
    assert {address for found in seen.values() for address in found} == {"tcp 0100007F"}, seen
    assert [a for a in before if not a.endswith(" 0100007F")] == []
    assert "tcp 0100007F" in seen["rc:actor/0"]
    assert psutil.Process().is_running()
