"""The benchmark's own arithmetic, and that it sees what a measured runtime leaves behind."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from benchmarks import report
from benchmarks.peers import protocol
from tests.support.checkout import ROOT

ESCAPES = """
import subprocess, sys
from benchmarks import family
family.PATIENCE_S = 0.2
family.adopt_orphans()
daemon = "import os\\nif os.fork() == 0:\\n os.setsid()\\n if os.fork() == 0: os.execlp('sleep', 'sleep', '60')"
subprocess.run([sys.executable, "-c", daemon], check=True)
print(family.end_of_family().killed, family.end_of_family().killed)
"""


def visit(peer: str, **measures: float) -> dict[str, Any]:
    return {"peer": peer, "measures": {name: {"value": value} for name, value in measures.items()}}


def test_a_ratio_above_one_means_that_we_are_better() -> None:
    """Fewer milliseconds and more gigabytes are both better, and medians are taken over rounds."""
    visits = [
        *[visit("ours", small_call_p50_ms=ms, tensor_echo_gb_s=2.0) for ms in (0.1, 0.2, 9.0)],
        visit("ray", small_call_p50_ms=1.0, tensor_echo_gb_s=0.5),
    ]
    call, echo = report.rows(visits)
    assert call.times("ray") == pytest.approx(5.0) and call.met is True
    assert echo.times("ray") == pytest.approx(4.0) and echo.met is False


def test_a_peer_that_was_not_measured_decides_nothing() -> None:
    """A target against Ray is neither met nor missed without Ray; a target in seconds needs no peer."""
    fork, call = report.rows([visit("ours", small_call_p50_ms=0.1, fork_2_s=0.1)])
    assert call.met is None and call.times("ray") is None
    assert fork.met is True


def test_a_daemon_that_a_peer_leaves_is_seen_and_killed() -> None:
    """A double-forked process in a session of its own does not escape the count."""
    ran = subprocess.run([sys.executable, "-c", ESCAPES], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ran.stdout.strip() == "['sleep (1)'] []", ran.stderr


def test_a_wrong_answer_is_an_error_and_no_measurement() -> None:
    """A peer's failure reaches the runner with its reason, and the peer goes on."""

    class Wrong(protocol.Peer):
        def open(self) -> dict[str, Any]:
            return {"up_s": 0.0}

        def close(self) -> None: ...

        def measure_small_call_p50_ms(self, quick: bool) -> dict[str, Any]:
            protocol.expect(1, 2)
            return {"value": 0.0}

    assert (
        "1 instead of 2"
        in protocol.answer(Wrong(), {"do": "measure", "name": "small_call_p50_ms", "quick": True})["error"]
    )
    assert protocol.answer(Wrong(), {"do": "measure", "name": "unknown", "quick": True}) == {"ok": {}}
