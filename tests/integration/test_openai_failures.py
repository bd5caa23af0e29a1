"""The provider against servers on loopback that fail, refuse and dawdle as the real ones do."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest

from contracts.journal.parts import Usage
from inference_worker.dialects import exchange
from inference_worker.dialects.errors import DETAIL_CHARACTERS_MAX, ProviderFailed
from inference_worker.dialects.openai.client import OpenAIProvider, open_client
from inference_worker.models.chunks import Finished, TextDelta
from mesh.configuration.provider_tables import OpenAIProviderConfiguration
from tests.support import model_server as dialects
from tests.support.model_server import DONE, Exchange, chunk, event, usage
from tests.support.openai_provider import KEY, PROMPT, connected, failure_of, generate, text, turn
from tests.support.patience import within

pytestmark = pytest.mark.integration


# Ends


async def test_done_may_never_come() -> None:
    async def without_done(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "a"}), chunk({}, "content_filter"), usage(1, 1))
        await exchange.end()

    async with connected(without_done) as (provider, _):
        assert (await generate(provider))[-1] == Finished(finish_reason="content_filter", usage=Usage(1, 1))


async def test_a_connection_that_breaks_after_the_models_end_costs_the_usage_only() -> None:
    async def breaking(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "a"}), chunk({}, "stop"))
        exchange.drop()

    async with connected(breaking) as (provider, _):
        assert await generate(provider) == [TextDelta("a"), Finished(finish_reason="stop", usage=Usage())]


@pytest.mark.parametrize(("clock", "last"), [("USAGE_SECONDS", b""), ("DRAIN_SECONDS", DONE)])
async def test_a_server_that_does_not_end_its_response_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, clock: str, last: bytes
) -> None:
    monkeypatch.setattr(exchange, clock, 0.05)

    async def holding(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "a"}), chunk({}, "stop"))
        if last:
            await exchange.send(last)
        await exchange.gone.wait()

    async with connected(holding) as (provider, server):
        assert await generate(provider) == [TextDelta("a"), Finished(finish_reason="stop", usage=Usage())]
        async with within(1):
            await server.exchanges[0].gone.wait()


@pytest.mark.parametrize("last", [b"", event(chunk({})), b'data: {"choi', b"\n\n", b"data: [DONE"])
async def test_an_end_without_a_finish_reason_is_a_failure(last: bytes) -> None:
    """Ollama ends so after an error of its own: with an empty chunk, without `[DONE]`."""

    async def ending(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "a"}))
        if last:
            await exchange.send(last)
        await exchange.end()

    failed = await failure_of(ending)
    assert (failed.code, failed.retryable, failed.terminal) == ("provider-disconnected", True, False)


async def test_a_connection_that_breaks_in_mid_stream_is_a_failure() -> None:
    async def breaking(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "a"}))
        exchange.drop()

    failed = await failure_of(breaking)
    assert (failed.code, failed.retryable) == ("provider-disconnected", True)


@pytest.mark.parametrize("field", ["data", "error"])
@pytest.mark.parametrize("then_done", [True, False])
async def test_an_error_in_mid_stream_is_a_failure(field: str, *, then_done: bool) -> None:
    """vLLM sends `[DONE]` behind it; llama.cpp calls the field `error`."""
    said = {"error": {"message": f"engine died on {PROMPT}", "type": "InternalServerError", "code": 500}}

    async def failing(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "a"}))
        await exchange.send(f"{field}: {json.dumps(said)}\n\n".encode() + (DONE if then_done else b""))
        await exchange.end()

    failed = await failure_of(failing)
    assert (failed.code, failed.retryable, failed.terminal) == ("provider-error", True, False)
    assert PROMPT not in str(failed), "what a server says may quote the prompt, and messages are logged"
    assert failed.info().detail == f"engine died on {PROMPT}"


# Refusals


@pytest.mark.parametrize(
    ("status", "body", "code", "retryable", "terminal"),
    [
        (400, {"error": {"message": "bad", "type": "invalid_request_error"}}, "provider-bad-request", False, True),
        (400, {"error": {"code": "context_length_exceeded"}}, "context-too-long", False, True),
        (401, {"error": {"message": f"Incorrect API key: {KEY}"}}, "provider-unauthorized", False, False),
        (429, {"error": {"code": "insufficient_quota"}}, "quota-exhausted", False, False),
        (429, {"error": {"code": "rate_limit_exceeded"}}, "rate-limited", True, False),
        (503, {"error": "server busy, please try again"}, "provider-overloaded", True, False),
        (500, b"<html>oops</html>", "provider-error", True, False),
        (307, b"", "provider-error", False, False),
    ],
)
async def test_a_refusal_says_what_is_to_be_done(
    status: int, body: object, code: str, *, retryable: bool, terminal: bool
) -> None:
    async def refusing(exchange: Exchange) -> None:
        await exchange.refuse(status, body, retry_after="7")

    failed = await failure_of(refusing, KEY)
    assert (failed.code, failed.retryable, failed.terminal) == (code, retryable, terminal)
    assert failed.retry_after_seconds == (7.0 if retryable else None)
    assert KEY not in f"{failed} {failed.info()}", "a server may quote the key"


async def test_a_key_is_not_told_in_part_either() -> None:
    async def refusing(exchange: Exchange) -> None:
        await exchange.refuse(401, ("x" * (DETAIL_CHARACTERS_MAX - 10) + KEY).encode())

    assert KEY[:5] not in str((await failure_of(refusing, KEY)).info())


async def test_an_answer_that_is_no_stream_is_a_failure() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.refuse(200, {"choices": []})

    failed = await failure_of(answering)
    assert (failed.code, failed.retryable, failed.terminal) == ("provider-error", False, False)


@pytest.mark.parametrize("listed", [False, True])
async def test_an_error_in_place_of_a_stream_is_read_as_one(*, listed: bool) -> None:
    """Proxies turn every status into 200; Gemini lists its errors."""
    error = {"error": {"code": 401, "message": "bad key", "status": "UNAUTHENTICATED"}}

    async def refusing(exchange: Exchange) -> None:
        await exchange.refuse(200, [error] if listed else error)

    failed = await failure_of(refusing)
    assert (failed.code, failed.retryable, failed.info().detail) == ("provider-unauthorized", False, "bad key")


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    async with connected(dialects.openai) as (_, server):
        gone = server.base_url
    configuration = OpenAIProviderConfiguration(base_url=gone)
    async with open_client(configuration, None, connections_max=1) as client:
        with pytest.raises(ProviderFailed) as failed:
            await generate(OpenAIProvider("local", configuration, client))
    assert (failed.value.code, failed.value.retryable) == ("provider-unreachable", True)


# Times


async def hold(exchange: Exchange) -> None:
    """Say nothing until the client has gone."""
    await exchange.gone.wait()


async def test_a_first_token_that_does_not_come_is_a_failure() -> None:
    failed = await failure_of(hold, first_token_seconds=0.05)
    assert (failed.code, failed.retryable) == ("provider-timeout", True)


async def test_comments_are_no_tokens() -> None:
    async def commenting(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"role": "assistant", "content": ""}))
        while not exchange.gone.is_set():
            await exchange.send(b": still here\n\n")
            await asyncio.sleep(0.01)

    failed = await failure_of(commenting, first_token_seconds=0.1, between_tokens_seconds=0.1)
    assert failed.code == "provider-timeout"


async def test_comments_in_mid_stream_are_no_tokens_either() -> None:
    async def commenting(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "a"}))
        while not exchange.gone.is_set():
            await exchange.send(b": still here\n\n")
            await asyncio.sleep(0.01)

    failed = await failure_of(commenting, between_tokens_seconds=0.1)
    assert failed.code == "provider-timeout"


async def test_a_silence_in_mid_stream_is_a_failure() -> None:
    async def stopping(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "a"}))
        await exchange.gone.wait()

    failed = await failure_of(stopping, between_tokens_seconds=0.05)
    assert (failed.code, failed.retryable) == ("provider-timeout", True)


# Cancelling


async def test_closing_the_stream_closes_the_connection_at_once() -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.begin()
        while not exchange.gone.is_set():
            await exchange.say(chunk({"content": "a"}))
            await asyncio.sleep(0.001)

    async with connected(endless) as (provider, server):
        async with within(5), aclosing(provider.stream(turn())) as chunks:
            assert await anext(chunks) == TextDelta("a")
        async with within(1):
            await server.exchanges[0].gone.wait()


@pytest.mark.parametrize("begun", [True, False])
async def test_cancelling_a_wait_for_a_token_closes_the_connection_at_once(*, begun: bool) -> None:
    asked = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        if begun:
            await exchange.begin()
        asked.set()
        await exchange.gone.wait()

    async with connected(silent) as (provider, server):
        waiting = asyncio.create_task(generate(provider))
        await asked.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        async with within(1):
            await server.exchanges[0].gone.wait()
        # The connection pool is as good as before.
        server.behave = dialects.openai
        assert text(await generate(provider)) == "Hello"
