"""Bad input is refused with a problem document, leaves nothing behind and harms nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.bad_input import (
    ABSENT_TASK,
    BAD_TENANTS,
    IMPOSSIBLE_TASKS,
    JSON,
    SOUND,
    WAIT,
    Bench,
    assert_problem,
    harming_nobody,
    header,
    open_bench,
)
from tests.support.clients import Viewer

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path_factory.mktemp("bad-input")) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def unharmed(bench: Bench) -> AsyncIterator[None]:
    async with harming_nobody(bench):
        yield


# The ingress: headers, queries, paths, methods


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("tenant", BAD_TENANTS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/tasks"),
        ("GET", "/v1/tasks"),
        ("GET", f"/v1/tasks/{ABSENT_TASK}"),
        ("POST", f"/v1/tasks/{ABSENT_TASK}/inputs"),
    ],
)
async def test_a_tenant_outside_the_grammar_is_refused(bench: Bench, tenant: str, method: str, path: str) -> None:
    headers = {**JSON, **header("Mesh-Tenant", tenant)}
    assert_problem(await bench.ingress.request(method, path, content=SOUND, headers=headers), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_two_tenants_in_one_request_are_refused(bench: Bench) -> None:
    headers = [("Content-Type", "application/json"), ("Mesh-Tenant", "acme"), ("Mesh-Tenant", "globex")]
    assert_problem(await bench.ingress.post("/v1/tasks", content=SOUND, headers=headers), "invalid-request")
    events = f"/v1/tasks/{bench.foreign_task}/events"
    assert_problem(await bench.edge.get(events, headers=headers[1:]), "invalid-request")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb", "schlüssel", "🔑"])
async def test_an_idempotency_key_outside_the_grammar_is_refused(bench: Bench, key: str) -> None:
    headers = {**JSON, **header("Idempotency-Key", key)}
    assert_problem(await bench.ingress.post("/v1/tasks", content=SOUND, headers=headers), "invalid-request")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "query",
    [
        *(f"limit={value}" for value in ("", "0", "-1", "101", "1e1", "x", "%B2", "9" * 5000)),
        *(f"status={value}" for value in ("", "done", "COMPLETED", "completed%0a")),
        *(f"cursor={value}" for value in ("", "x", "-1", "1.5", "%D9%A1", "9" * 18, "9" * 5000)),
        *(f"since={value}" for value in ("", "today", "2026-01-31", "2026-01-31T09:30:00")),
        "metadata.=1",
        "&".join(f"metadata.k{number}=1" for number in range(9)),
    ],
    ids=lambda query: query[:20],
)
async def test_a_bad_list_query_is_refused(bench: Bench, query: str) -> None:
    assert_problem(await bench.ingress.get(f"/v1/tasks?{query}"), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_a_list_cursor_far_beyond_the_end_lists_from_the_end(bench: Bench) -> None:
    acme = {"Mesh-Tenant": "acme"}
    response = await bench.ingress.get(f"/v1/tasks?cursor={10**17}.{'z' * 26}", headers=acme, timeout=5)
    assert [task["id"] for task in response.json()["tasks"]] == [bench.foreign_task]
    assert response.json()["cursor"] is None


@pytest.mark.usefixtures("unharmed")
async def test_absent_foreign_and_impossible_tasks_look_the_same(bench: Bench) -> None:
    for client, suffix in ((bench.ingress, ""), (bench.edge, "/events")):
        responses = {
            task: await client.get(f"/v1/tasks/{task}{suffix}")
            for task in (ABSENT_TASK, bench.foreign_task, *IMPOSSIBLE_TASKS)
        }
        for response in responses.values():
            assert_problem(response, "not-found")
        absent, foreign = responses[ABSENT_TASK].text, responses[bench.foreign_task].text
        assert foreign == absent.replace(ABSENT_TASK, bench.foreign_task)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("path", ["/", "/v1", "/v2/tasks", "/v1/task", f"/v1/tasks/{ABSENT_TASK}/nope", "/%00", "/%ff"])
async def test_an_unknown_path_is_not_found(bench: Bench, path: str) -> None:
    for client in (bench.ingress, bench.edge):
        for method in ("GET", "POST"):
            assert_problem(await client.request(method, path), "not-found")


@pytest.mark.usefixtures("unharmed")
async def test_a_wrong_method_is_refused(bench: Bench) -> None:
    task = f"/v1/tasks/{ABSENT_TASK}"
    wrong = [
        *((bench.ingress, method, "/v1/tasks") for method in ("PUT", "PATCH", "DELETE", "PROPFIND")),
        *((bench.ingress, method, task) for method in ("POST", "PUT", "DELETE")),
        *((bench.edge, method, f"{task}/events") for method in ("POST", "PUT", "DELETE")),
        *((client, "POST", "/health/ready") for client in (bench.ingress, bench.edge)),
    ]
    for client, method, path in wrong:
        assert_problem(await client.request(method, path, content=SOUND, headers=JSON), "method-not-allowed")


# The edge


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "0x10", "1e3", "²", "9" * 19, "9" * 5000], ids=lambda c: c[:9])
async def test_a_cursor_that_is_none_is_refused(bench: Bench, cursor: str) -> None:
    events = f"/v1/tasks/{bench.foreign_task}/events"
    sent = {b"Last-Event-ID": cursor.encode("latin-1")}
    by_header = await bench.edge.get(f"{events}?tenant=acme", headers=sent)
    assert_problem(by_header, "invalid-request")
    assert_problem(await bench.edge.get(events, params={"tenant": "acme", "after": cursor}), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_previews_are_asked_for_by_true_or_false_alone(bench: Bench) -> None:
    for said, status in (("true", 200), ("false", 200), ("1", 400), ("", 400), ("TRUE", 400)):
        sent = {"tenant": "acme", "previews": said}
        answer = await bench.edge.get(f"/v1/tasks/{bench.foreign_task}/events", params=sent)
        assert answer.status_code == status, said


@pytest.mark.usefixtures("unharmed")
async def test_a_cursor_far_beyond_the_end_is_told_of_the_gap(bench: Bench) -> None:
    acme = {"Mesh-Tenant": "acme"}
    response = await bench.edge.get(f"/v1/tasks/{bench.foreign_task}/events?after={10**17}", headers=acme)
    assert response.status_code == 200
    types = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
    assert types == ["stream.gap", "snapshot", "task.completed"]
    assert_problem(await bench.edge.get(f"/v1/tasks/{ABSENT_TASK}/events?after={10**17}"), "not-found")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("tenant", BAD_TENANTS)
async def test_the_edge_refuses_a_tenant_outside_the_grammar(bench: Bench, tenant: str) -> None:
    events = f"/v1/tasks/{bench.foreign_task}/events"
    by_header = await bench.edge.get(events, headers=header("Mesh-Tenant", tenant))
    assert_problem(by_header, "invalid-request")
    by_query = await bench.edge.get(events, params={"tenant": tenant})
    assert_problem(by_query, "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_the_edge_refuses_a_tenant_with_a_line_break(bench: Bench) -> None:
    for tenant in ("acme%0a", "acme%0d%0a", "%0aacme", "acme%00"):
        response = await bench.edge.get(f"/v1/tasks/{bench.foreign_task}/events?tenant={tenant}")
        assert_problem(response, "invalid-request")


async def test_after_all_of_this_a_task_still_works(bench: Bench, tmp_path: Path) -> None:
    response = await bench.ingress.post("/v1/tasks", content=SOUND, headers={**JSON, **WAIT})
    assert (response.status_code, response.json()["status"]) == (200, "completed")
    history = await Viewer(str(bench.mesh.settings.edge_address), response.json()["id"]).follow()
    assert history.frames[-1].type == "task.completed"
    assert bench.mesh.tracebacks() == []
    assert not [line for line in bench.mesh.logs() if line["level"] == "error"]
