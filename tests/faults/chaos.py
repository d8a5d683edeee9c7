"""Chaos: seeded rounds of calls, forks and restarts while processes are hit, and what must hold whatever happens.

    python -m tests.faults.chaos --backend local --seed 1 --minutes 60
    python -m tests.faults.chaos --backend local --seed 1 --from-round 17 --rounds 1     # one of them again

Every call ends in a result or in an error of rolecall's. When a run has ended nothing of it is left, but what
docs/design.md says that nobody can clean, which the next run or `rolecall doctor --fix` cleans. A controller and a
guard that live through many rounds keep their threads, descriptors and memory.

The rounds follow from the seed alone (`chaos_plan`). This process hits; the controllers are processes of their own
(`chaos_player`): one that goes from round to round, and one for each round that a controller does not outlive.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

from rolecall.guard.proc import TICKS, Process, read_stat, read_text, send, snapshot
from rolecall.scheduler.run import private_root
from tests.clusters.ray_census import Census
from tests.faults.chaos_plan import NODES, OF_A_GUARD, Hit, Round, plan
from tests.support.checkout import PYTHONPATH, ROOT
from tests.support.ray_cluster import SharedRay, left_of, running_ray
from tests.support.schedulers_under_test import BACKENDS
from tests.support.slurm_cluster import SlurmCluster, running_slurm
from tests.support.waiting import poll
from tests.support.worker_processes import hidden, processes

PATIENCE = 4.0  # times what backends promise on a machine that does nothing else
ANSWER_S = 240.0  # the longest that a controller takes to answer us: five starts that fail
WARM_UP = 3  # rounds of one controller before it is measured
# What may be added to a process after that. A round makes thousands of objects; what leaks in each is far above it.
GROWTH = {"threads": 4, "descriptors": 12, "MiB": 64, "ports": 0}
UNSEEN_S = 2.0  # a child without a mark is noted once a second
Look = Callable[[], list[str]]
Cluster = SlurmCluster | SharedRay | None


class Violation(Exception):
    """Something that must hold did not."""


class Player:
    """A controller's process."""

    def __init__(self, backend: str, seed: int, trial: str, folder: Path, exports: dict[str, str]) -> None:
        command = [sys.executable, "-m", "tests.faults.chaos_player", backend, str(seed), trial, str(folder)]
        self.stderr = folder / f"{trial}.err"
        with self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                env={**os.environ, **exports, "PYTHONPATH": PYTHONPATH},
                cwd=ROOT,
                start_new_session=True,
                text=True,
            )
        self.rounds, self.run_id, self.run_dir = 0, "", Path()
        self.first: dict[str, tuple[int, dict[str, int]]] = {}  # by process: rounds so far, what it had
        about = self.answer()
        self.run_id, self.run_dir = about["run_id"], Path(about["run_dir"])

    def tell(self, word: str, number: int) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed
            self.process.stdin.write(f"{word} {number}\n")
            self.process.stdin.flush()

    def ask(self, word: str, number: int) -> dict[str, Any]:
        self.tell(word, number)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        out = self.process.stdout
        assert out is not None
        if not select.select([out], [], [], ANSWER_S)[0]:
            self.process.send_signal(signal.SIGABRT)
            raise Violation(f"the controller says nothing for {ANSWER_S:.0f} s")
        line = out.readline()
        if not line:
            raise Violation(f"the controller ended by itself: exit code {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """However it is."""
        self.process.kill()
        self.process.communicate()


class Chaos:
    """The rounds of a seed on a backend."""

    def __init__(self, backend: str, seed: int, cluster: Cluster, folder: Path) -> None:
        self.backend, self.seed, self.cluster, self.folder = backend, seed, cluster, folder
        self.facts = BACKENDS[backend]
        self.exports = cluster.exports if cluster is not None else {}
        self.lasting: Player | None = None
        self._players, self._begun = 0, 0.0
        self._nobodys = set[Process]()
        self._raylet_lost = False  # since the lasting controller is there
        self._shm = set(Path("/dev/shm").iterdir())
        self.totals: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()  # processes by role or kind
        self.growth: dict[str, int] = {}

    def close(self) -> None:
        """Ends the lasting controller, after which nothing may be left."""
        if (player := self.lasting) is not None:
            self.lasting = None
            self._ended(player, plan(self.seed, self.backend, 1), close=True)

    def start_over(self) -> None:
        """After a violation: nothing of it is there for the next round."""
        if self.lasting is not None:
            self.lasting.end()
            self.lasting = None
        self._clean(next_run=False)

    def play(self, of: Round) -> str:
        """One round; returns what it was, in words.

        Raises:
            Violation: Something did not hold.
        """
        begun = time.monotonic()
        player = self._player() if of.mortal else self._lasting()
        try:
            setup = player.ask("setup", of.number)
            if not setup["is_up"] and self._raylet_lost and not of.mortal:
                self.close()  # Ray's library has ended its driver, whose raylet we had killed: a new run, as documented
                self.totals["lost drivers"] += 1
                player = self._lasting()
                setup = player.ask("setup", of.number)
            if not setup["is_up"]:
                raise Violation("no roles though nothing is hit: " + "; ".join(setup["errors"]))
            self._wait_until_noted(player.run_id)
            self._begun = time.clock_gettime(time.CLOCK_BOOTTIME)
            player.tell("go", of.number)
            dead = self._strike(player, of)
            self._mend(of)
            outcomes = self._after_mortal(player, of, dead) if of.mortal else self._after_lasting(player, of)
        except BaseException:
            player.end()
            raise
        self._count(outcomes)
        said = ", ".join(f"{name} {times}" for name, times in Counter(o[2] for o in outcomes).most_common())
        who = "a controller of its own" if of.mortal else f"round {player.rounds} of its controller"
        hits = "; ".join(map(str, of.hits)) or "nobody hit"
        again = f"; started again after {len(setup['errors'])} error(s)" if setup["errors"] else ""
        return f"{who}; {hits}; {said or 'no outcome'}{again}; {time.monotonic() - begun:.1f} s"

    def _player(self) -> Player:
        self._players += 1
        return Player(self.backend, self.seed, f"{self._players}", self.folder, self.exports)

    def _lasting(self) -> Player:
        if self.lasting is None:
            self.lasting, self._raylet_lost = self._player(), False
        return self.lasting

    def _wait_until_noted(self, run_id: str) -> None:
        """Children without a mark are known to the guard a second after they were started."""
        time.sleep(max(0.0, UNSEEN_S - min(map(_age, hidden(run_id)), default=UNSEEN_S)))

    # Hitting.

    def _strike(self, player: Player, of: Round) -> bool:
        """Hits as planned; whether the controller was sent something that ends it."""
        begun, dead = time.monotonic(), False
        later: list[tuple[float, signal.Signals, list[Process]]] = []
        hits = list(of.hits)
        while hits or later:
            at, number, whom = min(later, default=(1e9, SIGCONT, []))
            if hits and hits[0].at <= at:
                hit = hits.pop(0)
                time.sleep(max(0.0, begun + hit.at - time.monotonic()))
                struck = self._struck(player, hit)
                dead |= "controller" in hit.whom and SIGCONT not in (hit.number, hit.then)
                if hit.then is not None:
                    later.append((hit.at + hit.after, hit.then, struck))
                continue
            later.remove((at, number, whom))
            time.sleep(max(0.0, begun + at - time.monotonic()))
            _send(whom, number)
        time.sleep(max(0.0, begun + of.lasts - time.monotonic()))
        return dead

    def _struck(self, player: Player, hit: Hit) -> list[Process]:
        whom: list[Process] = []  # as they are now: nobody else who gets a pid of theirs is hit
        for name in hit.whom:
            stats = map(read_stat, self._pids(player, name))
            found = [stat.process for stat in stats if stat]
            self.totals["processes hit"] += len(found)
            self.struck[name.partition("/")[0]] += len(found)
            whom += found
        if hit.number == SIGKILL:
            _send(whom, signal.SIGSTOP)  # so that none can act on the death of another
        _send(whom, hit.number)
        return whom

    def _pids(self, player: Player, name: str) -> list[int]:
        if name == "controller":
            return [player.process.pid]
        if name in NODES:
            return self._manager(name)
        there = processes(player.run_id) if name in OF_A_GUARD else processes(player.run_id, f"ROLECALL_WORKER={name}")
        stats = snapshot()
        if name in OF_A_GUARD:
            return [pid for pid in there if pid in stats and stats[pid].name == f"rc:{name}"][:1]
        return [pid for pid in there if pid in stats and _name(stats[pid].ppid) in ("rc:guard", "rc:reaper")][:1]

    def _manager(self, node: str) -> list[int]:
        if isinstance(self.cluster, SlurmCluster):
            noted = int((self.cluster.folder / "run" / f"slurmd-{node}.pid").read_text().split()[0])
            return [noted] if _name(noted) == "slurmd" else []  # it is dead already
        assert self.cluster is not None
        return [pid for pid in [self.cluster.nodes.kill("raylet", node)] if Path(f"/proc/{pid}").exists()]

    def _mend(self, of: Round) -> None:
        """Has the cluster as it was, after one of its own processes was hit."""
        hit = sorted(of.struck() & set(NODES))
        if isinstance(self.cluster, SlurmCluster) and hit:
            self.cluster.mend()
        elif isinstance(self.cluster, SharedRay):
            for node in hit:
                self.cluster.nodes.add_node(node)
                self.cluster.census.close()  # it may have used the raylet that is gone
                self.cluster.census = Census(self.cluster.exports["RAY_ADDRESS"], self.cluster.nodes.environment())
                self._raylet_lost = True

    # What must hold.

    def _after_lasting(self, player: Player, of: Round) -> list[Any]:
        settled = player.ask("settle", of.number)
        _check_outcomes(settled)
        if not of.hits and not {act.what for act in of.acts} & {"leave", "restart", "delete"}:
            _check_quiet(settled["outcomes"])
        emptied = player.ask("empty", of.number)
        if emptied["roles"]:
            raise Violation(f"roles cannot be deleted: {emptied}")
        self._check_nothing_left(lambda: self._of_workers(player.run_id) + self._of_cluster())
        player.rounds += 1
        self._check_flat(player, of)
        outcomes: list[Any] = settled["outcomes"]
        return outcomes

    def _after_mortal(self, player: Player, of: Round, dead: bool) -> list[Any]:
        outcomes: list[Any] = []
        if not dead:
            if player.ask("close", of.number) != {"closed": True}:
                raise Violation("the controller did not close its run")
            settled = player.ask("settle", of.number)
            _check_outcomes(settled)
            outcomes = settled["outcomes"]
        self._ended(player, of, close=not dead)
        return outcomes

    def _ended(self, player: Player, of: Round, *, close: bool) -> None:
        if close:
            player.tell("close", of.number)
            assert player.process.stdin is not None
            player.process.stdin.close()
        try:
            player.process.wait(PATIENCE * self.facts.ctrl_c_s)
        except subprocess.TimeoutExpired:
            raise Violation("the controller does not end") from None
        if close and player.process.returncode:
            raise Violation(f"the controller has closed its run and ends with {player.process.returncode}")
        if player.process.stdout is not None:
            player.process.stdout.close()

        folder = private_root() / player.run_id

        def running() -> list[str]:
            return _told(processes(player.run_id) | hidden(player.run_id)) + self._of_cluster()

        def left() -> list[str]:
            return running() + [f"runtime directory {folder}"] * folder.exists()

        if not close:
            self._left_by_nobody(of.struck(), running, left)
            if left():
                self._clean(of.next_run)
        self._check_nothing_left(left)

    def _left_by_nobody(self, struck: set[str], running: Look, left: Look) -> None:
        """Waits until nothing is left but what a killed controller may leave by design.md.

        Anything may be, where guard and reaper were hit too (on Slurm the reaper: Slurm then kills its guard), and the
        runtime directory, if a guard may have been gone before.
        """
        if struck >= ({"reaper"} if self.backend == "slurm" else {"reaper", "guard"}):
            poll(lambda: not left(), self.facts.controller_gone_s)
        elif struck & {"reaper", "guard", *NODES}:
            self._check_nothing_left(running)
            poll(lambda: not left(), self.facts.gone_s)
        else:
            self._check_nothing_left(left)

    def _clean(self, next_run: bool) -> None:
        """What nobody could clean is cleaned by whoever comes next."""
        self.totals["next run" if next_run else "doctor"] += 1
        if next_run:
            self._ended(self._player(), plan(self.seed, self.backend, 1), close=True)
            return
        command = [sys.executable, "-m", "rolecall.cli", "doctor", "--fix", "--fileroot", str(self.folder)]
        env = {**os.environ, **self.exports, "PYTHONPATH": PYTHONPATH}
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, timeout=ANSWER_S)  # it has more to complain of

    def _check_nothing_left(self, left: Look) -> None:
        if not poll(lambda: not left(), PATIENCE * self.facts.controller_gone_s) and (seen := left()):
            raise Violation("left: " + "; ".join(seen))
        made = [p.name for p in set(Path("/dev/shm").iterdir()) - self._shm if "rolecall" in p.name]
        if made:
            raise Violation(f"left in /dev/shm: {made}")

    def _of_workers(self, run_id: str) -> list[str]:
        """Processes of a run's workers: all but those that a guard consists of, and what bears no mark."""
        own = [f"rc:{name}" for name in (*OF_A_GUARD, "intermediate")]
        marked = {pid: line for pid, line in processes(run_id).items() if _worker(pid) and _name(pid) not in own}
        stats = snapshot()
        unmarked = {pid: line for pid, line in hidden(run_id).items() if pid in stats}
        for pid in unmarked:
            # Its worker died before the guard had looked: it belongs to nobody, and ends with the guard (design.md).
            if stats[pid].start / TICKS > self._begun and _name(stats[pid].ppid) == "rc:guard":
                self._nobodys.add(stats[pid].process)
        return _told(marked | {pid: line for pid, line in unmarked.items() if stats[pid].process not in self._nobodys})

    def _of_cluster(self) -> list[str]:
        """What a cluster has of runs while the lasting controller has no role."""
        if isinstance(self.cluster, SlurmCluster):
            return [f"job {job}: {what}" for job, what in self.cluster.jobs().items()]
        if isinstance(self.cluster, SharedRay):
            found = left_of(self.cluster.census.take(), self.cluster.nodes)
            if self.lasting is not None and len(found["jobs"]) == 1:
                del found["jobs"]
            return [f"{kind}: {thing}" for kind, things in found.items() for thing in things]
        return []

    def _check_flat(self, player: Player, of: Round) -> None:
        for pid, size in player.ask("measure", of.number).items():
            rounds, first = player.first.setdefault(pid, (player.rounds, size))
            if player.rounds - rounds < WARM_UP:
                continue
            if player.rounds - rounds == WARM_UP:
                player.first[pid] = (rounds, size)
                continue
            what = "controller" if pid == str(player.process.pid) else "guard"
            for kind, most in GROWTH.items():
                if kind not in size:  # a controller leases none
                    continue
                grown = size[kind] - first[kind]
                self.growth[f"{what} {kind}"] = grown
                if grown > most:
                    raise Violation(f"{what} {pid} has grown by {grown} {kind} in {player.rounds - rounds} rounds")

    def _count(self, outcomes: list[Any]) -> None:
        self.totals["rounds"] += 1
        self.totals["calls"] += len(outcomes)
        self.totals["errors"] += sum(outcome[2] != "ok" for outcome in outcomes)


def _check_outcomes(settled: dict[str, Any]) -> None:
    if settled["silent"]:
        raise Violation(f"never answered: {settled['silent']}")
    if wrong := [outcome for outcome in settled["outcomes"] if outcome[2].startswith("NOT TYPED")]:
        raise Violation(f"neither a result nor an error of ours: {wrong}")


def _check_quiet(outcomes: list[Any]) -> None:
    """Where nobody was hit, nobody dies."""
    if wrong := [
        outcome for outcome in outcomes if outcome[2] not in ("ok", "CallCancelledError", "WorkerTimeoutError")
    ]:
        raise Violation(f"failed though nobody was hit: {wrong}")


def _send(whom: list[Process], number: signal.Signals) -> None:
    for process in whom:
        send(process, number)


def _name(pid: int) -> str:
    return read_text(f"/proc/{pid}/comm").strip()


def _age(pid: int) -> float:
    stat = snapshot().get(pid)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - stat.start / TICKS if stat else UNSEEN_S


def _worker(pid: int) -> bool:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(b"ROLECALL_WORKER=") and entry[16:].strip() for entry in entries)


