"""A worker that hangs is not one that is busy: the policy as values, and on real processes."""

import json
import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from rolecall.errors import RPCConnectionError
from rolecall.guard.runtime import ProgressPage, clean
from rolecall.guard.stall import Resumed, Sample, Stalled, StallWatch
from rolecall.protocol.programs import ARGUMENTS
from rolecall.protocol.progress import Counters
from tests.guard.guard_rig import Rig, wait_for


def watch(samples: list[Sample]) -> list[object]:
    """What a watch says to samples, without its silence."""
    seen = StallWatch(stall_s=120, silence_s=10)
    return [change for sample in samples if (change := seen.add(sample))]


def seconds(count: int, state: str = "S", cpu: int = 0, beat: int = 0, ended: int = 0, first: int = 0) -> list[Sample]:
    """One sample a second; `cpu`, `beat` and `ended` are what is added in each. A heartbeat has been seen before."""
    return [
        Sample(first + n, state, cpu * n, Counters(heartbeat=1 + beat * n, begun=5, ended=ended * n))
        for n in range(count)
    ]


def test_a_minute_with_the_interpreter_lock_held_raises_nothing() -> None:
    """A held lock stops the heartbeat: spinning it takes CPU time, and sleeping it ends before the limit."""
    assert watch(seconds(600, "R", cpu=100)) == []
    assert watch(seconds(60) + seconds(60, beat=2, first=60)) == []


def test_a_long_step_raises_nothing() -> None:
    """Hours of work without an ended call are work, by CPU time or by the heartbeat alone (a wait for a device)."""
    assert watch(seconds(7200, "R", cpu=90)) == [] == watch(seconds(7200, beat=2))


def test_calls_that_end_are_progress() -> None:
    """Ended calls count even where heartbeat and CPU time stand still."""
    assert watch(seconds(600, ended=1)) == []


def test_a_stop_is_told_once_and_so_is_its_end() -> None:
    """State T for five seconds is a stall, said once; running again is said once."""
    stopped = watch(seconds(60, "T"))
    assert [type(change) for change in stopped] == [Stalled]
    assert isinstance(stopped[0], Stalled) and stopped[0].kind == "stopped" and "signal" in stopped[0].reason
    both = watch(seconds(10, "T") + seconds(10, "S", beat=1, cpu=1, first=10))
    assert [type(change) for change in both] == [Stalled, Resumed]


def test_a_short_stop_is_none() -> None:
    """A debugger that attaches for a moment raises nothing."""
    assert watch(seconds(4, "t") + seconds(10, "S", beat=1, first=4) + seconds(4, "T", first=14)) == []


def test_nothing_moving_for_long_is_suspected() -> None:
    """No heartbeat, no CPU time and no ended call for the limit is a suspicion, taken back when something moves."""
    changes = watch(seconds(125) + seconds(5, beat=3, cpu=1, first=125))
    assert [type(change) for change in changes] == [Stalled, Resumed]
    assert isinstance(changes[0], Stalled) and changes[0].kind == "suspected" and "120 s" in changes[0].reason


def test_a_program_without_a_heartbeat_is_never_suspected() -> None:
    """An idle server that writes no page looks like a hang and is none."""
    assert watch([Sample(n, "S", 0, Counters()) for n in range(1000)]) == []


