"""The tool `current_time`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from mesh.clock import now
from tool_runner.tools.tool import Call, ToolRefused, built_in


class CurrentTimeArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`zone`: an IANA time zone such as `Europe/Berlin`; UTC if absent."""

    zone: Annotated[str, Meta(min_length=1, max_length=64)] = "UTC"


class CurrentTime(msgspec.Struct, frozen=True):
    """`time` is RFC 3339 with the zone's offset."""

    time: datetime
    zone: str
    weekday: str


async def current_time(arguments: CurrentTimeArguments, call: Call) -> CurrentTime:
    """The time now, to the second."""
    try:
        zone = ZoneInfo(arguments.zone)
    except (KeyError, ValueError, OSError):
        raise ToolRefused(f"there is no time zone {arguments.zone!r}") from None
    time = now().astimezone(zone).replace(microsecond=0)
    return CurrentTime(time, arguments.zone, time.strftime("%A"))


CURRENT_TIME = built_in(
    "current_time",
    "Tells the current date, time and weekday, in UTC or in an IANA time zone.",
    CurrentTimeArguments,
    current_time,
    timeout_seconds=5,
)
