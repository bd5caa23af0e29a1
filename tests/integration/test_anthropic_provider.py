"""The provider against servers on loopback that behave, and misbehave, as Anthropic's does."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.journal.parts import ToolCall, Usage
from contracts.tasks import Message
from inference_worker.dialects.anthropic import client as anthropic
from inference_worker.dialects.anthropic.client import AnthropicProvider
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.models.chunks import Finished, ReasoningDelta, RequestedCall, TextDelta
from inference_worker.providers import PoolProvider
from mesh.configuration.provider_tables import AnthropicProviderConfiguration
from mesh.task.conversation import AssistantTurn, ToolAnswer
from tests.support.anthropic_provider import ADD, KEY, PROMPT, connected, generate, generated, last, said, turn
from tests.support.messages_server import (
    PING,
    block,
    encoded,
    ended,
    failed,
    hello,
    saying,
    started,
    text,
    thinking,
    tool_use,
)
from tests.support.model_server import Exchange

pytestmark = pytest.mark.integration


# Asking


async def test_the_server_is_asked_for_what_the_turn_says() -> None:
    async with connected(hello, KEY, headers={"anthropic-beta": "some-1"}) as (provider, server):
        entries = (Message("system", "Be brief."), Message("user", "hi"))
        await generate(provider, turn(*entries, max_output_tokens=7, temperature=0.5, tools=(ADD,)))
    asked = server.exchanges[0]
    assert (asked.method, asked.path) == ("POST", "/v1/messages")
    assert (asked.headers["x-api-key"], asked.headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in asked.headers
    assert (asked.headers["anthropic-beta"], asked.headers["content-type"]) == ("some-1", "application/json")
    schema = {"type": "object", "properties": {"a": {"type": "number"}}}
    assert asked.body == {
        "model": "m",
        "max_tokens": 7,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "tools": [{"name": "add", "description": "Adds.", "input_schema": schema}],
        "temperature": 0.5,
        "stream": True,
    }


async def test_a_limit_of_output_is_always_named() -> None:
    async with connected(hello, max_output_tokens=77) as (provider, server):
        await generate(provider)
    assert server.exchanges[0].body["max_tokens"] == 77
    assert "x-api-key" not in server.exchanges[0].headers


async def test_one_connection_serves_turn_after_turn() -> None:
    async with connected(hello) as (provider, server):
        for _ in range(3):
            assert said(await generate(provider)) == "Hello"
    assert server.connections == 1


# Answers


async def test_an_answer_is_read() -> None:
    assert await generated(started(9), text(0, "Hel", "lo"), ended("end_turn", 4)) == [
        TextDelta("Hel"),
        TextDelta("lo"),
        Finished(finish_reason="stop", usage=Usage(9, 4)),
    ]


async def test_a_stream_may_be_cut_anywhere() -> None:
    whole = encoded([started(), *text(0, "Grüße 😀"), *ended("end_turn", 4)])

    async def bytewise(exchange: Exchange) -> None:
        await exchange.begin()
        for byte in whole:
            await exchange.send(bytes([byte]))
        await exchange.end()

    async with connected(bytewise) as (provider, _):
        assert said(await generate(provider)) == "Grüße 😀"


async def test_a_ping_may_come_anywhere() -> None:
    events = [started(), *thinking(0, "s", "Hm."), *text(1, "a", "b"), *tool_use(2, "add", '{"a"', ": 1}")]
    plain = [*events, *ended("tool_use", 4)]
    pinged = [each for event in plain for each in (PING, event)]
    assert await generated(pinged) == await generated(plain)


async def test_what_is_not_known_is_passed_over() -> None:
    assert (
        said(
            await generated(
                started(),
                {"type": "weather_report", "index": 7, "delta": {"type": "rain"}},
                block(0, {"type": "hologram", "data": 1}, {"type": "hologram_delta", "more": 2}),
                block(1, {"type": "text", "text": "a"}, {"type": "citations_delta", "citation": {}}),
                ended("end_turn", 4),
            )
        )
        == "a"
    )


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
async def test_reasons_to_stop(reason: str, expected: str) -> None:
    assert last(await generated(started(), text(0, "a"), ended(reason, 4))).finish_reason == expected


async def test_the_output_is_counted_cumulatively_and_the_cache_is_input() -> None:
    interim = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 3}}
    start = started(9, cache_creation_input_tokens=20, cache_read_input_tokens=300)
    assert last(await generated(start, text(0, "a"), interim, ended("end_turn", 4))).usage == Usage(
        329, 4, cached_tokens=300, cache_creation_tokens=20
    )
    again = ended("end_turn", 4, input_tokens=10, cache_read_input_tokens=None)
    assert last(await generated(start, text(0, "a"), again)).usage == Usage(
        330, 4, cached_tokens=300, cache_creation_tokens=20
    )


# Calls


async def test_calls_are_gathered_from_their_parts_and_no_input_is_an_empty_one() -> None:
    chunks = await generated(
        started(),
        text(0, "Let me see."),
        tool_use(1, "add", '{"a"', ": ", "1}"),
        tool_use(2, "now"),
        block(3, {"type": "tool_use", "id": "toolu_9", "name": "add", "input": {"a": 2}}),
        ended("tool_use", 4),
    )
    calls = (RequestedCall("add", {"a": 1}), RequestedCall("now", {}), RequestedCall("add", {"a": 2}))
    assert last(chunks) == Finished(finish_reason="tool_calls", usage=Usage(9, 4), calls=calls)


async def test_calls_are_calls_whatever_the_stop_reason() -> None:
    finished = last(await generated(started(), tool_use(0, "add", "{}"), ended("end_turn", 4)))
    assert (finished.finish_reason, finished.calls) == ("tool_calls", (RequestedCall("add", {}),))


@pytest.mark.parametrize("parts", [['{"a": 1'], ["[1]"], []])
async def test_a_call_that_was_cut_off_is_no_failure_and_no_call_without_arguments(parts: list[str]) -> None:
    events = (started(), tool_use(0, "now"), tool_use(1, "add", *parts), ended("max_tokens", 4))
    finished = last(await generated(*events))
    assert finished.finish_reason == "length"
    now, add = finished.calls
    assert now == RequestedCall("now", {})
    assert (add.name, add.arguments, bool(add.error)) == ("add", None, True)


# Thinking

SIGNED = {"type": "thinking", "thinking": "Hm. Yes.", "signature": "c2ln"}
REDACTED = {"type": "redacted_thinking", "data": "ZW5j"}
DEEP: dict[str, Any] = {"thinking_budget_tokens": 1024, "max_output_tokens": 3000}


async def test_thinking_is_told_and_goes_back_as_it_was() -> None:
    async with connected(hello, **DEEP) as (provider, server):
        server.behave = saying(
            started(),
            thinking(0, "c2ln", "Hm. ", "Yes."),
            block(1, REDACTED),
            text(2, "Well."),
            tool_use(3, "add"),
            ended("tool_use", 4),
        )
        chunks = await generate(provider, turn(tools=(ADD,), temperature=0.5))
        assert chunks[:2] == [ReasoningDelta("Hm. "), ReasoningDelta("Yes.")]
        assert last(chunks).blocks == [SIGNED, REDACTED]
        told = AssistantTurn("Well.", (ToolCall("1-0", "add", {}),), "Hm. Yes.", tuple(last(chunks).blocks or ()))
        server.behave = hello
        await generate(provider, turn(Message("user", PROMPT), told, ToolAnswer("1-0", "add", "2"), tools=(ADD,)))
    first, second = (exchange.body for exchange in server.exchanges)
    assert first["thinking"] == second["thinking"] == {"type": "enabled", "budget_tokens": 1024}
    assert first["max_tokens"] == 3000
    assert "temperature" not in first, "refused beside thinking"
    assert second["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                SIGNED,
                REDACTED,
                {"type": "text", "text": "Well."},
                {"type": "tool_use", "id": "c00000100", "name": "add", "input": {}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c00000100", "content": "2"}]},
    ]


async def test_thinking_without_a_signature_is_not_kept() -> None:
    """It was cut off, and would be refused."""
    finished = last(await generated(started(), thinking(0, "", "Hm."), ended("max_tokens", 4)))
    assert (finished.finish_reason, finished.blocks) == ("length", None)


async def test_a_limit_too_small_for_thinking_goes_without() -> None:
    async with connected(hello, **DEEP) as (provider, server):
        await generate(provider, turn(max_output_tokens=1024, temperature=0.5))
    body = server.exchanges[0].body
    assert (body["max_tokens"], body["temperature"], "thinking" in body) == (1024, 0.5, False)


# Pauses


async def test_a_pause_asks_again_with_what_was_said() -> None:
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    query = {"type": "input_json_delta", "partial_json": '{"query": "x"}'}
    async with connected(saying(started(9), text(0, "One, "), block(1, search, query), ended("pause_turn", 3))) as (
        provider,
        server,
    ):
        pausing = server.behave

        async def then_ending(exchange: Exchange) -> None:
            again = saying(started(20), text(0, "two."), ended("end_turn", 4))
            await (pausing if len(server.exchanges) == 1 else again)(exchange)

        server.behave = then_ending
        chunks = await generate(provider, turn(max_output_tokens=100))
    assert said(chunks) == "One, two."
    assert last(chunks) == Finished(finish_reason="stop", usage=Usage(29, 7))
    first, second = (exchange.body for exchange in server.exchanges)
    assert second["max_tokens"] == 97, "the limit is of the whole output"
    begun = [{"type": "text", "text": "One, "}, search | {"input": {"query": "x"}}]
    assert second["messages"] == [*first["messages"], {"role": "assistant", "content": begun}]


async def test_white_space_before_a_pause_is_not_said_twice() -> None:
    async with connected(hello) as (provider, server):

        async def pausing(exchange: Exchange) -> None:
            first = len(server.exchanges) == 1
            events = [text(0, "One, "), ended("pause_turn", 3)] if first else [text(0, " two."), ended("end_turn", 4)]
            await saying(started(), *events)(exchange)

        server.behave = pausing
        assert said(await generate(provider)) == "One, two."
    assert server.exchanges[1].body["messages"][-1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "One,"}],
    }


async def test_pauses_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anthropic, "PAUSES_MAX", 2)
    async with connected(saying(started(), text(0, "a"), ended("pause_turn", 1))) as (provider, server):
        with pytest.raises(ProviderFailed, match="more than 2 pauses") as failure:
            await generate(provider)
    assert (failure.value.code, failure.value.retryable) == ("provider-error", True)
    assert len(server.exchanges) == 3


# Continuing


@pytest.mark.parametrize(
    ("prefix", "asked", "answered", "told"),
    [
        ("Once upon a while", "Once upon a while", (" a time",), " a time"),
        ("Once upon a while ", "Once upon a while", (" a time",), "a time"),
        ("Once upon a while ", "Once upon a while", ("a time",), "a time"),
        ("Once upon a while.\n\n", "Once upon a while.", ("\n", "\n", " Then"), " Then"),
        ("Once upon a while.\n\n", "Once upon a while.", ("\nThen",), "Then"),
        ("Once upon a while.\n", "Once upon a while.", (" Then",), " Then"),
        ("Once upon a while.\n", "Once upon a while.", ("\n\n", "\n"), "\n\n"),
        # llama.cpp repeats what it is to continue, and only then goes on.
        ("Once upon a while", "Once upon a while", ("Once upon a while", " there"), " there"),
        ("Once upon a while ", "Once upon a while", ("Once upon ", "a while there"), "there"),
    ],
)
async def test_a_prefix_is_continued_without_white_space_at_its_end_or_twice(
    prefix: str, asked: str, answered: tuple[str, ...], told: str
) -> None:
    """The API refuses a beginning of the answer that ends with white space."""
    events = (started(), text(0, *answered), ended("end_turn", 4))
    async with connected(saying(*events), prefill=True) as (provider, server):
        assert provider.continues(prefix)
        assert said(await generate(provider, turn(prefix=prefix))) == told
    assert server.exchanges[0].body["messages"][-1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": asked}],
    }


async def test_a_server_that_begins_anew_is_found_out_and_so_does_the_turn() -> None:
    begun = saying(started(), text(0, "Once upon a while", " or two"), ended("end_turn", 4))
    async with connected(begun, prefill=True) as (provider, _):
        prefix = "Once upon a while there was"
        assert provider.continues(prefix)
        with pytest.raises(ProviderFailed, match="began anew") as failure:
            await generate(provider, turn(prefix=prefix))
        assert (failure.value.code, failure.value.retryable) == ("provider-error", True)
        assert not provider.continues(prefix)


async def test_only_who_is_known_to_continue_a_prefix_is_asked_to() -> None:
    """Others that have this API, such as llama.cpp and proxies, repeat the text, or begin it anew."""
    prefix = "Once upon a while"
    async with connected(hello) as (provider, _):
        assert not provider.continues(prefix)
    for base_url, configured, continues in (
        ("https://api.anthropic.com", None, True),
        ("https://api.anthropic.com", False, False),
        ("http://127.0.0.1:1", None, False),
        ("http://127.0.0.1:1", True, True),
    ):
        configuration = AnthropicProviderConfiguration(base_url=base_url, prefill=configured)
        async with anthropic.open_client(configuration, None, 1) as client:
            assert AnthropicProvider("a", configuration, client).continues(prefix) is continues


async def test_a_prefix_of_white_space_alone_is_no_message() -> None:
    events = (started(), text(0, "\nOnce"), ended("end_turn", 4))
    async with connected(saying(*events), prefill=True) as (provider, server):
        assert said(await generate(provider, turn(prefix="\n"))) == "Once"
    assert [message["role"] for message in server.exchanges[0].body["messages"]] == ["user"]


async def test_with_thinking_no_prefix_is_continued() -> None:
    async with connected(hello, prefill=True, **DEEP) as (provider, _):
        assert not provider.continues("Once upon a while")


async def test_a_model_that_takes_no_prefix_is_found_out_and_the_turn_begins_anew() -> None:
    async def refusing(exchange: Exchange) -> None:
        said = "This model does not support assistant message prefill. The conversation must end with a user message."
        await exchange.refuse(400, failed("invalid_request_error", said))

    async with connected(refusing, prefill=True) as (provider, _):
        of_pool = PoolProvider(provider, "m", None)
        before = of_pool.continues("Once upon a while")
        with pytest.raises(ProviderFailed) as continued:
            await generate(of_pool, turn(prefix="Once"))
        assert (before, of_pool.continues("Once upon a while")) == (True, False)
        with pytest.raises(ProviderFailed) as begun_by_the_request:
            await generate(of_pool, turn(Message("user", "hi"), Message("assistant", "Once")))
    failure = continued.value
    assert (failure.code, failure.retryable, failure.terminal) == ("provider-error", True, False)
    failure = begun_by_the_request.value
    assert (failure.code, failure.retryable, failure.terminal) == ("provider-bad-request", False, True)
