"""Waiting for several calls at the same time: all of them, whatever becomes of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from rolecall.errors import RolecallError, WorkerFailedError
from rolecall.scheduler.calls import PendingCall

Sent = PendingCall[Any] | RolecallError  # or why it was not sent
W = TypeVar("W")


def sent(submit: Callable[[W], PendingCall[Any]], worker: W) -> Sent:
    """The call of a worker, or why it cannot be called."""
    try:
        return submit(worker)
    except RolecallError as e:
        return e


def all_sent(calls: Iterable[PendingCall[Any]]) -> list[PendingCall[Any]]:
    """To all or to none: workers that wait in a collective for one that was never asked would wait for ever."""
    made: list[PendingCall[Any]] = []
    try:
        for call in calls:
            made.append(call)
    except BaseException:
        cancel(made)
        raise
    return made


def gathered(calls: Sequence[Sent], *, return_errors: bool = False) -> list[Any]:
    """Waits for all; then raises an error if there was one, so that no worker still runs a call that was given up."""
    results: list[Any] = []
    errors: list[Exception] = []
    for call in reversed(calls):  # the last is answered late, so that most of the waiting is one
        try:
            results.append(_answer(call))
        except Exception as e:
            results.append(e)
            errors.append(e)
        except BaseException:  # nobody else knows these calls
            cancel(calls)
            raise
    if errors and not return_errors:
        raise _cause(errors[::-1])
    return results[::-1]


async def agathered(calls: Sequence[Sent], *, return_errors: bool = False) -> list[Any]:
    """The same, without blocking the event loop."""
    await asyncio.gather(*map(_ended, calls))
    return gathered(calls, return_errors=return_errors)


def cancel(calls: Sequence[Sent]) -> None:
    for call in calls:
        if isinstance(call, PendingCall):
            call.cancel()


def _answer(call: Sent) -> Any:
    if isinstance(call, RolecallError):
        raise call
    return call.result()


async def _ended(call: Sent) -> None:
    """Waits; the result is asked for again. A cancelled task cancels the call."""
    if isinstance(call, PendingCall):
        with suppress(Exception):
            await call


def _cause(errors: Sequence[Exception]) -> Exception:
    """A worker's death before whatever the others say, since a broken collective is most likely its consequence."""
    return next((e for e in errors if isinstance(e, WorkerFailedError)), errors[0])
