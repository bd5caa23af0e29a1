"""How fast the fleet may call a model provider, as it stands: a record in the bucket `providers`."""

from __future__ import annotations

from typing import Literal

import msgspec

from contracts.fields import Count, LaneName, Seconds, Time

PACE_KEY_PREFIX = "_pace."
"""Of the record's key, before the provider's name. No provider's name begins with `_`."""

Limit = Literal["requests", "tokens", "input_tokens", "output_tokens"]
"""What providers limit by the minute."""
LIMITS: tuple[Limit, ...] = ("requests", "tokens", "input_tokens", "output_tokens")


def pace_key(provider: str) -> str:
    """The record's key: `_pace.<provider>`."""
    return PACE_KEY_PREFIX + provider


class PaceHolder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The places of one worker under a provider's limit of concurrency. They are free again after `until`.

    `wants`: how many it could use, where that is more than `slots`.
    """

    slots: Count
    until: Time
    wants: Count = 0


class PaceRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A provider's pace, in the bucket `providers` under `_pace.<provider>`; without a record nothing was booked.

    Times are the mesh's, which is the broker's. `booked_until`: by limit, the time up to which what it allows is given
    out: the theoretical arrival time of the generic cell rate algorithm (ITU-T I.371). `shut_until`: nobody calls the
    provider before, since it has answered so. `refusals`: its answers of that kind without a time, in a row. `told`: by
    limit, how much a minute the provider itself says that it allows. `input_tokens` and `output_tokens`: of a turn, on
    average. `holders`: by worker.
    """

    provider: LaneName
    time: Time
    booked_until: dict[Limit, Time] = {}
    shut_until: Time | None = None
    refusals: Count = 0
    told: dict[Limit, Seconds] = {}
    input_tokens: Seconds | None = None
    output_tokens: Seconds | None = None
    holders: dict[str, PaceHolder] = {}
