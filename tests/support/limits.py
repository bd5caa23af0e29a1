"""Streams with small limits: a test fills them in a moment."""

from __future__ import annotations

from typing import Any

from contracts.streams import BUCKETS, STREAMS
from mesh.broker.levels import Level, level_of
from mesh.broker.requests import Requests


async def limit(requests: Requests, stream: str, **limits: Any) -> None:
    """Give a stream other limits than it is declared with: `max_bytes`, `max_msgs`, `max_msgs_per_subject`."""
    declarations = {each.name: each for each in (*STREAMS, *(bucket.as_stream() for bucket in BUCKETS))}
    await requests.api(f"STREAM.UPDATE.{stream}", {**declarations[stream].as_config(), **limits})


async def unlimit(requests: Requests, stream: str) -> None:
    """Give it back the limits that it is declared with."""
    await limit(requests, stream)


async def level(requests: Requests, stream: str) -> Level:
    """How full a stream is."""
    return level_of(await requests.api(f"STREAM.INFO.{stream}"))


async def narrow(
    requests: Requests, messages_max: int, tenant: str, pool: str = "default", priority: str = "normal"
) -> None:
    """Let TASKS take so many first turns of each tenant and lane, and BACKLOG none more of this tenant's lane."""
    await limit(requests, "TASKS", max_msgs_per_subject=messages_max)
    await requests.publish(f"backlog.{pool}.{priority}.{tenant}", b"{}")
    await limit(requests, "BACKLOG", max_msgs_per_subject=1)
