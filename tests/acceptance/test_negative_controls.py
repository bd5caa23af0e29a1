"""The checker is kept honest: with a safeguard switched off, it must find what breaks.

Each run here is one that passes elsewhere with all safeguards on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from mesh.broker.connection import connect
from mesh.errors import JournalCorrupt
from mesh.journal.journal import Journal
from tests.acceptance.test_takeover import stored_of, until_claimed
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, post_task, submit
from tests.support.http_client import PatientClient
from tests.support.processes import running_mesh
from tests.support.tasks import append_text, claim_first_turn
from tests.support.waiting import until_no_work_is_left

pytestmark = pytest.mark.acceptance

ROUNDS_MAX = 50
TAKEOVERS_MAX = 6


def kinds(violations: list[str]) -> set[str]:
    """The invariants that are broken."""
    return {violation.partition(":")[0] for violation in violations}


async def test_without_acks_finished_work_stays_in_the_queue(tmp_path: Path) -> None:
    recorded = Recorded()
    async with running_mesh(tmp_path, "ingress", "stream_edge") as mesh, PatientClient() as client:
        await mesh.start("inference_worker", MESH_TEST_SWITCH_OFF="ack")
        for number in range(3):
            task = await submit(client, mesh.ingress_url, recorded, f"task {number}")
            recorded.histories.append(await Viewer(str(mesh.settings.edge_address), task).follow())
        violations = check(recorded, await stored_of(mesh))
        assert kinds(violations) == {"I10"}
        assert any("left in the work queues" in violation for violation in violations)


async def run_with_a_step_taken_over_in_mid_turn(folder: Path, switch_off: str) -> list[str]:
    """A worker streams, and never learns that its lease is gone, while another claims its step and writes."""
    recorded = Recorded()
    variables = {"MESH_ACK_WAIT_SECONDS": "1"}
    async with running_mesh(folder, "ingress", **variables) as mesh, PatientClient() as client:
        # Accepted first: a worker that is there before may begin the journal beside the ingress, unfenced as well.
        task = await submit(client, mesh.ingress_url, recorded, "!rate 100\n!say 300")
        await mesh.start("inference_worker", MESH_TEST_SWITCH_OFF=switch_off)
        async with connect(mesh.settings, "test") as connection:
            await until_claimed(mesh, task)
            successor = await Journal.load(connection.requests, "default", task)
            await claim_first_turn(successor, "successor")
            await append_text(
                successor, "".join(f"t{number} " for number in range(300))[len(successor.state.turn(1).text) :][:7]
            )
            await until_no_work_is_left(connection)
            return check(recorded, await read_stored(connection.requests))


async def test_with_the_fence_a_former_owner_writes_nothing(tmp_path: Path) -> None:
    assert await run_with_a_step_taken_over_in_mid_turn(tmp_path, "") == []


async def test_without_the_fence_a_former_owner_writes_into_its_successors_turn(tmp_path: Path) -> None:
    violations: list[str] = []
    for number in range(TAKEOVERS_MAX):
        folder = tmp_path / str(number)
        folder.mkdir()
        # The successor may be the first to find the journal broken, and then it writes nothing more into it.
        with contextlib.suppress(JournalCorrupt):
            violations = await run_with_a_step_taken_over_in_mid_turn(folder, "fence,watch")
        if {"I4", "I6"} <= kinds(violations):
            break
    assert {"I4", "I6"} <= kinds(violations), violations
    assert any("n is not dense" in violation for violation in violations)


async def test_without_message_ids_a_key_that_is_used_at_once_is_stored_more_than_once(tmp_path: Path) -> None:
    recorded = Recorded()
    async with running_mesh(tmp_path, MESH_TEST_SWITCH_OFF="message_id") as mesh, PatientClient() as client:
        await mesh.start("ingress")
        async with connect(mesh.settings, "test") as connection:
            for number in range(ROUNDS_MAX):
                # The requests race: a round in which each comes after the one before shows nothing.
                client.headers["Idempotency-Key"] = f"key {number}"
                answers = await asyncio.gather(*(post_task(client, mesh.ingress_url, "once") for _ in range(20)))
                recorded.accepted |= {answer.json()["id"] for answer in answers}
                assert len(recorded.accepted) == number + 1
                state = (await connection.requests.api("STREAM.INFO.TASKS"))["state"]
                if state["last_seq"] > number + 1:
                    break
            await mesh.start("inference_worker")
            await until_no_work_is_left(connection)
            violations = check(recorded, await read_stored(connection.requests))
        assert kinds(violations) == {"I10"}, violations
        assert any("TASKS has stored" in violation for violation in violations)


async def test_a_process_with_a_safeguard_off_says_so_in_its_log(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.start("steward", MESH_TEST_SWITCH_OFF="ack,fence")
        said = [line for line in mesh.logs() if line.get("event") == "service.safeguards_off"]
        assert said[0]["off"] == ["ack", "fence"]
    assert "MESH_TEST_SWITCH_OFF" not in os.environ
