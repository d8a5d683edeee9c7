"""The Ray actors of a role: around a guard, and around nothing but a bundle's devices. They host no engine.

Its code travels to the cluster by value and uses the standard library, ray and `guard_process` alone, so that a node
needs nothing but what the guard itself needs. The guard is a process of its own: an actor's process belongs to Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from rolecall.placement.guard_process import end_guard, start_guard
from rolecall.protocol.devices import ASCEND, CUDA

DEVICE_VARS = {"GPU": CUDA, "NPU": ASCEND}  # by Ray's name of the resource
PATIENCE_S = (8.0, 5.0, 5.0)
# What Ray gives to its own processes alone; another Ray program below the guard must not take it for its own.
_RAYS_OWN = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_CLIENT_MODE", "RAY_LD_PRELOAD_ON_WORKERS", "SPT_NOENV")


class BundleActor:
    """An actor of a worker, with devices of its bundle. Methods run in threads of Ray's."""

    def __init__(self, worker: str) -> None:
        self._worker = worker

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._worker})"

    def devices(self, kind: str) -> list[str]:
        """What Ray has assigned of a resource, `GPU` or `NPU`."""
        return assigned(kind)


class Holder(BundleActor):
    """Holds the devices of a worker whose guard is in another actor of its node."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self._over = threading.Event()

    def run(self) -> str:
        """Waits for `stop`. Whoever waits for this learns of our death."""
        self._over.wait()
        return ""

    def stop(self) -> bool:
        self._over.set()
        return True


class Guard(BundleActor):
    """One guard, named after the first of its workers. `stop` may come at any time."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self._lock = threading.Lock()
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, config: dict[str, Any], marks: dict[str, str], kind: str) -> str:
        """Starts the guard, waits for its end, and returns how it ended, in words; "" after `stop`.

        Args:
            marks: Variables by which a sweep finds it.
            kind: The resource that its devices are, `GPU` or `NPU`.
        """
        words: list[str] = []
        env = _environment(config["env"] | marks, kind)
        # It is told of our death by the kernel, which means the thread that started it: one that stays until it ends.
        life = threading.Thread(target=lambda: words.append(self._live(config, env)), name="guard")
        life.start()
        life.join()
        return words[0] if words and not self._stopped else ""

    def stop(self) -> bool:
        """Ends the guard and all that it owns; False when it survives."""
        with self._lock:
            self._stopped = True
        return self._process is None or end_guard(self._process, PATIENCE_S)

    def _live(self, config: dict[str, Any], env: dict[str, str]) -> str:
        with tempfile.TemporaryFile() as output:
            with self._lock:
                if self._stopped:
                    return ""
                with contextlib.suppress(OSError):  # Ray's workers are nice to its own processes; ours are as elsewhere
                    os.setpriority(os.PRIO_PROCESS, 0, 0)
                text = json.dumps(config | {"starter_pid": os.getpid()})
                self._process = start_guard(text, env, output.fileno())
            status = self._process.wait()
            output.seek(max(0, os.fstat(output.fileno()).st_size - 2000))
            tail = output.read().decode(errors="replace").strip()
        return f"its guard ended with status {status}" + (f"\n{tail}" if tail else "")


def assigned(kind: str) -> list[str]:
    """Names of the devices that Ray has assigned to this actor."""
    import ray

    found: list[str] = ray.get_runtime_context().get_accelerator_ids().get(kind, [])
    return found


def _environment(ours: dict[str, str], kind: str) -> dict[str, str]:
    """The node's own environment, as its raylet started us, ours over it, and the devices that Ray has assigned.

    Ray's changes to `os.environ` since (OMP_NUM_THREADS, for one) are for code that runs in an actor.
    """
    items = (item.partition(b"=") for item in Path("/proc/self/environ").read_bytes().split(b"\0") if item)
    own = {os.fsdecode(name): os.fsdecode(value) for name, _, value in items}
    kept = {name: value for name, value in own.items() if name not in (*_RAYS_OWN, *DEVICE_VARS.values())}
    return kept | ours | {DEVICE_VARS[kind]: ",".join(assigned(kind))}
