"""Which changes of streams and consumers are made, and which are left to a person."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from mesh.broker.config_changes import (
    CANNOT_CHANGE,
    COULD_LOSE,
    COULD_ORPHAN,
    RENEW_WITHOUT_WORKERS,
    is_widened,
    obstacles,
)

_GIB = 1024**3


@pytest.mark.parametrize(
    ("kind", "name", "new", "existing", "messages", "why"),
    [
        ("stream", "max_bytes", 2 * _GIB, _GIB, 9, None),
        ("stream", "max_bytes", _GIB, 2 * _GIB, 9, COULD_LOSE),
        ("stream", "max_bytes", _GIB, 2 * _GIB, 0, None),
        ("stream", "max_bytes", _GIB, -1, 9, COULD_LOSE),
        ("stream", "max_msgs", -1, 100, 9, None),
        ("stream", "max_msgs", 100, None, 9, COULD_LOSE),
        ("stream", "max_msgs_per_subject", 1, 5, 9, COULD_LOSE),
        ("stream", "max_age", 0, 10**9, 9, None),
        ("stream", "max_age", 10**9, 0, 9, COULD_LOSE),
        ("stream", "subjects", ["a.*", "b.*"], ["a.*"], 9, None),
        ("stream", "subjects", ["a.*"], ["a.*", "b.*"], 9, COULD_ORPHAN),
        ("stream", "subjects", ["a.*"], ["a.*", "b.*"], 0, None),
        ("stream", "retention", "workqueue", "limits", 0, CANNOT_CHANGE),
        ("stream", "storage", "file", "memory", 0, CANNOT_CHANGE),
        ("stream", "deny_delete", True, None, 9, None),
        ("stream", "deny_delete", False, True, 0, CANNOT_CHANGE),
        ("stream", "discard", "new", "old", 9, None),
        ("consumer", "max_deliver", 5, 10, 0, None),
        ("consumer", "inactive_threshold", 10**9, None, 0, None),
        ("stream", "max_consumers", 10_000, 256, 9, None),
        ("consumer", "ack_policy", "explicit", "all", 0, CANNOT_CHANGE),
        ("consumer", "max_waiting", 10_000, 512, 0, RENEW_WITHOUT_WORKERS),
    ],
)
def test_a_change_is_made_unless_the_server_can_not_or_messages_could_go(
    kind: Literal["stream", "consumer"], name: str, new: Any, existing: Any, messages: int, why: str | None
) -> None:
    assert obstacles(kind, {name: (new, existing)}, messages) == ({name: why} if why else {})


@pytest.mark.parametrize(
    ("name", "new", "existing", "widened"),
    [
        ("subjects", ["a", "b"], ["a"], True),
        ("subjects", ["a", "b"], ["b", "c"], False),
        ("subjects", ["a"], ["a", "b"], False),
        ("allow_msg_schedules", True, None, True),
        ("allow_direct", True, False, True),
        ("deny_delete", True, None, False),
        ("allow_direct", False, True, False),
        ("max_age", 0, 10**9, True),
        ("max_age", 10**9, 0, False),
        ("max_age", 2 * 10**9, 10**9, True),
        ("max_consumers", 10_000, 256, True),
        ("max_msg_size", 100, 200, False),
        ("max_msgs_per_subject", 1000, -1, False),
        ("discard", "new", "old", False),
        ("description", "new", "old", False),
    ],
)
def test_what_an_older_version_beside_this_one_does_not_notice_gives_more_and_takes_nothing(
    name: str, new: Any, existing: Any, widened: bool
) -> None:
    assert is_widened(name, new, existing) is widened
