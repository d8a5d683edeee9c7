"""What type checkers know of calls. `assert_type` says what is right; a line that is wrong has a `type: ignore`, and a
test checks with mypy and pyright that each of them is needed. The right ones run, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, assert_type

import rolecall
from rolecall import PendingCall, Role, RoleWorker, Scheduler


class Trainer:
    def __init__(self, rate: float, *, steps: int = 0) -> None:
        self.rate, self.steps = rate, steps

    def train(self, amount: int) -> float:
        self.steps += 1
        return self.rate * amount

    async def fetch(self, x: int, *, twice: bool = False) -> int:
        return 2 * x if twice else x

    def tokens(self, n: int) -> Iterator[str]:
        yield from map(str, range(n))

    async def atokens(self, n: int) -> AsyncIterator[str]:
        for i in range(n):
            yield str(i)


def of_a_role(actors: Role) -> None:
    """Results are lists, one for each worker."""
    actors.create_engine(Trainer, 0.5, steps=1)
    both = [1.5] * len(actors)
    assert assert_type(actors.call(Trainer.train, 3), list[float]) == both
    assert assert_type(actors.call(Trainer.train, amount=3), list[float]) == both
    assert assert_type(actors.call(Trainer.fetch, 3, twice=True), list[int]) == [6] * len(actors)
    assert actors.engine(Trainer).train(3) == both  # not checked: no type says that a list comes back
    assert actors.map(Trainer.train, [(3,)] * len(actors)) == both
    assert [done.result() for done in actors.as_completed(Trainer.train, [(3,)])] == [1.5]
    calls = assert_type(actors.submit(Trainer.train, 3), list[PendingCall[float]])
    assert [assert_type(call.result(), float) for call in calls] == both
    futures: list[Future[float]] = [*calls]
    assert {future.result() for future in wait(futures).done} == {*both}
    assert asyncio.run(_awaited(actors)) == both


async def _awaited(actors: Role) -> list[float]:
    assert assert_type(await actors.acall(Trainer.fetch, 3), list[int]) == [3] * len(actors)
    assert await actors.engine(Trainer).fetch(3) == [3] * len(actors)
    fetched = actors.submit(Trainer.fetch, 3, twice=True)
    assert [assert_type(await call, int) for call in fetched] == [6] * len(actors)
    return assert_type(await actors.acall(Trainer.train, 3), list[float])


def of_one_worker(actor: RoleWorker) -> None:
    """Results are what the methods return."""
    assert assert_type(actor.call(Trainer.train, 3), float) == 1.5
    assert assert_type(actor.call(Trainer.fetch, 3), int) == 3
    assert assert_type(actor.submit(Trainer.train, 3).result(timeout=60), float) == 1.5
    assert assert_type(actor.submit(Trainer.fetch, 3).result(), int) == 3
    assert list(assert_type(actor.stream(Trainer.tokens, 2), Iterator[str])) == ["0", "1"]
    assert list(assert_type(actor.stream(Trainer.atokens, 2), Iterator[str])) == ["0", "1"]
    trainer = assert_type(actor.engine(Trainer), Trainer)
    assert assert_type(trainer.train(3), float) == 1.5
    assert list(trainer.tokens(2)) == ["0", "1"]
    asyncio.run(_of_one_worker(actor))


async def _of_one_worker(actor: RoleWorker) -> None:
    trainer = actor.engine(Trainer)
    assert assert_type(await trainer.fetch(3, twice=True), int) == 6
    assert assert_type(await actor.acall(Trainer.fetch, 3), int) == 3
    assert [token async for token in trainer.atokens(2)] == ["0", "1"]
    assert [token async for token in actor.astream(Trainer.tokens, 2)] == ["0", "1"]


if TYPE_CHECKING:

    def right(name: str, options: dict[str, Any]) -> None:
        assert_type(rolecall.scheduler("slurm", partition="gpu"), rolecall.SlurmScheduler)
        assert_type(rolecall.scheduler(name, trial="t"), Scheduler)
        assert_type(rolecall.scheduler(name, **options), Scheduler)

    def wrong(s: Scheduler, actors: Role, name: str) -> None:
        rolecall.scheduler("local", partition="gpu")  # type: ignore[call-overload]
        rolecall.scheduler("slurm", partitoin="gpu")  # type: ignore[call-overload]
        rolecall.scheduler(name, trail="t")  # type: ignore[call-overload]
        actors.create_engine(Trainer, "0.5")  # type: ignore[call-overload]
        actors.create_engine(Trainer)  # type: ignore[call-overload]
        actors.call(Trainer.train, "3")  # type: ignore[call-overload]
        actors.call(Trainer.train)  # type: ignore[call-overload]
        actors.call(Trainer.fetch, 3, thrice=True)  # type: ignore[call-arg]
        actors.submit(Trainer.train, "3")  # type: ignore[call-overload]
        actors.submit(Trainer.train, amuont=3)  # type: ignore[call-overload]
        actors.submit(Trainer.fetch, 3, thrice=True)  # type: ignore[call-arg]
        actors[0].submit(Trainer.train)  # type: ignore[call-overload]
        text: str = actors[0].submit(Trainer.train, 3).result()  # type: ignore[assignment]
        actors[0].call(Trainer.train, "3")  # type: ignore[call-overload]
        actors[0].stream(Trainer.tokens, "3")  # type: ignore[call-overload]
        actors[0].stream(Trainer.train, 3)  # type: ignore[call-overload]
        actors[0].engine(Trainer).train("3")  # type: ignore[arg-type]
        actors[0].engine(Trainer).trian(3)  # type: ignore[attr-defined]
        actors.train(3)  # type: ignore[attr-defined]
        s.start("a", replica=2)  # type: ignore[call-arg]
        number: int = actors[0].call(Trainer.train, 3)  # type: ignore[assignment]
        print(number, text)
