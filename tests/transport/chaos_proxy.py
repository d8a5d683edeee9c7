"""A proxy between two ends of the framed protocol that loses frames and cuts connections, by a seeded plan.

It is a real process's network gone bad: what arrives is whole frames in order, or nothing more of the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from rolecall.transport.loop import IOThread

_PREFIX = struct.Struct("!4sIIQ")


class ChaosProxy:
    """Listens on `path` and forwards to the Unix socket `target`. The first frame each way, the hello, always passes.

    Args:
        drop: Share of the frames that silently vanish, in each direction.
        cut: Share of the frames in the middle of which the connection is cut.

    Attributes:
        counts: Frames by fate and direction, for instance `counts["dropped", "to target"]`.
    """

    def __init__(self, path: Path, target: Path, *, drop: float = 0.2, cut: float = 0.05, seed: int = 0) -> None:
        self.path, self._target, self._drop, self._cut = path, target, drop, cut
        self.counts: Counter[tuple[str, str]] = Counter()
        self._random = random.Random(seed)
        self._io = IOThread("chaos-proxy", uvloop=False)
        self._ways: set[asyncio.Task[None]] = set()
        self._handlers: set[asyncio.Task[Any]] = set()
        self._server = self._io.run(self._listen())

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._pair, str(self.path))

    async def _pair(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        try:
            far_in, far_out = await asyncio.open_unix_connection(str(self._target))
        except OSError:
            near_out.close()
            return
        ways = (
            self._forward("to target", near_in, far_out),
            self._forward("from target", far_in, near_out),
        )
        tasks = [asyncio.create_task(way) for way in ways]
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        self._ways.update(tasks)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._ways.difference_update(tasks)
        for writer in (near_out, far_out):
            writer.close()
        self._handlers.discard(handler)

    async def _forward(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = True
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                frame = await _read_frame(reader)
                fate = "passed" if first else self._fate()
                first = False
                self.counts[fate, way] += 1
                if fate == "passed":
                    writer.write(frame)
                    await writer.drain()
                elif fate == "cut":
                    writer.write(frame[: len(frame) // 2])
                    await writer.drain()
                    return

    def _fate(self) -> str:
        roll = self._random.random()
        if roll < self._cut:
            return "cut"
        return "dropped" if roll < self._cut + self._drop else "passed"

    def calm(self) -> None:
        """Loses nothing from now on."""
        self._drop = self._cut = 0.0

    def close(self) -> None:
        self._io.run(self._stop())
        self._io.close()
        self.path.unlink(missing_ok=True)

    async def _stop(self) -> None:
        self._server.close()
        for way in self._ways:
            way.cancel()
        if self._handlers:
            await asyncio.wait(self._handlers)

    def __enter__(self) -> ChaosProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    prefix = await reader.readexactly(_PREFIX.size)
    _, header, count, total = _PREFIX.unpack(prefix)
    return prefix + await reader.readexactly(header + 8 * count + total)
