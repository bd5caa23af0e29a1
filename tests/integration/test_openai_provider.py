"""The provider against servers on loopback that behave as the real ones do."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from contracts.journal.parts import ToolCall, Usage
from contracts.records.tools import ToolDeclaration
from contracts.tasks import Message
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.openai.messages import reasoning_field
from inference_worker.dialects.openai.messages import roles as roles_of
from inference_worker.models.chunks import Finished, RequestedCall, TextDelta, TurnInput
from mesh.configuration.provider_tables import OpenAIProviderConfiguration
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
        (dialects.llama_cpp, "Hm. Yes.", Usage(9, 4, cached_tokens=4)),
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
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["messages"] == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c00000100", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
                {"id": "c00000101", "type": "function", "function": {"name": "add", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c00000100", "content": "2"},
        {"role": "tool", "tool_call_id": "c00000101", "content": "tool-failed: no"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "thanks"},
    ]


A_CALL = ["user hi", "assistant a\n\nb"]

# Continuing


PREFIX = "Once upon a while "


async def test_a_prefix_is_continued_where_the_server_can() -> None:
    async with connected(dialects.openai, continue_prefix="vllm") as (provider, server):
        assert provider.continues(PREFIX)
        await generate(provider, turn(prefix=PREFIX))
        await generate(provider)
    continued, new = (exchange.body for exchange in server.exchanges)
    assert continued["messages"][-1] == {"role": "assistant", "content": PREFIX}
    assert (continued["continue_final_message"], continued["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in new


def saying(*words: str) -> Behaviour:
    """A server that says these words."""
    return partial(dialects.openai, words=words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("there", " was"), "there was"),
        (("Once upon a while there",), "there"),
        (("Once", " upon", " a while", " ", "there"), "there"),
        (("Once upon a while",), ""),
        # It shares a word or two with the beginning by chance.
        (("Once upon", " a hill"), "Once upon a hill"),
        (("Once",), "Once"),
    ],
)
async def test_a_server_that_repeats_the_text_does_not_double_it(words: tuple[str, ...], told: str) -> None:
    async with connected(saying(*words), continue_prefix="vllm") as (provider, _):
        assert text(await generate(provider, turn(prefix=PREFIX))) == told


@pytest.mark.parametrize(
    "words", [("Once upon a while", " or so"), ("Once upon a while or",), ("Once upon a while t",)]
)
async def test_a_server_that_begins_anew_is_found_out_and_so_does_the_turn(words: tuple[str, ...]) -> None:
    async with connected(saying(*words), continue_prefix="vllm") as (provider, _):
        prefix = "Once upon a while there was a server"
        with pytest.raises(ProviderFailed, match="began anew") as failure:
            await generate(provider, turn(prefix=prefix))
        assert (failure.value.code, failure.value.retryable) == ("provider-error", True)
        assert not provider.continues(prefix), "the next try begins the turn again"


# What servers refuse, and demand


async def body_for(*entries: ConversationItem, tools: tuple[ToolDeclaration, ...] = (), **options: Any) -> Any:
    """What a server is asked."""
    async with connected(dialects.openai, **options) as (provider, server):
        await generate(provider, TurnInput(messages=entries, model="m", tools=tools, max_output_tokens=7))
    return server.exchanges[0].body


HI, CALL = Message("user", "hi"), ToolCall("1-0", "add", {"a": 1})
CALLED = AssistantTurn("", (CALL,), "Hm.", maker="local")
ANSWERED = ToolAnswer("1-0", "add", "2")


async def test_fields_that_a_server_refuses_are_left_out_and_others_added() -> None:
    plain = await body_for(HI, tools=(ADD,))
    assert plain.keys() == {"model", "messages", "stream", "stream_options", "max_tokens", "tools"}
    options = {"stream_options": False, "max_tokens_field": "none", "tool_choice": "auto", "parallel_tool_calls": False}
    other = await body_for(HI, tools=(ADD,), **options)
    assert other.keys() == {"model", "messages", "stream", "tools", "tool_choice", "parallel_tool_calls"}
    assert (other["tool_choice"], other["parallel_tool_calls"]) == ("auto", False)
    without_tools = await body_for(HI, tool_choice="required", parallel_tool_calls=True)
    assert without_tools.keys() == {"model", "messages", "stream", "stream_options", "max_tokens"}


async def test_reasoning_goes_back_with_calls_where_it_is_demanded_and_nowhere_else() -> None:
    """DeepSeek and Kimi refuse a conversation without it; OpenAI, Mistral and Groq one with it."""
    plain = await body_for(HI, CALLED, ANSWERED)
    assert plain["messages"][1].keys() == {"role", "content", "tool_calls"}
    for field in ("reasoning_content", "reasoning"):
        told = await body_for(HI, AssistantTurn("a", (), "Hm."), HI, CALLED, ANSWERED, reasoning_field=field)
        assert told["messages"][1] == {"role": "assistant", "content": "a"}, "of a turn without calls nobody wants it"
        assert told["messages"][3][field] == "Hm."
    other = await body_for(HI, AssistantTurn("", (CALL,)), ANSWERED, reasoning_field="reasoning_content")
    assert other["messages"][1]["reasoning_content"] == " ", "none, as another model made the turn"


async def test_what_came_with_a_call_returns_with_it() -> None:
    """As Gemini demands of its thought signatures: only the first of several calls has one."""
    signed = {"google": {"thought_signature": "c2ln"}}

    async def signing(exchange: Exchange) -> None:
        function = {"name": "add", "arguments": "{}"}
        calls = [
            {"index": 0, "id": "a", "type": "function", "function": function, "extra_content": signed},
            {"index": 1, "id": "b", "type": "function", "function": function},
        ]
        await exchange.begin()
        await exchange.say(*(chunk({"tool_calls": [call]}) for call in calls), chunk({}, "tool_calls"), usage(9, 4))
        await exchange.send(DONE)
        await exchange.end()

    async with connected(signing) as (provider, server):
        finished = (await generate(provider, turn(tools=(ADD,))))[-1]
        assert isinstance(finished, Finished)
        assert finished.blocks == [{"type": "call_fields", "index": 0, "extra_content": signed}]
        server.behave = dialects.openai
        calls = (CALL, ToolCall("1-1", "add", {}))
        told = AssistantTurn("", calls, blocks=tuple(finished.blocks))
        answers = [ANSWERED, ToolAnswer("1-1", "add", "2")]
        await generate(provider, TurnInput(messages=[HI, told, *answers], model="m"))
    first, second = server.exchanges[1].body["messages"][1]["tool_calls"]
    assert first["extra_content"] == signed
    assert "extra_content" not in second


async def test_details_of_reasoning_return_with_the_calls_that_they_came_with() -> None:
    """As OpenRouter demands for the models behind it: a signature comes in the last part of a text."""
    parts: list[dict[str, Any]] = [
        {"type": "reasoning.text", "index": 0, "text": "Hm. ", "format": "anthropic-claude-v1"},
        {"type": "reasoning.text", "index": 0, "text": "Yes.", "signature": None},
        {"type": "reasoning.text", "index": 0, "signature": "c2ln"},
        {"type": "reasoning.encrypted", "index": 1, "data": "ZW5j"},
    ]
    call = {"index": 0, "id": "a", "function": {"name": "add", "arguments": "{}"}}

    async def thinking(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(*(chunk({"content": "", "reasoning_details": [part]}) for part in parts))
        asks = len(exchange.body["messages"]) == 1
        await exchange.say(*([chunk({"tool_calls": [call]})] if asks else []), chunk({"content": "a"}, "stop"))
        await exchange.send(DONE)
        await exchange.end()

    async with connected(thinking) as (provider, server):
        finished = (await generate(provider, turn(tools=(ADD,))))[-1]
        assert isinstance(finished, Finished)
        told = AssistantTurn("", (CALL,), blocks=tuple(finished.blocks or ()))
        last = (await generate(provider, TurnInput(messages=[HI, told, ANSWERED], model="m")))[-1]
        assert isinstance(last, Finished)
    assert last.blocks is None, "without calls nobody needs them"
    whole = {"type": "reasoning.text", "index": 0, "text": "Hm. Yes.", "signature": "c2ln"}
    assert server.exchanges[1].body["messages"][1]["reasoning_details"] == [
        {**whole, "format": "anthropic-claude-v1"},
        {"type": "reasoning.encrypted", "index": 1, "data": "ZW5j"},
    ]


@pytest.mark.parametrize("entry", [AssistantTurn(" \n", (), "Hm."), Message("assistant", "")])
async def test_an_assistant_that_said_nothing_is_left_out(entry: ConversationItem) -> None:
    body = await body_for(HI, entry, Message("user", "bye"), roles="free")
    assert [message["content"] for message in body["messages"]] == ["hi", "bye"]


SYSTEM, BYE = Message("system", "Be brief."), Message("user", "bye")


@pytest.mark.parametrize(
    ("roles", "entries", "told"),
    [
        ("free", [HI, BYE], ["user hi", "user bye"]),
        ("merged", [HI, BYE], ["user hi\n\nbye"]),
        (None, [HI, BYE], ["user hi\n\nbye"]),
        (None, [SYSTEM, SYSTEM, HI], ["system Be brief.\n\nBe brief.", "user hi"]),
        ("merged", [HI, AssistantTurn("a"), AssistantTurn("b", (CALL,)), ANSWERED], [*A_CALL, "tool 2"]),
        (
            "merged",
            [HI, AssistantTurn("", (CALL,)), ANSWERED, BYE],
            ["user hi", "assistant None", "tool 2", "user bye"],
        ),
        (
            "strict",
            [HI, AssistantTurn("", (CALL,)), ANSWERED, BYE, SYSTEM],
            ["system Be brief.", "user hi", "assistant None", "tool 2", "assistant Understood.", "user bye"],
        ),
        ("strict", [Message("assistant", "a"), HI], ["user (no text)", "assistant a", "user hi"]),
    ],
)
async def test_messages_come_in_the_order_of_roles_that_templates_demand(
    roles: str | None, entries: list[ConversationItem], told: list[str]
) -> None:
    body = await body_for(*entries, roles=roles)
    assert [f"{message['role']} {message['content']}" for message in body["messages"]] == told


@pytest.mark.parametrize(
    ("base_url", "order", "field"),
    [
        ("https://api.mistral.ai/v1", "strict", "none"),
        ("https://api.deepseek.com", "merged", "reasoning_content"),
        ("https://api.moonshot.ai/v1", "merged", "reasoning_content"),
        ("http://127.0.0.1:8080/v1", "merged", "none"),
    ],
)
def test_of_some_hosts_it_is_known_what_they_demand(base_url: str, order: str, field: str) -> None:
    configuration = OpenAIProviderConfiguration(base_url=base_url)
    assert (roles_of(configuration), reasoning_field(configuration)) == (order, field)


async def test_a_tool_is_shown_in_a_form_that_every_provider_takes() -> None:
    either = ToolDeclaration(
        name="find", description="Finds.", parameters={"anyOf": [{"properties": {"id": {"type": "integer"}}}]}
    )
    body = await body_for(HI, tools=(either,))
    assert body["tools"][0]["function"]["parameters"] == {
        "type": "object",
        "properties": {"id": {"type": "integer"}},
    }