def _told(found: dict[int, str]) -> list[str]:
    return [f"process {pid} ({_name(pid)}): {line[:150]}" for pid, line in found.items()]


@contextlib.contextmanager
def cluster_of(backend: str) -> Iterator[Cluster]:
    """The cluster that a backend needs, for us alone."""
    if backend == "slurm":
        with running_slurm() as slurm:
            yield slurm
    elif backend == "ray":
        with running_ray() as ray:
            yield ray
    else:
        yield None


def report(chaos: Chaos, of: Round, problem: Exception) -> None:
    """All that is known of a round in which something did not hold."""
    again = f"--backend {chaos.backend} --seed {chaos.seed} --from-round {of.number} --rounds 1"
    print(f"\nVIOLATION in round {of.number}: {type(problem).__name__}: {problem}")
    print(f"again: python -m tests.faults.chaos {again}\n", flush=True)
    if not isinstance(problem, Violation):
        traceback.print_exception(problem, file=sys.stdout)
    print("\n".join(of.says()))
    newest = sorted(
        (file for kind in ("log", "err", "jsonl") for file in chaos.folder.rglob(f"*.{kind}")), key=_changed
    )
    for path in newest[-8:]:
        print(f"--- {path.relative_to(chaos.folder)}\n{_tail(path)}", flush=True)


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):  # it was removed
        return path.stat().st_mtime
    return 0.0


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[-3000:]
    return ""


