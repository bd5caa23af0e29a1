"""What a turn is counted for in its tenant's budget: as it was seen, and at its end as its providers have told."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from contracts.journal import parts
from contracts.journal.parts import Usage
from inference_worker.models.chunks import Finished, TextDelta
from inference_worker.turn.budgets import PIECE_CHARACTERS, TurnBudgets
from mesh.budgets.accounts import Accounts, Sighting
from mesh.budgets.limits import Amount
from mesh.budgets.spending import BudgetSpending
from mesh.clock import lease_clock
from mesh.configuration.mesh_toml import Configuration, parse_configuration
from mesh.configuration.tenants_table import TenantConfiguration
from mesh.steps.claimed_step import StepRecalled
from mesh.task.failures import StepFailed
from tests.unit.journals import HandMadeJournal
from tests.unit.played import STOP, Event, claimed_step, turn_handler
from tests.unit.test_spending import Metered, backup

TEXT = "x" * 40
"""Ten tokens, as they are seen."""
BROKEN = StepFailed("provider-error", "oh", retryable=True)
MONTHLY = TenantConfiguration(tokens_per_month=1_000_000, cost_per_month=1_000.0)


def priced() -> Configuration:
    return parse_configuration(
        b"""
        [providers.scripted]
        kind = "scripted"
        [providers.played]
        kind = "openai"
        base_url = "http://127.0.0.1:1/v1"
        [providers.played.prices."*"]
        input = 1
        output = 2
        [providers.backup]
        kind = "openai"
        base_url = "http://127.0.0.1:2/v1"
        [providers.backup.prices."*"]
        input = 10
        output = 100
        [pools.default]
        provider = "played"
        model = "played-1"
        """
    )


def spending() -> BudgetSpending:
    """Of a worker that needs no broker: its account was read a moment ago, and nothing is written."""
    accounts = Accounts(None)  # type: ignore[arg-type]  # nothing is asked
    accounts._seen["acme"] = Sighting(None, 0, lease_clock() + 3_600)
    return BudgetSpending(accounts, "w", lambda _: MONTHLY)


async def counted(*chunks: Event, journal: HandMadeJournal | None = None, **options: object) -> Amount:
    """What a turn with this provider is counted for in the end."""
    worker = spending()
    fallbacks = options.pop("fallbacks", [])
    handler = turn_handler(Metered(*chunks, **options), fallbacks=fallbacks)  # type: ignore[arg-type]  # passed on
    handler.budgets = TurnBudgets(worker, priced())
    step = claimed_step(journal)
    with contextlib.suppress(StepFailed, StepRecalled, asyncio.CancelledError):
        await handler.perform(step)
    here = worker._tenants["acme"]
    assert (here.running, here.expected) == (0, Amount())
    return here.spent


async def test_a_turn_counts_as_its_provider_has_told() -> None:
    assert (await counted(TextDelta(TEXT), STOP)).tokens == 7, "3 and 4, and not as it was seen"


async def test_a_request_that_is_refused_counts_nothing() -> None:
    """However long its prompt was: a provider that is down must not use up a budget."""
    assert await counted(BROKEN, refuses=True) == Amount()


async def test_a_call_that_breaks_off_counts_as_it_was_seen() -> None:
    seen = (await counted(TextDelta(TEXT), BROKEN)).tokens
    assert seen >= 10
    assert (await counted(TextDelta(TEXT), BROKEN, told=Usage(900, 1))).tokens == 901, "or more, if that was told"


async def test_a_turn_that_nobody_ends_counts_as_it_was_seen() -> None:
    async def let_go() -> None:
        raise asyncio.CancelledError

    assert (await counted(TextDelta(TEXT), let_go)).tokens >= 10


async def test_what_was_thrown_away_was_counted_where_it_was_put_out() -> None:
    journal = HandMadeJournal()
    journal.queued()
    first = (await counted(TextDelta(TEXT), BROKEN, journal=journal)).tokens
    journal.retrying(1)
    assert first >= 10
    again = await counted(TextDelta("y"), STOP, journal=journal, continues_prefix=False)
    assert again.tokens == 7, "and not once more where the turn begins again"


async def test_what_another_model_puts_out_has_its_own_price() -> None:
    """While it speaks: what is seen decides whether a turn is cut."""
    tokens, seen = PIECE_CHARACTERS, list[Amount]()
    worker = spending()

    async def look() -> None:
        seen.append(worker._tenants["acme"].spent)

    handler = turn_handler(
        Metered(StepFailed("provider-unreachable", "oh", retryable=True), refuses=True),
        fallbacks=[backup(TextDelta("x" * 4 * tokens), look, Finished(finish_reason="stop", usage=Usage(3, 4)))],
    )
    handler.budgets = TurnBudgets(worker, priced())
    await handler.perform(claimed_step())
    reads = seen[0].tokens - tokens
    assert tokens * 100 + reads // 2 * 10 <= seen[0].cost_micros <= tokens * 100 + reads * 10


async def test_what_a_slow_model_puts_out_is_measured_before_it_is_a_whole_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference_worker.turn.budgets.PIECE_SECONDS", 0.0)
    worker, seen = spending(), list[int]()

    async def look() -> None:
        for _ in range(10):
            await asyncio.sleep(0)  # until it is stored
        seen.append(worker._tenants["acme"].spent.tokens)

    handler = turn_handler(Metered(*(each for _ in range(3) for each in (TextDelta("word"), look)), STOP))
    handler.budgets = TurnBudgets(worker, priced())
    await handler.perform(claimed_step())
    assert [later - seen[0] for later in seen] == [0, 1, 2]


@pytest.mark.parametrize(("claims", "released"), [(1, [Amount(50, 7)]), (2, [])])
async def test_the_first_claim_of_a_task_gives_back_what_was_set_aside_for_it(
    claims: int, released: list[Amount]
) -> None:
    """Just that, whatever it would be by the limits and prices of now; of another claim nobody knows."""
    worker = spending()
    journal = HandMadeJournal()
    journal.queued(reserved=parts.Reserved(tokens=50, cost_micros=7))
    for _ in range(claims - 1):
        journal.claimed()
    handler = turn_handler(Metered(TextDelta(TEXT), STOP))
    handler.budgets = TurnBudgets(worker, priced())
    await handler.perform(claimed_step(journal))
    assert [each.amount for each in worker._tenants["acme"].released] == released
