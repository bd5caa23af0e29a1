"""What people read, and what a client makes of a stream. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from contracts import events
from contracts.codec import encode
from contracts.errors import ErrorInfo, TaskmeshError, problem
from contracts.events import Stamp, Timings, Usage
from contracts.status import TaskRecord
from contracts.tasks import TaskRequest
from meshctl.__main__ import _line
from meshctl.client import Received
from meshctl.errors import ApiError, MeshctlError
from meshctl.output import printable
from meshctl.rendering import StreamText, record_text
from meshctl.screen import Screen
from meshctl.tables import tasks_table
from meshctl.transcript import Transcript

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


def test_a_list_has_one_line_for_each_task() -> None:
    console = Console(color_system=None, width=160)
    with console.capture() as captured:
        console.print(tasks_table([record(output="two\nlines " * 20), record(status="queued")]))
    lines = captured.get().splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["TASK", "STATUS", "LANE", "CHANGED", "OUTPUT"]
    assert lines[1].rstrip().endswith("…")
    assert lines[2].startswith(f"{TASK}  queued ")


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
