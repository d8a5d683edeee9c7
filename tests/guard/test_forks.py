"""Forks: further workers in the slot of a living one, with its devices and its environment as it is now."""

from pathlib import Path

from rolecall.guard.proc import identify
from tests.guard.guard_rig import Rig
from tests.support.waiting import wait_for

ENV = "import os; answer = dict(os.environ)"


def test_a_fork_has_the_targets_slot(rig: Rig) -> None:
    """A fork sees the target's devices and environment, under its own name, ports and log."""
    target = rig.worker(env={"A": "1", "B": "1"}, devices=["4", "6"], cores=1)
    fork = rig.worker("ref/0", target="actor/0", env={"B": "2"})
    env = rig.do(fork, ENV)
    assert (env["A"], env["B"], env["CUDA_VISIBLE_DEVICES"]) == ("1", "2", "4,6")
    assert (env["ROLECALL_WORKER"], env["OMP_NUM_THREADS"]) == ("ref/0", "1")
    assert not set(fork["ports"]) & set(target["ports"]) and fork["log_path"] != target["log_path"]


def test_a_fork_starts_from_the_environment_as_it_is_now(rig: Rig) -> None:
    """`set_env` reaches the living worker, its forks, and programs forked from it."""
    target = rig.worker(env={"A": "1"}, devices=["0"])
    rig.ask("set_env", worker="actor/0", env={"A": "2", "NEW": "yes"})
    assert {"A": "2", "NEW": "yes"}.items() <= rig.do(target, ENV).items()
    fork = rig.worker("ref/0", target="actor/0")
    program = rig.worker("p/0", target="actor/0", argv=["sh", "-c", "echo $A $NEW {devices}; sleep 100"])
    assert {"A": "2", "NEW": "yes"}.items() <= rig.do(fork, ENV).items()
    assert Path(program["log_path"]).read_text() == "2 yes 0\n"


def test_a_fork_outlives_neither_and_both(rig: Rig) -> None:
    """Killing a fork leaves its target alone, and the other way round: they are separate processes."""
    target = rig.worker()
    rig.worker("ref/0", target="actor/0")
    rig.ask("kill", workers=["ref/0"], grace_s=0)
    assert rig.do(target, "answer = 1") == 1
    fork = rig.worker("ref/0", target="actor/0")
    rig.ask("kill", workers=["actor/0"], grace_s=0)
    assert rig.do(fork, "answer = 1") == 1


def test_a_fork_of_nobody_is_refused(rig: Rig) -> None:
    """An unknown target is an error that names the workers there are; ports leased for the fork are free again."""
    rig.worker()
    rig.ask("alloc_ports", owner="ref/0", count=2)
    (result,) = rig.start({"worker_id": "ref/0", "target": "actr/0"})
    assert not result["ok"] and "actr/0" in result["error"] and "actor/0" in result["error"]
    assert rig.ask("metrics")["ports_leased"] == 2


def test_a_worker_may_ask_for_ports_and_forks_of_its_own(rig: Rig, tmp_path: Path) -> None:
    """Over its control channel a worker leases ports and makes forks; they end with it, and may end well before."""
    target = rig.worker(devices=["1"])
    ask = "answer = worker.peer.request('{}', {!r}).result()"
    leased = rig.do(target, ask.format("alloc_ports", {"count": 3}))
    assert len(leased["ports"]) == 3 and leased["host"] == "127.0.0.1"
    made = rig.do(target, ask.format("fork", {"role": "helper", "worker_index": 0}))
    assert identify(made["pid"]) is not None and made["port"]
    said = tmp_path / "said"
    trap = ["sh", "-c", f"trap 'echo asked > {said}; exit' TERM; touch {said}; while :; do sleep 0.02; done"]
    tool = rig.do(target, ask.format("fork", {"role": "tool", "worker_index": 0, "raw_cmd": trap}))
    wait_for(said.exists, 30, "trap for SIGTERM")
    rig.do(target, ask.format("kill_forked_worker", {"role": "tool", "worker_index": 0}))
    assert identify(tool["pid"]) is None and said.read_text() == "asked\n"
    rig.ask("kill", workers=["actor/0"], grace_s=0)
    assert identify(made["pid"]) is None and rig.ask("metrics")["ports_leased"] == 0


def test_a_worker_cannot_kill_what_is_not_its_own(rig: Rig) -> None:
    """`kill_forked_worker` of another's worker is refused and names the worker's own forks."""
    target = rig.worker()
    other = rig.worker("other/0")
    source = """
try:
    worker.peer.request('kill_forked_worker', {'role': 'other', 'worker_index': 0}).result()
except Exception as error:
    answer = str(error)
"""
    assert "other/0" in rig.do(target, source)
    assert rig.do(other, "answer = 1") == 1


def test_a_fork_keeps_a_targets_interpreter(rig: Rig) -> None:
    """A fork of a worker that was started cold is started cold as well."""
    rig.worker(env={"PYTHONHASHSEED": "0"})
    fork = rig.worker("ref/0", target="actor/0")
    assert rig.do(fork, "import sys; answer = sys.flags.hash_randomization") == 0
