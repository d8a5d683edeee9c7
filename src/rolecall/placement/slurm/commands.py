"""The only place that runs Slurm's commands. It parses strictly and asks again; it submits once."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from rolecall.errors import SlurmError
from rolecall.placement.slurm.packing import Node, Share
from rolecall.placement.slurm.script import COMMENT, SAID
from rolecall.placement.slurm.states import JobState
from rolecall.placement.waiting import Waiting
from rolecall.transport.call import fresh

ANSWER_S = 20.0  # slurmctld's clients wait for it 10 s by default, and once more for a backup
PATIENCE_S = 60.0
PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0
SUBMIT_S = 120.0
BESIDE_S = 2.0

# Variables of an outer allocation and of a user's preferences change what the commands do and how they answer.
_MEDDLING = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SCANCEL|SCONTROL)_\w+")
_NEEDED = {"SLURM_CONF", "SLURM_JWT"}
_DEVICES = re.compile(r"(CUDA|ASCEND_RT|HIP|ROCR|ZE)_(VISIBLE_DEVICES|AFFINITY_MASK)|GPU_DEVICE_ORDINAL")
_COUNT = re.compile(r"\d+")
_JOB = re.compile(r"(\d+)(;\w+)?")
_COMMENT = re.compile(r"^\s*Comment=(.*)$", re.MULTILINE)
_PREEMPTED = re.compile(r"\bPreemptTime=(\d\S*)")
_HERE = "is Slurm installed on this host, and are its commands on PATH?"
_THERE = "does `scontrol ping` show slurmctld as UP?"


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What is the user's alone: nothing of an outer allocation, whose devices are not the job's either."""
    return {
        k: v for k, v in environment.items() if k in _NEEDED or not (_MEDDLING.fullmatch(k) or _DEVICES.fullmatch(k))
    }


