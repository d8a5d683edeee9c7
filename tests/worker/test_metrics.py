"""`/metrics` has one form on workers and guards: text for Prometheus, JSON for whoever asks for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.worker.callers import HttpCaller
from tests.worker.rig import Rig

SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z_]+="[^"]*",?)+)\} ([0-9.e+-]+)')


@pytest.fixture(params=["worker", "guard"])
def listener(request: pytest.FixtureRequest, rig: Rig) -> tuple[str, HttpCaller]:
    return request.param, rig.http() if request.param == "worker" else rig.guard()


def numbers(found: dict[str, Any]) -> Iterator[float]:
    """All numbers of the JSON form, in its order."""
    for value in found.values():
        if isinstance(value, dict):
            yield from numbers(value)
        else:
            yield value


def test_the_text_is_what_prometheus_reads(listener: tuple[str, HttpCaller]) -> None:
    """HELP and TYPE once before the samples of each metric; counters end in `_total`; units are written out."""
    name, ask = listener
    lines = ask.send("GET", "/metrics").result().splitlines()
    kinds: dict[str, str] = {}
    current = ""
    for line in lines:
        if line.startswith("# HELP "):
            current = line.split()[2]
            assert current not in kinds and len(line.split()) > 4, line
        elif line.startswith("# TYPE "):
            _, _, metric, kinds[current] = line.split()
            assert metric == current
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample is not None and sample[1] == current, line
            assert f'{name}="' in sample[2]
    assert all(metric.startswith(f"rolecall_{name}_") for metric in kinds)
    assert {kind for metric, kind in kinds.items() if metric.endswith("_total")} == {"counter"}
    assert {kind for metric, kind in kinds.items() if not metric.endswith("_total")} == {"gauge"}
    assert f"rolecall_{name}_uptime_seconds" in kinds


def test_text_and_json_have_the_same_numbers(listener: tuple[str, HttpCaller]) -> None:
    """Every number of one is in the other; `?format=json` and `Accept` ask for the same."""
    _, ask = listener
    found = ask.send("GET", "/metrics?format=json").result()
    assert found.keys() == ask.send("GET", "/metrics", Accept="application/json").result().keys()
    text = ask.send("GET", "/metrics").result()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) == len(list(numbers(found)))


def test_large_numbers_lose_no_digit(rig: Rig) -> None:
    """Bytes are counted to the last one."""
    text = rig.http().send("GET", "/metrics").result()
    assert 'rolecall_worker_fetch_cache_budget{worker="actor/0"} 1073741824' in text.splitlines()
    assert 'rolecall_worker_store_backends_shards{worker="actor/0",backend="shm"} 0' in text.splitlines()
