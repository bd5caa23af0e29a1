"""What a stream's state says of its replicas: whether enough of them are there to store anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SILENT_SECONDS = 5.0
"""A replica that its leader has not heard of for so long is away. It hears of each about once a second."""
_NANOSECONDS = 1_000_000_000


def lacks_quorum(info: Mapping[str, Any]) -> str | None:
    """Why a stream can store nothing, by its own state (the answer to `STREAM.INFO`); None if it can. Pure.

    Where there is no leader a follower answers, after some seconds of silence, and names none. A leader that is left
    alone goes on for 10 to 20 s as if nothing were wrong: it answers for the stream's state, and no publish (measured
    with nats-server 2.15).
    """
    cluster: Mapping[str, Any] = info.get("cluster") or {}
    replicas: list[Mapping[str, Any]] = cluster.get("replicas") or []
    if not replicas:
        return None
    if not cluster.get("leader"):
        there = sum(1 for each in replicas if each.get("current"))
        return f"no leader: {there} of {len(replicas)} replicas answer"
    away = [each for each in replicas if each.get("offline") or each.get("active", 0) > SILENT_SECONDS * _NANOSECONDS]
    count = len(replicas) + 1
    if count - len(away) > count // 2:
        return None
    names = ", ".join(sorted(str(each.get("name", "?")) for each in away))
    return f"no quorum: of {count} replicas these are away: {names}"
