"""Models that fail, and limits of pools: real processes, servers on loopback.

Several tasks share a mesh, each in the pool that its scenario needs.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.test_own_model import journal_of, of_type
from tests.support.clients import submit
from tests.support.degradation import TURN_TOKENS, House, calling, events_of, in_turn, mesh_of, only, silent, switches
from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, chunk, openai, usage
from tests.support.patience import stretched
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance


# Failures


async def test_each_failure_of_a_model_has_the_outcome_that_is_named_for_it(tmp_path: Path) -> None:
    begun = "Long enough to be continued: hel"

    async def breaks_off(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": begun}))
        exchange.drop()

    async def rest(exchange: Exchange) -> None:
        goes_on = exchange.body["messages"][-1]["role"] == "assistant"
        await openai(exchange, ("lo",) if goes_on else (begun, "lo"))

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
            # Not where others go on: who has refused is come back to with one turn, and then with more.
            ("limited", "vllm", "limited"),
            ("quota", "main", "quota"),
            ("filtered", "main", "filtered"),
        )
    )
    pools += f"""
    [pools.both_fail]
    provider = "main"
    model = "slow_once"
    fallbacks = [{{ provider = "backup", model = "broken" }}]
    on_slow = "switch"
    slow_seconds = {stretched(0.2)}
    """
    async with mesh_of(tmp_path, house, pools) as (mesh, recorded):
        for pool, restarts in (("restarting", 1), ("continuing", 0)):
            events = await events_of(mesh, recorded, pool=pool)
            assert only(events, "task.retrying")["reason"] == "provider-disconnected"
            assert len(of_type(events, "turn.restarted")) == restarts
            assert only(events, "task.completed")["output"] == f"{begun}lo"

        events = await events_of(mesh, recorded, pool="limited")
        retrying = only(events, "task.retrying")
        assert (retrying["reason"], retrying["delay_seconds"]) == ("rate-limited", 1.0)
        assert only(events, "task.completed")["output"] == "Hello"
        assert len(house.asked("limited")) == 2

        # Who reads the record, or is told by a webhook, can tell that a filter has cut the answer off.
        events = await events_of(mesh, recorded, pool="filtered")
        assert only(events, "turn.completed")["finish_reason"] == "content_filter"
        end = only(events, "task.completed")
        assert (end["output"], end.get("incomplete")) == ("Hel", "content_filter")
        async with PatientClient(base_url=mesh.ingress_url, timeout=20) as client:
            record = (await client.get(f"/v1/tasks/{end['task']}")).json()
            assert (record["status"], record["incomplete"]) == ("completed", "content_filter")

            async def is_listed() -> bool:
                listed = (await client.get("/v1/tasks")).json()["tasks"]
                return ("content_filter", end["task"]) in [(each.get("incomplete"), each["id"]) for each in listed]

            await until(is_listed)

        # The next try begins with the first model again: it may be slow no more.
        events = await events_of(mesh, recorded, pool="both_fail")
        assert switches(events) == [("slow_once", "broken", "latency", 1, "backup")]
        assert only(events, "task.retrying")["reason"] == "provider-error"
        assert [event["model"] for event in of_type(events, "step.claimed")] == ["slow_once", "slow_once"]
        assert only(events, "task.completed")["output"] == "Hello"

        async with PatientClient(base_url=mesh.ingress_url, timeout=20) as client:
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
    deadline_seconds = {stretched(1)}
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
        async with PatientClient(base_url=mesh.ingress_url, timeout=20) as client:
            body = {"input": "hello", "pool": "thrifty", "budget_tokens": 5}
            answers = [
                await client.post("/v1/tasks", json=body, headers={"Idempotency-Key": "k", "Prefer": "wait=20"})
                for _ in range(2)
            ]
        recorded.accepted.add(answers[0].json()["id"])
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        assert answers[0].json()["incomplete"] == "budget"
