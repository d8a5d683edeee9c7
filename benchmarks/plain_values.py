"""Nested plain values as reinforcement learning sends them, for `codec_cost.py`. The same values at every run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WORDS = ("the", "reward", "of", "a", "rollout", "is", "seen", "once", "policy", "token", "gradient", "step")


@dataclass
class Sample:
    """One completion with its ids, as a rollout worker returns it."""

    index: int
    prompt: str
    ids: list[int]
    reward: float
    done: bool = False
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """One number per sample."""

    index: int
    value: float
    reason: str


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(150_000) for _ in range(count)]


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def chat_messages(rng: random.Random) -> Any:
    roles = ("system", "user", "assistant")
    return [{"role": rng.choice(roles), "content": _text(rng, 30), "ids": _ids(rng, 40)} for _ in range(200)]


def chats(rng: random.Random) -> Any:
    """Messages nested in conversations, of unequal length and with unequal keys."""
    return [
        {
            "id": i,
            "messages": [
                {"role": "user", "content": _text(rng, 20)} | ({"ids": _ids(rng, 20)} if n % 2 else {"name": "x"})
                for n in range(rng.randrange(1, 6))
            ],
        }
        for i in range(64)
    ]


def tuples(rng: random.Random) -> Any:
    return [(i, rng.random(), rng.choice(WORDS)) for i in range(5000)]


def pairs(rng: random.Random) -> Any:
    """Tuples of unequal length and kinds."""
    return [tuple(rng.choice((i, 0.5, "x", None)) for _ in range(rng.randrange(1, 5))) for i in range(5000)]


def int_keys(rng: random.Random) -> Any:
    return [{i: rng.random() for i in range(n, n + 20)} for n in range(100)]


def one_int_keyed(rng: random.Random) -> Any:
    return {i: rng.random() for i in range(2000)}


def dataclasses(rng: random.Random) -> Any:
    return [Sample(i, _text(rng, 8), _ids(rng, 16), rng.random(), info={"n": i}) for i in range(300)]


def slotted(rng: random.Random) -> Any:
    return [Score(i, rng.random(), rng.choice(WORDS)) for i in range(500)]


def floats(rng: random.Random) -> Any:
    return [rng.random() for _ in range(10_000)]


def trajectories(rng: random.Random) -> Any:
    """Everything at once: dicts of lists, tuples, dataclasses, int keys."""
    return [
        {
            "ids": _ids(rng, 128),
            "logprobs": [-rng.random() for _ in range(128)],
            "turns": [(n, n + 16) for n in range(0, 128, 16)],
            "rewards": {n: rng.random() for n in range(4)},
            "score": Score(i, rng.random(), "ok"),
            "meta": {"version": i, "done": True, "tags": ("a", "b"), "stop": None},
        }
        for i in range(64)
    ]


def deep(rng: random.Random) -> Any:
    value: Any = 1
    for _ in range(30):
        value = {"next": [value, 2], "name": "x"}
    return value


def large_strings(rng: random.Random) -> Any:
    return [_text(rng, 20_000) for _ in range(8)]


def small_call(rng: random.Random) -> Any:
    return {"method": "f", "args": (1, 2.0, "x", [1, 2, 3])}


CASES: dict[str, Callable[[random.Random], Any]] = {
    make.__name__: make
    for make in (
        chat_messages,
        chats,
        tuples,
        pairs,
        int_keys,
        one_int_keyed,
        dataclasses,
        slotted,
        floats,
        trajectories,
        deep,
        large_strings,
        small_call,
    )
}


def value_of(case: str) -> Any:
    return CASES[case](random.Random(case))
