"""The result of a call as it is recorded: in the event, or in the object store with its beginning in the event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from contracts.codec import encode
from contracts.journal.events import StepClaimed
from contracts.journal.parts import ObjectReference
from contracts.records.tools import OBJECT_BYTES_MAX, RESULT_BYTES_MAX
from contracts.result_objects import ResultName
from mesh.errors import BrokerError
from mesh.telemetry import metrics
from tool_runner.result_store import OverQuota
from tool_runner.tools.tool import Shortened, ToolBroke

BEGINNING_BYTES = 32 * 1024
"""How much of a result that lies in the object store is in the event, and so what a model sees of it."""

Store = Callable[[ResultName, bytes], Awaitable[ObjectReference]]
"""Puts bytes under a name into the bucket `results`. Raises `OverQuota`, `BrokerError`, `BrokerUnavailable`."""
NOT_STORED = "result-not-stored"


class ResultUnusable(ToolBroke):
    """There was a result, and it can't be recorded."""

    code = "result-invalid"


class Recorded(NamedTuple):
    """What goes into `tool.completed`."""

    result: object
    object: ObjectReference | None


async def recorded(returned: object, claim: StepClaimed, store: Store, fitting: Callable[[int], int] = int) -> Recorded:
    """What a tool returned, as whoever reads the event will see it. Raises `ResultUnusable`, `BrokerUnavailable`.

    `fitting` shrinks bounds to what the broker takes (`Requests.fitting`).
    """
    told = _encoded(returned.told if isinstance(returned, Shortened) else returned)
    whole = _encoded(returned.whole) if isinstance(returned, Shortened) else told
    fits = len(told) <= fitting(RESULT_BYTES_MAX)
    reference = None if fits and whole is told else await _kept(whole, claim, store)
    return Recorded(_decoded(told) if fits else told[: fitting(BEGINNING_BYTES)].decode("utf-8", "ignore"), reference)


def _encoded(value: object) -> bytes:
    try:
        return encode(value)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ResultUnusable(f"not representable as JSON: {error}") from None


def _decoded(payload: bytes) -> object:
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ResultUnusable(f"not readable as JSON: {error}") from None


async def _kept(payload: bytes, claim: StepClaimed, store: Store) -> ObjectReference:
    """Put a result into the object store. Raises `ResultUnusable`, `BrokerUnavailable`."""
    if len(payload) > OBJECT_BYTES_MAX:
        message = f"{len(payload)} bytes as JSON are more than {OBJECT_BYTES_MAX}"
        raise ResultUnusable(message, code="result-too-large")
    try:
        return await store(object_name(claim), payload)
    except OverQuota as error:
        metrics.result_refused(error.code)
        raise ResultUnusable(str(error), code=error.code) from None
    except BrokerError as error:
        metrics.result_refused(NOT_STORED)
        raise ResultUnusable(f"the object store does not take it: {error}", code=NOT_STORED) from None


def object_name(claim: StepClaimed) -> ResultName:
    """Of this claim alone: who has lost the call can't replace another's result."""
    return ResultName(claim.tenant, claim.task, claim.step, claim.id)
