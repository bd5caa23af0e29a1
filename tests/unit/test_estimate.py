"""What a task is thought to cost, and the lane that it gets."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.journal.parts import Estimate
from contracts.tasks import Message, Priority, TaskRequest
from mesh.admission.estimate import MESSAGE_TOKENS, OUTPUT_TOKENS, TOOL_TOKENS, estimate, placed, text_tokens
from mesh.configuration.mesh_toml import PoolConfiguration
from mesh.configuration.tenants_table import TenantConfiguration


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("word", 1), ("words", 2), ("x" * 4_000, 1_000), ("日本語", 3), ("Grüße, 世界", 6)],
)
def test_a_text_has_about_so_many_tokens(text: str, tokens: int) -> None:
    assert text_tokens(text) == tokens


def of(pool: PoolConfiguration | None = None, median: int | None = None, history: int = 0, **fields: Any) -> Estimate:
    """The estimate of a request."""
    return estimate(TaskRequest(**{"input": "word", **fields}), pool or PoolConfiguration(), median, history)


def test_what_is_read_is_the_messages_the_instructions_the_tools_and_the_history() -> None:
    one = MESSAGE_TOKENS + 1
    assert of().input_tokens == one
    assert of(instructions="word").input_tokens == 2 * one
    assert of(input=[Message("user", "word"), Message("assistant", "word")]).input_tokens == 2 * one
    assert of(tools=["add", "search"]).input_tokens == one + 2 * TOOL_TOKENS
    assert of(history=1_000).input_tokens == one + 1_000


@pytest.mark.parametrize(
    ("pool_limit", "limit", "median", "expected"),
    [
        (None, None, None, (OUTPUT_TOKENS, "default")),
        (None, 50, None, (50, "limit")),
        (40, 50, None, (40, "limit")),
        (40, None, None, (40, "limit")),
        (None, None, 200, (200, "median")),
        (None, 1_000, 200, (200, "median")),
        (None, 100, 200, (100, "limit")),
    ],
)
def test_what_is_put_out_is_the_limit_or_the_median(
    pool_limit: int | None, limit: int | None, median: int | None, expected: tuple[int, str]
) -> None:
    said = of(PoolConfiguration(max_output_tokens=pool_limit), median, max_output_tokens=limit)
    assert (said.output_tokens, said.basis) == expected


@pytest.mark.parametrize(
    ("asked", "tier", "above", "lane", "lowered"),
    [
        ("normal", "high", None, "normal", (None, None)),
        ("high", "normal", None, "normal", ("high", "tier")),
        ("low", "normal", None, "low", (None, None)),
        ("high", "high", 100, "normal", ("high", "size")),
        ("high", "normal", 100, "low", ("high", "size")),
        ("low", "high", 100, "low", (None, None)),
        ("normal", "low", 100, "low", ("normal", "tier")),
        ("high", "high", 10_000, "high", (None, None)),
    ],
)
def test_a_tier_and_a_size_lower_the_lane_and_the_estimate_says_so(
    asked: Priority, tier: Priority, above: int | None, lane: Priority, lowered: tuple[str | None, str | None]
) -> None:
    cost = Estimate(input_tokens=100, output_tokens=100)
    got, said = placed(asked, TenantConfiguration(tier=tier, lower_above_tokens=above), cost)
    assert got == lane
    assert (said.lowered_from, said.lowered_for) == lowered
    assert said.tokens == 200


@pytest.mark.parametrize(("budget", "pool_budget", "expected"), [(30, None, 30), (None, 20, 20), (9_999, None, 50)])
def test_a_budget_bounds_what_is_put_out(budget: int | None, pool_budget: int | None, expected: int) -> None:
    """What is set aside of a tenant's budget is no more than the task may take."""
    pool = PoolConfiguration(max_output_tokens=50, budget_tokens=pool_budget)
    assert (of(pool, budget_tokens=budget).output_tokens, of(pool, budget_tokens=budget).basis) == (expected, "limit")
