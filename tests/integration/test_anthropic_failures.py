"""The provider against servers on loopback that fail, refuse and dawdle as Anthropic's does."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from contracts.journal.parts import Usage
from inference_worker.dialects import exchange
from inference_worker.models.chunks import Finished, TextDelta
from tests.support.anthropic_provider import KEY, PROMPT, connected, failure_of, generate, last, said, turn
from tests.support.messages_server import PING, Events, encoded, ended, failed, saying, started, text
from tests.support.model_server import Exchange
from tests.support.patience import stretched, within

pytestmark = pytest.mark.integration


# Ends


@pytest.mark.parametrize("to_say", [[], [*text(0, "a")], [*text(0, "a"), {"type": "message_stop"}]])
async def test_an_end_without_a_stop_reason_is_a_failure(to_say: Events) -> None:
    failure = await failure_of(saying(started(), to_say))
    assert (failure.code, failure.retryable, failure.terminal) == ("provider-disconnected", True, False)


async def test_a_connection_that_breaks_in_mid_stream_is_a_failure() -> None:
    async def breaking(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(encoded([started(), *text(0, "a")]))
        exchange.drop()

    failure = await failure_of(breaking)
    assert (failure.code, failure.retryable) == ("provider-disconnected", True)


async def test_a_server_that_does_not_end_its_response_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "USAGE_SECONDS", 0.05)

    async def holding(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(encoded([started(), *text(0, "a"), ended("end_turn", 4)[0]]))
        await exchange.gone.wait()

    async with connected(holding) as (provider, _):
        assert last(await generate(provider)) == Finished(finish_reason="stop", usage=Usage(9, 4))


@pytest.mark.parametrize(
    ("kind", "code", "retryable"),
    [
        ("overloaded_error", "provider-overloaded", True),
        ("api_error", "provider-error", True),
        ("rate_limit_error", "rate-limited", True),
        ("invalid_request_error", "provider-bad-request", False),
    ],
)
async def test_an_error_in_mid_stream_is_a_failure(kind: str, code: str, *, retryable: bool) -> None:
    failure = await failure_of(saying(started(), text(0, "a"), failed(kind, f"died on {PROMPT}")))
    assert (failure.code, failure.retryable) == (code, retryable)
    assert PROMPT not in str(failure), "what a server says may quote the prompt, and messages are logged"
    assert failure.info().detail == f"died on {PROMPT}"


@pytest.mark.parametrize(
    "rubbish",
    [
        b"data: not JSON\n\n",
        b'data: {"type": 7}\n\n',
        b"data: [1]\n\n",
        b'data: {"type": "content_block_delta", "index": 9, "delta": {"type": "text_delta", "text": "a"}}\n\n',
    ],
)
async def test_rubbish_in_mid_stream_is_a_failure(rubbish: bytes) -> None:
    async def raving(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(rubbish)
        await exchange.end()

    failure = await failure_of(raving)
    assert (failure.code, failure.retryable) == ("provider-error", True)


# Refusals


@pytest.mark.parametrize(
    ("status", "body", "code", "retryable", "terminal"),
    [
        (529, failed("overloaded_error", "Overloaded"), "provider-overloaded", True, False),
        (429, failed("rate_limit_error"), "rate-limited", True, False),
        (500, failed("api_error"), "provider-error", True, False),
        (401, failed("authentication_error", f"invalid {KEY}"), "provider-unauthorized", False, False),
        (400, failed("invalid_request_error", "max_tokens: too large"), "provider-bad-request", False, True),
        (400, failed("invalid_request_error", "prompt is too long: 9 > 8"), "context-too-long", False, True),
        (400, failed("invalid_request_error", "Your credit balance is too low"), "quota-exhausted", False, False),
        (429, failed("credit_balance_exhausted"), "quota-exhausted", False, False),
        (429, {"error": {"type": "insufficient_quota"}}, "quota-exhausted", False, False),
    ],
)
async def test_a_refusal_says_what_is_to_be_done(
    status: int, body: object, code: str, *, retryable: bool, terminal: bool
) -> None:
    async def refusing(exchange: Exchange) -> None:
        await exchange.refuse(status, body, retry_after="7")

    failure = await failure_of(refusing, KEY)
    assert (failure.code, failure.retryable, failure.terminal) == (code, retryable, terminal)
    assert failure.retry_after_seconds == (7.0 if retryable else None)
    assert KEY not in f"{failure} {failure.info()}", "a server may quote the key"


# Times


async def test_pings_are_no_first_token() -> None:
    async def pinging(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(encoded([started()]))
        while not exchange.gone.is_set():
            await exchange.send(encoded([PING]))
            await asyncio.sleep(0.01)

    failure = await failure_of(pinging, first_token_seconds=0.1, between_tokens_seconds=0.1)
    assert (failure.code, failure.retryable) == ("provider-timeout", True)


async def test_pings_keep_a_stream_alive_between_tokens() -> None:
    """The API gathers an argument before it sends it, which takes its time."""

    between_tokens_seconds = stretched(0.5)

    async def gathering(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(encoded([started(), *text(0, "a")]))
        for _ in range(30):
            await exchange.send(encoded([PING]))
            await asyncio.sleep(between_tokens_seconds / 20)
        await exchange.send(encoded([*text(1, "b"), *ended("end_turn", 4)]))
        await exchange.end()

    async with connected(gathering, between_tokens_seconds=between_tokens_seconds) as (provider, _):
        assert said(await generate(provider)) == "ab"


async def test_pings_without_an_end_are_believed_for_as_long_as_a_first_token_may_take() -> None:
    async def pinging(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(encoded([started(), *text(0, "a")]))
        while not exchange.gone.is_set():
            await exchange.send(encoded([PING]))
            await asyncio.sleep(0.01)

    failure = await failure_of(pinging, first_token_seconds=0.2, between_tokens_seconds=0.1)
    assert (failure.code, failure.retryable) == ("provider-timeout", True)


async def test_a_silence_in_mid_stream_is_a_failure() -> None:
    async def stopping(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(encoded([started(), *text(0, "a")]))
        await exchange.gone.wait()

    failure = await failure_of(stopping, between_tokens_seconds=0.05)
    assert (failure.code, failure.retryable) == ("provider-timeout", True)


async def test_closing_the_stream_closes_the_connection_at_once() -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(encoded([started(), *text(0, "a")[:2]]))
        while not exchange.gone.is_set():
            await exchange.send(encoded([text(0, "a")[1]]))
            await asyncio.sleep(0.001)

    async with connected(endless) as (provider, server):
        async with within(5), aclosing(provider.stream(turn())) as chunks:
            assert await anext(chunks) == TextDelta("a")
        async with within(1):
            await server.exchanges[0].gone.wait()
