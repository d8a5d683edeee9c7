"""Programs of AReaL that host an engine themselves: its proxies. They are asked in AReaL's own words, over HTTP."""

from __future__ import annotations

from typing import Any

import aiohttp
from areal.infra.rpc.serialization import deserialize_value, serialize_value
from areal.infra.scheduler.exceptions import EngineCallError, EngineCreationError

import rolecall


async def create(worker: rolecall.Worker, name: str, path: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Makes the program's engine."""
    asked = {"engine": path, "engine_name": name}
    status, answer = await _post(worker, "create_engine", asked, None, init_args=args, init_kwargs=kwargs)
    if status != 200:
        raise EngineCreationError(worker.id, str(answer), status)


async def call(
    worker: rolecall.Worker, name: str, method: str, args: list[Any], kwargs: dict[str, Any], timeout: float | None
) -> Any:
    """Calls a method of its engine."""
    status, answer = await _post(
        worker, "call", {"method": method, "engine_name": name}, timeout, args=args, kwargs=kwargs
    )
    if status != 200:
        raise EngineCallError(worker.id, method, f"{status}: {answer}")
    return deserialize_value(answer["result"])


async def _post(
    worker: rolecall.Worker, route: str, plain: dict[str, Any], timeout: float | None, **values: Any
) -> tuple[int, Any]:
    body = plain | {key: serialize_value(value) for key, value in values.items()}
    limit = aiohttp.ClientTimeout(total=timeout)
    url = f"http://{worker.ip}:{worker.worker_ports[0]}/{route}"
    async with aiohttp.ClientSession(timeout=limit) as session, session.post(url, json=body) as response:
        return response.status, await response.json(content_type=None)
