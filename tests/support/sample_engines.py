"""Engines that tests host in workers."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any


class Echo:
    """Gives back what it is given, and remembers how often."""

    def __init__(self, greeting: str = "hello") -> None:
        self.greeting = greeting
        self.count = 0

    def echo(self, value: Any) -> Any:
        self.count += 1
        return value

    def add(self, a: int, b: int = 0, *, timeout: int = 0) -> int:
        return a + b + timeout

    def calls(self) -> int:
        return self.count

    def greet(self) -> str:
        return self.greeting

    def environment(self, *names: str) -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in names}

    def pid(self) -> int:
        return os.getpid()

    def thread(self) -> int:
        return threading.get_ident()

    def fail(self, message: str) -> None:
        raise ValueError(message)

    def missing_attribute(self) -> Any:
        return self.not_there  # type: ignore[attr-defined]

    def unencodable(self) -> Any:
        return {"fn": [threading.Lock()]}

    def leave(self, code: int) -> None:
        print("about to leave", flush=True)
        os._exit(code)

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def later(self, value: Any, seconds: float = 0.0) -> Any:
        await asyncio.sleep(seconds)
        return value

    async def until_cancelled(self, path: str) -> None:
        Path(path + ".started").touch()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            Path(path).touch()
            raise

    async def tokens(self, n: int) -> AsyncIterator[str]:
        for i in range(n):
            await asyncio.sleep(0)
            yield f"t{i}"

    def destroy(self) -> None:
        print("destroyed", flush=True)


class Turns:
    """Says who runs beside whom. What must happen while a call waits is waited for so long, and no longer."""

    PATIENCE_S = 30.0

    def __init__(self) -> None:
        self.inside, self.order = 0, list[int]()
        self.met, self.all_here = 0, asyncio.Event()
        self.gate = threading.Event()

    def enter(self, number: int) -> tuple[int, int]:
        """How many are in here at once, and on which thread."""
        self.inside += 1
        time.sleep(0.001)  # long enough for another thread to come in
        most = self.inside
        self.inside -= 1
        self.order.append(number)
        return most, threading.get_ident()

    def entered(self) -> list[int]:
        return self.order

    async def meet(self, expected: int) -> int:
        """Returns how many have met, when all have or the first one's patience has ended."""
        if not self.met:
            asyncio.get_running_loop().call_later(self.PATIENCE_S, self.all_here.set)
        self.met += 1
        if self.met == expected:
            self.all_here.set()
        await self.all_here.wait()
        return self.met

    def wait_until_released(self) -> str:
        self.inside += 1
        return "released" if self.gate.wait(self.PATIENCE_S) else "nobody released it"

    async def release(self) -> int:
        """Releases who waits, and says how many do."""
        while not self.inside:
            await asyncio.sleep(0.001)
        self.gate.set()
        return self.inside


class Tensors:
    """Makes and reads tensors."""

    def make(self, n: int, value: float = 1.0) -> Any:
        import torch

        return {"x": torch.full((n, 4), value), "ids": torch.arange(n)}

    def total(self, x: Any) -> float:
        import torch

        assert isinstance(x, torch.Tensor), type(x)
        return float(x.sum())

    def shape(self, x: Any) -> list[int]:
        return list(x.shape)

    def make_late(self, path: str) -> Any:
        Path(path).with_suffix(".begun").touch()
        while not Path(path).exists():
            time.sleep(0.01)
        return self.make(3)

    def make_many(self, n: int) -> Iterator[Any]:
        import torch

        for _ in range(n):
            yield torch.ones(3)


class Arrays:
    """Makes and reads numpy arrays."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def arguments_lost(self, method: str, args: list[Any], kwargs: dict[str, Any], error: Exception) -> None:
        self.told.append([method, [type(arg).__name__ for arg in args], kwargs, type(error).__name__])

    def note(self, what: str) -> list[Any]:
        self.told.append(what)
        return self.told

    def make(self, rows: int, value: float) -> dict[str, Any]:
        import numpy

        named = numpy.zeros(2, [("id", "i4"), ("score", "f4")])
        dates = numpy.array(["2026-01-01", "2026-01-02"], "M8[D]")
        return {
            "x": numpy.full((rows, 4), value, "f4"),
            "big": numpy.full(1 << 18, value),
            "dates": dates,
            "named": named,
        }

    def read(self, x: Any, **options: Any) -> str:
        """What it is; then the caller's copy is no longer what was stored."""
        seen = f"{type(x).__module__}.{type(x).__name__} {x.dtype} {x.shape} {x.sum()}"
        x[:] = 0
        return seen


