"""What happens in a round of chaos: a value that follows from seed, backend and number of the round alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, Signals

ACTS = {  # what the controller does, and how often beside the others
    "call": 6,
    "fan_out": 3,
    "busy": 3,
    "slow": 3,
    "later": 3,
    "fail": 1,
    "cancel": 2,
    "timeout": 2,
    "numbers": 2,
    "tokens": 2,
    "dropped_stream": 1,
    "handles": 4,
    "completions": 2,
    "set_env": 1,
    "fork": 2,
    "start": 1,
    "leave": 1,
    "restart": 2,
    "delete": 1,
}
ROLES = ("actor", "ref", "prog")
OF_A_GUARD = ("template", "guard", "reaper")
ANYBODY = (*(f"{role}/{index}" for role in ROLES for index in (0, 1)), *OF_A_GUARD, "guard", "reaper")
DEADLY = (SIGKILL, SIGKILL, SIGKILL, SIGTERM)
NODES = ("n1", "n2")


@dataclass(frozen=True)
class Act:
    """What the controller does `at` seconds after the beginning, on worker `on`."""

    at: float
    what: str
    on: str


@dataclass(frozen=True)
class Hit:
    """Signals to several processes at once; `then`, after a while, to those that were stopped."""

    at: float
    whom: tuple[str, ...]
    number: Signals
    then: Signals | None = None
    after: float = 0.0

    def __str__(self) -> str:
        then = f" and {self.then.name} {self.after} s later" if self.then else ""
        return f"{self.at:.2f} s: {self.number.name} to {'+'.join(self.whom)}{then}"


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        mortal: It has a controller of its own, which may be among the victims and else closes its run in the middle.
        next_run: What nobody was left to clean is cleaned by another run, else by `rolecall doctor --fix`.
    """

    number: int
    mortal: bool
    next_run: bool
    lasts: float
    acts: list[Act] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)

    def struck(self) -> set[str]:
        return {name for hit in self.hits for name in hit.whom}

    def says(self) -> list[str]:
        return [*(f"{act.at:.2f} s: {act.what} on {act.on}" for act in self.acts), *map(str, self.hits)]


def plan(seed: int, backend: str, number: int) -> Round:
    """Round `number`, counted from 1."""
    draw = random.Random(f"{seed} {backend} {number}")
    mortal = draw.random() < 0.4
    found = Round(number, mortal, draw.random() < 0.5, round(draw.uniform(1.5, 3.5), 2))
    for _ in range(draw.randint(6, 20)):
        (what,) = draw.choices(list(ACTS), list(ACTS.values()))
        on = f"{draw.choice(('actor', 'actor', 'ref'))}/{draw.randint(0, 1)}"
        found.acts.append(Act(round(draw.uniform(0, found.lasts), 2), what, on))
    found.acts.sort(key=lambda act: act.at)
    for _ in range(draw.choices((0, 1, 2, 3), (1, 4, 3, 2))[0]):
        found.hits.append(_hit(draw, found))
    if backend != "local" and draw.random() < 0.15:
        found.hits.append(_manager(draw, backend, found))
    found.hits.sort(key=lambda hit: hit.at)
    return found


def _hit(draw: random.Random, of: Round) -> Hit:
    at = round(draw.uniform(0, of.lasts), 2)
    whom = list(dict.fromkeys(draw.choices(ANYBODY, k=draw.choices((1, 2, 3), (5, 3, 2))[0])))
    if of.mortal and draw.random() < 0.6:
        whom = ["controller", *whom][: draw.randint(1, 3)]
    if of.mortal and draw.random() < 0.15:
        whom = ["controller", "guard", "reaper"]
    if draw.random() < 0.7:
        number = draw.choice((*DEADLY, SIGINT) if whom == ["controller"] else DEADLY)
        return Hit(at, tuple(whom), number)
    return Hit(at, tuple(whom), SIGSTOP, draw.choice((SIGCONT, SIGKILL)), draw.choice((0.3, 1.5, 6.5)))


def _manager(draw: random.Random, backend: str, of: Round) -> Hit:
    at, whom = round(draw.uniform(0, of.lasts), 2), (draw.choice(NODES),)
    if backend == "ray" or draw.random() < 0.6:
        return Hit(at, whom, SIGKILL)
    return Hit(at, whom, SIGSTOP, SIGCONT, draw.choice((0.3, 1.5, 6.5)))
