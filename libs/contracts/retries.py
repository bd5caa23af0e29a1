"""How retries are decided: every policy is here, and nowhere else.

The delay before try k (k = 1 for the first retry) is drawn evenly from 0 to
min(delay_seconds_max, delay_seconds_first × 2^(k-1)) ("full jitter"), unless the other side named a delay.
"""

from __future__ import annotations

import msgspec


class RetryPolicy(msgspec.Struct, frozen=True):
    """`tries_max` counts the first try too. Delays are in seconds."""

    tries_max: int
    delay_seconds_first: float
    delay_seconds_max: float
    retry_after_seconds_max: float = 3600.0
    """The longest delay that the other side may name."""

    def delay_seconds(self, tries: int, random_fraction: float, retry_after_seconds: float | None = None) -> float:
        """Delay after `tries` failed tries. `random_fraction` is in [0, 1); pass it in, so that this stays pure."""
        if retry_after_seconds is not None:
            return min(max(0.0, retry_after_seconds), self.retry_after_seconds_max)
        ceiling = min(self.delay_seconds_max, self.delay_seconds_first * 2.0 ** min(tries - 1, 32))
        return ceiling * random_fraction


STEP_POLICY = RetryPolicy(tries_max=5, delay_seconds_first=0.5, delay_seconds_max=8.0)
"""A turn or a call that failed for a retryable or unknown reason. `tries_max` is overridden by MESH_MAX_TRIES."""

AWAY_POLICY = RetryPolicy(tries_max=1_000_000, delay_seconds_first=1.0, delay_seconds_max=8.0)
"""A turn whose provider is away (`AWAY_CODES`). These tries are none of `STEP_POLICY`'s; `AWAY_SECONDS` bounds them."""
AWAY_CODES = frozenset({"provider-unreachable", "provider-loading"})
"""There is no connection, or the server loads its model: it was restarted, and nothing was asked of it."""
AWAY_SECONDS = 900.0
"""How long it is waited for, unless its provider's settings say otherwise. Loading a large model takes minutes."""
AWAY_NAKS_MAX = 3
"""So many of these waits of a step are by nak, each of which uses up a delivery; further ones go through TIMERS."""

PAUSE_CODES = frozenset({"budget-exhausted"})
"""The turn's tenant has used up a budget: nothing was asked of anybody. These tries are none of `STEP_POLICY`'s, and
there may be any number of them."""
PAUSE_SECONDS_MAX = 3600.0
"""How long such a turn waits at most until it is tried again: a budget may be raised before its window ends."""
PAUSE_SPREAD_SECONDS = 5.0
"""Over so many seconds those begin that waited for the same moment."""

NAK_SECONDS_MAX = 10.0
"""A longer delay goes through TIMERS: a message that is nak'd with a delay takes a place of its consumer's
`max_ack_pending`."""

ROOM_POLICY = RetryPolicy(tries_max=1_000_000, delay_seconds_first=2.0, delay_seconds_max=30.0)
"""What a stream had no room for: a timer brings it, after a second at least. It holds nothing meanwhile, and so may
come late; those that come for room must not crowd out those that make it."""

WEBHOOK_POLICY = RetryPolicy(tries_max=16, delay_seconds_first=5.0, delay_seconds_max=6 * 3600.0)
"""Notifications to an endpoint: half a day on average, a day at most. They wait in their own consumer, whose
`max_ack_pending` has the room for it."""

BROKER_POLICY = RetryPolicy(tries_max=1_000_000, delay_seconds_first=0.05, delay_seconds_max=1.0)
"""Requests to a broker that does not answer; bounded by the caller's time limit, not by tries."""

PROCESS_POLICY = RetryPolicy(tries_max=1_000_000, delay_seconds_first=0.1, delay_seconds_max=5.0)
"""Restarts of a child process by `meshctl up`. Doubles without jitter: there is nobody to collide with."""