def run(chaos: Chaos, first: int, rounds: int, ends_at: float, keep_going: bool = False) -> int:
    """Rounds until one of the limits; returns how many violations there were."""
    wrong, number = 0, first
    while number < first + rounds and time.monotonic() < ends_at:
        of = plan(chaos.seed, chaos.backend, number)
        try:
            line = chaos.play(of)
            print(f"{time.strftime('%H:%M:%S')} round {number}: {line}", flush=True)
        except Exception as problem:  # also one of this program's own, which must not end the hour
            wrong += 1
            report(chaos, of, problem)
            if not keep_going:
                return wrong
            chaos.start_over()
        number += 1
    try:
        chaos.close()
    except Exception as problem:
        wrong += 1
        report(chaos, of, problem)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--from-round", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1_000_000)
    parser.add_argument("--keep-going", action="store_true", help="go on after a violation")
    parser.add_argument("--json", action="store_true", help="the totals as the last line")
    asked = parser.parse_args()
    begun = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
    with tempfile.TemporaryDirectory(prefix="rct-", dir="/tmp") as private, cluster_of(asked.backend) as cluster:
        os.environ["TMPDIR"], tempfile.tempdir = private, None
        chaos = Chaos(asked.backend, asked.seed, cluster, Path(private))
        wrong = run(chaos, asked.from_round, asked.rounds, begun + 60 * asked.minutes, asked.keep_going)
    minutes = round((time.monotonic() - begun) / 60, 1)
    totals = {"backend": asked.backend, "seed": asked.seed, "minutes": minutes, "violations": wrong, **chaos.totals}
    print(json.dumps(totals | {"growth": chaos.growth}) if asked.json else totals | chaos.growth, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
