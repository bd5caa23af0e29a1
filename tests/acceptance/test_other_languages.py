"""Tools in other languages: the runners of examples/, as processes beside that of the mesh, in one task."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import pytest_asyncio

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.errors import ErrorInfo
from contracts.identifiers import call_message_id, new_id
from contracts.journal import events
from contracts.journal.events import StepClaimed, ToolCompleted, ToolFailed
from contracts.messages.control import ApprovalCommand
from contracts.messages.work import ToolWork, TurnWork, decode_work
from contracts.records.tools import ToolDeclaration
from contracts.streams import TOOLS_BUCKET
from contracts.tasks import TaskRequest
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import read_page
from mesh.journal.journal import Journal
from mesh.task.decisions import queued_event
from mesh.task.outbox import due_after, due_again
from mesh.task.state import TaskState
from tests.support.checker import Recorded, Stored, check, check_journal, read_stored
from tests.support.processes import Mesh, running_mesh
from tests.support.tasks import claim_first_turn, publish_work, turn_work
from tests.support.toolchains import REPOSITORY, go_tools, typescript_tools
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

SCHEMAS = REPOSITORY / "libs" / "contracts" / "spec" / "schemas"
COMMANDS: dict[str, Callable[[], list[str]]] = {"go": go_tools, "typescript": typescript_tools}
TOOLS = {"go": "word_count", "typescript": "longest_line"}
ANSWERS: dict[str, Any] = {
    "go": {"lines": 2, "words": 5},
    "typescript": {"number": 2, "line": "and three more"},
}
TEXT = "two words\nand three more\n"
LEASE_SECONDS = 1.0


class Foreign:
    """A process of another language's runner."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    @property
    def pid(self) -> int:
        """Of the running process: its claims name it."""
        return self._popen.pid

    async def kill(self) -> None:
        """`kill -9`, and wait for the end."""
        self._popen.kill()
        await self._ended()

    async def stop(self) -> int:
        """SIGTERM, and wait for the end; its exit status."""
        self._popen.terminate()
        return await self._ended()

    async def _ended(self) -> int:
        status = await asyncio.to_thread(self._popen.wait, 30)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        return status


