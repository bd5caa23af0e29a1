"""Links to events over real processes: who has one reads one task's events, until it expires, and nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import pytest_asyncio

from contracts.access import Scope
from contracts.identifiers import new_id
from mesh.access.link_keys import LinkSigning, rotate_keys
from mesh.broker.connection import Connection, connect
from mesh.clock import now
from tests.support.clients import Viewer
from tests.support.http_client import PatientClient
from tests.support.keys import bearer, write_key
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

SERVICES = ("ingress", "stream_edge", "inference_worker")
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
LONG = "!ask Well?"
"""A task that waits for a person."""


@dataclass
class Bench:
    """A mesh whose callers have names, and a client of each HTTP service."""

    mesh: Mesh
    connection: Connection
    ingress: httpx.AsyncClient
    edge: httpx.AsyncClient
    alice: dict[str, str]
    """The headers of a caller who submits and reads."""

    async def shows(self, *scopes: Scope, tenant: str = "default") -> dict[str, str]:
        """The headers of another caller."""
        return bearer(await write_key(self.connection.requests, tenant, *scopes))

    async def submit(self, text: str, **headers: str) -> dict[str, Any]:
        answer = await self.ingress.post(
            "/v1/tasks", json={"input": text}, headers={**self.alice, **headers}, timeout=30
        )
        assert answer.status_code in (200, 202), answer.text
        return dict(answer.json())

    async def token(self, task: str, **wanted: Any) -> str:
        return token_of((await self.link(task, **wanted))["url"])

    async def link(self, task: str, **wanted: Any) -> dict[str, Any]:
        answer = await self.ingress.post(f"/v1/tasks/{task}/links", json=wanted, headers=self.alice)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def answered(self, task: str, query: str, **headers: str) -> tuple[int, str | None]:
        """Status and problem code of a request for events, which is not read further if it is a stream."""
        async with self.edge.stream("GET", f"/v1/tasks/{task}/events{query}", headers=headers) as answer:
            if answer.status_code == 200:
                return 200, None
            body = await answer.aread()
            return answer.status_code, json.loads(body)["code"] if body else None

    def everything_written(self) -> str:
        return "".join(process.log.read_text() for process in self.mesh.processes)


def token_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["link"][0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("links")
    file = folder / "mesh.toml"
    file.write_text('[auth]\nmode = "keys"\nfailures_per_minute = 0\n[pools.default]\n')
    async with (
        running_mesh(folder, *SERVICES, MESH_LOG_LEVEL="debug", MESH_CONFIG=str(file)) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as ingress,
        PatientClient(base_url=mesh.edge_url) as edge,
    ):
        alice = bearer(await write_key(connection.requests, "default", "submit", "read"))
        yield Bench(mesh, connection, ingress, edge, alice)
        assert mesh.tracebacks() == []


async def test_a_link_reads_a_task_to_its_end_and_resumes(bench: Bench) -> None:
    """As EventSource does: no header but the cursor, again and again over broken connections."""
    task = (await bench.submit("!say 40"))["id"]
    link = await bench.link(task)
    assert link["url"].startswith(f"{bench.mesh.edge_url}/v1/tasks/{task}/events?link=")
    viewer = Viewer(urlsplit(link["url"]).netloc, task)
    viewer.query = f"?{urlsplit(link['url']).query}"
    history = await viewer.follow(lambda frames: frames in (1, 3, 5))
    assert history.frames[-1].type == "task.completed"
    assert viewer.connections > 1
    sequences = [frame.sequence for frame in history.frames]
    assert sequences == sorted(set(sequences), key=int)  # type: ignore[arg-type]  # each frame has one


async def test_the_ingress_checks_a_link_and_sends_it_on_to_the_edge(bench: Bench) -> None:
    task = (await bench.submit("!say 2", Prefer="wait=20"))["id"]
    token = await bench.token(task)
    answer = await bench.ingress.get(f"/v1/tasks/{task}/events?link={token}")
    assert answer.status_code == 307
    assert token_of(answer.headers["location"]) == token
    refused = await bench.ingress.get(f"/v1/tasks/{task}/events?link={token}x")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")


async def test_a_link_is_made_for_who_may_read_the_task_and_for_a_bounded_time(bench: Bench) -> None:
    task = (await bench.submit(LONG))["id"]
    path = f"/v1/tasks/{task}/links"

    async def asked(body: Any, **headers: str) -> tuple[int, str | None]:
        answer = await bench.ingress.post(path, json=body, headers=headers)
        return answer.status_code, answer.json().get("code")

    assert await asked({}, **(await bench.shows(tenant="other"))) == (404, "not-found")
    assert await asked({}, **(await bench.shows("submit", "answer", "operate"))) == (403, "scope-missing")
    assert await asked({}) == (401, "unauthorized")
    bodies: list[Any] = [{"expires_in_seconds": 0}, {"expires_in_seconds": 86_401}, {"expires": 5}, []]
    for wrong in bodies:
        assert await asked(wrong, **bench.alice) == (400, "invalid-request"), wrong
    absent = await bench.ingress.post(f"/v1/tasks/{new_id()}/links", headers=bench.alice)
    assert absent.status_code == 404
    bare = await bench.ingress.post(path, headers=bench.alice)
    assert bare.status_code == 200
    assert bare.headers["cache-control"] == "no-store"
    assert await asked({"expires_in_seconds": 86_400}, **bench.alice) == (200, None)


async def test_a_link_ends_with_the_key_that_it_was_asked_for_with(bench: Bench) -> None:
    task = (await bench.submit(LONG))["id"]
    key_ends_at = now() + timedelta(minutes=10)
    shown = bearer(await write_key(bench.connection.requests, expires_at=key_ends_at))
    made = await bench.ingress.post(f"/v1/tasks/{task}/links", json={"expires_in_seconds": 86_400}, headers=shown)
    assert made.status_code == 200, made.text
    assert timedelta(0) <= key_ends_at - datetime.fromisoformat(made.json()["expires_at"]) < timedelta(minutes=9)


async def test_a_submission_has_a_link_if_it_asks_for_one_and_may_read(bench: Bench) -> None:
    answer = await bench.ingress.post(
        "/v1/tasks", json={"input": LONG}, headers={**bench.alice, "Prefer": "link=60, wait=1"}
    )
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "link"
    task = answer.json()["id"]
    assert await bench.answered(task, f"?link={token_of(answer.json()['link']['url'])}") == (200, None)
    plain = await bench.ingress.post("/v1/tasks", json={"input": LONG}, headers=bench.alice)
    assert "link" not in plain.json()
    blind = {**(await bench.shows("submit")), "Prefer": "link"}
    unseen = await bench.ingress.post("/v1/tasks", json={"input": LONG}, headers=blind)
    assert (unseen.status_code, "link" in unseen.json()) == (202, False)


async def test_a_link_that_is_none_is_refused_and_nothing_of_it_is_written_down(bench: Bench) -> None:
    """Altered in each character, cut, doubled, huge, for another task, of another mesh, of another tenant."""
    task, other = (await bench.submit(LONG))["id"], (await bench.submit(LONG))["id"]
    token = await bench.token(task)
    altered = [token[:at] + ("x" if token[at] != "x" else "y") + token[at + 1 :] for at in range(len(token))]
    for wrong in (*altered, token[:-1], token[:40], "", "x" * 30_000, token + token, token + "%0a", "%00", "..%2f"):
        assert await bench.answered(task, f"?link={wrong}") == (401, "unauthorized"), wrong
    assert await bench.answered(other, f"?link={token}") == (401, "unauthorized")
    assert await bench.answered(new_id(), f"?link={token}") == (401, "unauthorized")
    assert await bench.answered(task, f"?link={token}&link={token}") == (401, "unauthorized")
    assert await bench.answered(task, f"?link={token}&tenant=other") == (403, "tenant-mismatch")
    assert await bench.answered(task, f"?link={token}", **{"Mesh-Tenant": "other"}) == (403, "tenant-mismatch")
    assert await bench.answered(task, f"?link={token}x", **bench.alice) == (401, "unauthorized"), (
        "it goes by the link alone"
    )
    assert await bench.answered(task, f"?link={token}") == (200, None)
    written = bench.everything_written()
    assert token[-20:] not in written
    assert altered[0][-20:] not in written
    assert task in written


async def test_a_link_opens_nothing_but_events(bench: Bench) -> None:
    task = (await bench.submit(LONG))["id"]
    query = f"?link={await bench.token(task)}"
    for method, path in (
        ("GET", f"/v1/tasks/{task}"),
        ("GET", "/v1/tasks"),
        ("POST", f"/v1/tasks/{task}/cancel"),
        ("POST", f"/v1/tasks/{task}/inputs"),
        ("POST", f"/v1/tasks/{task}/links"),
        ("POST", f"/v1/tasks/{task}/events"),
        ("GET", f"/v1/dead-letters/{task}"),
    ):
        answer = await bench.ingress.request(method, path + query)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), (method, path)


async def test_a_key_in_a_query_is_no_credential(bench: Bench) -> None:
    task = (await bench.submit(LONG))["id"]
    shown = bench.alice["Authorization"].replace(" ", "%20")
    for name in ("key", "api_key", "access_token", "token", "Authorization", "authorization", "Bearer", "Link"):
        assert await bench.answered(task, f"?{name}={shown}") == (401, "unauthorized"), name
        for path in (f"/v1/tasks/{task}", "/v1/tasks"):
            answer = await bench.ingress.get(f"{path}?{name}={shown}")
            assert answer.status_code == 401, (name, path)


async def test_a_stream_ends_with_its_link_and_who_comes_again_is_told_why(bench: Bench) -> None:
    task = (await bench.submit(LONG))["id"]
    token = await bench.token(task, expires_in_seconds=2)
    async with bench.edge.stream("GET", f"/v1/tasks/{task}/events?link={token}", timeout=60) as answer:
        frames = [line async for line in answer.aiter_lines()]
    assert answer.status_code == 200
    assert not any(line.startswith("event: task.completed") for line in frames)
    assert await bench.answered(task, f"?link={token}") == (401, "link-expired")


async def test_rotation_without_a_restart_old_links_hold_for_the_grace(bench: Bench) -> None:
    """A link of the new key is known at the edge at once, one of the old key until its grace is over."""
    task = (await bench.submit(LONG))["id"]
    before = await bench.token(task)
    await rotate_keys(bench.connection.requests, grace_seconds=600)
    after = (await LinkSigning(bench.connection.requests).make("default", task, 600)).token
    assert before.partition(".")[0] != after.partition(".")[0]
    assert await bench.answered(task, f"?link={after}") == (200, None)
    assert await bench.answered(task, f"?link={before}") == (200, None)
    await rotate_keys(bench.connection.requests, grace_seconds=0)

    async def is_refused() -> bool:
        return (await bench.answered(task, f"?link={before}"))[0] == 401

    await until(is_refused)
    again = await bench.token(task)
    assert await bench.answered(task, f"?link={again}") == (200, None)


async def test_spans_and_metrics_hold_no_query(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything that OTLP is given, bytes and all."""
    folder = tmp_path_factory.mktemp("links-otlp")
    receiver = await OtlpReceiver(folder).start()
    try:
        variables = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "MESH_LOG_LEVEL": "debug"}
        async with (
            running_mesh(folder, "ingress", "stream_edge", "inference_worker", **variables) as mesh,
            PatientClient(base_url=mesh.ingress_url) as ingress,
            PatientClient(base_url=mesh.edge_url) as edge,
        ):
            body = {"input": "!say 2"}
            answer = await ingress.post("/v1/tasks", json=body, headers={"Prefer": "link"}, timeout=30)
            link = urlsplit(answer.json()["link"]["url"])
            assert (await edge.get(f"{link.path}?{link.query}", timeout=30)).status_code == 200
            assert (await edge.get(f"{link.path}?{link.query}x", timeout=30)).status_code == 401
            assert (await ingress.get(f"{link.path}?{link.query}", timeout=30)).status_code == 307
            token = token_of(answer.json()["link"]["url"])
            await until(lambda: any("events" in span["name"] for span in receiver.spans()))
            await until(lambda: bool(receiver.metrics()))
        written = "".join(process.log.read_text() for process in mesh.processes)
        assert token[-20:] not in written
        assert token[-20:] not in json.dumps([*receiver.spans(), *receiver.metrics()])
    finally:
        await receiver.stop()
