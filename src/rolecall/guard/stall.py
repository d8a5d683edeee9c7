"""Distinguishes a worker that hangs from one that is busy. Pure: samples go in, changes come out.

Three conditions are a stall. The worker has been stopped (Ctrl-Z, a debugger, SIGSTOP) for some seconds, which the
kernel reports. Or it shows no activity for a long time (no heartbeat, no CPU time, no finished call), which is only a
suspicion: a long step uses CPU time, and code that holds the interpreter lock stops only the heartbeat. Or it is a
program that no longer answers the path by which it was ready; that is a suspicion, too.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from rolecall.protocol.progress import Counters

STOPPED_S = 5.0
GAP_S = 3.0  # a longer gap between samples means that the guard itself was stopped; it counts as this long

Kind = Literal["stopped", "suspected"]


class Sample(NamedTuple):
    """One observation of a worker.

    Attributes:
        at: When, by `time.monotonic`.
        state: State letter of `/proc`.
        cpu: Ticks of all threads.
        counters: Its progress page.
        answers: How often it has answered when it was asked for its health; None for who is not asked.
        stack: Where its stack begins; see `proc.Stat`.
    """

    at: float
    state: str
    cpu: int
    counters: Counters
    answers: int | None = None
    stack: int = 0


class Stalled(NamedTuple):
    """A worker has begun to stall."""

    kind: Kind
    reason: str


class Resumed(NamedTuple):
    """A stalled worker makes progress again."""

    kind: Kind


@dataclass(slots=True)
class StallWatch:
    """What the samples of one worker show so far."""

    stall_s: float
    silence_s: float
    last: Sample | None = None
    stopped_for: float = 0.0
    idle_for: float = 0.0
    silent_for: float = 0.0
    reported: Kind | None = None

    def add(self, sample: Sample) -> Stalled | Resumed | None:
        """Adds a sample; returns what has changed."""
        last, self.last = self.last, sample
        if last is None:
            return None
        passed = min(sample.at - last.at, GAP_S)
        both_stopped = sample.state in "Tt" and last.state in "Tt"
        moved = (sample.cpu, sample.counters) != (last.cpu, last.counters)
        self.stopped_for = self.stopped_for + passed if both_stopped else 0.0
        # Without any heartbeat (a command worker) an idle process cannot be distinguished from a hung one.
        self.idle_for = 0.0 if moved or not sample.counters.heartbeat else self.idle_for + passed
        self.silent_for = 0.0 if sample.answers is None or sample.answers != last.answers else self.silent_for + passed
        return self._change(sample)

    def _change(self, sample: Sample) -> Stalled | Resumed | None:
        if self.stopped_for >= STOPPED_S and self.reported != "stopped":
            self.reported = "stopped"
            by = "a debugger" if sample.state == "t" else "a signal"
            return Stalled("stopped", f"stopped by {by} for {self.stopped_for:.0f} s")
        if self.reported is None and self.idle_for >= self.stall_s:
            self.reported = "suspected"
            return Stalled("suspected", f"no heartbeat, no CPU time and no call ended for {self.idle_for:.0f} s")
        if self.reported is None and self.silent_for >= self.silence_s:
            self.reported = "suspected"
            return Stalled("suspected", f"the path by which it was ready has no answer for {self.silent_for:.0f} s")
        if self.reported and not (self.stopped_for or self.idle_for or self.silent_for):
            kind, self.reported = self.reported, None
            return Resumed(kind)
        return None
