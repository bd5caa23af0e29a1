"""The breaker of a model provider, as mesh.toml sets it: `[providers.<name>.breaker]`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

INTERVAL_SECONDS_MAX = 3600.0

_Interval = Annotated[float, Meta(ge=0.1, le=INTERVAL_SECONDS_MAX)]
_Rate = Annotated[float, Meta(gt=0, le=1)]


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a provider's breaker opens and closes. Times are in seconds, rates are parts of 1."""

    enabled: bool = True
    window_seconds: Annotated[float, Meta(ge=1, le=3600)] = 30.0
    """Outcomes older than this don't count."""
    samples_min: Annotated[int, Meta(ge=2, le=1000)] = 10
    """With fewer outcomes in the window it does not open; so many failures in a row open it whatever the rate."""
    failure_rate: _Rate = 0.5
    """The part of failures that opens it."""
    slow_first_token_seconds: Annotated[float, Meta(gt=0, le=3600)] | None = None
    """A first token that takes longer is slow. Absent: latency opens nothing."""
    slow_rate: _Rate = 0.8
    """The part of slow first tokens that opens it."""
    open_seconds: _Interval = 5.0
    """How long it stays open before the first probe; each probe that fails doubles it."""
    open_seconds_max: _Interval = 60.0
    """The longest that it doubles to."""
