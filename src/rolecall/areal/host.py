"""The half of a worker: its set-up, and AReaL's engines, with arguments and results treated as AReaL treats them."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
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

import rolecall
from rolecall.areal.jobs import NAME_RESOLVING
from rolecall.areal.tensors import install


def set_up() -> None:
    """Prepares a worker for AReaL's engines."""
    install()
    name_resolve.reconfigure(NameResolveConfig(**json.loads(os.environ[NAME_RESOLVING])))


class Engine:
    """An engine of AReaL's with its own public methods; `rpc_meta` of each says whether arguments are broadcast.

    Args:
        path: Of its class; the others are the class's arguments.
    """

    def __init__(self, path: str, *args: Any, **kwargs: Any) -> None:
        self._engine = import_from_string(path)(*args, **kwargs)
        self._worker_id = rolecall.current_worker().id
        for name, _ in inspect.getmembers(type(self._engine), inspect.isroutine):
            if not name.startswith("_") and name != "destroy":
                setattr(self, name, self._method(getattr(self._engine, name)))

    def arguments_lost(self, method: str, args: list[Any], kwargs: dict[str, Any], error: object) -> None:
        """Tells those who wait for this head's arguments of a call that there are none."""
        self._shared(kwargs.get("rpc_meta"), [str(error), None])

    def destroy(self, **meta: Any) -> None:
        self._engine.destroy()
        perf_tracer.save(force=True)

    def _method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def acall(*args: Any, rpc_meta: Any = None, **kwargs: Any) -> Any:
            return self._left(await method(*args, **kwargs))

        def call(*args: Any, rpc_meta: dict[str, Any] | None = None, **kwargs: Any) -> Any:
            arguments = self._shared(rpc_meta, [RTensor.localize([*args]), RTensor.localize(kwargs)])
            if isinstance(arguments[0], str):
                raise ValueError(f"the data-parallel head has got no arguments: {arguments[0]}")
            with perf_tracer.trace_scope(f"rpc.{method.__name__}", args={"method": method.__name__}):
                result = method(*arguments[0], **arguments[1])
            return self._left(result.result() if isinstance(result, Future) else result)

        return acall if inspect.iscoroutinefunction(method) else call

    def _shared(self, meta: dict[str, Any] | None, arguments: list[Any]) -> list[Any]:
        """The arguments of the head, or why there are none, on every rank of its context and model parallel group."""
        engine = self._engine
        if not (meta or {}).get("broadcast", isinstance(engine, TrainEngine) and engine.initialized):
            return arguments
        group, device = resolve_broadcast_target(engine, current_platform.current_device())
        arguments = tensor_container_to(arguments, device)
        if dist.get_world_size(group) > 1:
            arguments = broadcast_tensor_container(arguments, src_rank=engine.current_data_parallel_head(), group=group)
        return arguments

    def _left(self, result: Any) -> Any:
        """The result with its tensors left here; nothing from ranks whose results nobody reads."""
        engine = self._engine
        if isinstance(engine, TrainEngine) and engine.initialized and not engine.is_data_parallel_head():
            return None
        return RTensor.remotize(result, node_addr=self._worker_id)
