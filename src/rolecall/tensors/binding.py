"""Which `ShardManager` serves a handle: its shard's own, else the context's, else the process's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rolecall.errors import TensorError
from rolecall.tensors.shard import Shard, ShardManager


class Binding:
    """The manager of shards that have none of their own: the worker's, set once, or the context's."""

    def __init__(self) -> None:
        self._process: ShardManager | None = None
        self._context: ContextVar[ShardManager | None] = ContextVar("rolecall_shard_manager", default=None)

    def set(self, manager: ShardManager | None) -> None:
        """Sets the manager of the whole process."""
        self._process = manager

    def bind(self, manager: ShardManager) -> None:
        """Sets the manager of this thread, for as long as it lives."""
        self._context.set(manager)

    @contextmanager
    def using(self, manager: ShardManager) -> Iterator[None]:
        """Sets the manager of this context for the block."""
        token = self._context.set(manager)
        try:
            yield
        finally:
            self._context.reset(token)

    def get(self) -> ShardManager | None:
        return self._context.get() or self._process

    def of(self, shard: Shard) -> ShardManager:
        """The manager of this shard.

        Raises:
            TensorError: There is none: this process is neither the controller nor a worker of the run.
        """
        manager = shard.manager or self.get()
        if manager is None:
            problem = "this process is neither the controller nor a worker of its run"
            raise TensorError(f"shard {shard.id} of {shard.owner} cannot be fetched: {problem}")
        return manager


binding = Binding()
