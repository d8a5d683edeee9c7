"""docs/moving.md says what happens: each row of its last table is executed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import rolecall
from rolecall import LocalScheduler, errors
from tests.support.checkout import ROOT

TEXT = (ROOT / "docs" / "moving.md").read_text()
ROWS = re.findall(r"^\| ([^|]*) \| [^|]*\| `(.*)` \| `(.*)` \|$", TEXT, re.MULTILINE)


class Engine:
    def __init__(self) -> None:
        self.times = 0

    def second_time(self) -> int:
        self.times += 1
        return self.times if self.times > 1 else 1 // 0

    def rank(self) -> str | None:
        return os.environ.get("RANK")

    def future(self) -> Future[int]:
        future: Future[int] = Future()
        threading.Timer(0.01, future.set_result, [3]).start()
        return future

    def meta(self, rpc_meta: Any = None) -> Any:
        return rpc_meta

    def pair(self) -> tuple[int, dict[int, str]]:
        return 1, {2: "two"}

    def tensor(self) -> Any:
        import torch

        return torch.ones(2)


def status(worker: rolecall.Worker, path: str) -> int:
    """What a worker answers who has no token."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{worker.ip}:{worker.worker_ports[0]}{path}")
    return refused.value.code


@pytest.fixture(scope="module")
def s(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalScheduler]:
    folder: Path = tmp_path_factory.mktemp("moving")
    with LocalScheduler(experiment="moving", fileroot=folder, devices=range(2), preload=[]) as scheduler:
        scheduler.start("actor").create_engine(Engine)
        yield scheduler


@pytest.fixture(autouse=True)
def only_the_actor(s: LocalScheduler) -> Iterator[None]:
    yield
    with contextlib.suppress(errors.WorkerNotFoundError):
        s.delete_workers("other")


def test_the_table_is_found() -> None:
    """Rows that the pattern misses would not be executed."""
    table = TEXT.partition("## Without the adapter")[2]
    assert len(ROWS) == len(re.findall(r"^\| ", table, re.MULTILINE)) - 1


@pytest.mark.parametrize(("what", "code", "gives"), ROWS, ids=[code for _, code, _ in ROWS])
def test_a_row_gives_what_it_says(s: LocalScheduler, what: str, code: str, gives: str) -> None:
    """An error by its class, anything else as Python prints it."""
    names = {
        "s": s,
        "Engine": Engine,
        "Path": Path,
        "status": status,
        "rolecall": rolecall,
        "run": asyncio.run,
        **vars(errors),
        **{n: getattr(rolecall, n) for n in rolecall.__all__},
    }
    expected = {**vars(errors), **vars(dataclasses), "AttributeError": AttributeError}.get(gives)
    if isinstance(expected, type) and issubclass(expected, Exception):
        with pytest.raises(expected):
            eval(code, names)
    else:
        assert repr(eval(code, names)) == gives
