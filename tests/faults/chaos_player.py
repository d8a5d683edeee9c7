"""A controller of the chaos program: reads what to do, a word a line, and says what came of it in lines of JSON.

Each act of a round has a thread of its own, and ends in a result or an error, which is kept.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from rolecall import Role, Scheduler
from rolecall.errors import EngineCallError, RolecallError
from rolecall.scheduler.roles import RoleWorker
from tests.faults.chaos_engine import Engine
from tests.faults.chaos_plan import Act, Round, plan
from tests.support.schedulers_under_test import make_scheduler

PROGRAM = [sys.executable, "-S", "-c", "import time; time.sleep(3600)"]
ENDED_S = 90.0  # every act has ended then: the longest waits are `start_timeout` and those for a cluster's manager
STARTS_S = 40.0
TRIES = 5


class Player:
    """One run, and what was done in this round."""

    def __init__(self, s: Scheduler) -> None:
        self.s = s
        self._acts: list[tuple[Act, threading.Thread]] = []
        self._outcomes: list[list[Any]] = []
        self._of_round = 0
        self._timeline: threading.Thread | None = None

    def setup(self, of: Round) -> dict[str, Any]:
        """Starts the roles. Others share the processors and a cluster its nodes with what was just hit: tried again."""
        self._acts, self._outcomes, self._of_round = [], [], of.number
        errors: list[str] = []
        for _ in range(TRIES):
            try:
                actor = self.s.start("actor", 2)
                actor.create_engine(Engine)
                actor.fork("ref").create_engine(Engine)
                actor.fork("prog", command=PROGRAM)
                break
            except RolecallError as e:
                errors.append(told(e))
                errors += self.emptied()["errors"]
                time.sleep(1.0)
        return {"run_id": self.s.run_id, "run_dir": self.s.run_dir, "errors": errors, "is_up": len(errors) < TRIES}

    def go(self, of: Round) -> None:
        """Begins all that the round consists of."""
        self._timeline = threading.Thread(target=self._play, args=(of,), daemon=True)
        self._timeline.start()

    def _play(self, of: Round) -> None:
        begun = time.monotonic()
        for act in of.acts:
            time.sleep(max(0.0, begun + act.at - time.monotonic()))
            thread = threading.Thread(target=self._do, args=(act,), name=f"act {act.what}", daemon=True)
            self._acts.append((act, thread))
            thread.start()

    def _do(self, act: Act) -> None:
        begun, number = time.monotonic(), self._of_round
        try:
            getattr(self, f"do_{act.what}")(act)
            ended = "ok"
        except RolecallError as e:
            ended = type(e).__name__
        except BaseException as e:
            ended = f"NOT TYPED: {told(e)}"
        if number == self._of_round:
            self._outcomes.append([act.what, act.on, ended, round(time.monotonic() - begun, 2)])

    def settle(self) -> dict[str, Any]:
        """Waits for all acts; what has not ended is `silent`."""
        deadline = time.monotonic() + ENDED_S
        if self._timeline is not None:
            self._timeline.join(ENDED_S)
        for _, thread in self._acts:
            thread.join(max(0.0, deadline - time.monotonic()))
        silent = [f"{act.what} on {act.on}" for act, thread in self._acts if thread.is_alive()]
        if silent:
            faulthandler.dump_traceback(file=sys.stderr)
        return {"outcomes": self._outcomes, "silent": silent}

    def emptied(self) -> dict[str, Any]:
        """Deletes all roles."""
        errors = []
        for _ in range(TRIES):
            try:
                self.s.delete_workers()
            except RolecallError as e:
                errors.append(told(e))
            if not (roles := [role.name for role in self.s.inspect().roles]):
                break
            time.sleep(1.0)
        return {"roles": roles, "errors": errors}

    def closed(self) -> dict[str, Any]:
        """Ends the run, whatever is under way."""
        self.s.close()
        return {"closed": True}

    def measured(self) -> dict[str, Any]:
        """Threads, descriptors and MiB of memory of this process and of its guards here."""
        with suppress(RolecallError):
            self.s.home.flush()
        gc.collect()
        guards = [guard.pid for guard in self.s.inspect().guards if guard.host == os.uname().nodename]
        return {f"{pid}": _size(pid) for pid in (os.getpid(), *guards) if psutil.pid_exists(pid)}

    # What a round may consist of.

    def _role(self, act: Act) -> Role:
        return Role(self.s, act.on.partition("/")[0])

    def _worker(self, act: Act) -> RoleWorker:
        return self._role(act)[int(act.on.partition("/")[2])]

    def do_call(self, act: Act) -> None:
        same(self._worker(act).call("echo", {"a": [1, act.what]}), {"a": [1, act.what]})

    def do_fan_out(self, act: Act) -> None:
        same(self._role(act).call("echo", 7), [7, 7])

    def do_busy(self, act: Act) -> None:
        calls = [self._worker(act).submit("echo", n) for n in range(200)]
        same([call.result() for call in calls], list(range(200)))

    def do_slow(self, act: Act) -> None:
        same(self._worker(act).call("wait", 2.0), "waited")

    def do_later(self, act: Act) -> None:
        same(asyncio.run(self._role(act).acall("later", act.at, 0.5)), [act.at] * 2)

    def do_fail(self, act: Act) -> None:
        with suppress(EngineCallError):
            self._worker(act).call("fail", "as it should")
            raise AssertionError("a call that raises has returned")

    def do_cancel(self, act: Act) -> None:
        pending = self._worker(act).submit("later", 1, 3600.0)
        time.sleep(0.3)
        pending.cancel()
        pending.result()

    def do_timeout(self, act: Act) -> None:
        self._worker(act).with_options(timeout=0.3).call("later", 1, 3600.0)

    def do_numbers(self, act: Act) -> None:
        same(list(self._worker(act).stream("numbers", 300)), list(range(300)))

    def do_tokens(self, act: Act) -> None:
        async def read() -> list[str]:
            return [token async for token in self._worker(act).astream("tokens", 300)]

        same(len(asyncio.run(read())), 300)

    def do_dropped_stream(self, act: Act) -> None:
        same(next(iter(self._worker(act).stream("numbers", 1_000_000))), 0)

    def do_handles(self, act: Act) -> None:
        """Made here, read by the first worker of each role."""
        with self.s.scope():
            made = self._worker(act).with_options(tensors="remote").call("make", 300, 2.0)
            for role in ("actor", "ref"):
                same(Role(self.s, role)[0].call("read", made["x"]), "numpy.ndarray float32 (300, 4) 2400.0")

    def do_completions(self, act: Act) -> None:
        for call in self._role(act).as_completed("echo", [(n,) for n in range(50)]):
            call.result()

    def do_set_env(self, act: Act) -> None:
        self._role(act).set_env({"CHAOS": act.on})

    def do_fork(self, act: Act) -> None:
        name = f"fork{int(act.at * 100)}"
        role = self._role(act).fork(name)
        role.create_engine(Engine)
        same(len(set(role.call("pid"))), 2)
        role.delete()

    def do_start(self, act: Act) -> None:
        name = f"more{int(act.at * 100)}"
        self.s.start(name).create_engine(Engine)
        Role(self.s, name).delete()

    def do_leave(self, act: Act) -> None:
        self._worker(act).call("leave", 7)

    def do_restart(self, act: Act) -> None:
        self.s.restart_worker(act.on)
        self._worker(act).call("pid")

    def do_delete(self, act: Act) -> None:
        self.s.delete_workers("ref")


def same(seen: Any, expected: Any) -> None:
    assert seen == expected, f"{seen!r} is not {expected!r}"


def told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _size(pid: int) -> dict[str, int]:
    process = psutil.Process(pid)
    return {
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "MiB": process.memory_full_info().uss >> 20,
    }


def main(backend: str, seed: int, trial: str, fileroot: str) -> None:
    options: dict[str, Any] = {
        "start_timeout": STARTS_S,
        "quiet": True,
        "experiment": "chaos",
        "trial": trial,
        "grace_s": 1.0,
    }
    with make_scheduler(backend, fileroot=fileroot, **options) as s:
        player = Player(s)
        does: dict[str, Callable[[Round], dict[str, Any] | None]] = {
            "setup": player.setup,
            "go": player.go,
            "settle": lambda of: player.settle(),
            "empty": lambda of: player.emptied(),
            "measure": lambda of: player.measured(),
            "close": lambda of: player.closed(),
        }
        say({"run_id": s.run_id, "run_dir": s.run_dir})
        for line in sys.stdin:
            word, number = line.split()
            facts = does[word](plan(seed, backend, int(number)))
            if facts is not None:
                say(facts)


def say(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
