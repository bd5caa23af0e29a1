"""Models that take no tools: plain tasks are answered by them all the same, though each turn offers `ask_user`."""

from __future__ import annotations

import pytest

from contracts.records.tools import ASK_USER_DECLARATION, ToolDeclaration
from inference_worker.dialects.errors import ProviderFailed
from tests.support import model_server as dialects
from tests.support.model_server import Exchange, chunk
from tests.support.openai_provider import connected, generate, text, turn

pytestmark = pytest.mark.integration

ADD = ToolDeclaration(name="add", description="Adds.", parameters={"type": "object"}, idempotent=True)
REFUSALS = {
    "Ollama": (400, "registry.ollama.ai/library/gemma3:270m does not support tools"),
    "llama.cpp": (500, "tools param requires --jinja flag"),
    "vLLM": (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
    "OpenRouter": (404, 'No endpoints found that support tool use. Try disabling "ask_user".'),
    "Groq": (400, "`tool calling` is not supported with this model"),
    "LiteLLM": (400, "UnsupportedParamsError: m does not support parameters: ['tools'], for model=m"),
}


@pytest.mark.parametrize("server_name", REFUSALS)
async def test_a_plain_task_is_asked_again_without_ask_user_and_then_at_once_without(server_name: str) -> None:
    status, message = REFUSALS[server_name]

    async def behave(exchange: Exchange) -> None:
        if "tools" in exchange.body:
            await exchange.refuse(status, {"error": {"message": message, "code": status}})
        else:
            await dialects.openai(exchange)

    async with connected(behave) as (provider, server):
        for _ in range(2):
            assert text(await generate(provider, turn(tools=(ASK_USER_DECLARATION,)))) == "Hello"
        assert ["tools" in exchange.body for exchange in server.exchanges] == [True, False, False]
        with pytest.raises(ProviderFailed) as failed:
            await generate(provider, turn(tools=(ADD, ASK_USER_DECLARATION)))
    assert failed.value.detail == message, "who needs a tool is told"


async def test_another_error_is_none_of_tools() -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.refuse(400, {"error": {"message": "max_tokens: must not be above 8"}})

    async with connected(behave) as (provider, server):
        with pytest.raises(ProviderFailed):
            await generate(provider, turn(tools=(ASK_USER_DECLARATION,)))
        assert len(server.exchanges) == 1


async def test_what_fails_behind_the_first_word_is_not_asked_again() -> None:
    """Else it would be said twice."""

    async def behave(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "Hel"}), {"error": {"message": "m does not support tools", "code": 400}})
        await exchange.end()

    async with connected(behave) as (provider, server):
        with pytest.raises(ProviderFailed):
            await generate(provider, turn(tools=(ASK_USER_DECLARATION,)))
        assert len(server.exchanges) == 1
