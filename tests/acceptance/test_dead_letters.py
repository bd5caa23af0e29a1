"""Dead letters from end to end: real processes give up, people repair, and the same tasks go on."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from contracts.tasks import TaskRequest
from mesh.broker.connection import Connection, connect
from mesh.journal.submission import Submission
from tests.support.agents import Agents
from tests.support.checker import Recorded, Stored, check, read_stored
from tests.support.clients import Viewer
from tests.support.commands import meshctl
from tests.support.http_client import PatientClient
from tests.support.ledger import FOLDER_VARIABLE
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

CRASHES = {"MESH_ACK_WAIT_SECONDS": "1", "MESH_MAX_DELIVER": "3", "MESH_SCRIPTED_ALLOW_EXIT": "1"}
SUBMITTED_AT_ONCE = 32
SUPERVISED_SECONDS = 600


def types_of(stored: Stored, task: str) -> Counter[str]:
    """How many events of each type a journal has."""
    return Counter(event.event["type"] for event in stored.journals.get(task, []))


# A process that dies of its task


@asynccontextmanager
async def crashing_workers(mesh: Mesh) -> AsyncIterator[None]:
    """Workers that come back whenever one has died, as a supervisor sees to it."""

    async def supervise() -> None:
        worker = await mesh.start("inference_worker")
        while True:
            await until(lambda: not worker.is_running, SUPERVISED_SECONDS)
            with suppress(RuntimeError):  # It has died before it could say that it serves.
                await worker.start()

    supervising = asyncio.create_task(supervise())
    try:
        yield
    finally:
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)


@pytest.mark.parametrize("steward_meanwhile", [True, False], ids=["steward", "steward later"])
async def test_a_poison_task_is_a_dead_letter_and_goes_on_once_it_is_repaired(
    tmp_path: Path, steward_meanwhile: bool
) -> None:
    recorded = Recorded()
    async with (
        running_mesh(tmp_path, "ingress", "stream_edge", **CRASHES) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        agents = Agents(connection)
        if steward_meanwhile:
            await mesh.start("steward")
        poison = (await client.post("/v1/tasks", json={"input": "!exit 99\n!say 10"})).json()["id"]
        viewer = Viewer(str(mesh.settings.edge_address), poison)
        following = asyncio.create_task(viewer.follow(seconds=120))
        async with crashing_workers(mesh):

            async def deliveries_are_used_up() -> bool:
                stored = await read_stored(connection.requests)
                return types_of(stored, poison)["step.claimed"] == 3

            await until(deliveries_are_used_up, 60)
            # Others are served on, by the same workers.
            others = [await agents.submit(f"hello {number}") for number in range(5)]
            for other in others:
                await agents.until_status(other, "completed", 60)
            if not steward_meanwhile:
                assert (await agents.state(poison)).status == "running"
                await mesh.start("steward")
            state = await agents.until_status(poison, "dead_lettered", 60)
            assert [letter.error.code for letter in state.open_dead_letters] == ["deliveries-exhausted"]
            await until_no_work_is_left(connection)
            [letter] = (await client.get("/v1/dead-letters")).json()["dead_letters"]
            assert (letter["task"], letter["step"], letter["deliveries"]) == (poison, "1", 3)
            assert not following.done()

            edits = {"edits": {"input": "hello at last"}, "reason": "the poison is out"}
            answer = await client.post(f"/v1/dead-letters/{poison}/replay", json=edits)
            assert answer.status_code == 202, answer.text
            recorded.histories.append(await following)
            await until_no_work_is_left(connection)
        assert viewer.connections == 1, "the first stream was open all the time"
        assert viewer.history.frames[-1].type == "task.completed"
        stored = await read_stored(connection.requests)
        counts = types_of(stored, poison)
        assert (counts["task.dead_lettered"], counts["task.replayed"], counts["task.completed"]) == (1, 1, 1)
        assert "hello at last" in stored.journals[poison][-1].event["output"]
        assert (await client.get("/v1/dead-letters")).json()["dead_letters"] == []
        recorded.accepted.update({poison, *others})
        assert check(recorded, stored) == []


# Many of them


async def submit_many(connection: Connection, count: int) -> list[str]:
    """Tasks that call the ledger once each, under a name of their own."""
    submission = Submission(connection.requests)
    room = asyncio.Semaphore(SUBMITTED_AT_ONCE)

    async def one(number: int) -> str:
        async with room:
            request = TaskRequest(input=f'!call charge {{"key": "k{number}"}}', tools=["charge"])
            return (await submission.submit(request, "default", None, None)).task

    tasks = await asyncio.gather(*(one(number) for number in range(count)))
    await submission.close()
    return tasks


async def letters_stored(connection: Connection) -> int:
    return int((await connection.requests.api("STREAM.INFO.DEAD_LETTERS"))["state"]["messages"])


async def ledger(mesh: Mesh, folder: Path) -> Process:
    """A runner of the tool, once it is declared."""
    return await mesh.start("tests.support.ledger", **{FOLDER_VARIABLE: str(folder)})


async def test_a_thousand_dead_letters_of_one_tool_are_replayed_by_one_command_once_each(tmp_path: Path) -> None:
    count, rate = 1_000, 150
    folder = tmp_path / "ledger"
    folder.mkdir()
    broken, executions = folder / "broken", folder / "executions"
    broken.touch()
    async with (
        running_mesh(tmp_path, "ingress", "steward", "inference_worker", MESH_MAX_TRIES="1") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        await ledger(mesh, folder)
        tasks = await submit_many(connection, count)
        other = await Agents(connection).submit("!fail overloaded 9")

        async def all_gave_up() -> bool:
            return await letters_stored(connection) == count + 1

        await until(all_gave_up, 60)
        await until_no_work_is_left(connection)
        assert not executions.exists()
        broken.unlink()

        command = ("dead-letters", "replay", "--all-matching", "--tool", "charge", "--rate", str(rate))
        began_at = time.monotonic()
        *accepted, summary = await meshctl(mesh, *command, "--reason", "the ledger is open")
        seconds = time.monotonic() - began_at
        assert {each["id"] for each in accepted} == set(tasks)
        assert (len(accepted), summary["replayed"], summary["refused"]) == (count, count, 0)
        # Its bound, which says nothing of how fast a machine is.
        assert count / seconds <= rate

        async def all_ended() -> bool:
            return len(executions.read_text().splitlines()) >= count if executions.exists() else False

        await until(all_ended, 60)
        await until_no_work_is_left(connection)
        stored = await read_stored(connection.requests)
        assert Counter(executions.read_text().split()) == Counter(f"k{number}" for number in range(count))
        wanted = ("task.dead_lettered", "task.replayed", "tool.completed", "task.completed", "tool.failed")
        for task in tasks:
            counts = types_of(stored, task)
            assert [counts[name] for name in wanted] == [1, 1, 1, 1, 0], task
        assert check(Recorded(accepted={*tasks, other}), stored) == []
        # What the filter left out is as it was, and a second run finds nothing to do.
        assert [each["task"] for each in await meshctl(mesh, "dead-letters", "list")] == [other]
        assert (await meshctl(mesh, *command))[-1]["replayed"] == 0
