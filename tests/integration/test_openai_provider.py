"""The provider against servers on loopback that behave, and misbehave, as the real ones do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from contracts.journal.events import ToolCall, Usage
from contracts.records.tools import ToolDeclaration
from contracts.tasks import Message
from inference_worker.dialects import exchange
from inference_worker.dialects.errors import DETAIL_CHARACTERS_MAX, ProviderFailed
from inference_worker.dialects.openai.client import OpenAIProvider, open_client
from inference_worker.models.chunks import Chunk, Finished, ReasoningDelta, RequestedCall, TextDelta, TurnInput
from mesh.configuration.mesh_toml import OpenAIProviderConfiguration
from mesh.task.conversation import AssistantTurn, Entry, ToolAnswer
from tests.support import model_server as dialects
from tests.support.model_server import DONE, Behaviour, Exchange, ModelServer, chunk, event, model_server, usage

pytestmark = pytest.mark.integration

KEY = "sk-made-up-0123456789"
PROMPT = "the secret plan"
Connected = tuple[OpenAIProvider, ModelServer]


@asynccontextmanager
async def connected(behave: Behaviour, key: str | None = None, **options: Any) -> AsyncIterator[Connected]:
    """A provider whose server behaves so."""
    async with model_server(behave) as server:
        configuration = OpenAIProviderConfiguration(base_url=server.base_url, **options)
        async with open_client(configuration, key, connections_max=8) as client:
            yield OpenAIProvider("local", configuration, client, key), server


def turn(**fields: Any) -> TurnInput:
    return TurnInput(messages=[Message("user", PROMPT)], model="m", **fields)


async def generate(provider: OpenAIProvider, turn_input: TurnInput | None = None) -> list[Chunk]:
    """Everything that a turn yields."""
    async with asyncio.timeout(20), aclosing(provider.stream(turn_input or turn())) as chunks:
        return [each async for each in chunks]


async def failure_of(behave: Behaviour, key: str | None = None, **options: Any) -> ProviderFailed:
    """How a turn fails there."""
    async with connected(behave, key, **options) as (provider, _):
        with pytest.raises(ProviderFailed) as failed:
            await generate(provider)
    return failed.value


def text(chunks: list[Chunk]) -> str:
    return "".join(each.text for each in chunks if isinstance(each, TextDelta))


def reasoning(chunks: list[Chunk]) -> str:
    return "".join(each.text for each in chunks if isinstance(each, ReasoningDelta))


# Dialects


@pytest.mark.parametrize(
    ("dialect", "thought", "counted"),
    [
        (dialects.openai, "", Usage(9, 2)),
        (dialects.vllm, "Hm. Yes.", Usage(9, 4)),
        (dialects.llama_cpp, "Hm. Yes.", Usage(9, 4)),
        (dialects.ollama, "Hm. Yes.", Usage(9, 4)),
    ],
    ids=["openai", "vllm", "llama_cpp", "ollama"],
)
async def test_each_dialect_is_understood(dialect: Behaviour, thought: str, counted: Usage) -> None:
    async with connected(dialect) as (provider, _):
        chunks = await generate(provider)
    assert (text(chunks), reasoning(chunks)) == ("Hello", thought)
    assert chunks[-1] == Finished(finish_reason="stop", usage=counted)


async def test_the_server_is_asked_for_what_the_turn_says() -> None:
    async with connected(dialects.openai, KEY, headers={"X-Title": "taskmesh"}) as (provider, server):
        messages: list[Entry] = [Message("system", "Be brief."), Message("user", "hi")]
        await generate(provider, TurnInput(messages=messages, model="large", max_output_tokens=7, temperature=0.5))
        await generate(provider)
    asked, plain = server.exchanges
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert (asked.headers["x-title"], asked.headers["content-type"]) == ("taskmesh", "application/json")
    assert asked.body == {
        "model": "large",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "temperature": 0.5,
    }
    assert plain.body.keys() == {"model", "messages", "stream", "stream_options"}


async def test_no_key_is_sent_where_none_is_configured() -> None:
    async with connected(dialects.openai) as (provider, server):
        await generate(provider)
    assert "authorization" not in server.exchanges[0].headers


async def test_one_connection_serves_turn_after_turn() -> None:
    async with connected(dialects.openai) as (provider, server):
        for _ in range(3):
            assert text(await generate(provider)) == "Hello"
    assert server.connections == 1


async def test_a_stream_may_be_cut_anywhere() -> None:
    whole = b"".join([event(chunk({"content": "Grüße 😀"})), b": comment\r\n\r\n", event(chunk({}, "stop")), DONE])

    async def bytewise(exchange: Exchange) -> None:
        await exchange.begin()
        for byte in whole:
            await exchange.send(bytes([byte]))
        await exchange.end()

    async with connected(bytewise) as (provider, _):
        assert text(await generate(provider)) == "Grüße 😀"


async def test_tokens_are_handed_on_as_they_come() -> None:
    asked_for_more = asyncio.Event()

    async def halting(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n')  # no blank line yet
        await asked_for_more.wait()
        await exchange.say(chunk({"content": "b"}, "length"))
        await exchange.send(DONE)
        await exchange.end()

    async with connected(halting) as (provider, _), asyncio.timeout(20), aclosing(provider.stream(turn())) as chunks:
        assert await anext(chunks) == TextDelta("a")
        asked_for_more.set()
        assert [each async for each in chunks] == [TextDelta("b"), Finished(finish_reason="length", usage=Usage())]


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
        async with asyncio.timeout(1):
            await server.exchanges[0].gone.wait()


@pytest.mark.parametrize("last", [b"", DONE, event(chunk({})) + DONE, event(chunk({})), b'data: {"choi', b"\n\n"])
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


# Calls

ADD = ToolDeclaration(name="add", description="Adds.", parameters={"type": "object"})


async def call_in_parts(exchange: Exchange) -> None:
    """As OpenAI and vLLM do it."""
    await exchange.begin()
    names = [{"index": index, "id": f"call_{index}", "function": {"name": "add", "arguments": ""}} for index in (0, 1)]
    await exchange.say(chunk({"role": "assistant", "content": "Let me see."}))
    await exchange.say(*(chunk({"tool_calls": [{**name, "type": "function"}]}) for name in names))
    for index, part in ((0, '{"a"'), (1, "{}"), (0, ": 1}")):
        await exchange.say(chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]}))
    await exchange.say(chunk({}, "tool_calls"), usage(9, 4))
    await exchange.send(DONE)
    await exchange.end()


async def call_in_one(exchange: Exchange) -> None:
    """As Ollama does it: each call whole, older ones with one index for all, and `stop`."""
    await exchange.begin()
    await exchange.say(chunk({"role": "assistant", "content": "Let me see."}))
    for number, arguments in enumerate(('{"a": 1}', "{}")):
        function = {"name": "add", "arguments": arguments}
        asked = {"index": 0, "id": f"call_{number}", "type": "function", "function": function}
        await exchange.say(chunk({"role": "assistant", "content": "", "tool_calls": [asked]}))
    await exchange.say(chunk({"content": ""}, "stop"), usage(9, 4))
    await exchange.send(DONE)
    await exchange.end()


@pytest.mark.parametrize("behave", [call_in_parts, call_in_one])
async def test_the_calls_that_a_model_asks_for_come_at_the_end(behave: Behaviour) -> None:
    calls = (RequestedCall("add", {"a": 1}), RequestedCall("add", {}))
    async with connected(behave) as (provider, _):
        assert await generate(provider, turn(tools=(ADD,))) == [
            TextDelta("Let me see."),
            Finished(finish_reason="tool_calls", usage=Usage(9, 4), calls=calls),
        ]


async def test_a_truncated_call_is_no_failure_of_the_turn() -> None:
    """vLLM may say `tool_calls` of it."""

    async def truncating(exchange: Exchange) -> None:
        await exchange.begin()
        function = {"name": "add", "arguments": '{"a": 1'}
        await exchange.say(chunk({"tool_calls": [{"index": 0, "id": "c", "function": function}]}))
        await exchange.say(chunk({}, "tool_calls"))
        await exchange.end()

    async with connected(truncating) as (provider, _):
        finished = (await generate(provider))[-1]
    assert isinstance(finished, Finished)
    assert [(call.name, call.arguments, bool(call.error)) for call in finished.calls] == [("add", None, True)]


async def test_tools_are_offered_and_their_calls_and_answers_told() -> None:
    calls = (ToolCall("1-0", "add", {"a": 1}), ToolCall("1-1", "add", {}))
    entries: list[Entry] = [
        Message("user", "hi"),
        AssistantTurn("", calls),
        ToolAnswer("1-0", "add", "2"),
        ToolAnswer("1-1", "add", "tool-failed: no", is_error=True),
        AssistantTurn("Two."),
        Message("user", "thanks"),
    ]
    async with connected(dialects.openai) as (provider, server):
        await generate(provider, TurnInput(messages=entries, model="m", tools=(ADD,)))
    body = server.exchanges[0].body
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["messages"] == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1-0", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
                {"id": "1-1", "type": "function", "function": {"name": "add", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1-0", "content": "2"},
        {"role": "tool", "tool_call_id": "1-1", "content": "tool-failed: no"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "thanks"},
    ]


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
        async with asyncio.timeout(5), aclosing(provider.stream(turn())) as chunks:
            assert await anext(chunks) == TextDelta("a")
        async with asyncio.timeout(1):
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
        async with asyncio.timeout(1):
            await server.exchanges[0].gone.wait()
        # The connection pool is as good as before.
        server.behave = dialects.openai
        assert text(await generate(provider)) == "Hello"


# Continuing


async def test_a_prefix_is_continued_where_the_server_can() -> None:
    async with connected(dialects.openai, continue_prefix="vllm") as (provider, server):
        assert provider.continues_prefix
        await generate(provider, turn(prefix="Once upon"))
        await generate(provider)
    continued, new = (exchange.body for exchange in server.exchanges)
    assert continued["messages"][-1] == {"role": "assistant", "content": "Once upon"}
    assert (continued["continue_final_message"], continued["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in new
