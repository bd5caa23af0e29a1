"""All services 2, 20 and 120 ms from their broker: commands, waits, takeovers, streams and retention as next to it.

One mesh for all of it, behind one link whose round trip each test sets.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.broker.connection import connect
from mesh.broker.direct_get import journal_exists
from steward.retention import Retention
from tests.support.checker import check, read_stored
from tests.support.clients import Viewer, random_cuts
from tests.support.command_latency import KINDS, TENANT, Commander, Kind, commanding
from tests.support.patience import within
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

DISTANCES = (0.002, 0.02, 0.12)
PER_SECOND = {0.002: 300.0, 0.02: 100.0, 0.12: 300.0}
"""How fast a task is written to at each round trip; from 50 a second on each append of 20 ms meets another one."""
AT_ONCE = 3
EFFECT_SECONDS_MAX = 1.5
"""From the 202 to the effect, beside three round trips: the worst that may be."""
AFTER_LEASE_SECONDS_MAX = 2.0
"""From the end of a lease to the next claim, beside some round trips."""
ROUND_TRIPS = 8
"""Of a claim: the pull, its journal, the claim, and what a model is to be told."""
TOKENS = 600


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def far(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Commander]:
    """The mesh, with two workers and an edge."""
    folder: Path = tmp_path_factory.mktemp("far")
    async with commanding(folder, DISTANCES[0], MESH_ACK_WAIT_SECONDS="2") as commander:
        await commander.mesh.start("inference_worker")
        await commander.mesh.start("stream_edge")
        yield commander
        assert commander.mesh.tracebacks() == []


@pytest_asyncio.fixture(params=DISTANCES, ids=lambda rtt: f"{rtt * 1000:.0f} ms", loop_scope="module")
async def rtt(request: pytest.FixtureRequest, far: Commander) -> float:
    """The round trip, which the link has by now. Seconds."""
    seconds: float = request.param
    await far.set_rtt(seconds)
    return seconds


@pytest.mark.parametrize("kind", KINDS)
async def test_each_command_to_a_task_that_is_written_to_takes_effect(far: Commander, rtt: float, kind: Kind) -> None:
    at_once = 1 if rtt < 0.01 else AT_ONCE
    bound = EFFECT_SECONDS_MAX + 3 * rtt
    took = await asyncio.gather(*(far.measure(kind, PER_SECOND[rtt], effect_seconds=bound) for _ in range(at_once)))
    assert None not in took, "the task ended before it"


async def test_a_dead_worker_is_replaced_and_every_viewer_sees_all_of_it(far: Commander, rtt: float) -> None:
    task, _ = await far.submit({"input": f"!rate 200\n!say {TOKENS}"})
    address = str(far.mesh.settings.edge_address)
    whole, cut = Viewer(address, task), Viewer(address, task)
    following = [asyncio.create_task(whole.follow()), asyncio.create_task(cut.follow(random_cuts(1, 5, 20)))]

    def claims() -> list[dict[str, Any]]:
        return [json.loads(frame.data) for frame in whole.history.frames if frame.type == "step.claimed"]

    await until(lambda: any(frame.type == "output.delta" for frame in whole.history.frames))
    worker = claims()[0]["worker"]
    holder = next(process for process in far.mesh.processes if f"-{process.pid}@" in worker)
    await holder.kill()
    lease_seconds = far.mesh.settings.ack_wait_seconds
    async with within(lease_seconds + AFTER_LEASE_SECONDS_MAX + ROUND_TRIPS * rtt):
        await until(lambda: len(claims()) == 2)
    await holder.start()
    far.recorded.histories += await asyncio.gather(*following)
    assert cut.history.frames == whole.history.frames
    assert json.loads(whole.history.frames[-1].data)["output"] == "".join(f"t{number} " for number in range(TOKENS))
    await judge(far)


async def test_a_task_that_waits_for_two_answers_goes_on_and_is_continued(far: Commander, rtt: float) -> None:
    script = '!call sign\n!call add {"a": 6, "b": 7}\n!ask Which quarter?\n!then\ndone'
    task, _ = await far.submit({"input": script, "tools": ["add", "sign"]})
    viewer = Viewer(str(far.mesh.settings.edge_address), task)
    following = asyncio.create_task(viewer.follow())

    async def both_wait() -> bool:
        told = (await far.client.get(f"/v1/tasks/{task}")).json()
        return bool(told.get("approvals") and told.get("questions"))

    await until(both_wait)
    approval = {"kind": "approval", "call": "1-0", "decision": "approved"}
    for body in (approval, {"kind": "message", "text": "The third"}):
        assert (await far.say(task, body)).status_code == 202
    far.recorded.histories.append(await following)
    assert viewer.history.frames[-1].type == "task.completed"
    assert (await far.say(task, approval)).status_code == 409
    more = {"input": "And the fourth?", "continues": task}
    continued = await far.client.post("/v1/tasks", json=more, headers={"Prefer": "wait=20"}, timeout=30)
    assert (continued.status_code, continued.json()["status"]) == (200, "completed")
    far.recorded.accepted.add(continued.json()["id"])
    await judge(far)


async def test_what_is_old_is_purged(far: Commander, rtt: float) -> None:
    """Last: it takes all tasks of the module."""
    task, milestones = await far.submit({"input": "!say 3"})
    await milestones.first("task.completed")
    await until_no_work_is_left(far.connection)
    assert far.mesh.link is not None
    settings = replace(far.mesh.settings, nats_url=far.mesh.link.url, retention_days=0.0, delta_retention_hours=0.0)
    async with connect(settings, "test") as connection:
        retention = Retention(connection.requests, settings, "test")

        async def purged() -> bool:
            await retention.round()
            return (await far.client.get(f"/v1/tasks/{task}")).status_code == 404

        await until(purged, 60)
    assert not await journal_exists(far.connection.requests, TENANT, task)


async def judge(far: Commander) -> None:
    """Nothing is left over, and the checker has nothing to say."""
    await until_no_work_is_left(far.connection)
    assert check(far.recorded, await read_stored(far.connection.requests)) == []
