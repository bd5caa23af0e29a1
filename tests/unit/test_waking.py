"""When work that waits is announced."""

from __future__ import annotations

import itertools
from typing import Any

from steward.stranded import ConsumerIndex
from steward.waking import LOOKS_MAX, Unasked


def consumer(name: str, pending: int, waiting: int = 0, delivered: int = 7, filter_subject: str = "") -> dict[str, Any]:
    """As the broker describes it."""
    return {
        "name": name,
        "num_pending": pending,
        "num_waiting": waiting,
        "delivered": {"consumer_seq": delivered},
        "config": {"filter_subject": filter_subject},
    }


def test_messages_that_nobody_has_asked_for_in_two_looks_are_announced() -> None:
    unasked = Unasked()
    idle = [consumer("empty", 0), consumer("asked", 3, waiting=1)]
    assert unasked.look([*idle, consumer("lost", 3)]) == []
    assert unasked.look([*idle, consumer("lost", 3)]) == ["lost"]


def test_a_lane_that_moves_is_not_announced() -> None:
    unasked = Unasked()
    for delivered in range(5):
        assert unasked.look([consumer("busy", 3, delivered=delivered)]) == []


def test_one_that_stays_is_announced_more_seldom_each_time() -> None:
    unasked = Unasked()
    looks = [number for number in range(200) if unasked.look([consumer("away", 3)])]
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert looks[0] == 1
    assert gaps == sorted(gaps)
    assert gaps[-1] == LOOKS_MAX


def test_the_consumer_of_a_subject_is_found_by_its_filter() -> None:
    filters = ["tasks.default.high.*", "tasks.default.low.*", "tools.add", "control.*.*"]
    index = ConsumerIndex(consumer(name, 0, filter_subject=name) for name in filters)
    for subject, name in {
        "tasks.default.high.acme": "tasks.default.high.*",
        "tasks.default.normal.acme": None,
        "tasks.default.high.acme.more": None,
        "tools.add": "tools.add",
        "control.cancel.acme": "control.*.*",
    }.items():
        found = index.of(subject)
        assert (found["name"] if found else None) == name
