"""How full the broker's storage is, and how many timers wait in it."""

from __future__ import annotations

from contracts.streams import TIMERS
from contracts.subjects import CRON_ALL, TIMER_KINDS
from mesh.broker.direct_get import count_of
from mesh.broker.levels import ACCOUNT, DISK, read_all_levels
from mesh.broker.requests import Requests
from mesh.telemetry import figures


async def tell(requests: Requests) -> None:
    """Tell what streams and buckets, the account and the disk hold, and may.

    Raises `BrokerUnavailable`, `BrokerError`.
    """
    levels = await read_all_levels(requests)
    figures.storage_used.tell({(level.name,): level.used_bytes for level in levels})
    figures.storage_limit.tell({(level.name,): level.limit_bytes for level in levels if level.limit_bytes > 0})
    figures.storage_messages.tell(
        {(level.name,): level.messages for level in levels if level.name not in (ACCOUNT, DISK)}
    )


async def tell_timers(requests: Requests) -> None:
    """Tell how many timers of each kind wait. Raises `BrokerUnavailable`."""
    filters = {kind: f"timers.at.{kind}.>" for kind in TIMER_KINDS} | {"rule": CRON_ALL}
    figures.timers_waiting.tell(
        {(kind,): await count_of(requests, TIMERS.name, filter_) for kind, filter_ in filters.items()}
    )
