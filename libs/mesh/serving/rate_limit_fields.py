"""The HTTP fields `RateLimit-Policy` and `RateLimit`: which quotas a caller has, and what is left of each. Pure.

As draft-ietf-httpapi-ratelimit-headers-10 (2025) has them: lists of structured fields (RFC 9651), of which each item is
the name of a policy. `q` is the quota, `w` its window in seconds, `qu` its unit, which is `requests` where none is
told; `r` is what is left, and `t` in how many seconds there is more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
    return {POLICY: ", ".join(map(_policy, told)), LIMIT: ", ".join(map(_limit, told))}


def _policy(quota: Quota) -> str:
    unit = "" if quota.unit is None else f';qu="{quota.unit}"'
    return f'"{quota.name}";q={_integer(quota.most)};w={_integer(math.ceil(quota.window_seconds))}{unit}'


def _limit(quota: Quota) -> str:
    return f'"{quota.name}";r={_integer(quota.left)};t={_integer(math.ceil(quota.seconds))}'


def _integer(number: int) -> int:
    return min(max(0, number), _INTEGER_MAX)
