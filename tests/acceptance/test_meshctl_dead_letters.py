"""`meshctl dead-letters`, as an operator has it: what it shows and replays, and what it leaves when interrupted."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from contracts.identifiers import new_id
from contracts.tasks import TaskRequest
from mesh.broker.connection import Connection, connect
from mesh.journal.journal import Journal
from mesh.task.state import TaskState
from tests.support import children
from tests.support.checker import read_stored
from tests.support.commands import MESHCTL, environment_of, meshctl, started
from tests.support.letters import Letters
from tests.support.processes import ROOT, Mesh, running_mesh
from tests.support.terminal import Terminal
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Bench:
    """An ingress and a steward: what is replayed waits for workers, and so can be looked at."""

    mesh: Mesh
    connection: Connection
    letters: Letters

    async def run(self, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
        """A command below `dead-letters`."""
        return await meshctl(self.mesh, "dead-letters", *arguments, status=status)

    async def on_a_terminal(self, *arguments: str, status: int = 0) -> str:
        """The same on a terminal: what it prints."""
        terminal = Terminal([*MESHCTL, "dead-letters", *arguments], environment_of(self.mesh) | {"NO_COLOR": "1"}, ROOT)
        assert await terminal.run() == status, terminal.output
        return terminal.output.replace("\r\n", "\n")

    async def state(self, journal: Journal) -> TaskState:
        """A journal as it is now, folded."""
        return (await Journal.load(self.connection.requests, journal.state.tenant, journal.state.task)).state

    async def until_status(self, journal: Journal, status: str) -> TaskState:
        """Wait until a task has a status; its state then."""

        async def reached() -> bool:
            return (await self.state(journal)).status == status

        await until(reached)
        return await self.state(journal)

    async def until_replayed(self, journal: Journal, *steps: str) -> TaskState:
        """Wait until these steps go on; the task's state then."""

        async def replayed() -> bool:
            state = await self.state(journal)
            return all(state.gen(step) == 1 for step in steps)

        await until(replayed)
        return await self.state(journal)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One for all."""
    async with (
        running_mesh(tmp_path_factory.mktemp("meshctl"), "ingress", "steward") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        yield Bench(mesh, connection, Letters(connection))
        assert mesh.tracebacks() == []


async def test_a_person_is_told_everything_about_a_task_that_gave_up(bench: Bench) -> None:
    journal = await bench.letters.of_calls("sheet", {"cell": "A1"}, tenant="shown")
    task = journal.state.task
    printed = await bench.on_a_terminal("show", "--tenant", "shown", task)
    for line in (
        f"task        {task}",
        "status      dead_lettered",
        "open        1-0 (gen 0): tool-error",
        "step        1-0 (gen 0), a call of sheet",
        "message     TOOLS 1, tools.sheet",
        "error 1     tool-error: it broke\n            in its own words",
        "· input     hello",
        "worker      test",
        f"journal     EVENTS {journal.state.first_sequence} to {journal.state.revision}",
    ):
        assert line in printed, f"{line} is not in {printed}"
    [shown] = await bench.run("show", "--tenant", "shown", task)
    assert shown["records"][0]["errors"][0]["detail"] == "in its own words"
    assert [each["task"] for each in await bench.run("list", "--tenant", "shown")] == [task]
    listed = await bench.on_a_terminal("list", "--tenant", "shown")
    assert "TASK" in listed
    assert f"{task}  1-0    0    sheet         tool-error" in listed


async def test_the_filters_of_a_list_are_the_servers(bench: Bench) -> None:
    turn = (await bench.letters.of_turn("filtered")).state.task
    call = (await bench.letters.of_calls("sheet", {"cell": "A1"}, tenant="filtered", code="late")).state.task
    [second, first] = await bench.run("list", "--tenant", "filtered")
    for filters, expected in (
        (["--tool", "sheet"], [call]),
        (["--code", "provider-overloaded"], [turn]),
        (["--since", second["time"]], [call]),
        (["--until", second["time"]], [turn]),
        (["--limit", "1"], [call]),
        (["--tool", "sheet", "--code", "provider-overloaded"], []),
    ):
        found = await bench.run("list", "--tenant", "filtered", *filters)
        assert [each["task"] for each in found] == expected, filters
    assert first["step"] == "1"
    assert await bench.run("list", "--tenant", "filtered", "--tool", "A.B", status=1) == []


async def test_a_dry_run_changes_nothing_and_a_replay_what_it_says(bench: Bench) -> None:
    journal = await bench.letters.of_calls("sheet", {"cell": "A1"}, {"cell": "A2"}, tenant="edited")
    task = journal.state.task
    where = ("--tenant", "edited")
    edits = ("--arguments", '{"cell":"B2"}', "--instructions", "Be brief.", "--step", "1-1")
    printed = await bench.on_a_terminal("replay", *where, task, *edits, "--dry-run")
    assert "would go on   1-1 (gen 1)" in printed
    assert '1-1 (sheet)   - {"cell":"A2"}\n              + {"cell":"B2"}' in printed
    assert "instructions  - \n              + Be brief." in printed
    assert "would replay 1, refused 0" in printed
    assert (await bench.state(journal)).revision == journal.state.revision

    [accepted, summary] = await bench.run("replay", *where, task, *edits, "--reason", "a wrong cell")
    assert accepted["steps"] == [{"step": "1-1", "gen": 1}]
    assert (summary["event"], summary["replayed"], summary["refused"]) == ("dead_letters.replayed", 1, 0)
    state = await bench.until_replayed(journal, "1-1")
    assert [(letter.step, letter.gen) for letter in state.open_dead_letters] == [("1-0", 0)]
    asked = state.asked_for("1-1")
    assert asked is not None
    assert asked.arguments == {"cell": "B2"}
    assert state.request == TaskRequest(input="hello", instructions="Be brief.")


async def test_what_is_refused_is_counted_by_its_code(bench: Bench) -> None:
    journal = await bench.letters.of_turn("counted")
    unknown = new_id()
    [accepted, summary] = await bench.run("replay", "--tenant", "counted", journal.state.task, unknown, status=1)
    assert accepted["id"] == journal.state.task
    assert (summary["replayed"], summary["refused"], summary["codes"]) == (1, 1, {"not-found": 1})
    await bench.until_replayed(journal, "1")
    other = await bench.letters.of_turn("counted")
    [summary] = await bench.run("replay", "--tenant", "counted", "--all-matching", "--pool", "nowhere", status=1)
    assert summary["codes"] == {"invalid-request": 1}
    assert (await bench.state(other)).revision == other.state.revision


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--all-matching", "0" * 26],
        ["0" * 26, "--tool", "sheet"],
        ["--all-matching", "--arguments", "[1]"],
        ["--all-matching", "--arguments", "{"],
        ["--all-matching", "--input", ""],
    ],
    ids=str,
)
async def test_a_replay_that_says_nothing_sensible_is_refused(bench: Bench, arguments: list[str]) -> None:
    journal = await bench.letters.of_turn("senseless")
    printed = await bench.run("replay", "--tenant", "senseless", *arguments, status=1)
    assert all(each["replayed"] == 0 for each in printed)
    assert (await bench.state(journal)).revision == journal.state.revision


async def test_an_interrupted_replay_says_how_far_it_came_and_goes_on_when_it_is_run_again(bench: Bench) -> None:
    count = 12
    journals = [await bench.letters.of_turn("interrupted") for _ in range(count)]
    command = ("dead-letters", "replay", "--tenant", "interrupted", "--all-matching", "--rate", "4")
    process = await started(bench.mesh, *command)
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    rest, _ = await process.communicate()
    assert process.returncode == 130
    lines += rest.splitlines()
    summary = json.loads(lines[-1])
    assert 2 <= summary["replayed"] < count
    assert summary["replayed"] + summary["not_tried"] == count
    again = await bench.run(*command[1:-2])
    assert again[-1]["not_tried"] == 0
    for journal in journals:
        await bench.until_replayed(journal, "1")
    stored = await read_stored(bench.connection.requests)
    for journal in journals:
        types = [event.event["type"] for event in stored.journals[journal.state.task]]
        assert types.count("task.replayed") == 1
    assert await bench.run("list", "--tenant", "interrupted") == []


async def test_a_mesh_that_is_not_there_is_said_in_one_line_after_the_count(bench: Bench) -> None:
    nowhere = environment_of(bench.mesh) | {"MESH_INGRESS_URL": "http://127.0.0.1:9"}
    ended = await children.run([*MESHCTL, "dead-letters", "replay", "0" * 26], nowhere)
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["not_tried"] == 1
    assert ended.stderr.startswith("meshctl: unreachable: ")
    assert ended.stderr.count("\n") == 1


async def test_tasks_and_messages_are_given_up(bench: Bench) -> None:
    journal = await bench.letters.of_turn("dropped")
    await bench.letters.of_rubbish("dropped")
    [rubbish, _] = await bench.run("list", "--tenant", "dropped")
    number = str(rubbish["record_sequence"])
    assert "a message that was no work" in await bench.on_a_terminal("show", "--tenant", "dropped", number)
    printed = await bench.on_a_terminal("drop", "--tenant", "dropped", journal.state.task, number)
    assert printed == f"{journal.state.task} will be given up\nmessage {number} is deleted\n"
    state = await bench.until_status(journal, "cancelled")
    assert "given up" in str(getattr(state.terminal, "reason", None))

    async def nothing_is_open() -> bool:
        return await bench.run("list", "--tenant", "dropped") == []

    await until(nothing_is_open)
    assert [each["open"] for each in await bench.run("list", "--tenant", "dropped", "--all")] == [False]
