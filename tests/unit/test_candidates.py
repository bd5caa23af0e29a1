"""Which model a turn is with, and which one takes it over."""

from __future__ import annotations

import pytest

from inference_worker.models.candidates import Candidates
from mesh.task.records import record
from tests.unit.journals import HandMadeJournal
from tests.unit.played import PlayedProvider


def candidates() -> Candidates:
    return Candidates.of_providers(
        [PlayedProvider(named=("main", "large")), PlayedProvider(named=("backup", "small")), PlayedProvider()]
    )


def names(pool: Candidates) -> list[tuple[str, str, int]]:
    return [(each.provider, each.model, each.index) for each in pool.all]


def begun(turn: int = 1) -> HandMadeJournal:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed(str(turn))
    return journal


def test_the_model_that_a_request_names_is_the_first_and_no_other() -> None:
    pool = candidates()
    assert pool.for_model(None) is pool
    assert names(candidates().for_model("own")) == [
        ("main", "own", 0),
        ("backup", "small", 1),
        ("played", "played-1", 2),
    ]
    twice = Candidates.of_providers([PlayedProvider(named=("main", "a")), PlayedProvider(named=("main", "b"))])
    assert names(twice.for_model("b")) == [("main", "b", 0)]


@pytest.mark.parametrize(
    ("unavailable", "start", "index"),
    [
        ((), 0, 0),
        (("main",), 0, 1),
        (("main", "backup"), 0, 2),
        (("main", "backup", "played"), 0, 0),
        (("main",), 1, 1),
        (("backup",), 1, 2),
        (("backup", "played"), 1, 1),
    ],
)
def test_the_first_available_one_is_taken_and_without_any_the_first(
    unavailable: tuple[str, ...], start: int, index: int
) -> None:
    assert candidates().first_available(lambda name: name not in unavailable, start).index == index


def test_a_turn_is_with_the_model_of_its_last_switch() -> None:
    journal = begun()
    pool = candidates()
    assert pool.of_turn(journal.state, 1).index == 0
    journal.switched("small", "latency")
    assert pool.of_turn(journal.state, 1).index == 1
    journal.switched("nobody", "latency", provider="nowhere")
    assert pool.of_turn(journal.state, 1).index == 0  # The pool has it no more.


@pytest.mark.parametrize(("reason", "later"), [("context", 1), ("latency", 0), ("unavailable", 0)])
def test_a_model_switched_for_context_stays_for_later_turns(reason: str, later: int) -> None:
    journal = begun()
    journal.switched("small", reason)  # type: ignore[arg-type]  # it is one of them
    assert candidates().of_turn(journal.state, 1).index == 1
    assert candidates().of_turn(journal.state, 2).index == later


@pytest.mark.parametrize(("unavailable", "index"), [((), 1), (("backup",), 2), (("backup", "played"), 1)])
def test_a_conversation_never_goes_back_to_a_model_that_it_is_too_long_for(
    unavailable: tuple[str, ...], index: int
) -> None:
    journal = begun()
    journal.switched("small", "context")
    pool = candidates()
    assert pool.to_claim(journal.state, 2, lambda name: name not in unavailable).index == index
    stale = journal.claimed("2", message=8)
    assert pool.claimed(journal.state, stale).index == 1


def test_a_turn_that_was_slow_elsewhere_may_go_back_where_its_own_model_is_unavailable() -> None:
    journal = begun()
    journal.switched("small", "latency")
    assert candidates().to_claim(journal.state, 1, lambda name: name != "backup").index == 0


def test_a_record_shows_the_model_that_goes_on() -> None:
    journal = begun()
    assert record(journal.state).model == "scripted"
    journal.switched("small", "latency")
    assert record(journal.state).model == "small"


def test_a_try_that_failed_without_a_word_begins_with_the_first_model_again() -> None:
    journal = begun()
    journal.switched("small", "latency")
    journal.retrying(1)
    assert candidates().of_turn(journal.state, 1).index == 0
    journal.switched("small", "latency")
    journal.delta("Hel")
    journal.retrying(2)
    assert candidates().of_turn(journal.state, 1).index == 1


def test_after_an_edit_the_task_begins_with_the_first_model_and_the_whole_conversation() -> None:
    journal = begun()
    journal.switched("small", "context")
    journal.compacted(1000)
    assert journal.state.context_bytes_max == 500
    journal.dead_lettered()
    journal.replayed(("1", 0))
    assert (journal.state.context_bytes_max, journal.state.compactions) == (500, 1)
    journal.claimed(gen=1, message=8)
    journal.dead_lettered(gen=1)
    journal.replayed(("1", 1), model="huge")
    edited = journal.state
    assert edited.context_bytes_max is None
    assert edited.compactions == 0
    assert candidates().of_turn(journal.state, 1).index == 0
