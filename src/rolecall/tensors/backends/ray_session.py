"""This process's connection to a Ray cluster, for the object store alone.

Nothing is unpickled: an object holds one buffer, which is read where Ray's pickle format says that it lies. A reference
travels as plain values, the object's id and its owner's address, and is checked before Ray sees it, because Ray ends
the process over a malformed one. It ends the process over more, against which this does what can be done:

- A head that is away for 60 s: the limit is raised.
- Any use of the store after the raylet's death, the return of a buffer too: the raylet is looked at before every use,
  and buffers are kept then. A use that is under way while the raylet dies still ends the process.

`ray.init` from a thread of its own leaves Python's signal handlers alone. (Ray writes its stack at a SIGTERM, and then
ends by that signal as before.)
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from rolecall.errors import TensorError
from rolecall.tensors.shard import Where
from rolecall.transport import ray_internals
from rolecall.transport.address import dial_host
from rolecall.transport.ray_internals import Attachment, Id, OwnerAddress

ADDRESS = "RAY_ADDRESS"
REACH_S = 5.0
CONNECT_S = 60.0  # Ray gives a wrong token up after 20 s; an address that refuses it would try for ever
RETRY_S = 60.0
_HEAD_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
_FOR_EVER = "1000000"
OTHER_OBJECT = "another object lies there"


class Place(OwnerAddress, kw_only=True):
    """Where an object lies, as a shard says."""

    cluster: str
    object: Id


class RaySession:
    """Connects at the first `open`, as a driver, and not before: a template's children must not share a connection.

    A connection that the process has already, because an engine made one, is used as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed = ""
        self._tried = 0.0
        self._ours = False
        self._attached: Attachment | None = None
        self._raylet = -1
        self._kept: list[Any] = []

    def open(self) -> None:
        """Connects, unless connected.

        Raises:
            TensorError: It failed. For a minute the same error is raised at once, then it is tried again.
        """
        if self._attached is not None:
            return
        with self._lock:
            if self._attached is not None:
                return
            if not self._failed or time.monotonic() - self._tried > RETRY_S:
                self._failed = self._open()
                self._tried = time.monotonic()
            if self._failed:
                raise TensorError(self._failed)

    def _open(self) -> str:
        """Connects; returns the problem, empty when there is none."""
        address = os.environ.get(ADDRESS, "")
        if not address:
            return f"the tensor backend 'ray' needs a cluster: set {ADDRESS} to its host:port"
        try:
            import ray
        except ImportError:
            return "the tensor backend 'ray' needs Ray: pip install 'rolecall[ray]'"
        try:
            failed = "" if ray.is_initialized() else self._connect(address)
            return f"no connection to Ray at {address}: {failed}" if failed else self._adopt(address)
        except Exception as e:  # internals of Ray, which change between versions
            return f"Ray {ray.__version__} has other internals than this package expects: {_innermost(e)}"

    def _connect(self, address: str) -> str:
        problem = _unreachable(address)
        if problem:
            return problem
        connected: Future[None] = Future()
        threading.Thread(target=_init, args=(address, connected), name="rolecall-ray", daemon=True).start()
        try:
            failed = connected.exception(CONNECT_S)
        except TimeoutError:
            return f"not connected within {CONNECT_S:g} s"
        self._ours = failed is None
        return "" if failed is None else _innermost(failed)

    def _adopt(self, address: str) -> str:
        attached = ray_internals.attachment()
        if attached.head.rpartition(":")[2] != address.rpartition(":")[2]:  # a host has several names
            return f"this process is connected to Ray at {attached.head or 'no head'}, and {ADDRESS} says {address}"
        self._raylet = _watched(attached.store_socket)
        self._attached = attached
        return ""

    @property
    def problem(self) -> str:
        """Why the store cannot be reached; empty when it can."""
        if self._attached is None:
            return self._failed or "not connected"
        if not self._attached.current:
            return "this process has left Ray (ray.shutdown)"
        if self._raylet >= 0 and _dying(self._raylet):
            return "the raylet of this host has died"
        return ""

    def put(self, data: Any) -> tuple[Any, Where]:
        """Copies a buffer into the store.

        Returns:
            The reference, with whose end the object goes, and where others find it.
        """
        attached = self._connection()
        reference, owner = attached.put(pickle.PickleBuffer(data))
        return reference, {"cluster": attached.cluster, "object": reference.hex(), **msgspec.structs.asdict(owner)}

    def place(self, where: Where) -> Place | None:
        """The place that a shard names; None for a malformed one, or one of another cluster."""
        try:
            place = msgspec.convert(where, Place)
        except msgspec.ValidationError:
            return None
        return place if self._attached is not None and place.cluster == self._attached.cluster else None

    def own(self, place: Place) -> bool:
        """True for a place that this process has put an object to. It must be read by the reference that `put` gave."""
        return self._attached is not None and place.worker == self._attached.worker_id

    def reference(self, place: Place) -> Any:
        """A reference to another process's object."""
        return self._connection().reference(bytes.fromhex(place.object), place)

    def get(self, references: Sequence[Any], timeout: float) -> list[memoryview | str]:
        """The objects' bytes, not copied and not to be changed; they may outlive the objects.

        Returns:
            A string for an object that is lost: Ray's name of the reason.

        Raises:
            TimeoutError: Not all are here in time, or known to be lost.
        """
        return [self._view(data, metadata) for data, metadata in self._connection().get(references, timeout)]

    def _connection(self) -> Attachment:
        if self._attached is None:
            raise TensorError(f"Ray's object store cannot be reached: {self.problem}")
        return self._attached

    def _view(self, data: Any, metadata: bytes) -> memoryview | str:
        import numpy

        kind = metadata.partition(b",")[0]
        if kind != b"PYTHON":
            return ray_internals.error_name(kind) or repr(kind)
        buffers = ray_internals.out_of_band_buffers(data)
        if len(buffers) != 1:
            return OTHER_OBJECT
        address = numpy.frombuffer(buffers[0], numpy.uint8).ctypes.data
        memory = (ctypes.c_ubyte * buffers[0].nbytes).from_address(address)
        weakref.finalize(memory, self._give_back, data).atexit = False
        return memoryview(memory).cast("B")

    def _give_back(self, data: Any) -> None:
        """Drops a buffer, unless Ray would then end the process."""
        if self.problem:
            self._kept.append(data)

    def close(self) -> None:
        """Disconnects, if this object connected. May be called twice."""
        with self._lock:
            attached, self._attached = self._attached, None
            if attached is None:
                return
            if self._ours and attached.current:
                import ray

                ray.shutdown()
            if self._raylet >= 0:
                os.close(self._raylet)
                self._raylet = -1


