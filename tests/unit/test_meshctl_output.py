"""What people read, and what a client makes of a stream. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from contracts.codec import encode
from contracts.errors import ErrorInfo, TaskmeshError, problem
from contracts.journal import events, parts
from contracts.journal.events import Stamp
from contracts.journal.parts import Parent, Timings, Usage
from contracts.records.status import OpenApproval, OpenQuestion, TaskCounts, TaskRecord
from contracts.tasks import TaskRequest
from meshctl.__main__ import _line
from meshctl.client import Received
from meshctl.commands.replies import only_approval
from meshctl.display.output import printable
from meshctl.display.rendering import StreamText, first_words, record_text
from meshctl.display.screen import Screen
from meshctl.display.tables import counts_table, tasks_table
from meshctl.display.transcript import Transcript
from meshctl.errors import ApiError, MeshctlError

TASK = "01m7wh5eyc81mpvdjs4a849g13"
TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def stamp(n: int) -> Stamp:
    return Stamp(TASK, TASK, "default", n, TIME)


def queued(n: int = 0) -> events.TaskQueued:
    request = TaskRequest(input="hi")
    return events.TaskQueued(
        *stamp(n), request=request, pool="default", priority="normal", fingerprint="f", accepted_at=stamp(n).time
    )


def delta(n: int, text: str, turn: int = 1) -> events.OutputDelta:
    return events.OutputDelta(*stamp(n), turn=turn, text=text)


def restarted(n: int, discard_from: int) -> events.TurnRestarted:
    return events.TurnRestarted(*stamp(n), turn=1, attempt=2, discard_from=discard_from, reason="takeover")


def completed(n: int, output: str) -> events.TaskCompleted:
    return events.TaskCompleted(*stamp(n), output=output, usage=Usage(), timings=Timings())


def transcript(*told: events.Event) -> Transcript:
    built = Transcript()
    for sequence, event in enumerate(told, start=10):
        built.add(sequence, encode(event))
    return built


def test_a_transcript_joins_the_last_turns_words() -> None:
    told = transcript(queued(), delta(1, "first "), delta(2, "turn"), delta(3, "se", turn=2), delta(4, "cond", turn=2))
    assert told.text == "second"
    assert told.is_dense
    assert told.rises


def test_a_transcript_forgets_what_a_restart_discards() -> None:
    told = transcript(queued(), delta(1, "kept "), delta(2, "lost"), restarted(3, discard_from=2), delta(4, "anew"))
    assert told.text == "kept anew"


def test_a_transcript_shows_holes_and_doubles() -> None:
    assert not transcript(queued(), delta(2, "x")).is_dense
    assert not transcript(queued(), delta(1, "x"), delta(1, "x")).is_dense
    doubled = Transcript()
    doubled.add(5, encode(queued()))
    doubled.add(5, encode(delta(1, "x")))
    assert not doubled.rises


def shown(*told: events.Event | dict[str, Any]) -> str:
    text = StreamText()
    parts = []
    for sequence, event in enumerate(told, start=1):
        kind = event["type"] if isinstance(event, dict) else events.event_type(event)
        parts.append(text.add(Received(sequence, kind, encode(event))))
    return "".join(parts)


def test_words_run_on_and_milestones_get_lines_of_their_own() -> None:
    assert shown(queued(), delta(1, "Hello "), delta(2, "there"), completed(3, "Hello there")) == (
        "· queued in default, normal\nHello there\n· completed\n"
    )


def test_a_claim_says_who_takes_a_turn_and_where_it_was_chosen_why() -> None:
    fields: dict[str, Any] = {
        "step": "1",
        "gen": 0,
        "message": 7,
        "worker": "w",
        "turn": 1,
        "provider": "own",
        "model": "small",
    }
    plain = events.StepClaimed(*stamp(1), delivery=1, **fields)
    chosen = events.StepClaimed(*stamp(2), delivery=2, reason="best seconds=1.84 of=3", **fields)
    assert shown(plain, chosen).splitlines() == [
        "· turn 1 claimed by w with small",
        "· turn 1 claimed by w with small at own (best seconds=1.84 of=3), delivery 2",
    ]


def test_another_model_and_a_shorter_conversation_get_lines_of_their_own() -> None:
    switched = events.ModelSwitched(
        *stamp(1), from_model="large", to_model="small", reason="latency", turn=2, provider="backup"
    )
    of_before = events.ModelSwitched(*stamp(2), from_model="large", to_model="small", reason="cost")
    hedged = events.ModelHedged(*stamp(3), turn=2, model="small", provider="backup")
    compacted = events.ContextCompacted(*stamp(4), turn=3, bytes_before=250_000, bytes_kept=99)
    assert shown(switched, of_before, hedged, compacted).splitlines() == [
        "· turn 2: small at backup goes on for large (latency)",
        "· small goes on for large (cost)",
        "· turn 2: small at backup is asked too; the first that answers goes on",
        "· turn 3: compacted from 250,000 to 99 bytes",
    ]


def test_what_a_call_has_used_is_told_and_never_as_nothing() -> None:
    def spent(n: int, **usage: int) -> events.ModelSpent:
        told = Usage(**usage)
        place: dict[str, Any] = {"provider": "own", "model": "small", "pool": "default"}
        return events.ModelSpent(*stamp(n), turn=1, reason="redirect", usage=told, **place)

    some = {"input_tokens": 9, "output_tokens": 2}
    assert shown(spent(1, **some), spent(2, **some, untold_calls=1), spent(3, untold_calls=1)).splitlines() == [
        "· turn 1: small at own has used 9 tokens in, 2 out (redirect)",
        "· turn 1: small at own has used 9 tokens in, 2 out, and more that was not told (redirect)",
        "· turn 1: what small at own has used was not told (redirect)",
    ]


ARGUMENTS = {"command": "rm -r build", "why": "two\nlines"}
EXPIRES = datetime(2026, 1, 3, tzinfo=UTC)


def asked_for(n: int, tenant: str = "default") -> events.ApprovalRequested:
    common = Stamp(TASK, TASK, tenant, n, TIME)
    return events.ApprovalRequested(*common, call="1-0", tool="shell", arguments=ARGUMENTS, expires_at=EXPIRES)


def test_a_turn_shows_each_call_and_what_was_decided_on_it() -> None:
    calls = [
        parts.ToolCall("1-0", "shell", {"command": "ls"}, approval=True),
        parts.ToolCall("1-1", "add", {"a": 1}),
        parts.ToolCall("1-2", "nope", {}, error=ErrorInfo("tool-unknown", "there is no such tool")),
    ]
    turn = events.TurnCompleted(
        *stamp(1), turn=1, text="", calls=calls, finish_reason="tool_calls", usage=Usage(), timings=Timings()
    )
    assert shown(turn).splitlines() == [
        "· turn 1 completed: tool_calls, 0 tokens",
        '  calls shell (1-0) {"command":"ls"}; waits for approval',
        '  calls add (1-1) {"a":1}',
        "  calls nope (1-2) {}; tool-unknown: there is no such tool",
    ]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            events.ToolProgress(*stamp(1), turn=1, call="1-0", tool="fetch", progress=3, total=10, message="page 3"),
            "call 1-0 (fetch) is at 3 of 10: page 3",
        ),
        (
            events.ToolCompleted(*stamp(1), turn=1, call="1-0", tool="add", result={"sum": 3}, timings=Timings()),
            'call 1-0 (add) completed: {"sum":3}',
        ),
        (
            events.ToolFailed(
                *stamp(1), turn=1, call="1-0", tool="send", error=ErrorInfo("tool-timeout", "60 s"), outcome="unknown"
            ),
            "call 1-0 (send) failed: tool-timeout: 60 s; it may have had its effect",
        ),
        (events.SubtaskStarted(*stamp(1), call="1-0", child=TASK), f"call 1-0 is task {TASK}"),
        (
            events.SubtaskStarted(*stamp(1), call="1-0", child=TASK, budget_tokens=1200),
            f"call 1-0 is task {TASK}, with 1,200 tokens",
        ),
        (
            events.SubtaskCompleted(*stamp(1), call="1-0", child=TASK, status="completed", output="forty-two"),
            f"call 1-0: task {TASK} is completed: forty-two",
        ),
        (
            events.SubtaskCompleted(
                *stamp(1), call="1-0", child=TASK, status="completed", output="forty", incomplete="budget"
            ),
            f"call 1-0: task {TASK} is completed (incomplete: budget): forty",
        ),
        (
            events.ApprovalResolved(*stamp(1), call="1-0", decision="denied", by="Ada", reason="too much"),
            "call 1-0 is denied, by Ada: too much",
        ),
        (
            events.InputReceived(*stamp(1), text="Q3", by="http", mode="append", call="1-1"),
            "answer by http: Q3",
        ),
        (events.InputReceived(*stamp(1), text="stop", by="http", mode="redirect"), "redirect by http: stop"),
    ],
)
def test_what_becomes_of_a_call_is_one_line(event: events.Event, line: str) -> None:
    assert shown(event) == f"· {line}\n"


def test_who_is_asked_is_told_how_to_answer() -> None:
    assert shown(asked_for(1)).splitlines() == [
        '· approval of call 1-0 (shell) {"command":"rm -r build","why":"two\\nlines"}, until 2026-01-03 00:00:00Z',
        f"  meshctl approve {TASK} 1-0",
    ]
    assert shown(asked_for(1, "acme")).endswith(f"  meshctl approve --tenant acme {TASK} 1-0\n")
    question = events.InputRequested(*stamp(1), question="Which quarter?", call="1-1", expires_at=EXPIRES)
    assert shown(question).splitlines() == [
        "· asks: Which quarter? (1-1, until 2026-01-03 00:00:00Z)",
        f"  meshctl say {TASK} TEXT",
    ]


def test_an_event_of_a_new_type_is_shown_by_its_fields() -> None:
    news = {
        "type": "moon.risen",
        "id": TASK,
        "task": TASK,
        "tenant": "t",
        "n": 4,
        "time": TIME,
        "phase": "full",
        "k": 2,
    }
    assert shown(news) == "· moon.risen phase=full k=2\n"


def test_a_gap_is_said_and_what_it_came_to_is_shown() -> None:
    gap = {"type": "stream.gap", "task": TASK, "tenant": "t", "from": 3, "to": 9}
    turn = {"turn": 1, "text": "so far", "completed": False}
    snapshot = {"type": "snapshot", "task": TASK, "tenant": "t", "n": 4, "status": "running", "turns": [turn]}
    text = shown(gap, snapshot, delta(5, " and on"))
    assert "events after 3 up to 9 are gone" in text
    assert text.endswith("· turn 1, so far:\nso far and on")


def test_a_models_words_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x9bc\r\n\td\x7f") == "a\ufffd[2Jb\ufffdc\ufffd\n\td\ufffd"
    assert "\x1b" not in shown(delta(1, "\x1b]0;title\x07"))


def record(**more: Any) -> TaskRecord:
    fields: dict[str, Any] = {
        "id": TASK,
        "tenant": "default",
        "status": "completed",
        "pool": "default",
        "priority": "high",
        "created_at": TIME,
        "updated_at": TIME,
        "sequence": 9,
    }
    return TaskRecord(**(fields | more))


def test_a_record_shows_what_there_is() -> None:
    text = record_text(record(output="forty-two", metadata={"ticket": 7}, error=ErrorInfo("code", "message")))
    assert text.splitlines() == [
        f"task      {TASK}",
        "status    completed",
        "lane      default, high",
        "created   2026-01-02 03:04:05Z",
        "changed   2026-01-02 03:04:05Z",
        "· ticket  7",
        "error     code: message",
        "output",
        "forty-two",
    ]


def test_a_record_shows_what_its_sub_tasks_have_used_and_what_is_over_its_budget() -> None:
    text = record_text(record(usage=Usage(1, 2), tree_usage=Usage(30, 40), over_budget_tokens=1200))
    assert text.splitlines()[-3:] == [
        "tokens    1 in, 2 out",
        "in all    30 in, 40 out, with its sub-tasks",
        "over      1,200 tokens over its budget",
    ]


def test_an_end_says_what_is_over_its_budget() -> None:
    end = events.TaskCompleted(
        *stamp(1), output="", incomplete="budget", usage=Usage(), timings=Timings(), over_budget_tokens=1200
    )
    assert "completed, but incomplete: budget, 1,200 tokens over its budget" in shown(end)


def approval(call: str) -> OpenApproval:
    return OpenApproval(call=call, tool="shell", arguments={"command": "ls"}, expires_at=EXPIRES)


def test_a_record_shows_what_waits_for_a_person_and_whose_part_it_is() -> None:
    waiting = record(
        status="waiting",
        parent=Parent(TASK, "2-1", 1),
        approvals=[approval("1-0")],
        questions=[OpenQuestion(question="Which quarter?", call="1-1", expires_at=EXPIRES)],
    )
    assert record_text(waiting).splitlines()[-3:] == [
        f"parent    {TASK}, call 2-1",
        'approve   1-0 (shell) {"command":"ls"}, until 2026-01-03 00:00:00Z',
        "asks      Which quarter? (1-1, until 2026-01-03 00:00:00Z)",
    ]
    assert first_words(waiting) == "asks: Which quarter?; approve shell?"
    assert first_words(record(metadata={"order": 42, "vip": True})) == "order=42, vip=True"


def test_the_only_approval_that_is_open_need_not_be_named() -> None:
    assert only_approval(record(status="waiting", approvals=[approval("1-0")])).call == "1-0"
    with pytest.raises(MeshctlError, match="is completed, and waits for no approval"):
        only_approval(record())
    with pytest.raises(MeshctlError, match=r"2 calls wait, so name one: 1-0 \(shell\) .*; 1-1 \(shell\)"):
        only_approval(record(status="waiting", approvals=[approval("1-0"), approval("1-1")]))


def test_a_list_has_one_line_for_each_task() -> None:
    console = Console(color_system=None, width=160)
    with console.capture() as captured:
        console.print(tasks_table([record(metadata={"a": "two\nlines " * 20}), record(status="queued")]))
    lines = captured.get().splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["TASK", "STATUS", "LANE", "CHANGED", "ABOUT"]
    assert lines[1].rstrip().endswith("…")
    assert lines[2].startswith(f"{TASK}  queued ")


def test_counts_are_of_the_statuses_that_there_are() -> None:
    console = Console(color_system=None, width=160)
    with console.capture() as captured:
        console.print(counts_table(TaskCounts(counts={"queued": 0, "running": 3, "completed": 1_200_000})))
    lines = [line.split() for line in captured.get().splitlines()]
    assert lines == [["STATUS", "TASKS"], ["running", "3"], ["completed", "1,200,000"], ["all", "1,200,003"]]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ApiError(problem("not-found", "there is no such task")), "not-found: there is no such task"),
        (ApiError(problem("internal")), "internal: Something broke on our side"),
        (MeshctlError("plain words"), "plain words"),
        (TaskmeshError("two\nlines", code="timeout"), "timeout: two lines"),
    ],
)
def test_an_error_is_one_line_with_its_code(error: TaskmeshError, line: str) -> None:
    assert _line(error) == line


def test_a_line_below_the_words_is_taken_away_before_more_come() -> None:
    written: list[str] = []
    screen = Screen(written.append, is_live=True, columns=lambda: 80)
    screen.add(Received(1, "output.delta", b""), "twelve chars")
    assert written[0].startswith("twelve chars\x1bD\x1b[A\x1b7\x1b[B\r")
    assert "running  about 3 tokens  0.0 s" in written[0]
    screen.add(Received(2, "output.delta", b""), " more")
    assert written[1].startswith("\x1b7\x1b[B\r\x1b[J\x1b8 more\x1bD")
    screen.close()
    assert written[2] == "\x1b7\x1b[B\r\x1b[J\x1b8"
    screen.close()
    assert written[3] == ""


def test_the_line_below_never_wraps_and_without_it_there_are_only_words() -> None:
    written: list[str] = []
    narrow = Screen(written.append, is_live=True, columns=lambda: 9)
    narrow.refresh()
    assert "⠙ waitin\x1b" in written[0]
    silent = Screen(written.append, is_live=False, columns=lambda: 80)
    silent.add(Received(1, "task.queued", b""), "· queued\n")
    silent.close()
    assert written[1:] == ["· queued\n", ""]
