"""What a run tells its guards and workers, and how long it waits for what. Checked when made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rolecall.errors import WorkerConfigurationError
from rolecall.scheduler.calls import setup_path
from rolecall.types import TensorBackend, WorkerSetup, check_one_of, check_seconds


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of `Scheduler`, which says what each means."""

    tensor_backend: TensorBackend = "shm"
    preload: Sequence[str] = ()
    start_timeout: float = 120.0
    grace_s: float = 5.0
    destroy_s: float = 10.0
    lease_s: float = 30.0
    stall_s: float = 120.0
    silence_s: float = 8.0
    seed: int | None = None
    worker_setup: WorkerSetup | None = None
    one_engine_thread: bool = False

    def __post_init__(self) -> None:
        check_one_of("tensor backend", self.tensor_backend, TensorBackend)
        for name in ("start_timeout", "grace_s", "destroy_s"):
            check_seconds(name, getattr(self, name))
        for name in ("lease_s", "stall_s", "silence_s"):
            check_seconds(name, getattr(self, name), 0.1)
        if self.seed is not None and type(self.seed) is not int:
            raise WorkerConfigurationError("bad seed", self.seed, "use a whole number")
        setup_path(self.worker_setup)


@dataclass(frozen=True)
class Ending:
    """How workers are ended.

    Attributes:
        grace_s: Seconds between SIGTERM and SIGKILL.
        destroy_s: Seconds for `destroy()` of engines; 0 leaves it out.
        last_first: One worker after the other, the last of a role first.
    """

    grace_s: float = 0.0
    destroy_s: float = 0.0
    last_first: bool = False
