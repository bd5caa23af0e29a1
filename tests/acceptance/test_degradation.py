"""Models that are slow, or too small for a conversation: real processes, servers on loopback.

Several tasks share a mesh, each in the pool that its scenario needs.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.test_own_model import journal_of, of_type
from tests.support import messages_server
from tests.support.clients import Viewer, submit
from tests.support.degradation import (
    House,
    at_most,
    calling,
    conversation,
    events_of,
    full,
    hangs_in_mid_turn,
    in_turn,
    mesh_of,
    only,
    said_bytes,
    silent,
    switches,
    types,
)
from tests.support.http_client import PatientClient
from tests.support.model_server import Exchange, openai
from tests.support.patience import stretched, within
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance


# Slow models


async def test_a_slow_model_is_left_hedged_or_waited_for_as_the_pool_says(tmp_path: Path) -> None:
    slow_seconds = stretched(0.2)
    hedged = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        """Answers after its time, once the other one is asked as well."""
        await hedged.wait()
        await openai(exchange, ("la", "te"))

    async def asked_in_vain(exchange: Exchange) -> None:
        hedged.set()
        await silent(exchange)

    async def dawdling(exchange: Exchange) -> None:
        await asyncio.sleep(2.5 * slow_seconds)
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
    slow_seconds = SLOW
    [pools.hedging]
    provider = "main"
    model = "silent"
    fallbacks = [{ provider = "claude", model = "claude" }]
    on_slow = "hedge"
    slow_seconds = SLOW
    [pools.overtaken]
    provider = "main"
    model = "late"
    fallbacks = [{ provider = "backup", model = "vain" }]
    on_slow = "hedge"
    slow_seconds = SLOW
    [pools.waiting]
    provider = "main"
    model = "dawdling"
    fallbacks = [{ provider = "backup", model = "quick" }]
    slow_seconds = SLOW
    """.replace("SLOW", str(slow_seconds))
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
        async with within(10):
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
        async with PatientClient() as client:
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
