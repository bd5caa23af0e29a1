"""What a change of a stream or consumer would do: what the server can't change, and what could lose messages. Pure.

Facts, tried with nats-server 2.15.1: it refuses to change a stream's storage, or its retention from or to a work queue
(10052), and a consumer's policies and `max_waiting` (10012). Message schedules, TTLs and the refusal of deletes can
be switched on and never off. A limit that is tightened evicts at once what lies above it; the one per subject does so
even with `discard: new`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

FIXED = {
    "stream": frozenset({"name", "retention", "storage"}),
    "consumer": frozenset({"name", "durable_name", "deliver_policy", "ack_policy", "max_waiting"}),
}
ONLY_ON = frozenset({"deny_delete", "deny_purge", "allow_msg_schedules", "allow_msg_ttl"})
LIMITS = frozenset({"max_msgs", "max_msgs_per_subject", "max_bytes", "max_age"})
"""Limits that messages are deleted by, or could be. 0 and below is none."""
LOOSER = frozenset({"max_msg_size", "max_consumers", "duplicate_window"})
"""Limits of which more is more, and that delete nothing."""

CANNOT_CHANGE = "the server can't change it: back up what is stored, and create it again"
RENEW_WITHOUT_WORKERS = (
    "the server can't change it. It bounds how many workers or runners can wait for work at once. With those stopped, "
    "delete the consumer (`nats consumer rm`) and apply again; what waits in the stream stays there"
)
COULD_LOSE = "it is tighter than now, and could delete what is stored: change it by hand if you mean it"
COULD_ORPHAN = "it could leave messages on subjects that nobody declares: change it by hand if you mean it"


def obstacles(
    kind: Literal["stream", "consumer"], fields: Mapping[str, tuple[Any, Any]], messages: int
) -> dict[str, str]:
    """Which of these (declared, existing) values must stay as they exist, and why.

    `messages`: how many the stream holds. Of an empty one nothing can be lost.
    """
    kept: dict[str, str] = {}
    for name, (new, existing) in fields.items():
        if kind == "consumer" and name == "max_waiting":
            kept[name] = RENEW_WITHOUT_WORKERS
        elif name in FIXED[kind] or (name in ONLY_ON and existing and not new):
            kept[name] = CANNOT_CHANGE
        elif kind == "stream" and messages and name in LIMITS and _is_tighter(new, existing):
            kept[name] = COULD_LOSE
        elif kind == "stream" and messages and name == "subjects" and not set(existing or ()) <= set(new):
            kept[name] = COULD_ORPHAN
    return kept


def is_widened(name: str, new: Any, existing: Any) -> bool:
    """Whether a change gives more and takes nothing: subjects are added, a feature is switched on, a limit loosened.

    An older version that runs beside this one notices nothing of it.
    """
    if name == "subjects":
        return set(existing or ()) < set(new)
    if name in LIMITS | LOOSER:
        return new != existing and not _is_tighter(new, existing)
    return new is True and not existing and not name.startswith("deny_")


def _is_tighter(new: int, existing: int | None) -> bool:
    if new <= 0:
        return False
    return existing is None or existing <= 0 or new < existing
