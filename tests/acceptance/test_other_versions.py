"""Processes of two versions in one mesh: who does not understand leaves it to another, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.identifiers import new_id, turn_message_id
from contracts.journal.events import Stamp
from mesh.broker.connection import Connection, connect
from mesh.clock import now
from mesh.task.decisions import queued_event
from tests.support.commands import meshctl
from tests.support.http_client import PatientClient
from tests.support.later import FIELD
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.tasks import turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

TASKS = 25


async def start_later(mesh: Mesh, service: str) -> Process:
    """A process of the later version."""
    return await mesh.start("tests.support.later", service)


def later(message: Any) -> bytes:
    """A message with a request as the later version takes it."""
    document = decode(encode(message), dict)
    document["request"][FIELD] = "news"
    return encode(document)


async def accept(connection: Connection, *, with_journal: bool = True) -> str:
    """A task as an ingress of the later version accepts it."""
    work = turn_work(text="!say 1")
    subject = subjects.tasks(work.pool, work.priority, work.tenant)
    await connection.requests.publish(subject, later(work), {headers.MESSAGE_ID: turn_message_id(work.task, 1, 0)})
    if with_journal:
        queued = queued_event(Stamp(new_id(), work.task, work.tenant, 0, now()), work)
        await connection.requests.publish(
            subjects.journal_log(work.tenant, work.task), later(queued), {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"}
        )
    return work.task


async def ended(connection: Connection, task: str) -> bool:
    """Whether a task has ended, whatever version wrote its journal."""
    page = await connection.requests.one(
        "$JS.API.DIRECT.GET.EVENTS", encode({"last_by_subj": subjects.journal_log("default", task)})
    )
    return b'"task.completed"' in page.data


async def test_tasks_of_a_later_version_are_done_by_its_own_worker_beside_an_older_one(tmp_path: Path) -> None:
    # The lot decides who gets a message next: so many deliveries that all of them will not fall to the older one.
    variables = {"MESH_MAX_DELIVER": "20"}
    async with (
        running_mesh(tmp_path, "inference_worker", **variables) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        for _ in range(2):
            await start_later(mesh, "inference_worker")
        tasks = [await accept(connection) for _ in range(TASKS)]

        async def all_ended() -> bool:
            return all([await ended(connection, task) for task in tasks])

        await until(all_ended, 90)
        assert mesh.logs_of("message.left_to_another"), "the older one met some of them"
        assert not mesh.logs_of("message.refused")
        assert mesh.tracebacks() == []


async def test_what_only_older_ones_met_is_put_back_once_a_later_one_is_there(tmp_path: Path) -> None:
    services = ("ingress", "inference_worker")
    async with (
        running_mesh(tmp_path, *services, MESH_MAX_DELIVER="2") as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        task = await accept(connection)

        async def given_up() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await client.get("/v1/dead-letters")).json()["dead_letters"]
            return found

        async def is_given_up() -> bool:
            return bool(await given_up())

        await until(is_given_up)
        [letter] = await given_up()
        assert (letter["error"]["code"], letter["deliveries"]) == ("not-understood", 2)
        await mesh.processes[-1].stop()
        await start_later(mesh, "inference_worker")
        [told] = await meshctl(mesh, "dead-letters", "requeue", str(letter["record_sequence"]))
        assert told["subject"] == "tasks.default.normal.default"

        async def is_ended() -> bool:
            return await ended(connection, task)

        await until(is_ended)
        assert await given_up() == []
        await meshctl(mesh, "dead-letters", "requeue", str(letter["record_sequence"]), status=1)
