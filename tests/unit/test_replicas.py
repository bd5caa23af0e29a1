"""Whether a stream can store anything, by what it says of its replicas. The states are a real server's."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.broker.replication import lacks_quorum

SECOND = 1_000_000_000


def replica(name: str, active_seconds: float = 0.4, **more: Any) -> dict[str, Any]:
    return {"name": name, "current": True, "active": int(active_seconds * SECOND), **more}


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (None, None),
        ({"leader": "n1"}, None),
        ({"leader": "n1", "replicas": [replica("n2"), replica("n3")]}, None),
        ({"leader": "n1", "replicas": [replica("n2"), replica("n3", 60, offline=True)]}, None),
        (
            {"leader": "n1", "replicas": [replica("n3", 7.4), replica("n2", 7.3)]},
            "no quorum: of 3 copies these are away: n2, n3",
        ),
        (
            {"leader": "n1", "replicas": [replica("n2", offline=True), replica("n3", offline=True)]},
            "no quorum: of 3 copies these are away: n2, n3",
        ),
        (
            {"replicas": [replica("n1", 0, current=False), replica("n2", 0, current=False), replica("n3", 5.6)]},
            "no leader: 1 of 3 copies answer",
        ),
        ({"leader": "n1", "replicas": [replica(name, 9) for name in ("n2", "n3", "n4", "n5")]}, "no quorum"),
        ({"leader": "n1", "replicas": [replica("n2", 9), replica("n3", 9), replica("n4"), replica("n5")]}, None),
    ],
)
def test_a_stream_lacks_quorum_without_a_leader_or_with_half_of_its_replicas_away(
    cluster: dict[str, Any] | None, said: str | None
) -> None:
    told = lacks_quorum({"cluster": cluster} if cluster is not None else {})
    assert told is None if said is None else (told or "").startswith(said)