class Parent:
    """Has a plain child, a child in a session of its own and a daemon that was forked twice."""

    def __init__(self) -> None:
        sleeper = ["sleep", "3600"]
        self.children = [
            subprocess.Popen(sleeper),
            subprocess.Popen(sleeper, start_new_session=True),
        ]
        daemon = (
            "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\ntime.sleep(3600)\n"
        )
        subprocess.run([sys.executable, "-S", "-c", daemon], check=True)
        print("the family is complete", flush=True)

    def pid(self) -> int:
        return os.getpid()

    def wait(self, seconds: float = 3600.0) -> str:
        time.sleep(seconds)
        return "waited"


class HidingParent(Parent):
    """Has another child in a session of its own, without any mark of the run; `HIDDEN` is for tests alone."""

    def __init__(self) -> None:
        super().__init__()
        env = {"HIDDEN": os.environ["ROLECALL_RUN"], "RC_TEST_SESSION": os.environ.get("RC_TEST_SESSION", "")}
        self.children.append(subprocess.Popen(["/bin/sleep", "3600"], env=env, start_new_session=True))


class Hungry:
    """Takes memory and keeps it."""

    def eat(self, mib: int) -> None:
        self.eaten = b"x" * (mib << 20)
        time.sleep(3600.0)


class BadConstructor:
    def __init__(self) -> None:
        raise RuntimeError("no such model")


class Holder:
    """Holds the interpreter lock, asleep or at work."""

    def hold_asleep(self, seconds: int) -> str:
        ctypes.PyDLL(None).sleep(seconds)
        return "held"

    def hold_at_work(self, seconds: float) -> str:
        end = time.monotonic() + seconds
        sys.setswitchinterval(1000.0)
        while time.monotonic() < end:
            pass
        sys.setswitchinterval(0.005)
        return "held"


class Last:
    """Writes its name down when it is destroyed."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name

    def destroy(self) -> None:
        with Path(self.path).open("a") as f:
            f.write(self.name + "\n")


class Meta:
    """One method that declares `rpc_meta` and one that takes whatever it is given."""

    def declared(self, value: int, rpc_meta: dict[str, Any] | None = None) -> Any:
        return [value, rpc_meta]

    def anything(self, value: int, **kwargs: Any) -> Any:
        return [value, kwargs]

    async def waiting(self, *, rpc_meta: Any = "none") -> Any:
        return rpc_meta


class Random:
    """Draws from the generators that a fork of the template inherits."""

    def draw(self) -> list[float]:
        import numpy
        import torch

        return [random.random(), float(numpy.random.rand()), float(torch.rand(1, dtype=torch.float64))]


class SlowEnd:
    """Takes its time to be destroyed, part of it on the engine thread and part of it awaited."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def pid(self) -> int:
        return os.getpid()

    def hold_the_interpreter(self, seconds: float) -> None:
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))

    def destroy(self) -> Any:
        time.sleep(self.seconds)
        return asyncio.sleep(self.seconds)


class Streams:
    """Says whether a stream of its own is still being read."""

    def __init__(self) -> None:
        self.open = 0

    def endless(self) -> Iterator[int]:
        self.open += 1
        try:
            yield from itertools.count()
        finally:
            self.open -= 1

    def count(self) -> int:
        return self.open

    def replace_count(self) -> None:
        self.count = lambda: -1  # type: ignore[method-assign]


class Reader:
    """Is given a tensor when it is made, and reads others when it is told to go on."""

    def __init__(self, x: Any = None) -> None:
        self.total = float(x.sum()) if x is not None else 0.0

    def made_with(self) -> float:
        return self.total

    def wait_for(self, path: str) -> None:
        while not Path(path).exists():
            time.sleep(0.01)

    def add(self, x: Any) -> None:
        self.total += float(x.sum())
