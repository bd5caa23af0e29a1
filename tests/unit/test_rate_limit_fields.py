"""The fields `RateLimit-Policy` and `RateLimit`, and what the limits of callers tell by them."""

from __future__ import annotations

import re

import pytest

from mesh.access.limits import Rates
from mesh.serving.rate_limit_fields import LIMIT, POLICY, policy, quota, rate_limit_fields

ITEM = r'"[a-z-]+"(;[a-z]+=([0-9]{1,15}|"[a-z-]+"))+'
"""An item of a structured field (RFC 9651), as far as these have them."""


def test_several_quotas_are_one_list_in_each_field() -> None:
    fields = rate_limit_fields(
        [
            quota("requests", policy("requests", 1_000, 5.0), 998, 0.2),
            quota("tokens-per-day", policy("tokens-per-day", 2_000_000, 86_400, "tokens"), 0, 30.001),
        ]
    )
    assert fields == {
        POLICY: '"requests";q=1000;w=5, "tokens-per-day";q=2000000;w=86400;qu="tokens"',
        LIMIT: '"requests";r=998;t=1, "tokens-per-day";r=0;t=31',
    }
    for value in fields.values():
        assert re.fullmatch(f"{ITEM}(, {ITEM})*", value)


def test_without_a_quota_there_is_no_field() -> None:
    assert rate_limit_fields([]) == {}


def test_a_number_is_never_less_than_nothing_nor_longer_than_a_structured_field_takes() -> None:
    most = policy("cost-per-month", 10**18, 1.5, "cost-micros")
    fields = rate_limit_fields([quota("cost-per-month", most, -5, -0.5)])
    assert fields == {
        POLICY: '"cost-per-month";q=999999999999999;w=2;qu="cost-micros"',
        LIMIT: '"cost-per-month";r=0;t=0',
    }


@pytest.mark.parametrize(("per_second", "burst"), [(0.01, 3.0), (200.0, 1_000.0), (7.0, 1.0), (3.3, 16.5)])
def test_what_a_caller_has_left_is_what_it_gets(per_second: float, burst: float) -> None:
    rates = Rates(per_second, burst)
    for at in (10.0, 10.0 + 2 / per_second, 1e6):
        for taken in range(int(burst) + 2):
            told = rates.quota("a", at)
            served = rates.take("a", at) == 0.0
            assert served is (told.left > 0), (at, taken, told)
        assert rates.quota("a", at).left == 0
    assert rates.quota("nobody", 5.0)[:3] == (
        "requests",
        policy("requests", round(burst), burst / per_second),
        int(burst),
    )