@dataclass
class Tools:
    """A mesh, a folder that its foreign tools work in, and what was asked of it."""

    mesh: Mesh
    connection: Connection
    folder: Path
    recorded: Recorded
    foreign: dict[str, Foreign]

    async def start(self, language: str) -> Foreign:
        """Start one more runner of a language, and wait until it takes calls."""
        with (self.mesh.folder / f"{language}.log").open("ab") as log:
            popen = subprocess.Popen(
                COMMANDS[language](),
                env=self.mesh.environment | {"EXAMPLE_FOLDER": str(self.folder), "EXAMPLE_SCHEMAS": str(SCHEMAS)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert popen.stdout is not None
        line = await asyncio.to_thread(popen.stdout.readline)
        assert line == b"ready\n", (self.mesh.folder / f"{language}.log").read_text()
        self.foreign[language] = Foreign(popen)
        return self.foreign[language]

    async def add_is_declared(self) -> bool:
        """Whether the Python runner serves its tool."""
        return await key_value.get(self.connection.requests, TOOLS_BUCKET.name, "add") is not None

    async def submit(self, script: str, *tools: str) -> str:
        """Submit a task that may use these tools; its id."""
        work = TurnWork(
            task=new_id(),
            tenant="default",
            turn=1,
            pool="default",
            priority="normal",
            request=TaskRequest(input=script, tools=list(tools)),
            accepted_at=datetime.now(UTC),
        )
        await publish_work(self.connection.requests, work)
        self.recorded.accepted.add(work.task)
        return work.task

    async def state(self, task: str) -> TaskState:
        """What the task's journal says now."""
        return (await Journal.load(self.connection.requests, "default", task)).state

    async def until(self, task: str, condition: Callable[[TaskState], bool]) -> TaskState:
        """Wait until a journal says so."""

        async def holds() -> bool:
            return condition(await self.state(task))

        await until(holds)
        return await self.state(task)

    async def until_ended(self, task: str) -> TaskState:
        """Wait until the task has ended, and nothing of it is left in a queue."""
        state = await self.until(task, lambda state: state.terminal is not None)

        async def quiet() -> bool:
            stored = await read_stored(self.connection.requests)
            return not stored.work and not stored.ack_pending

        await until(quiet)
        return state


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tools(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tools]:
    """A mesh with runners in Python, Go and TypeScript. What happened in it is judged at the end."""
    for command in COMMANDS.values():
        await asyncio.to_thread(command)
    folder = tmp_path_factory.mktemp("foreign")
    lease = {"MESH_ACK_WAIT_SECONDS": str(LEASE_SECONDS)}
    async with (
        running_mesh(folder, "steward", "inference_worker", "tool_runner", **lease) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        files = folder / "files"
        files.mkdir()
        (files / "notes.txt").write_text(TEXT)
        running = Tools(mesh, connection, files, Recorded(), {})
        try:
            await until(running.add_is_declared)
            for language in COMMANDS:
                await running.start(language)
            yield running
            stored = await read_stored(connection.requests)
            assert check(running.recorded, stored) == []
            assert broken_schemas(stored) == []
            assert mesh.tracebacks() == []
        finally:
            statuses = [await foreign.stop() for foreign in running.foreign.values()]
    assert statuses == [0] * len(statuses)


def broken_schemas(stored: Stored) -> list[str]:
    """Events and dead letters that are not what their JSON Schemas say."""
    validators = {
        path.stem: jsonschema_rs.validator_for(json.loads(path.read_text()), validate_formats=True)
        for path in SCHEMAS.glob("*.json")
    }
    found = [(event.event["type"], event.event) for journal in stored.journals.values() for event in journal]
    found += [("dead_letter", letter) for letter in stored.dead_letters]
    return [f"{name}: {error}" for name, value in found for error in validators[name].iter_errors(value)]


async def test_their_tools_are_declared(tools: Tools) -> None:
    for name, idempotent in (("word_count", True), ("append_line", False), ("longest_line", True)):
        entry = await key_value.get(tools.connection.requests, TOOLS_BUCKET.name, name)
        assert entry is not None
        assert entry.value is not None
        declared = decode(entry.value, ToolDeclaration)
        assert (declared.name, declared.idempotent) == (name, idempotent)
        assert "file" in declared.parameters["properties"]


async def test_one_turn_calls_tools_in_three_languages(tools: Tools) -> None:
    script = (
        '!call add {"a": 40, "b": 2}\n!call word_count {"file": "notes.txt"}\n!call longest_line {"file": "notes.txt"}'
    )
    task = await tools.submit(script, "add", "word_count", "longest_line")
    state = await tools.until_ended(task)
    assert state.status == "completed"
    results = {call: getattr(result, "result", result) for call, result in state.call_results.items()}
    assert results == {"1-0": 42, "1-1": ANSWERS["go"], "1-2": ANSWERS["typescript"]}
    workers = {call: state.claims[call, 0].worker for call in results}
    assert workers["1-0"].startswith("tool_runner-")
    assert workers["1-1"].startswith(f"go-tools-{tools.foreign['go'].pid}@")
    assert workers["1-2"].startswith(f"typescript-tools-{tools.foreign['typescript'].pid}@")
    assert max(state.turns) == 2, "the turn after the last result is published once, by whoever recorded it"
    stored = await read_stored(tools.connection.requests)
    assert check(tools.recorded, stored) == []


async def test_runners_of_three_languages_write_to_one_journal_at_once(tools: Tools) -> None:
    """Each append is fenced by all before it: who was slower reads, folds, and decides again."""
    calls = [("add", {"a": 40, "b": 2}), ("word_count", {"file": "notes.txt"}), ("longest_line", {"file": "notes.txt"})]
    asked = calls * 6
    script = "\n".join(f"!call {name} {json.dumps(arguments)}" for name, arguments in asked)
    task = await tools.submit(script, *(name for name, _ in calls))
    state = await tools.until_ended(task)
    answers = {"add": 42, "word_count": ANSWERS["go"], "longest_line": ANSWERS["typescript"]}
    for index, (name, _) in enumerate(asked):
        result = state.call_results[f"1-{index}"]
        assert isinstance(result, ToolCompleted)
        assert result.result == answers[name]
        assert state.claim_counts[f"1-{index}", 0] == 1
    assert max(state.turns) == 2


async def test_a_broker_that_dies_and_comes_back_costs_no_call(tools: Tools) -> None:
    await tools.mesh.broker.kill()
    await tools.mesh.broker.start()
    script = '!call word_count {"file": "notes.txt"}\n!call longest_line {"file": "notes.txt"}'
    task = await tools.submit(script, "word_count", "longest_line")
    state = await tools.until_ended(task)
    results = [getattr(state.call_results[call], "result", None) for call in ("1-0", "1-1")]
    assert results == [ANSWERS["go"], ANSWERS["typescript"]]


@pytest.mark.parametrize("language", COMMANDS)
async def test_a_runner_that_is_killed_in_mid_call_is_followed_by_another(tools: Tools, language: str) -> None:
    """The tool reads a pipe that nobody has written to yet: so it is in the middle of its call."""
    pipe = tools.folder / f"{language}.txt"
    os.mkfifo(pipe)
    first = tools.foreign[language]
    task = await tools.submit(f'!call {TOOLS[language]} {{"file": "{pipe.name}"}}', TOOLS[language])
    await tools.until(task, lambda state: ("1-0", 0) in state.claims)
    await first.kill()
    second = await tools.start(language)
    await tools.until(task, lambda state: state.claim_counts["1-0", 0] == 2)
    await asyncio.to_thread(pipe.write_text, TEXT)
    state = await tools.until_ended(task)
    result = state.call_results["1-0"]
    assert isinstance(result, ToolCompleted)
    assert result.result == ANSWERS[language]
    assert f"-{second.pid}@" in state.claims["1-0", 0].worker
    assert state.status == "completed"


async def test_a_call_that_must_not_run_twice_is_run_once_and_its_outcome_is_unknown(tools: Tools) -> None:
    """A person agrees to it first; its runner then dies in the middle."""
    pipe = tools.folder / "log.txt"
    os.mkfifo(pipe)
    script = '!call append_line {"file": "log.txt", "line": "hello"}'
    task = await tools.submit(script, "append_line")
    await tools.until(task, lambda state: bool(state.open_approvals))
    command = ApprovalCommand(task=task, tenant="default", by="somebody", call="1-0", decision="approved")
    await tools.connection.requests.publish(subjects.control("approval", "default"), encode(command))
    await tools.until(task, lambda state: ("1-0", 0) in state.claims)
    await tools.foreign["go"].kill()
    await tools.start("go")
    state = await tools.until_ended(task)
    result = state.call_results["1-0"]
    assert isinstance(result, ToolFailed)
    assert (result.error.code, result.outcome) == ("tool-outcome-unknown", "unknown")
    assert state.status == "completed", "the model is told, and goes on"


@pytest.mark.parametrize("language", COMMANDS)
@pytest.mark.parametrize("file", ["none.txt", "../notes.txt"])
async def test_a_call_that_can_not_be_run_fails_and_the_task_goes_on(tools: Tools, language: str, file: str) -> None:
    task = await tools.submit(f'!call {TOOLS[language]} {{"file": "{file}"}}', TOOLS[language])
    state = await tools.until_ended(task)
    result = state.call_results["1-0"]
    assert isinstance(result, ToolFailed)
    assert result.error.code == ("tool-refused" if file == "none.txt" else "tool-arguments-invalid")
    assert result.outcome == "failed"
    assert state.status == "completed"


@pytest.mark.parametrize("language", COMMANDS)
@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", b'{"kind":"tool"}', b"[" * 5000],
    ids=["empty", "not UTF-8", "incomplete", "deep"],
)
async def test_what_is_no_call_becomes_a_dead_letter(tools: Tools, language: str, payload: bytes) -> None:
    (letter,) = await dead_letters_of(tools, language, payload)
    assert letter["errors"][0]["code"] == "malformed-message"


@pytest.mark.parametrize("language", COMMANDS)
async def test_a_call_that_nobody_asked_for_becomes_a_dead_letter(tools: Tools, language: str) -> None:
    task = await tools.submit("hello")
    journal = await tools.until_ended(task)
    assert journal.status == "completed"
    open_task = await tools.submit('!call append_line {"file": "open.txt", "line": "a"}', "append_line")
    await tools.until(open_task, lambda state: bool(state.open_approvals))
    work = ToolWork(
        task=open_task, tenant="default", turn=1, call="1-5", tool=TOOLS[language], arguments={"file": "notes.txt"}
    )
    (letter,) = await dead_letters_of(tools, language, encode(work))
    assert letter["errors"][0]["code"] == "call-unknown"
    command = ApprovalCommand(task=open_task, tenant="default", by="somebody", call="1-0", decision="denied")
    await tools.connection.requests.publish(subjects.control("approval", "default"), encode(command))
    await tools.until_ended(open_task)


@pytest.mark.parametrize("language", COMMANDS)
async def test_a_call_of_a_task_that_has_ended_is_only_acked(tools: Tools, language: str) -> None:
    task = await tools.submit("hello")
    state = await tools.until_ended(task)
    work = ToolWork(task=task, tenant="default", turn=1, call="1-0", tool=TOOLS[language], arguments={})
    assert await dead_letters_of(tools, language, encode(work)) == []
    assert (await tools.state(task)).revision == state.revision


async def dead_letters_of(tools: Tools, language: str, payload: bytes) -> list[dict[str, Any]]:
    """The dead letters that come of a message in TOOLS, once it is answered."""
    before = len((await read_stored(tools.connection.requests)).dead_letters)
    await tools.connection.requests.publish(subjects.tools(TOOLS[language]), payload)

    async def answered() -> bool:
        info = await tools.connection.requests.api("STREAM.INFO.TOOLS")
        return bool(info["state"]["messages"] == 0)

    await until(answered)
    return (await read_stored(tools.connection.requests)).dead_letters[before:]


async def test_claims_of_other_languages_read_like_those_of_the_mesh(tools: Tools) -> None:
    stored = await read_stored(tools.connection.requests)
    claims = [
        decode(event.data, StepClaimed)
        for journal in stored.journals.values()
        for event in journal
        if event.event["type"] == "step.claimed" and event.event.get("tool") in TOOLS.values()
    ]
    assert claims
    for claim in claims:
        assert claim.step == claim.call
        assert claim.attempt is None


# Replays and timers: journals written by hand, with nobody else at work on them.

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
    call = events.ToolCall("1-0", SERVED[language], arguments)
    await write(
        journal,
        lambda stamp: events.TurnCompleted(
            *stamp,
            turn=1,
            text="",
            calls=[call],
            finish_reason="tool_calls",
            usage=events.Usage(),
            timings=events.Timings(),
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
    edits = events.RecordedEdits(pool="other", arguments={"1-0": ASKED[language]})
    await write(
        journal,
        lambda stamp: events.TaskReplayed(*stamp, steps=[events.StepGen("1-0", 0)], by="somebody", edits=edits),
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
    await write(journal, lambda stamp: retrying(stamp, delay_seconds=0))
    (again,) = due_again(journal.state, "1-0")
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
    (due,) = due_after(state, "1-0")
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
