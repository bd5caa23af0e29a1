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
    """A quota of a caller. `unit`: None for requests."""

    name: str
    most: int
    window_seconds: float
    left: int
    seconds: float
    unit: str | None = None


def rate_limit_fields(quotas: Iterable[Quota]) -> Mapping[str, str]:
    """Both fields; none without a quota."""
    told = tuple(quotas)
    if not told:
        return {}
    policies = [_policy(quota.name, quota.most, quota.window_seconds, quota.unit) for quota in told]
    return {POLICY: ", ".join(policies), LIMIT: ", ".join(map(_limit, told))}


@lru_cache(maxsize=1_024)
def _policy(name: str, most: int, window_seconds: float, unit: str | None) -> str:
    qu = "" if unit is None else f';qu="{unit}"'
    return f'"{name}";q={_integer(most)};w={_integer(math.ceil(window_seconds))}{qu}'


def _limit(quota: Quota) -> str:
    return f'"{quota.name}";r={_integer(quota.left)};t={max(0, math.ceil(quota.seconds))}'


def _integer(number: int) -> int:
    return min(max(0, number), _INTEGER_MAX)
