"""Models that are slow, fail, or are too small for a conversation: real processes, servers on loopback.

One server stands for all providers; a model's name says how it behaves. Several tasks share a mesh, each in the pool
that its scenario needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh.broker.connection import connect
from tests.acceptance.test_own_model import SERVICES, journal_of, of_type, run_task
from tests.support import messages_server
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, submit
from tests.support.model_server import DONE, Behaviour, Exchange, ModelServer, chunk, model_server, openai, usage
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

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


# Slow models


async def test_a_slow_model_is_left_hedged_or_waited_for_as_the_pool_says(tmp_path: Path) -> None:
    hedged = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        """Answers after its time, once the other one is asked as well."""
        await hedged.wait()
        await openai(exchange, ("la", "te"))

    async def asked_in_vain(exchange: Exchange) -> None:
        hedged.set()
        await silent(exchange)

    async def dawdling(exchange: Exchange) -> None:
        await asyncio.sleep(0.5)
        await openai(exchange)

    house = House(
        silent=silent,
        quick=openai,
        claude=messages_server.hello,
        late=late,
        vain=asked_in_vain,
        dawdling=dawdling,
        last=dawdling,
    )
    pools = """
    [pools.switching]
    provider = "main"
    model = "silent"
    fallbacks = [{ provider = "backup", model = "silent" }, { provider = "backup", model = "last" }]
    on_slow = "switch"
    slow_seconds = 0.2
    [pools.hedging]
    provider = "main"
    model = "silent"
    fallbacks = [{ provider = "claude", model = "claude" }]
    on_slow = "hedge"
    slow_seconds = 0.2
    [pools.overtaken]
    provider = "main"
    model = "late"
    fallbacks = [{ provider = "backup", model = "vain" }]
    on_slow = "hedge"
    slow_seconds = 0.2
    [pools.waiting]
    provider = "main"
    model = "dawdling"
    fallbacks = [{ provider = "backup", model = "quick" }]
    slow_seconds = 0.1
    """
    async with mesh_of(tmp_path, house, pools) as (mesh, recorded):
        events = await events_of(mesh, recorded, pool="switching")
        assert switches(events) == [
            ("silent", "silent", "latency", 1, "backup"),
            ("silent", "last", "latency", 1, "backup"),
        ]
        assert only(events, "task.completed")["output"] == "Hello"
        assert all(exchange.gone.is_set() for exchange in house.asked("silent"))

        events = await events_of(mesh, recorded, pool="hedging")
        assert types(events, "step.claimed", "model.hedged", "model.switched", "output.delta")[:4] == [
            "step.claimed",
            "model.hedged",
            "model.switched",
            "output.delta",
        ]
        hedge = only(events, "model.hedged")
        assert (hedge["turn"], hedge["model"], hedge["provider"]) == (1, "claude", "claude")
        assert switches(events) == [("silent", "claude", "latency", 1, "claude")]
        assert only(events, "task.completed")["output"] == "Hello"
        assert all(exchange.gone.is_set() for exchange in house.asked("silent"))

        events = await events_of(mesh, recorded, pool="overtaken")
        assert only(events, "model.hedged")["model"] == "vain"
        assert switches(events) == []
        assert only(events, "task.completed")["output"] == "late"
        async with asyncio.timeout(10):
            await house.asked("vain")[0].gone.wait()

        events = await events_of(mesh, recorded, pool="waiting")
        assert types(events, "model.switched", "model.hedged") == []
        assert only(events, "task.completed")["output"] == "Hello"
        assert house.asked("quick") == []


# Conversations that are too long


async def test_a_conversation_that_is_too_long_is_switched_compacted_or_fails_as_the_pool_says(tmp_path: Path) -> None:
    async def too_long(exchange: Exchange) -> None:
        said = "prompt is too long: 208310 tokens > 200000 maximum"
        await exchange.refuse(400, messages_server.failed("invalid_request_error", said))

    house = House(
        small=at_most(1000),
        full=full,
        large=in_turn(calling, openai),
        claude=too_long,
    )
    pools = """
    [pools.switching]
    provider = "main"
    model = "full"
    fallbacks = [{ provider = "claude", model = "claude" }, { provider = "backup", model = "large" }]
    [pools.compacting]
    provider = "main"
    model = "small"
    on_context = "compact"
    [pools.in_vain]
    provider = "main"
    model = "full"
    on_context = "compact"
    [pools.failing]
    provider = "main"
    model = "full"
    fallbacks = [{ provider = "backup", model = "large" }]
    on_context = "fail"
    [pools.both]
    provider = "main"
    model = "full"
    fallbacks = [{ provider = "backup", model = "small" }]
    on_context = ["switch", "compact"]
    """
    async with mesh_of(tmp_path, house, pools, "steward") as (mesh, recorded):
        events = await events_of(mesh, recorded, pool="switching")
        assert switches(events) == [
            ("full", "claude", "context", 1, "claude"),
            ("claude", "large", "context", 1, "backup"),
        ]
        # The second turn begins where the first one ended up.
        assert [event["model"] for event in of_type(events, "step.claimed")] == ["full", "large"]
        assert only(events, "task.completed")["output"] == "Hello"
        assert [len(house.asked(model)) for model in ("full", "claude", "large")] == [1, 1, 2]

        long = conversation(31, 100)
        events = await events_of(mesh, recorded, pool="compacting", instructions="Be brief.", input=long)
        compactions = [(event["bytes_before"], event["bytes_kept"]) for event in of_type(events, "context.compacted")]
        assert compactions == [(3109, 1509), (1509, 709)]
        assert only(events, "task.completed")["output"] == "Hello"
        shown = house.asked("small")[-1].body["messages"]
        assert shown == [{"role": "system", "content": "Be brief."}, *long[-7:]]
        assert [said_bytes(exchange) for exchange in house.asked("small")] == [3109, 1509, 709]

        before = len(house.asked("full"))
        events = await events_of(mesh, recorded, pool="in_vain", input=conversation(255, 100))
        assert len(of_type(events, "context.compacted")) == 6
        assert only(events, "task.failed")["error"]["code"] == "context-too-long"
        assert len(house.asked("full")) == before + 7
        events = await events_of(mesh, recorded, pool="in_vain")
        assert types(events, "context.compacted", "task.failed") == ["task.failed"]

        events = await events_of(mesh, recorded, pool="failing")
        assert only(events, "task.failed")["error"]["code"] == "context-too-long"
        assert switches(events) == []

        events = await events_of(mesh, recorded, pool="both", input=long)
        assert types(events, "model.switched", "context.compacted", "task.completed") == [
            "model.switched",
            "context.compacted",
            "context.compacted",
            "task.completed",
        ]


# Failures


async def test_each_failure_of_a_model_has_the_outcome_that_is_named_for_it(tmp_path: Path) -> None:
    async def breaks_off(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "Hel"}))
        exchange.drop()

    async def rest(exchange: Exchange) -> None:
        begun = exchange.body["messages"][-1]["role"] == "assistant"
        await openai(exchange, ("lo",) if begun else ("Hel", "lo"))

    async def limited(exchange: Exchange) -> None:
        await exchange.refuse(429, {"error": {"code": "rate_limit_exceeded"}}, retry_after="1")

    async def used_up(exchange: Exchange) -> None:
        await exchange.refuse(429, {"error": {"code": "insufficient_quota"}}, retry_after="1")

    async def filtered(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "Hel"}), chunk({}, "content_filter"), usage(9, 1))
        await exchange.send(DONE)
        await exchange.end()

    async def broken(exchange: Exchange) -> None:
        await exchange.refuse(500, {"error": {"message": "oh"}})

    house = House(
        breaking=in_turn(breaks_off, rest, breaks_off, rest),
        limited=in_turn(limited, openai),
        quota=used_up,
        filtered=filtered,
        slow_once=in_turn(silent, openai),
        broken=broken,
    )
    pools = "".join(
        f'[pools.{pool}]\nprovider = "{provider}"\nmodel = "{model}"\n'
        for pool, provider, model in (
            ("restarting", "main", "breaking"),
            ("continuing", "vllm", "breaking"),
            ("limited", "main", "limited"),
            ("quota", "main", "quota"),
            ("filtered", "main", "filtered"),
        )
    )
    pools += """
    [pools.both_fail]
    provider = "main"
    model = "slow_once"
    fallbacks = [{ provider = "backup", model = "broken" }]
    on_slow = "switch"
    slow_seconds = 0.2
    """
    async with mesh_of(tmp_path, house, pools) as (mesh, recorded):
        for pool, restarts in (("restarting", 1), ("continuing", 0)):
            events = await events_of(mesh, recorded, pool=pool)
            assert only(events, "task.retrying")["reason"] == "provider-disconnected"
            assert len(of_type(events, "turn.restarted")) == restarts
            assert only(events, "task.completed")["output"] == "Hello"

        events = await events_of(mesh, recorded, pool="limited")
        retrying = only(events, "task.retrying")
        assert (retrying["reason"], retrying["delay_seconds"]) == ("rate-limited", 1.0)
        assert only(events, "task.completed")["output"] == "Hello"
        assert len(house.asked("limited")) == 2

        # What the model's own filter cuts off is the model's answer: nothing is missing of it.
        events = await events_of(mesh, recorded, pool="filtered")
        assert only(events, "turn.completed")["finish_reason"] == "content_filter"
        end = only(events, "task.completed")
        assert (end["output"], end.get("incomplete")) == ("Hel", None)

        # The next try begins with the first model again: it may be slow no more.
        events = await events_of(mesh, recorded, pool="both_fail")
        assert switches(events) == [("slow_once", "broken", "latency", 1, "backup")]
        assert only(events, "task.retrying")["reason"] == "provider-error"
        assert [event["model"] for event in of_type(events, "step.claimed")] == ["slow_once", "slow_once"]
        assert only(events, "task.completed")["output"] == "Hello"

        async with httpx.AsyncClient(base_url=mesh.ingress_url, timeout=20) as client:
            task = await submit(client, mesh.ingress_url, recorded, "hello", pool="quota")

            async def dead_lettered() -> bool:
                return bool((await client.get(f"/v1/tasks/{task}")).json()["status"] == "dead_lettered")

            await until(dead_lettered)
        events = await journal_of(mesh, task)
        assert only(events, "task.dead_lettered")["error"]["code"] == "quota-exhausted"
        assert of_type(events, "task.retrying") == []
        assert len(house.asked("quota")) == 1


# Limits


async def test_a_pools_limits_hold_for_its_tasks_and_end_them_with_what_there_is(tmp_path: Path) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.begin()
        while not exchange.gone.is_set():
            await exchange.say(chunk({"content": "a"}))
            await asyncio.sleep(0.01)

    house = House(endless=endless, calling=calling)
    pools = f"""
    [pools.brief]
    provider = "main"
    model = "endless"
    deadline_seconds = 1
    [pools.thrifty]
    provider = "main"
    model = "calling"
    budget_tokens = {2 * TURN_TOKENS}
    """
    async with mesh_of(tmp_path, house, pools, "steward") as (mesh, recorded):
        events = await events_of(mesh, recorded, pool="brief", deadline_seconds=3600)
        assert only(events, "task.completed")["incomplete"] == "deadline"
        assert set(only(events, "task.completed")["output"]) == {"a"}
        assert only(events, "task.queued")["request"]["deadline_seconds"] == 3600

        events = await events_of(mesh, recorded, pool="thrifty", budget_tokens=1000)
        assert only(events, "task.queued")["budget_tokens"] == 2 * TURN_TOKENS
        assert len(of_type(events, "turn.completed")) == 2
        assert only(events, "task.completed")["incomplete"] == "budget"
        assert [exchange.body["max_tokens"] for exchange in house.asked("calling")] == [2 * TURN_TOKENS, TURN_TOKENS]

        # A request may ask for less; the pool's limits are no part of what was asked.
        async with httpx.AsyncClient(base_url=mesh.ingress_url, timeout=20) as client:
            body = {"input": "hello", "pool": "thrifty", "budget_tokens": 5}
            answers = [
                await client.post("/v1/tasks", json=body, headers={"Idempotency-Key": "k", "Prefer": "wait=20"})
                for _ in range(2)
            ]
        recorded.accepted.add(answers[0].json()["id"])
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        assert answers[0].json()["incomplete"] == "budget"


# Takeovers


@pytest.mark.parametrize("how", ["switched", "compacted"])
async def test_who_takes_a_turn_over_goes_on_with_its_model_and_its_bound(tmp_path: Path, how: str) -> None:
    house = House(full=full, large=in_turn(hangs_in_mid_turn, openai))
    house.models["small"] = in_turn(full, full, hangs_in_mid_turn, openai)
    pools = """
    [pools.switched]
    provider = "main"
    model = "full"
    fallbacks = [{ provider = "backup", model = "large" }]
    [pools.compacted]
    provider = "main"
    model = "small"
    on_context = "compact"
    """
    async with mesh_of(tmp_path, house, pools, MESH_ACK_WAIT_SECONDS="1") as (mesh, recorded):
        async with httpx.AsyncClient() as client:
            task = await submit(client, mesh.ingress_url, recorded, "hello", pool=how, input=conversation(31, 100))
        viewer = Viewer(str(mesh.settings.edge_address), task)
        following = asyncio.create_task(viewer.follow())
        await until(lambda: any("output.delta" in frame for frame in viewer.history.frames))
        asked_before = len(house.server.exchanges)
        await mesh.processes[-1].kill()
        await mesh.start("inference_worker")
        recorded.histories.append(await following)
        events = await journal_of(mesh, task)
        assert only(events, "task.completed")["output"] == "Hello"
        assert only(events, "turn.restarted")["reason"] == "takeover"
        (again,) = house.server.exchanges[asked_before:]
        if how == "switched":
            assert [event["model"] for event in of_type(events, "step.claimed")] == ["full", "large"]
            assert again.body["model"] == "large"
            assert len(switches(events)) == 1
        else:
            assert len(of_type(events, "context.compacted")) == 2
            assert again.body["messages"] == conversation(31, 100)[-7:]
