"""What the fleet knows of a model provider: its circuit breaker, in the bucket `providers`."""

from __future__ import annotations

from typing import Literal

import msgspec

from contracts.fields import Count, LaneName, Time

BreakerState = Literal["closed", "open", "half_open"]
"""closed: it is called.  open: nobody calls it.  half_open: one step of one worker tries it."""
OpenReason = Literal["failures", "latency"]


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """The right to try a provider. It is `worker`'s until `until`, by the clock that `time` of the record is from."""

    worker: str
    until: Time


class ProviderRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A provider's breaker, in the bucket `providers` under its name; without a record it is closed.

    Times are the writer's own: only their distances from `time`, when the record was written, count. `since` is when
    the provider was last closed, or last ceased to be. While it is open, `retry_at` is when a probe may be claimed.
    `opened_times` counts the openings since it was closed. `failures` of `samples` outcomes are what opened it.
    """

    provider: LaneName
    state: BreakerState
    since: Time
    time: Time
    reason: OpenReason | None = None
    retry_at: Time | None = None
    opened_times: Count = 0
    probe: Probe | None = None
    failures: Count = 0
    samples: Count = 0
