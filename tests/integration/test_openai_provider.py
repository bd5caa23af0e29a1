"""The provider against servers on loopback that behave as the real ones do."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from contracts.journal.parts import ToolCall, Usage
from contracts.records.tools import ToolDeclaration
from contracts.tasks import Message
from inference_worker.models.chunks import Finished, RequestedCall, TextDelta, TurnInput
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer
from tests.support import model_server as dialects
from tests.support.model_server import DONE, Behaviour, Exchange, chunk, event, usage
from tests.support.openai_provider import KEY, connected, generate, reasoning, text, turn
from tests.support.patience import within

pytestmark = pytest.mark.integration


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
        messages: list[ConversationItem] = [Message("system", "Be brief."), Message("user", "hi")]
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

    async with connected(halting) as (provider, _), within(20), aclosing(provider.stream(turn())) as chunks:
        assert await anext(chunks) == TextDelta("a")
        asked_for_more.set()
        assert [each async for each in chunks] == [TextDelta("b"), Finished(finish_reason="length", usage=Usage())]


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
    entries: list[ConversationItem] = [
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
