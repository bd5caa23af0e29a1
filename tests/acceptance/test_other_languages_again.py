"""Replays and timers in three languages: journals written by hand, with nobody else at work on them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio

from contracts import headers, subjects
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.identifiers import call_message_id
from contracts.journal import events, parts
from contracts.journal.events import StepClaimed, ToolCompleted
from contracts.messages.work import ToolWork, TurnWork, decode_work
from mesh.broker.connection import connect
from mesh.broker.direct_get import read_page
from mesh.journal.journal import Journal
from mesh.task.decisions import queued_event
from mesh.task.outbox import messages_after, messages_to_go_on
from tests.support.checker import Recorded, check_journal, read_stored
from tests.support.guarded import STRANGERS
from tests.support.other_languages import ANSWERS, COMMANDS, TEXT, TOOLS, Tools, broken_schemas
from tests.support.processes import running_mesh
from tests.support.tasks import claim_first_turn, turn_work
from tests.support.waiting import until

ODD_SECONDS = "8.418"
"""A lease that is no whole number of nanoseconds in binary floating point: 8417999999.999999."""

pytestmark = [STRANGERS, pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]
SERVED = {"python": "add", **TOOLS}
ASKED: dict[str, dict[str, Any]] = {
    "python": {"a": 40, "b": 2},
    "go": {"file": "notes.txt"},
    "typescript": {"file": "notes.txt"},
}
RESULTS: dict[str, Any] = {"python": 42, **ANSWERS}
WRONG: dict[str, dict[str, Any]] = {
    "python": {"a": 1, "b": 1},
    "go": {"file": "wrong.txt"},
    "typescript": {"file": "wrong.txt"},
}
"""What the call was asked with, and must not be run with any more: its file is there."""
ELSEWHERE = 999_999
"""A message that is in no queue."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runners(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tools]:
    """Runners in Python, Go and TypeScript on a broker, and no other service."""
    for command in COMMANDS.values():
        await asyncio.to_thread(command)
    folder = tmp_path_factory.mktemp("runners")
    async with (
        running_mesh(folder, "tool_runner") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        mesh.environment["MESH_ACK_WAIT_SECONDS"] = ODD_SECONDS
        files = folder / "files"
        files.mkdir()
        (files / "notes.txt").write_text(TEXT)
        (files / "wrong.txt").write_text("wrong")
        running = Tools(mesh, connection, files, Recorded(), {})
        try:
            await until(running.add_is_declared)
            for language in COMMANDS:
                await running.start(language)
            yield running
            stored = await read_stored(connection.requests)
            assert broken_schemas(stored) == []
            assert [problem for each in stored.journals.values() for problem in check_journal(each, quiet=False)] == []
            assert mesh.tracebacks() == []
        finally:
            statuses = [await foreign.stop() for foreign in running.foreign.values()]
    assert statuses == [0] * len(statuses)


async def asked_for(runners: Tools, language: str, arguments: dict[str, Any]) -> Journal:
    """A journal whose first turn asks for a call of the language's tool; somebody has claimed it, and is gone."""
    work = turn_work()
    journal = Journal(runners.connection.requests, work.tenant, work.task)
    await write(journal, lambda stamp: queued_event(stamp, work))
    await claim_first_turn(journal, "test")
    call = parts.ToolCall("1-0", SERVED[language], arguments)
    await write(
        journal,
        lambda stamp: events.TurnCompleted(
            *stamp,
            turn=1,
            text="",
            calls=[call],
            finish_reason="tool_calls",
            usage=parts.Usage(),
            timings=parts.Timings(),
        ),
    )
    await write(
        journal,
        lambda stamp: StepClaimed(
            *stamp,
            step="1-0",
            gen=0,
            message=ELSEWHERE,
            worker="test",
            delivery=1,
            turn=1,
            call="1-0",
            tool=SERVED[language],
        ),
    )
    return journal


async def write(journal: Journal, build: Callable[[events.Stamp], events.JournalEvent]) -> None:
    await journal.append(build, lambda _: True)


def call_work(journal: Journal, language: str, gen: int) -> ToolWork:
    """The call's message. Its arguments are those that it was asked with: those of the journal count."""
    return ToolWork(
        task=journal.state.task,
        tenant="default",
        turn=1,
        call="1-0",
        gen=gen,
        tool=SERVED[language],
        arguments=WRONG[language],
    )


async def send_call(runners: Tools, work: ToolWork, message_id: str) -> int:
    """Publish a call; its message's sequence."""
    message_headers = {headers.MESSAGE_ID: message_id}
    return (await runners.connection.requests.publish(subjects.tools(work.tool), encode(work), message_headers)).seq


async def until_answered(runners: Tools) -> None:
    """Wait until no call lies in its queue."""

    async def answered() -> bool:
        info = await runners.connection.requests.api("STREAM.INFO.TOOLS")
        return bool(info["state"]["messages"] == 0)

    await until(answered)


async def next_turns(runners: Tools, task: str) -> list[tuple[str, TurnWork]]:
    """The messages of a task's turns that wait in TURNS, and their subjects."""
    page = await read_page(runners.connection.requests, "TURNS", "turns.>", 0)
    works = [(each.subject, decode_work(each.payload, each.subject)) for each in page.messages]
    return [(subject, work) for subject, work in works if isinstance(work, TurnWork) and work.task == task]


@pytest.mark.parametrize("language", SERVED)
async def test_a_replayed_call_is_run_with_the_edited_arguments_and_leads_on_in_the_edited_pool(
    runners: Tools, language: str
) -> None:
    journal = await asked_for(runners, language, WRONG[language])
    state = journal.state
    await write(
        journal,
        lambda stamp: events.TaskDeadLettered(
            *stamp, step="1-0", gen=0, error=ErrorInfo("deliveries-exhausted", "test"), deliveries=10
        ),
    )
    edits = parts.RecordedEdits(pool="other", arguments={"1-0": ASKED[language]})
    await write(
        journal,
        lambda stamp: events.TaskReplayed(*stamp, steps=[parts.StepGen("1-0", 0)], by="somebody", edits=edits),
    )
    before = state.revision
    await send_call(runners, call_work(journal, language, 0), call_message_id(state.task, 1, "1-0", 0))
    await until_answered(runners)
    assert (await runners.state(state.task)).revision == before, "the message of before the replay stands for nothing"

    sequence = await send_call(runners, call_work(journal, language, 1), call_message_id(state.task, 1, "1-0", 1))
    await until_answered(runners)
    state = await runners.state(state.task)
    result = state.call_results["1-0"]
    assert isinstance(result, ToolCompleted)
    assert result.result == RESULTS[language]
    assert (state.claims["1-0", 1].message, state.claim_counts["1-0", 1]) == (sequence, 1)
    ((subject, turn),) = await next_turns(runners, state.task)
    assert subject == subjects.turns("other", "normal", "default")
    assert (turn.turn, turn.gen, turn.pool) == (2, 0, "other")


@pytest.mark.parametrize("language", SERVED)
async def test_a_call_that_a_timer_brings_again_is_claimed_under_its_new_message(runners: Tools, language: str) -> None:
    journal = await asked_for(runners, language, ASKED[language])
    # By the clock here its time has not come: what the timer has brought is due all the same.
    await write(journal, lambda stamp: retrying(stamp, delay_seconds=3600))
    (again,) = messages_to_go_on(journal.state, "1-0")
    assert isinstance(again.payload, ToolWork)
    sequence = await send_call(runners, again.payload, again.message_id)
    await until_answered(runners)
    state = await runners.state(journal.state.task)
    result = state.call_results["1-0"]
    assert isinstance(result, ToolCompleted)
    assert result.result == RESULTS[language]
    assert state.claims["1-0", 0].message == sequence
    ((_, turn),) = await next_turns(runners, state.task)
    assert (turn.turn, turn.pool) == (2, "default")


@pytest.mark.parametrize("language", SERVED)
async def test_a_call_before_its_time_leaves_its_queue_and_its_timer_is_there(runners: Tools, language: str) -> None:
    """Whoever appended the retry died before it could publish the timer, and its message comes back."""
    journal = await asked_for(runners, language, ASKED[language])
    await write(journal, lambda stamp: retrying(stamp, delay_seconds=3600))
    before = journal.state.revision
    await send_call(runners, call_work(journal, language, 0), call_message_id(journal.state.task, 1, "1-0", 0))
    await until_answered(runners)
    state = await runners.state(journal.state.task)
    assert state.revision == before, "it is not claimed"
    (due,) = messages_after(state, "1-0")
    assert due.fires_on is not None
    stored = await runners.connection.requests.api("STREAM.MSG.GET.TIMERS", {"last_by_subj": due.subject})
    assert json.loads(base64.b64decode(stored["message"]["data"])) == json.loads(encode(due.payload))
    lines = base64.b64decode(stored["message"]["hdrs"]).decode().splitlines()
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    assert fields[headers.MESSAGE_ID] == due.message_id
    assert fields[headers.SCHEDULE_TARGET] == due.fires_on
    at = datetime.fromisoformat(fields[headers.SCHEDULE].removeprefix("@at "))
    assert due.at is not None
    assert 0 <= (at - due.at).total_seconds() < 1


def retrying(stamp: events.Stamp, delay_seconds: float) -> events.TaskRetrying:
    return events.TaskRetrying(*stamp, step="1-0", reason="test", delay_seconds=delay_seconds, tries=1, timer=True)
