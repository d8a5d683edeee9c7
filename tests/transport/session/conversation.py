"""Everything that can happen to a session, as steps that hypothesis strings together in any order.

A step is a name and a number: which of the things there are it befalls, and how.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from rolecall.transport.session.callee import Callee
from rolecall.transport.session.caller import Caller
from rolecall.transport.session.messages import CALL, NOTIFICATION, STREAM

from .world import ALL_WRITTEN, Asking, Cable, Running, World

Step = Callable[[World, int], object]


def ask(world: World, n: int) -> None:
    kind = (CALL, STREAM, STREAM, NOTIFICATION, CALL, STREAM)[n % 6]
    seconds = (None, 0.5, None, None, 3.0, None)[n % 6]
    world.ask(kind, None if seconds is None else world.now + seconds)
    if n % 4 and world.there is not None:
        go_up(world, 1)


def cancel(world: World, n: int) -> None:
    if world.calls:
        world.cancel(world.calls[n % len(world.calls)])


def read(world: World, n: int) -> None:
    for asking in world.calls[n % 3 :]:
        world.read(asking)


def emit(world: World, n: int) -> None:
    for running in world.running[-1 - n % 3 :]:
        while world.emit(running):
            pass


def answer(world: World, n: int) -> None:
    for running in world.running[-1 - n % 4 :]:
        if not running.answered:
            world.answer(running, ok=n % 5 != 0, zero_copy=n % 2 == 0)


def time_passes(world: World, n: int) -> None:
    world.tick((0.01, 0.3, 1.0, 20.0)[n % 4], 0 if n % 7 == 0 else ALL_WRITTEN)


def probe(world: World, n: int) -> None:
    world.tick(0.01)  # the first look at a call only notes when to ask after it
    world.tick(1.0 if n % 2 else 20.0)


def connect(world: World, n: int) -> None:
    cable = world.connect()
    if n % 8:
        world.attach_callee(cable)
        world.attach_caller(cable)


def callee_attaches(world: World, n: int) -> None:
    world.attach_callee(_cable(world, n))


def caller_attaches(world: World, n: int) -> None:
    world.attach_caller(world.cables[-1])


def lose_link(world: World, n: int) -> None:
    if n % 3 != 0:
        world.detach_caller()
    if n % 3 != 1:
        world.detach_callee()
    if n % 4:
        connect(world, n)


def go_up(world: World, n: int) -> None:
    cable = _cable(world, n)
    while world.deliver_up(cable):
        pass


def come_down(world: World, n: int) -> None:
    cable = _cable(world, n)
    while world.deliver_down(cable):
        pass


def one_goes_up(world: World, n: int) -> None:
    world.deliver_up(_cable(world, n), keep=n % 2 == 0)


def one_comes_down(world: World, n: int) -> None:
    world.deliver_down(_cable(world, n), keep=n % 2 == 0)


def one_is_lost(world: World, n: int) -> None:
    cable = _cable(world, n)
    way = cable.up if n % 2 else cable.down
    if way:
        del way[n // 6 % len(way)]


def one_overtakes(world: World, n: int) -> None:
    cable = _cable(world, n)
    way = cable.up if n % 2 else cable.down
    if way:
        way.insert(0, way.pop(n // 6 % len(way)))


def all_is_lost(world: World, n: int) -> None:
    cable = _cable(world, n)
    if n % 3 != 0:
        cable.up.clear()
    if n % 3 != 1:
        cable.down.clear()


def callee_restarts(world: World, n: int) -> None:
    world.start_callee()
    if n % 4:
        connect(world, n)


def caller_restarts(world: World, n: int) -> None:
    world.start_caller()
    if n % 4:
        connect(world, n)


def _cable(world: World, n: int) -> Cable:
    """The newest mostly, sometimes one of a former connection."""
    if n % 3:
        return world.there or world.here or world.cables[-1]
    return world.cables[-1 - (n // 3) % min(3, len(world.cables))]


WEIGHTS: dict[Step, int] = {
    ask: 12,
    cancel: 2,
    read: 4,
    emit: 10,
    answer: 8,
    time_passes: 3,
    probe: 5,
    connect: 4,
    callee_attaches: 1,
    caller_attaches: 1,
    lose_link: 2,
    go_up: 8,
    come_down: 12,
    one_goes_up: 3,
    one_comes_down: 3,
    one_is_lost: 3,
    one_overtakes: 2,
    all_is_lost: 2,
    callee_restarts: 1,
    caller_restarts: 1,
}
_STEPS = [step for step, weight in WEIGHTS.items() for _ in range(weight)]

conversations = st.tuples(
    st.sampled_from([None, None, 1, 2]),
    st.lists(st.tuples(st.sampled_from(_STEPS), st.integers(0, 1 << 10)), min_size=30, max_size=100),
)


def hold(
    conversation: tuple[int | None, list[tuple[Step, int]]],
    caller: type[Caller[Asking]] = Caller,
    callee: type[Callee[Running]] = Callee,
) -> World:
    """Takes the steps, then lets everything end; raises AssertionError where a promise is broken."""
    kept, steps = conversation
    world = World(caller, callee, kept)
    connect(world, 1)
    for step, n in steps:
        step(world, n)
    world.settle()
    return world
