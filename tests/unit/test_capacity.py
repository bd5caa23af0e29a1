"""How streams grow, how long they last, and how many tasks fit. Pure, as is what is noted for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from contracts.records.storage import SAMPLES_MAX, StorageSample, StorageSamples
from contracts.sizes import GIB, MIB
from mesh.broker.levels import Level
from meshctl.diagnosis.capacity import (
    BY_DEFAULT,
    Growth,
    Kept,
    TasksADay,
    days_left,
    growth,
    kept,
    task_bytes,
    tasks_a_day,
)
from meshctl.display.storage_table import Shown, capacity_lines, storage_table
from steward.storage_samples import is_due, with_sample

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
DAY = 86_400.0
KEPT = Kept(1, 29, 90)


def sample(hours_ago: float, **sizes: int) -> StorageSample:
    return StorageSample(time=NOW - timedelta(hours=hours_ago), bytes=sizes)


def test_growth_is_what_has_become_of_a_day() -> None:
    samples = [sample(25, EVENTS=1), sample(24, EVENTS=1_000), sample(1, EVENTS=9_000)]
    assert growth("EVENTS", 5_000, samples, NOW) == Growth(4_000, DAY)
    assert growth("EVENTS", 400, samples, NOW) == Growth(-600, DAY)
    assert growth("TASKS", 5_000, samples, NOW) is None


def test_the_first_day_is_worked_out_from_what_there_is_and_says_so() -> None:
    found = growth("EVENTS", 300, [sample(6, EVENTS=100), sample(1, EVENTS=290)], NOW)
    assert found == Growth(800, DAY / 4)
    assert found.is_extrapolated
    assert not Growth(1, DAY - 60).is_extrapolated
    assert growth("EVENTS", 300, [sample(0.1, EVENTS=100)], NOW) is None, "some minutes say nothing of a day"


@pytest.mark.parametrize(
    ("used", "limit", "a_day", "left"),
    [(40, 100, 10, 5), (40, 100, 0, None), (40, 100, -10, None), (95, 100, 10, 0), (40, -1, 10, None)],
)
def test_days_are_left_until_the_mark_if_it_goes_on(used: int, limit: int, a_day: float, left: float | None) -> None:
    assert days_left(Level("EVENTS", used, limit), Growth(a_day, DAY), 90) == left


def test_nobody_knows_how_long_what_was_never_measured_lasts() -> None:
    assert days_left(Level("EVENTS", 1, 100), None, 90) is None


def test_a_task_takes_what_was_measured_where_there_are_enough_of_them() -> None:
    levels = {
        "EVENTS": Level("EVENTS", 400_000, GIB),
        "KV_tasks": Level("KV_tasks", 100_000, GIB, messages=100),
        "ARCHIVE": Level("ARCHIVE", 2_000_000, GIB, messages=4),
        "KV_archive": Level("KV_archive", 100_000, GIB, messages=90),
    }
    found = task_bytes(levels, Level("ARCHIVE", 100_000, 0), 100)
    assert found[:4] == (4_000, 1_000, 1_000, 50)
    assert (found.is_measured, found.is_packed_measured) == (True, True)
    few = {**levels, "KV_tasks": Level("KV_tasks", 9_000, GIB, messages=3)}
    assert task_bytes(few, Level("ARCHIVE", 100, 0), 1) == BY_DEFAULT
    assert task_bytes({}, Level("ARCHIVE", 0, 0), 0) == BY_DEFAULT


@pytest.mark.parametrize(
    ("name", "limit", "tasks"),
    [
        # 90 % of it, by what a task takes of it on each of the days that it lies there.
        ("EVENTS", 5_000 * 1_000, 900),
        ("KV_tasks", 1_100 * 1_000, 900),
        ("ARCHIVE", 1_500 * 29 * 1_000, 900),
        ("KV_archive", 85 * 29 * 1_000, 900),
        ("disk", (6_100 + 1_585 * 29) * 1_000, 900),
        ("account", (6_100 + 1_585 * 29) * 1_000, 900),
    ],
)
def test_the_fullest_bounds_the_tasks_a_day(name: str, limit: int, tasks: int) -> None:
    roomy = {each: Level(each, 0, 1024 * GIB) for each in ("EVENTS", "KV_tasks", "ARCHIVE", "KV_archive")}
    found = tasks_a_day({**roomy, name: Level(name, 0, limit)}, BY_DEFAULT, KEPT)
    assert found is not None
    assert (round(found.tasks), found.bound_by) == (tasks, name)


def test_what_has_no_limit_bounds_nothing() -> None:
    assert tasks_a_day({"EVENTS": Level("EVENTS", 0, -1)}, BY_DEFAULT, KEPT) is None
    assert tasks_a_day({"ARCHIVE": Level("ARCHIVE", 0, GIB)}, BY_DEFAULT, Kept(30, 0, 90)) is None


def test_a_task_is_unpacked_for_no_longer_than_it_is_kept() -> None:
    assert kept(24, 30, 90) == Kept(1, 29, 90)
    assert kept(72, 2, 90) == Kept(2, 0, 90)


def test_a_sample_is_due_each_hour_and_after_a_clock_that_was_set_back() -> None:
    assert is_due(StorageSamples(samples=[]), NOW)
    assert is_due(StorageSamples(samples=[sample(1)]), NOW)
    assert not is_due(StorageSamples(samples=[sample(0.9)]), NOW)
    assert not is_due(StorageSamples(samples=[sample(-0.5)]), NOW)
    assert is_due(StorageSamples(samples=[sample(-24)]), NOW)


def test_samples_are_kept_for_a_day_and_none_from_the_future() -> None:
    samples = StorageSamples(samples=[])
    for hours_ago in range(40, 0, -1):
        samples = with_sample(samples, sample(hours_ago, EVENTS=hours_ago))
    assert len(samples.samples) == SAMPLES_MAX
    assert [each.bytes["EVENTS"] for each in samples.samples] == list(range(26, 0, -1))
    assert with_sample(StorageSamples(samples=[sample(2), sample(-5)]), sample(0)).samples == [sample(2), sample(0)]


def shown(*lines: Shown) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(storage_table(lines))
        for line in capacity_lines(TasksADay(86_400, "ARCHIVE"), BY_DEFAULT, KEPT, lines):
            console.print(line)
    return captured.get()


def test_people_see_a_line_for_each_and_what_follows_for_tasks() -> None:
    text = shown(
        Shown(Level("EVENTS", 75 * MIB, 100 * MIB, 12_345, 67), "filling", Growth(3 * MIB, DAY / 2), 5.0),
        Shown(Level("account", 80 * MIB, -1), "ok", None, None),
        Shown(Level("KV_tasks", MIB, GIB), "ok", Growth(-2 * MIB, DAY), 50_000.0),
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[1:4] == [
        "EVENTS 75MiB 100MiB 75 % 12,345 67 ~3MiB 5.0",
        "account 80MiB - - - - - -",
        "KV_tasks 1MiB 1GiB 0 % - - -2MiB -",
    ]
    assert "~ is worked out from 12.0 h" in text
    assert "About 86,400 tasks a day fit, 1.00 a second, kept 1 d unpacked and 29 d packed: ARCHIVE is full" in text
    assert "6,100 bytes unpacked (assumed), 1,585 packed (assumed)" in text
