"""A cluster without quorum: what clients are told meanwhile, and that nothing is lost of what was accepted."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest

from contracts.identifiers import new_id
from tests.support.cluster_mesh import ClusterMesh, cluster_mesh
from tests.support.waiting import until

pytestmark = pytest.mark.processes

SERVICES = ("ingress", "stream_edge", "steward", "inference_worker")
ROUNDS = 3
"""So often each request is made: what answers in between differs from one to the next."""


def requests_of(mesh: ClusterMesh, ended: str, waiting: str) -> list[tuple[str, str, object]]:
    """A request of every kind that needs the broker: method, URL, body."""
    ingress, edge, unknown = mesh.ingress_url, mesh.edge_url, new_id()
    say: dict[str, object] = {"input": "!say 1\n"}
    return [
        ("POST", f"{ingress}/v1/tasks", say),
        ("POST", f"{ingress}/v1/tasks", {**say, "continues": ended}),
        ("GET", f"{ingress}/v1/tasks/{waiting}", None),
        ("GET", f"{ingress}/v1/tasks/{unknown}", None),
        ("POST", f"{ingress}/v1/tasks/{waiting}/cancel", None),
        ("POST", f"{ingress}/v1/tasks/{unknown}/cancel", None),
        ("POST", f"{ingress}/v1/tasks/{waiting}/inputs", {"kind": "message", "text": "more"}),
        ("GET", f"{ingress}/v1/tasks", None),
        ("GET", f"{ingress}/v1/tasks/counts", None),
        ("GET", f"{ingress}/v1/dead-letters", None),
        ("GET", f"{ingress}/v1/dead-letters/{waiting}", None),
        ("POST", f"{ingress}/v1/dead-letters/{waiting}/replay", {}),
        ("DELETE", f"{ingress}/v1/dead-letters/{waiting}", None),
        ("GET", f"{ingress}/v1/dead-letters/malformed/1", None),
        ("DELETE", f"{ingress}/v1/dead-letters/malformed/1", None),
        ("POST", f"{ingress}/v1/dead-letters/malformed/1/requeue", None),
        ("GET", f"{edge}/v1/tasks/{unknown}/events", None),
    ]


async def test_without_quorum_a_refusal_is_503_and_readiness_says_what_is_away(tmp_path: Path) -> None:
    async with (
        cluster_mesh(tmp_path, *SERVICES, MESH_ACK_WAIT_SECONDS="10") as mesh,
        httpx.AsyncClient(timeout=60) as client,
    ):
        ended, waiting = [await submit(client, mesh, text) for text in ("!say 3\n", "!ask Who goes there?\n")]
        await until(lambda: has(client, mesh, ended, "completed"))
        await until(lambda: has(client, mesh, waiting, "waiting"))
        await until(lambda: is_ready(client, mesh, 200))

        first, second, _ = mesh.cluster.nodes
        await asyncio.gather(first.kill(), second.kill())
        await until(lambda: is_ready(client, mesh, 503))
        wrong: list[str] = []
        refused: Counter[str] = Counter()
        for _ in range(ROUNDS):
            asked = requests_of(mesh, ended, waiting)
            answers = await asyncio.gather(*(client.request(method, url, json=body) for method, url, body in asked))
            for (method, url, _body), answer in zip(asked, answers, strict=True):
                said = f"{method} {url.partition('/v1')[2]}: {answer.status_code} {answer.text[:200]}"
                if answer.status_code == 503:
                    refused[method] += 1
                    if answer.json()["code"] != "broker-unavailable" or int(answer.headers["retry-after"]) < 1:
                        wrong.append(said)
                elif answer.status_code >= 500:  # What a server still knows for sure it may tell.
                    wrong.append(said)
        assert not wrong
        assert all(refused[method] for method in ("GET", "POST", "DELETE"))
        await until(lambda: says_what_is_away(client, mesh))

        await asyncio.gather(first.start(), second.start())
        await until(lambda: is_ready(client, mesh, 200), 60)
        again = await submit(client, mesh, "!say 3\n")
        await until(lambda: has(client, mesh, again, "completed"))
        assert mesh.logs_of("http.internal_error") == []
        assert mesh.tracebacks() == []


async def submit(client: httpx.AsyncClient, mesh: ClusterMesh, text: str) -> str:
    answer = await client.post(f"{mesh.ingress_url}/v1/tasks", json={"input": text})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def has(client: httpx.AsyncClient, mesh: ClusterMesh, task: str, status: str) -> bool:
    answer = await client.get(f"{mesh.ingress_url}/v1/tasks/{task}")
    return answer.status_code == 200 and bool(answer.json()["status"] == status)


async def says_what_is_away(client: httpx.AsyncClient, mesh: ClusterMesh) -> bool:
    told = [await client.get(f"{address}/health/ready") for address in (mesh.ingress_url, mesh.edge_url)]
    aways = [{one["name"]: one["detail"] for one in each.json()["checks"] if not one["ok"]} for each in told]
    # For some seconds after a leader's death nobody answers for its streams.
    return all(
        away.keys() == {"TASKS", "EVENTS", "KV_tasks"}
        and all(detail.startswith(("no leader", "no quorum")) for detail in away.values())
        for away in aways
    )


async def is_ready(client: httpx.AsyncClient, mesh: ClusterMesh, status: int) -> bool:
    answers = [await client.get(f"{address}/health/ready") for address in (mesh.ingress_url, mesh.edge_url)]
    return all(answer.status_code == status for answer in answers)
