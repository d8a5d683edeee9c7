"""The half of a worker: hosts AReaL's engines on one engine thread, as AReaL's own server of engines does."""

from __future__ import annotations

import contextlib
import inspect
from concurrent.futures import Future
from typing import Any

import torch.distributed as dist
from areal.api import TrainEngine
from areal.api.cli_args import NameResolveConfig
from areal.infra.platforms import current_platform
from areal.infra.rpc.guard.engine_blueprint import resolve_broadcast_target
from areal.infra.rpc.rtensor import RTensor
from areal.utils import name_resolve, perf_tracer
from areal.utils.data import broadcast_tensor_container, tensor_container_to
from areal.utils.dynamic_import import import_from_string

from rolecall.areal.tensors import install

install()


class EngineHost:
    """All engines of one worker. rolecall runs its plain methods one at a time, on one thread.

    Args:
        worker_id: The worker, which is AReaL's address of the tensors that stay here.
    """

    def __init__(self, worker_id: str, name_resolving: NameResolveConfig) -> None:
        self._worker_id, self._engines = worker_id, dict[str, Any]()
        name_resolve.reconfigure(name_resolving)

    def create(self, name: str, path: str, args: list[Any], kwargs: dict[str, Any]) -> list[str]:
        """Makes an engine; returns the names of its coroutine methods, which are called by `acall`."""
        if name in self._engines:
            raise ValueError(f"engine {name!r} exists already (there are {', '.join(self._engines)})")
        cls = import_from_string(path)
        self._engines[name] = cls(*args, **kwargs)
        return [attribute for attribute in dir(cls) if inspect.iscoroutinefunction(getattr(cls, attribute))]

    def call(self, name: str, method: str, args: list[Any], kwargs: dict[str, Any], meta: dict[str, Any] | None) -> Any:
        """Calls a method of an engine, with the arguments that its data-parallel head has got."""
        engine = self._engine(name)
        args, kwargs = self._shared(engine, meta, [RTensor.localize(args), RTensor.localize(kwargs)])
        with perf_tracer.trace_scope(f"rpc.{method}", args={"method": method, "engine": name}):
            result = getattr(engine, method)(*args, **kwargs)
        return self._left(engine, result.result() if isinstance(result, Future) else result)

    async def acall(self, name: str, method: str, args: list[Any], kwargs: dict[str, Any], meta: Any) -> Any:
        """Calls a coroutine method, beside the engine thread."""
        engine = self._engine(name)
        return self._left(engine, await getattr(engine, method)(*args, **kwargs))

    def give_up(self, name: str, meta: dict[str, Any] | None, reason: str) -> None:
        """Tells those who wait for this head's arguments that there are none."""
        self._shared(self._engine(name), meta, [reason, None])

    def arguments_lost(self, method: str, args: list[Any], kwargs: dict[str, Any], error: Exception) -> None:
        """As `give_up`, in the turn of the call whose handles are gone."""
        if method == "call":
            name, _, _, _, meta = args
            with contextlib.suppress(ValueError):  # the caller gets the error itself
                self.give_up(name, meta, str(error))

    def destroy(self) -> None:
        """Ends the engines that nobody has destroyed."""
        for engine in self._engines.values():
            engine.destroy()
        self._engines.clear()
        perf_tracer.save(force=True)

    def _engine(self, name: str) -> Any:
        if name not in self._engines:
            raise LookupError(f"no engine {name!r} (there are {', '.join(self._engines) or 'none'})")
        return self._engines[name]

    def _shared(self, engine: Any, meta: dict[str, Any] | None, arguments: list[Any]) -> list[Any]:
        """The arguments of the head, on every rank of its context and model parallel group."""
        if not (meta or {}).get("broadcast", isinstance(engine, TrainEngine) and engine.initialized):
            return arguments
        group, device = resolve_broadcast_target(engine, current_platform.current_device())
        arguments = tensor_container_to(arguments, device)
        if dist.get_world_size(group) > 1:
            arguments = broadcast_tensor_container(arguments, src_rank=engine.current_data_parallel_head(), group=group)
        if isinstance(arguments[0], str):
            raise ValueError(f"the data-parallel head has got no arguments: {arguments[0]}")
        return arguments

    def _left(self, engine: Any, result: Any) -> Any:
        """The result with its tensors left here; nothing from ranks whose results nobody reads."""
        if isinstance(engine, TrainEngine) and engine.initialized and not engine.is_data_parallel_head():
            return None
        return RTensor.remotize(result, node_addr=self._worker_id)
