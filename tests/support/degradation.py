"""Models that degrade: one server on loopback for all providers; a model's name says how it behaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mesh.broker.connection import connect
from tests.acceptance.test_own_model import SERVICES, journal_of, of_type, run_task
from tests.support.checker import Recorded, check, read_stored
from tests.support.model_server import DONE, Behaviour, Exchange, ModelServer, chunk, model_server, openai, usage
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until_no_work_is_left

PROVIDERS = """
[providers.main]
kind = "openai"
base_url = "{openai}"
[providers.backup]
kind = "openai"
base_url = "{openai}"
[providers.vllm]
kind = "openai"
base_url = "{openai}"
continue_prefix = "vllm"
[providers.claude]
kind = "anthropic"
base_url = "{anthropic}"
[pools.default]
"""
TURN_TOKENS = 11
"""What a turn of `openai` uses up, read and put out."""


class House:
    """All models of a test, by name, and what they were asked."""

    def __init__(self, **models: Behaviour) -> None:
        self.models = models
        self.server: ModelServer

    async def behave(self, exchange: Exchange) -> None:
        """As the model that is asked for."""
        await self.models[exchange.body["model"]](exchange)

    def asked(self, model: str) -> list[Exchange]:
        """The requests that a model got."""
        return [exchange for exchange in self.server.exchanges if exchange.body["model"] == model]


@asynccontextmanager
async def mesh_of(
    folder: Path, house: House, pools: str, *services: str, **variables: str
) -> AsyncIterator[tuple[Mesh, Recorded]]:
    """A mesh with these pools, whose journals are judged in the end."""
    recorded = Recorded()
    async with model_server(house.behave) as house.server:
        url = house.server.base_url
        file = folder / "mesh.toml"
        file.write_text(PROVIDERS.format(openai=url, anthropic=url.removesuffix("/v1")) + pools)
        async with running_mesh(folder, *SERVICES, *services, MESH_CONFIG=str(file), **variables) as mesh:
            yield mesh, recorded
            async with connect(mesh.settings, "test") as connection:
                await until_no_work_is_left(connection)
                assert check(recorded, await read_stored(connection.requests)) == []
            assert mesh.tracebacks() == []


async def events_of(mesh: Mesh, recorded: Recorded, text: str = "hello", **extra: object) -> list[dict[str, Any]]:
    """Run a task to its end; its journal."""
    return await journal_of(mesh, await run_task(mesh, recorded, text, **extra))


def only(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (event,) = of_type(events, kind)
    return event


def switches(events: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    names = ("from", "to", "reason", "turn", "provider")
    return [tuple(event.get(name) for name in names) for event in of_type(events, "model.switched")]


def types(events: list[dict[str, Any]], *kinds: str) -> list[str]:
    return [event["type"] for event in events if event["type"] in kinds]


async def silent(exchange: Exchange) -> None:
    """Gives no token, but the head and a comment."""
    await exchange.begin()
    await exchange.send(b": still here\n\n")
    await exchange.gone.wait()


async def full(exchange: Exchange) -> None:
    """The conversation is too long, whatever it is."""
    said = {"message": "This model's maximum context length is 5 tokens", "code": "context_length_exceeded"}
    await exchange.refuse(400, {"error": said})


def at_most(bytes_max: int) -> Behaviour:
    """A model that takes so many bytes, and no more."""

    async def behave(exchange: Exchange) -> None:
        await (openai if said_bytes(exchange) <= bytes_max else full)(exchange)

    return behave


def said_bytes(exchange: Exchange) -> int:
    return sum(len(message["content"] or "") for message in exchange.body["messages"])


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One after the other, and then the last one."""
    left = list(behaviours)

    async def behave(exchange: Exchange) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(exchange)

    return behave


async def calling(exchange: Exchange) -> None:
    """Asks for a tool that there is not, which is answered at once: another turn follows."""
    await exchange.begin()
    call = {"index": 0, "id": "c", "function": {"name": "nothing", "arguments": "{}"}}
    await exchange.say(chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), usage(9, 2))
    await exchange.send(DONE)
    await exchange.end()


async def hangs_in_mid_turn(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.say(chunk({"content": "Hel"}))
    await exchange.gone.wait()


def conversation(messages: int, characters: int) -> list[dict[str, str]]:
    """Of user and assistant in turns; the last one is the user's."""
    roles = ["user" if (messages - at) % 2 else "assistant" for at in range(messages)]
    return [{"role": role, "content": f"{at:<{characters}}"} for at, role in enumerate(roles)]
