"""Link owns one connected socket that carries frames. It knows nothing of calls and never reconnects.

Any thread may send: when nothing is queued, the frame is written to the socket by the calling thread. What the
kernel does not take is queued and written by the loop, many frames in one system call. Reading happens on the loop,
straight into the memory that `FrameReader` names. The socket is used directly rather than through an asyncio
transport, because transports may only be written to from the loop's thread.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from rolecall.errors import RolecallError, RPCConnectionError
from rolecall.transport.forked import close_in_forks
from rolecall.transport.frames import FrameReader
from rolecall.transport.waiting import Waitable

SOCKET_BUFFER = 4 << 20  # a 64 MiB tensor needs few system calls and wake-ups
HIGH_WATER = 64 << 20  # unsent bytes above which threads wait before they add more
IOV_MAX = 512
FEW_BYTES = 1 << 20  # queued frames written by one system call
SPIN_FROM = 1 << 20
READS_PER_TURN = 16  # other connections of the loop get their turn after so many
FLUSH_S = 5.0  # how long a closing link tries to write what is queued


class Link(Waitable):
    """One connection. `on_frame` and `on_closed` are called on the loop's thread; set them before `start()`.

    Attributes:
        position: Bytes given to `send` so far.
        written: Bytes the kernel has taken so far.
    """

    def __init__(self, sock: socket.socket, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        sock.setblocking(False)
        widen(sock)
        close_in_forks(sock)
        self._sock, self._loop = sock, loop
        self._reader = FrameReader()
        self._lock = threading.Lock()
        self._queue: deque[memoryview] = deque()
        self._armed = self._closing = self._corked = False
        self.closed = False
        self.position = self.written = 0
        self.on_frame: Callable[[bytes | memoryview, list[memoryview]], None] = lambda header, buffers: None
        self.on_closed: Callable[[Exception | None], None] = lambda exc: None

    def start(self) -> None:
        """Begins to read. On the loop's thread."""
        if not self.closed:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    # Writing

    def send(self, parts: Sequence[bytes | memoryview]) -> int:
        """Sends one frame; any thread, frames never interleave.

        Returns:
            The position behind the frame: once `written` has reached it, the kernel has all of it. A closed link
            drops frames.
        """
        with self._lock:
            size = sum(map(len, parts)) if len(parts) > 1 else len(parts[0])
            self.position += size
            if self.closed or self._closing:
                return self.position
            if self._queue or self._corked:
                self._enqueue(parts, 0)
            else:
                self._send_now(parts, size)
            return self.position

    def _send_now(self, parts: Sequence[bytes | memoryview], size: int) -> None:
        done = 0
        try:
            done = self._sock.send(parts[0]) if len(parts) == 1 else self._sock.sendmsg(parts[:IOV_MAX])
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as e:
            self._abort_soon(e)
            return
        except BaseException as e:  # Ctrl-C: how much was written is not known, so the stream is unusable
            self._abort_soon(OSError(f"interrupted by {type(e).__name__}"))
            raise
        self.written += done
        if done < size:
            self._enqueue(parts, done)
            self._arm_from_anywhere()

    def _enqueue(self, parts: Sequence[bytes | memoryview], skip: int) -> None:
        for part in parts:
            if skip >= len(part):
                skip -= len(part)
            else:
                self._queue.append(memoryview(part)[skip:] if skip else memoryview(part))
                skip = 0

    def _arm_from_anywhere(self) -> None:
        if self._armed:
            return
        self._armed = True
        if _get_running_loop() is self._loop:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        else:
            self._call_soon(self._arm)

    def _arm(self) -> None:
        with self._lock:
            if self._armed and not self.closed:  # else the queue was emptied meanwhile, and the loop would spin
                self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        error: Exception | None = None
        with self._lock:
            if self.closed:
                return
            try:
                self._write_queued()
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as e:
                error = _lost(e)
            if not self._queue:
                self._disarm()
        if error is not None or (self._closing and not self._queue):
            self._finish(error)
        elif self.position - self.written < HIGH_WATER // 2:
            self.wake()

    def _write_queued(self) -> None:
        queue = self._queue
        while queue:
            batch: list[memoryview] = []
            size = 0
            for part in queue:
                batch.append(part)
                size += len(part)
                if len(batch) == IOV_MAX or size >= FEW_BYTES:
                    break
            done = self._sock.sendmsg(batch) if len(batch) > 1 else self._sock.send(batch[0])
            self.written += done
            self._forget(done)
            if done < size:
                return

    def _forget(self, done: int) -> None:
        queue = self._queue
        while done:
            part = queue.popleft()
            if done < len(part):
                queue.appendleft(part[done:])
                return
            done -= len(part)

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_writer(self._sock.fileno())

    def wait_for_room(self) -> None:
        """Blocks the calling thread while more than `HIGH_WATER` bytes are unsent. The loop's thread never waits."""
        if self.position - self.written > HIGH_WATER and _get_running_loop() is None:
            self.wait(lambda: self.closed or self.position - self.written <= HIGH_WATER)

    # Reading

    def _readable(self) -> None:
        self._corked = True  # answers to a batch of frames are written by one system call
        ended, error = True, None
        try:
            ended = self._read_some()
        except (BlockingIOError, InterruptedError):
            ended = False
        except (RolecallError, OSError) as e:
            error = _lost(e)
        finally:
            self._uncork()
        if ended:
            self._finish(error)

    def _read_some(self) -> bool:
        reader, sock = self._reader, self._sock
        for _ in range(READS_PER_TURN):
            buffer = reader.get_buffer(-1)
            count = sock.recv_into(buffer)
            if not count:
                return True
            for header, buffers in reader.buffer_updated(count):
                self.on_frame(header, buffers)
            if (count < len(buffer) and len(buffer) < SPIN_FROM) or self.closed:
                return False  # a short read of a large buffer is tried again: its sender is writing at this moment
        return False

    def _uncork(self) -> None:
        with self._lock:
            self._corked = False
            pending = bool(self._queue) and not self._armed and not self.closed
        if pending:
            self._writable()
            with self._lock:
                if self._queue and not self.closed:
                    self._arm_from_anywhere()

    # Ending

    def close(self) -> None:
        """Writes what is queued, within a few seconds, then closes. Any thread, any number of times."""
        self._on_loop(self._close)

    def abort(self, exc: Exception | None = None) -> None:
        """Closes now; what is queued is lost. Any thread."""
        self._on_loop(self._finish, exc)

    def _on_loop(self, fn: Callable[..., object], *args: Any) -> None:
        if _get_running_loop() is self._loop:
            fn(*args)
        else:
            self._call_soon(fn, *args)

    def _close(self) -> None:
        with self._lock:
            self._closing = True
            queued = bool(self._queue) and not self.closed
        if queued:
            self._loop.call_later(FLUSH_S, self._finish, None)
        else:
            self._finish(None)

    def _abort_soon(self, error: OSError) -> None:
        self._closing = True
        self._call_soon(self._finish, _lost(error))

    def _finish(self, exc: Exception | None) -> None:
        with self._lock:  # locked: a writing thread must not use a reused descriptor
            if self.closed:
                return
            self._disarm()
            self._loop.remove_reader(self._sock.fileno())
            self.closed = True
            self._sock.close()
            self._queue.clear()
        self.wake()
        self.on_closed(exc)

    def _call_soon(self, fn: Callable[..., object], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:  # the loop is closed: nobody else can be using the socket
            self.closed = True
            self._sock.close()


def widen(sock: socket.socket) -> None:
    """Gives a socket large kernel buffers as far as the host allows, and no delay on TCP."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host that vanished is noticed in about 30 s
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _lost(error: RolecallError | OSError) -> RolecallError:
    if isinstance(error, RolecallError):
        return error
    lost = RPCConnectionError("the other side", str(error))
    lost.__cause__ = error
    return lost
