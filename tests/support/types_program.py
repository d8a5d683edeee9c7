"""A controller whose own types travel, however it is started. Its arguments are a backend and a folder.

The classes are defined in the program itself, so its workers have to find them in a program that they did not start.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from typing import Any, NamedTuple

import msgspec
import pydantic

from tests.support.schedulers_under_test import make_scheduler


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Sample:
    @dataclasses.dataclass
    class Reward:
        value: float

    prompt: str
    color: Color
    reward: Sample.Reward


class Turn(msgspec.Struct):
    role: str
    sample: Sample


class Message(pydantic.BaseModel):
    text: str
    turn: tuple[int, ...] = ()


class Wrong(Exception):
    def __init__(self, point: Point) -> None:
        super().__init__(f"wrong at {point}")


class Engine:
    def swap(self, value: Any) -> Any:
        """The same value, and one of its type that was made here."""
        return value, make()[type(value).__qualname__]

    def many(self) -> list[Sample]:
        return [make()["Sample"]] * 100

    def error(self) -> Wrong:
        return Wrong(Point(1, 2))


def make() -> dict[str, Any]:
    sample = Sample("a", Color.BLUE, Sample.Reward(0.5))
    values = [Color.RED, Rights.READ | Rights.WRITE, Point(1, 2), sample, sample.reward, Turn("user", sample)]
    values += [Message(text="hello", turn=(1, 2))]
    return {type(value).__qualname__: value for value in values}


def main(backend: str, fileroot: str) -> None:
    with make_scheduler(backend, fileroot=fileroot, quiet=True) as s:
        workers = s.start("actor", replicas=2, cpu=1)
        workers.create_engine(Engine)
        for value in make().values():
            for sent, made in workers.call("swap", value):
                assert (sent, made) == (value, value), (sent, made)
                assert type(sent) is type(made) is type(value)
        assert workers[0].call("many") == [make()["Sample"]] * 100
        assert type(workers[0].call("error")) is Wrong
    print(len(make()) + 1, "types")


if __name__ == "__main__":
    main(*sys.argv[1:])