def test_a_program_whose_health_is_silent_is_suspected() -> None:
    """Answers every few seconds are health; none for the limit is a suspicion; the next answer takes it back."""
    healthy = [Sample(n, "S", 0, Counters(), answers=n // 4) for n in range(1000)]
    assert watch(healthy) == []
    silent = [Sample(1000 + n, "S", 0, Counters(), answers=249) for n in range(60)]
    again = Sample(1060, "S", 0, Counters(), answers=250)
    changes = watch([*healthy, *silent, again])
    assert [type(change) for change in changes] == [Stalled, Resumed]
    assert isinstance(changes[0], Stalled) and "no answer for 10 s" in changes[0].reason


def test_a_gap_of_the_watchers_own_proves_nothing() -> None:
    """Two samples an hour apart (the guard itself was stopped) are not an hour of stall."""
    still = Counters(heartbeat=1)
    assert watch([Sample(0, "T", 0, still), Sample(3600, "T", 0, still)]) == []


@pytest.mark.slow("waits for the stall's time")
def test_a_stopped_worker_is_told_with_its_stacks(rig: Rig) -> None:
    """SIGSTOP becomes `stalled` with the Python stacks, SIGCONT becomes `resumed`, and the worker is not harmed."""
    result = rig.worker()
    os.kill(result["pid"], signal.SIGSTOP)
    event = rig.event("stalled", timeout=30)
    assert (event["worker"], event["pid"], event["kind"]) == ("actor/0", result["pid"], "stopped")
    assert "stand_in_worker.py" in event["stacks"]
    os.kill(result["pid"], signal.SIGCONT)
    assert rig.event("resumed", timeout=30) == {"worker": "actor/0"}
    assert rig.do(result, "answer = 1") == 1


@pytest.mark.slow("waits for the stall's time")
def test_a_worker_in_which_nothing_moves_is_suspected_with_stacks(make_rig: Callable[..., Rig]) -> None:
    """A real process that sleeps without a heartbeat is suspected after `stall_s`; one that works beside it is not."""
    rig = make_rig(stall_s=2.0)
    stopped_beating, busy = rig.start({"worker_id": "a/0"}, {"worker_id": "a/1"})
    source = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()"
    rig.do(busy, "import os; os.environ['STAND_IN_NO_BEAT'] = '1'\n" + source)
    rig.do(stopped_beating, "import os; os.environ['STAND_IN_NO_BEAT'] = '1'")
    event = rig.event("stalled", timeout=30)
    assert (event["worker"], event["kind"]) == ("a/0", "suspected") and "run" in event["stacks"]
    assert [topic for topic, value in rig.events() if topic == "stalled"] == []


@pytest.mark.slow("waits for the silence's time")
def test_a_program_that_does_not_answer_its_health_is_told(make_rig: Callable[..., Rig]) -> None:
    """Where its loop hangs, `stalled` and then `resumed` are told. It had its seed and its variables over HTTP."""
    rig = make_rig(silence_s=3.0, seed=7)
    argv = ["{python}", "-m", "tests.support.sample_program", *ARGUMENTS]
    (program,) = rig.start({"worker_id": "p/2", "argv": argv, "ready": {"http": "/health", "worker": True}})
    assert (program["ok"], program["socket"], program["warning"]) == (True, "", "")
    url = f"http://{program['ip']}:{program['ports'][0]}"
    with urllib.request.urlopen(f"{url}/told", timeout=5) as answer:
        assert json.loads(answer.read())["configured"] == {"config": {"seed": 7}, "role": "p", "rank": 2}
    hang, wake = (json.dumps({"method": name, "args": [], "kwargs": {}}).encode() for name in ("hang", "wake"))
    urllib.request.urlopen(f"{url}/create_engine", b'{"engine": "", "init_args": [], "init_kwargs": {}}', timeout=5)
    urllib.request.urlopen(f"{url}/call", hang, timeout=5)
    with pytest.raises(RPCConnectionError, match="p/2 lost: POST /set_env had no answer within 10 s"):
        rig.ask("set_env", worker="p/2", env={"COLOUR": "late"})
    event = rig.event("stalled", timeout=30)
    assert (event["worker"], event["kind"]) == ("p/2", "suspected")
    assert "no answer for" in event["reason"] and "sample_program" in event["stacks"]
    urllib.request.urlopen(f"{url}/call", wake, timeout=5)
    assert rig.event("resumed", timeout=30) == {"worker": "p/2"}


def test_stacks_can_be_asked_for(rig: Rig) -> None:
    """`stacks` shows what a living worker does, by its name."""
    rig.worker()
    assert "stand_in_worker.py" in rig.ask("stacks", worker="actor/0")


def test_a_kill_is_not_called_a_lack_of_memory(rig: Rig) -> None:
    """A death by SIGKILL without a kill of the kernel's is not called one for memory."""
    result = rig.worker()
    wait_for(lambda: rig.ask("metrics")["resident_bytes"] > 0)
    os.kill(result["pid"], signal.SIGKILL)
    assert rig.event("exited")["reason"] == ""


def test_a_progress_page_of_another_layout_ends_no_guard(tmp_path: Path) -> None:
    """Its worker may cut it, write anything into it, or put something else in its place."""
    page = ProgressPage(str(tmp_path / "page"))
    (tmp_path / "page").write_bytes(b"\xff" * 24)
    assert page.read() == Counters(2**64 - 1, 2**64 - 1, 2**64 - 1)
    for size in (23, 0):
        os.truncate(tmp_path / "page", size)
        assert page.read() == Counters()
    (tmp_path / "page").unlink()
    (tmp_path / "page").mkdir()
    assert page.read() == Counters()
    page.close()


def test_directories_in_place_of_sockets_leave_no_token(tmp_path: Path) -> None:
    """A worker may have put them there; the runtime directory is removed all the same."""
    run = tmp_path / "run"
    for path in ("g0.sock/x", "w/a-0.sock/x", "g0/a-0.progress/x"):
        (run / path).mkdir(parents=True)
    (run / "token").write_text("secret")
    assert clean(str(run), "g0") and not run.exists()