def _unreachable(address: str) -> str:
    """Why no head can be reached at the address; empty when one can."""
    try:
        dial_host(address, REACH_S)
    except ValueError:
        return "it is not the host:port of a head"
    except OSError as e:
        return e.strerror or str(e)
    return ""


def _init(address: str, connected: Future[None]) -> None:
    """Connects, and restores the excepthook and the environment, which `ray.init` changes."""
    import ray

    before, hook = {name: os.environ.get(name) for name in (_HEAD_PATIENCE, "PYTHONBREAKPOINT")}, sys.excepthook
    os.environ[_HEAD_PATIENCE] = _FOR_EVER
    failed: BaseException | None = None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except BaseException as e:
        failed = e
    sys.excepthook = hook
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    connected.set_exception(failed) if failed else connected.set_result(None)


def _watched(store: str) -> int:
    """A descriptor of the raylet behind that socket, for `_dying`; -1 where its process cannot be seen."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(store)
        pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # in another namespace of process ids
        return -1


def _dying(statm: int) -> bool:
    """True as soon as a process has no memory any more: with much to give back, that is long before it has ended."""
    try:
        return os.pread(statm, 2, 0) == b"0 "
    except OSError:  # it has ended
        return True


def _innermost(error: BaseException) -> str:
    """The innermost cause in one line: Ray wraps errors several times, tracebacks included."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