class Slurm:
    """Slurm's commands, run as argument lists, in a language and an environment of our choice."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = own_environment(os.environ if environment is None else environment)
        self._looking, self._seen_at = threading.Lock(), float("-inf")
        self._seen: dict[str, JobState] | SlurmError = {}

    def submit(self, script: str) -> str:
        """Gives a job to the queue, once; returns its id. The script goes by standard input.

        Raises:
            SlurmError: It was refused, or nobody knows; then `of_run` may find it.
        """
        command = ["sbatch", "--parsable"]
        with Waiting("waiting for Slurm's answer (`sbatch`) ..."):
            answer = self._run(command, SUBMIT_S, script, language="")
        found = _JOB.fullmatch(answer.strip())
        return found[1] if found else _malformed(command, answer)

    def nodes(self, partition: str | None, gres: str) -> list[Node]:
        """The nodes of a partition, or of the default one, in whatever state they are.

        Args:
            gres: Devices to count, `gpu` or with a type `gpu:a100`.
        """
        command = ["sinfo", "--noheader", "--Node", "--format=%N|%P|%c|%m|%o|%G"]
        with Waiting("waiting for Slurm's answer (`sinfo`) ..."):
            rows = self._table([*command, f"--partition={partition}"] if partition else command, 6)
        wanted = rows if partition else [row for row in rows if row[1].endswith("*")]
        return list({row[0]: _node(command, row, gres) for row in wanted}.values())

    def hosts(self, expression: str) -> list[str]:
        """The names in a host list: `n[1-2]` is n1 and n2."""
        return self._ask(["scontrol", "show", "hostnames", expression]).split()

    def jobs(self, answer_s: float = ANSWER_S) -> dict[str, JobState]:
        """This user's jobs by id, those that ended a little while ago too. Asked once: who asks will ask again."""
        rows = self._table(self._squeue("%A|%T|%S|%r"), 4, answer_s=answer_s, within_s=0.0)
        return {job_id: JobState(state, reason, start) for job_id, state, start, reason in rows}

    def job(self, job_id: str, since: float, answer_s: float) -> JobState | None:
        """A job as it was at `since` (`time.monotonic`) or later; None when Slurm does not list it.

        One look at the queue serves all who want to know at the same time. A failure is kept like an answer.

        Raises:
            SlurmError: No answer within `answer_s`.
        """
        if not self._looking.acquire(timeout=answer_s):
            raise SlurmError("squeue", f"no answer within {answer_s:g} s")
        try:
            if self._seen_at < since:
                self._seen_at = time.monotonic()  # what comes about while Slurm answers need not be in the answer
                try:
                    self._seen = self.jobs(answer_s)
                except SlurmError as e:
                    self._seen = e
            if isinstance(self._seen, SlurmError):
                raise fresh(self._seen)
            return self._seen.get(job_id)
        finally:
            self._looking.release()

    def left(self, **patience: float) -> list[tuple[str, str, str]]:
        """Id, name and comment of this user's jobs of all runs that have not ended, without what a script has added."""
        found = []
        for line in self._ask(self._squeue("%A|%T|%j|%k"), **patience).splitlines():
            job, state, name, comment = [*line.split("|", 3), "", "", ""][:4]
            # Comments of others' making may have more lines, of any shape.
            if comment.startswith(COMMENT) and JobState(state).meaning != "ended":
                found.append((job, name, comment.partition(SAID)[0]))
        return found

    def of_run(self, comment: str, name: str | None = None, **patience: float) -> list[str]:
        """The jobs of this comment, and of this name, that have not ended."""
        return [job for job, its, says in self.left(**patience) if says == comment and name in (None, its)]

    def end_details(self, job_id: str, comment: str) -> str:
        """What is known of a job's end beside its state: what its script has added to its comment, a preemption."""
        shown = self._run(["scontrol", "show", "job", job_id], BESIDE_S)
        comments, preempted = _COMMENT.search(shown), _PREEMPTED.search(shown)
        first, _, said = comments[1].strip().partition(SAID) if comments else ("", "", "")
        known = [f"preempted at {preempted[1]}" if preempted else "", said if first == comment else ""]
        return "; ".join(filter(None, known))

    def node_states(self, answer_s: float) -> dict[str, str]:
        """The state of each node, in Slurm's word. Asked once."""
        command = ["sinfo", "--noheader", "--Node", "--format=%N|%t"]
        return {name: state for name, state, *_ in self._table(command, 2, answer_s=answer_s, within_s=0.0)}

    def cancel(self, job_id: str, *, kill: bool = False) -> None:
        """Ends a job in whatever state; `kill`: its processes get SIGKILL now, the batch shell included."""
        how = ["--full", "--signal=KILL"] if kill else []
        self._run(["scancel", *how, job_id], ANSWER_S)

    def _squeue(self, columns: str) -> list[str]:
        """All jobs of this user, since a question for one that is gone is an error like any other."""
        return ["squeue", "--noheader", f"--user={os.getuid()}", "--states=all", f"--format={columns}"]

    def _table(self, command: list[str], columns: int, **patience: float) -> list[list[str]]:
        """Lines of fields with bars between them, the last of which may hold bars."""
        answer = self._ask(command, **patience)
        rows = [line.split("|", columns - 1) for line in answer.splitlines() if line.strip()]
        return rows if all(len(row) == columns for row in rows) else _malformed(command, answer)

    def _ask(self, command: list[str], *, answer_s: float = ANSWER_S, within_s: float = PATIENCE_S) -> str:
        """Asks until there is an answer or the time is up; a question changes nothing."""
        deadline, pause = time.monotonic() + within_s, PAUSE_S
        while True:
            try:
                return self._run(command, answer_s)
            except SlurmError as e:
                if isinstance(e.__cause__, FileNotFoundError):
                    raise
                if time.monotonic() + pause > deadline:
                    raise SlurmError(e.command, e.seen, e.advice or _THERE) from e
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _run(self, command: Sequence[str], timeout: float, text: str = "", *, language: str = "C") -> str:
        env = self._environment | ({"LC_ALL": language} if language else {})
        try:
            code, answer, said = _finished(command, env, text, timeout)
        except FileNotFoundError as e:
            raise SlurmError(shlex.join(command), "no such program", _HERE) from e
        except subprocess.TimeoutExpired as e:
            raise SlurmError(shlex.join(command), f"no answer within {timeout:g} s", _THERE) from e
        if code:
            words = said.strip() or answer.strip() or "it said nothing"
            raise SlurmError(shlex.join(command), f"exit code {code}: {words}")
        return answer


def _finished(command: Sequence[str], env: Mapping[str, str], text: str, timeout: float) -> tuple[int, str, str]:
    """Runs a command in a session of its own, which a Ctrl-C for us does not reach and which ends with our patience."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=env, cwd="/", stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace",
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            answer, said = process.communicate(text, timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # sites have wrappers about Slurm's commands
            raise
        return process.returncode, answer, said


def _node(command: Sequence[str], row: Sequence[str], gres: str) -> Node:
    name, _, cpus, memory, address, devices = row
    counts = [_COUNT.match(text) for text in (cpus, memory)]
    if counts[0] is None or counts[1] is None:
        _malformed(command, "|".join(row))
    mib = int(counts[1][0])
    return Node(name, address, Share(int(counts[0][0]), mib if mib > 1 else 0, _devices(devices, gres)))


def _devices(text: str, gres: str) -> int:
    """How many of a kind: `gpu:a100:4(S:0-1),gpu:v100:2,shard:8` has 6 of `gpu` and 4 of `gpu:a100`."""
    total = 0
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        kind, _, count = item.rpartition(":")
        if count.isdigit() and (kind == gres or kind.startswith(f"{gres}:")):
            total += int(count)
    return total


def _malformed(command: Sequence[str], answer: str) -> NoReturn:
    raise SlurmError(shlex.join(command), f"an answer that cannot be read: {answer[:500]!r}", "is it Slurm's own?")
