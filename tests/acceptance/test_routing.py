"""Pools that choose among their models: real processes, and servers on loopback that are slow, fail and recover."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mesh.broker.connection import connect
from tests.support.checker import Recorded, Stored, check, read_stored
from tests.support.choosing import Asked, Load, Remembering, Server, configured
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, chunk, model_server, usage
from tests.support.patience import stretched
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

SERVICES = ("ingress", "stream_edge", "steward", "inference_worker", "inference_worker")
AT_ONCE = 6
WINDOW = 12
"""Calls that a share is taken of."""
MOST = 10
TURNS = 4


async def stored_of(mesh: Mesh, recorded: Recorded) -> Stored:
    """What there is in the end, judged."""
    async with connect(mesh.settings, "test") as connection:
        await until_no_work_is_left(connection)
        stored = await read_stored(connection.requests)
    assert check(recorded, stored) == []
    assert mesh.tracebacks() == []
    assert stored.dead_letters == []
    return stored


async def test_turns_leave_a_provider_that_is_slow_or_fails_and_come_back_once_it_has_recovered(tmp_path: Path) -> None:
    asked: list[Asked] = []
    quick, steady = Server("quick", asked, stretched(0.1)), Server("steady", asked, stretched(0.4))
    recorded = Recorded()

    def gets_most(name: str) -> bool:
        return sum(each.server == name for each in asked[-WINDOW:]) >= MOST

    async def leads(name: str) -> None:
        """Wait until this one gets most of what comes from now on."""
        begin = len(asked)
        await until(lambda: len(asked) >= begin + WINDOW and gets_most(name), seconds=60)

    pools = """
    [pools.default]
    provider = "steady"
    model = "m"
    fallbacks = [{ provider = "quick", model = "m" }]
    prefer = "latency"
    wait_seconds = 3600
    """
    async with model_server(quick) as one, model_server(steady) as other:
        variables = configured(tmp_path, {"quick": one, "steady": other}, pools)
        async with running_mesh(tmp_path, *SERVICES, **variables) as mesh:
            load = Load(mesh, recorded)
            async with load.under_way(AT_ONCE):
                await leads("quick")
                quick.seconds *= 12
                await leads("steady")
                quick.seconds /= 12
                await leads("quick")
                quick.fails = True
                await leads("steady")
                quick.fails = False
                await leads("quick")
            stored = await stored_of(mesh, recorded)
    assert {record["status"] for record in stored.records.values()} == {"completed"}
    events = [stored_event.event for journal in stored.journals.values() for stored_event in journal]
    claims = [event for event in events if event["type"] == "step.claimed"]
    words = {claim["reason"].split()[0] for claim in claims}
    # One that has recovered is found by exploring, or, where its breaker was open, by the probe.
    assert {"best"} < words <= {"best", "near", "explore", "probe", "only", "resumed", "none-available"}
    assert not any(event["type"] == "model.switched" and event["reason"] != "unavailable" for event in events)


async def test_the_cheapest_that_meets_the_deadline_gets_the_turns(tmp_path: Path) -> None:
    asked: list[Asked] = []
    slow_seconds = stretched(3.0)
    cheap, dear = Server("cheap", asked, slow_seconds), Server("dear", asked, 0.0)
    recorded, gone_to = Recorded(), list[str]()
    pools = """
    [providers.cheap.prices."*"]
    input = 1.0
    output = 2.0
    [providers.dear.prices."*"]
    input = 5.0
    output = 10.0
    [pools.default]
    provider = "dear"
    model = "m"
    fallbacks = [{ provider = "cheap", model = "m" }]
    prefer = "cost"
    """
    async with model_server(cheap) as one, model_server(dear) as other:
        variables = configured(tmp_path, {"cheap": one, "dear": other}, pools)
        async with running_mesh(tmp_path, *SERVICES, **variables) as mesh, PatientClient(timeout=30) as client:
            patient = Load(mesh, recorded)
            await asyncio.gather(*(patient.one(client) for _ in range(24)))
            hurried = Load(mesh, recorded, deadline_seconds=slow_seconds * 0.9)
            # The first ones find out that the dear one is quick, and now and then one tries the cheap one again. Some
            # may come too late to be claimed at all: no time counts here, but where calls go.
            for _ in range(60):
                since = len(asked)
                await hurried.one(client)
                gone_to += [each.server for each in asked[since:]]
                if gone_to[-WINDOW:].count("dear") >= MOST:
                    break
            stored = await stored_of(mesh, recorded)
    assert gone_to[-WINDOW:].count("dear") >= MOST
    costs = [stored.records[task]["usage"]["cost_micros"] for task in patient.tasks]
    # One or two may have been spent on finding out what the dear one does.
    reasons = Counter(claim["reason"].split()[0] for task in patient.tasks for claim in claims_of(stored, task))
    assert costs.count(200) >= 0.75 * len(costs), reasons
    events = [each.event for task in hurried.tasks for each in stored.journals[task]]
    claims = [event for event in events if event["type"] == "step.claimed" and event["provider"] == "dear"]
    assert all(" cost_micros=5" in claim["reason"] for claim in claims)


async def test_tasks_stay_where_their_prompt_was_read_and_another_preference_holds_without_a_restart(
    tmp_path: Path,
) -> None:
    """Two servers that are alike, each with a cache of prompts: without staying half of what was read is read again."""
    asked: list[Asked] = []
    one, other = (Remembering(name, asked, TURNS, stretched(0.0006)) for name in ("one", "other"))
    recorded, file = Recorded(), tmp_path / "mesh.toml"
    pools = """
    [pools.default]
    provider = "one"
    model = "m"
    fallbacks = [{ provider = "other", model = "m" }]
    prefer = "latency"
    """
    async with model_server(one) as first, model_server(other) as second:
        variables = configured(tmp_path, {"one": first, "other": second}, pools)
        async with running_mesh(tmp_path, *SERVICES, **variables) as mesh, PatientClient(timeout=30) as client:
            load, text = Load(mesh, recorded), file.read_text()

            async def some(count: int) -> list[str]:
                return await asyncio.gather(
                    *(load.one(client, f"{len(load.tasks)}.{number} " * 2_000) for number in range(count))
                )

            async def taken(prefer: str) -> None:
                file.write_text(text.replace('"latency"', f'"{prefer}"'))
                for worker in mesh.processes[-2:]:
                    worker.signal(signal.SIGHUP)
                    await until(lambda worker=worker: "configuration.taken" in worker.log.read_text())  # type: ignore[misc]  # mypy can't infer it

            chosen = [*await some(6), *await some(6)]
            in_cache = one.cached_tokens + other.cached_tokens, one.repeated_tokens + other.repeated_tokens
            under_way = asyncio.create_task(some(2))
            before = len(asked)
            await until(lambda: len(asked) > before)
            await taken("order")
            await under_way
            ordered = await some(4)
            file.write_text(text.replace('"latency"', '"cost"'))
            mesh.processes[-1].signal(signal.SIGHUP)
            await until(lambda: "prefer: cost needs the prices" in mesh.processes[-1].log.read_text())
            still_ordered = await some(1)
            stored = await stored_of(mesh, recorded)
    turns = [claims_of(stored, task) for task in chosen]
    later = [(claim, before) for claims in turns for before, claim in itertools.pairwise(claims)]
    stayed = [claim for claim, before in later if claim["provider"] == before["provider"]]
    assert len(later) == len(chosen) * (TURNS - 1)
    assert len(stayed) >= 0.7 * len(later)
    assert sum(claim["reason"].startswith("prefix ") for claim in stayed) >= 0.5 * len(later)
    assert {claims[0]["provider"] for claims in turns} == {"one", "other"}
    # What was read before is most of what is read, and the journals have it as the servers have told it.
    assert in_cache[0] >= 0.65 * in_cache[1] > 0
    told = [
        each.event for journal in stored.journals.values() for each in journal if each.event["type"] == "turn.completed"
    ]
    assert sum(event["usage"].get("cached_tokens", 0) for event in told) == one.cached_tokens + other.cached_tokens
    places = {
        (claim["provider"], claim["reason"]) for task in [*ordered, *still_ordered] for claim in claims_of(stored, task)
    }
    assert places == {("one", "first")}


def claims_of(stored: Stored, task: str) -> list[dict[str, Any]]:
    """The claims of a task, in order."""
    return [each.event for each in stored.journals[task] if each.event["type"] == "step.claimed"]


async def test_who_takes_a_turn_over_goes_on_with_the_text_where_it_was_begun_and_a_refusal_is_no_failure(
    tmp_path: Path,
) -> None:
    """Of two servers one has begun the text, and the other has no quota left, which costs a call and no more."""
    recorded, begun = Recorded(), "Once upon a while somebody said hel"
    killed = asyncio.Event()

    async def tells(exchange: Exchange) -> None:
        await exchange.begin()
        if not killed.is_set():
            await exchange.say(chunk({"content": begun}))
            await exchange.gone.wait()
            return
        goes_on = exchange.body["messages"][-1]["role"] == "assistant"
        await exchange.say(chunk({"content": "lo" if goes_on else f"{begun}lo"}), chunk({}, "stop"), usage(9, 1))
        await exchange.send(DONE)
        await exchange.end()

    async def has_no_quota(exchange: Exchange) -> None:
        await exchange.refuse(429, {"error": {"message": "no money left", "code": "insufficient_quota"}})

    pools = """
    [pools.default]
    provider = "poor"
    model = "m"
    fallbacks = [{ provider = "teller", model = "m" }]
    prefer = "latency"
    """
    async with model_server(tells) as one, model_server(has_no_quota) as other:
        variables = configured(tmp_path, {"teller": one, "poor": other}, pools, 'continue_prefix = "vllm"')
        async with (
            running_mesh(tmp_path, *SERVICES[:4], MESH_ACK_WAIT_SECONDS="1", **variables) as mesh,
            PatientClient(timeout=30) as client,
        ):
            task = await submit(client, mesh.ingress_url, recorded, "hello")
            viewer = Viewer(str(mesh.settings.edge_address), task)
            following = asyncio.create_task(viewer.follow())
            await until(lambda: any("output.delta" in frame for frame in viewer.history.frames))
            killed.set()
            await mesh.processes[-1].kill()
            await mesh.start("inference_worker")
            recorded.histories.append(await following)
            stored = await stored_of(mesh, recorded)
    assert stored.records[task]["output"] == f"{begun}lo"
    events = [each.event for each in stored.journals[task]]
    claims = [event for event in events if event["type"] == "step.claimed"]
    assert (claims[-1]["provider"], claims[-1]["reason"]) == ("teller", "resumed")
    kinds = {event["type"] for event in events}
    assert not kinds & {"turn.restarted", "task.retrying", "task.dead_lettered"}
    switches = [(event["provider"], event["reason"]) for event in events if event["type"] == "model.switched"]
    assert switches == ([] if claims[0]["provider"] == "teller" else [("teller", "unavailable")])
