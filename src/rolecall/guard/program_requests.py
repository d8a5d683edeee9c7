"""What a guard tells programs over HTTP, as it tells workers over their control channels: their seed and variables."""

import asyncio
from typing import Any

import msgspec

from rolecall.errors import EngineCallError, RPCConnectionError
from rolecall.guard.table import Record, State
from rolecall.protocol.programs import may_host_engines
from rolecall.transport.http.client import NOT_SERVED, ErrorBody, ask

POST_S = 10.0


async def post(record: Record, host: str, path: str, value: dict[str, Any]) -> None:
    """Posts to a program that may host engines, and is ready or was seen to be; one without such a route is left alone.

    Raises:
        EngineCallError: It answered with an error.
        RPCConnectionError: It did not answer.
    """
    if not may_host_engines(record.spec.ready) or record.peer is not None or record.state is State.ENDING:
        return
    try:
        async with asyncio.timeout(POST_S):
            answer = await ask(host, record.ports[0], "POST", path, msgspec.json.encode(value))
    except TimeoutError as e:
        raise RPCConnectionError(record.worker_id, f"POST {path} had no answer within {POST_S:g} s") from e
    except OSError as e:
        raise RPCConnectionError(record.worker_id, f"POST {path}: {str(e) or type(e).__name__}") from e
    if answer.status >= 300 and answer.status not in NOT_SERVED:
        body = ErrorBody.of(answer)
        raise EngineCallError(record.worker_id, path, body.type, body.error, body.traceback)
