"""The HTTP fields `RateLimit-Policy` and `RateLimit`: which quotas a caller has, and what is left of each. Pure.

As draft-ietf-httpapi-ratelimit-headers-11 (2026) has them: lists of structured fields (RFC 9651), of which each item is
the name of a policy. `q` is the quota, `w` its window in seconds, at least 1, `qu` its unit, which is `requests` where
none is told; `r` is what is left, and `t` for how many seconds there is no more than that. `Retry-After` is never
sooner than the `t` of the quota that has nothing left. The draft's registry of units has neither tokens nor costs; a
quota of them without a unit would be one of requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

POLICY: Final = "RateLimit-Policy"
LIMIT: Final = "RateLimit"
_INTEGER_MAX: Final = 999_999_999_999_999
"""Of structured fields (RFC 9651, section 3.3.1)."""


class Quota(NamedTuple):
    """What is left of a quota. `policy` and `limit`: its items of `RateLimit-Policy` and `RateLimit`."""

    name: str
    policy: str
    left: int
    limit: str

    def in_seconds(self, seconds: float) -> Quota:
        """The same, if there is no more for so many seconds."""
        return quota(self.name, self.policy, self.left, seconds)


def quota(name: str, policy: str, left: int, seconds: float) -> Quota:
    """A quota that has no more than so much left for so many seconds."""
    return Quota(name, policy, left, f'"{name}";r={_integer(left)};t={math.ceil(seconds) if seconds > 0 else 0}')


def rate_limit_fields(quotas: Iterable[Quota]) -> Mapping[str, str]:
    """Both fields; none without a quota."""
    told = tuple(quotas)
    if not told:
        return {}
    return {POLICY: ", ".join([each.policy for each in told]), LIMIT: ", ".join([each.limit for each in told])}


@lru_cache(maxsize=1_024)
def policy(name: str, most: int, window_seconds: float, unit: str | None = None) -> str:
    """The item of a quota in `RateLimit-Policy`. `unit`: None for requests."""
    qu = "" if unit is None else f';qu="{unit}"'
    return f'"{name}";q={_integer(most)};w={_integer(math.ceil(window_seconds))}{qu}'


def _integer(number: int) -> int:
    return number if 0 <= number <= _INTEGER_MAX else min(max(0, number), _INTEGER_MAX)
