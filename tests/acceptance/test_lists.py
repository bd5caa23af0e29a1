"""Lists over HTTP, with an ingress that is killed, that loses its index, and that has not built it yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.broker.provisioning import apply, declared
from tests.support.lists import pack_tasks, purge_record, put, task_record
from tests.support.submission import Bench, open_bench
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance


@pytest.fixture
async def bench(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> AsyncIterator[Bench]:
    """An ingress alone, whose index lies in a folder."""
    async with open_bench(tmp_path_factory, "lists", "ingress", MESH_INDEX_FOLDER=str(tmp_path / "index")) as opened:
        yield opened


async def counts(bench: Bench, tenant: str) -> dict[str, int]:
    """The numbers of tasks, of the statuses that there are."""
    response = await bench.client.get("/v1/tasks/counts", headers={"Mesh-Tenant": tenant})
    assert response.status_code == 200, response.text
    return {status: tasks for status, tasks in response.json()["counts"].items() if tasks}


async def test_tasks_are_found_by_what_their_submitters_call_them(bench: Bench) -> None:
    async def submitted(tenant: str, **metadata: str | int | bool) -> str:
        body = {"input": "hello", "metadata": metadata}
        response = await bench.client.post("/v1/tasks", json=body, headers={"Mesh-Tenant": tenant})
        return str(response.json()["id"])

    first = await submitted("shop", order=42, customer="Ann & Söhne")
    second = await submitted("shop", order=43, customer="Ann & Söhne")
    await submitted("other", order=42)

    async def all_three() -> bool:
        return len(await bench.listed("shop")) == 2 and len(await bench.listed("other")) == 1

    await until(all_three)
    assert await bench.listed("shop", **{"metadata.order": "42"}) == [first]
    assert set(await bench.listed("shop", **{"metadata.customer": "Ann & Söhne"})) == {first, second}
    both = {"metadata.customer": "Ann & Söhne", "metadata.order": "43", "status": "queued"}
    assert await bench.listed("shop", **both) == [second]
    assert await bench.listed("shop", **{"metadata.order": "%"}) == []
    page = await bench.page("shop", **{"metadata.order": "42", "since": "2026-01-01T00:00:00Z"})
    assert page["tasks"][0]["links"]["self"] == f"/v1/tasks/{first}"
    assert await bench.listed("shop", until="2026-01-01T00:00:00Z") == []
    assert await counts(bench, "shop") == {"queued": 2}
    assert await counts(bench, "nobody") == {}


async def test_an_ingress_that_was_killed_goes_on_from_its_file_and_one_without_builds_it_anew(
    bench: Bench, tmp_path: Path
) -> None:
    (ingress,) = bench.mesh.processes
    packed = [task_record("killed") for _ in range(20)]
    hot = [task_record("killed", status="running") for _ in range(20)]
    for record in [*packed, *hot]:
        await put(bench.connection, record)
    assert len(await bench.listed("killed")) == 40
    await pack_tasks(bench.connection, packed)
    for record in packed:
        await purge_record(bench.connection, record)
    expected = [record.id for record in [*reversed(hot), *reversed(packed)]]
    assert await bench.listed("killed", limit=7) == expected
    cursor = (await bench.page("killed", limit=10))["cursor"]

    for is_lost in (False, True, False):
        await ingress.kill()
        if is_lost:
            for file in (tmp_path / "index").iterdir():
                file.unlink()
        later = task_record("killed", status="running")
        await put(bench.connection, later)
        await ingress.start()
        expected = [later.id, *expected]
        assert await bench.listed("killed", limit=7) == expected
        # A cursor from before is the same place.
        assert await bench.listed("killed", cursor=cursor) == expected[-30:]
        assert await counts(bench, "killed") == {"running": len(expected) - 20, "completed": 20}
    assert [file.name for file in (tmp_path / "index").glob("*.sqlite")] == ["lists-1.sqlite"]


async def test_streams_that_are_made_again_empty_the_lists_at_once(bench: Bench) -> None:
    await put(bench.connection, task_record("anew"))
    await pack_tasks(bench.connection, [task_record("anew")])
    assert len(await bench.listed("anew")) == 2
    for stream in ("KV_tasks", "ARCHIVE"):
        await bench.connection.requests.api(f"STREAM.DELETE.{stream}")
    await apply(bench.connection.requests, declared(bench.mesh.settings, ("add",)), update=False)
    assert await bench.listed("anew") == []
    record = task_record("anew")
    await put(bench.connection, record)
    assert await bench.listed("anew") == [record.id]


async def test_tasks_are_accepted_while_there_is_no_list(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    folder.write_text("a file where the folder should be")
    async with open_bench(tmp_path_factory, "listless", "ingress", MESH_INDEX_FOLDER=str(folder)) as bench:
        for path in ("/v1/tasks", "/v1/tasks/counts", "/v1/dead-letters"):
            response = await bench.client.get(path)
            assert (response.status_code, response.json()["code"]) == (503, "list-unavailable"), response.text
            assert int(response.headers["retry-after"]) >= 1
        task = await bench.accepted("hello", "default")
        assert (await bench.client.get("/health/ready")).status_code == 200
        folder.unlink()
        await until(lambda: _lists(bench, task))


async def _lists(bench: Bench, task: str) -> bool:
    response = await bench.client.get("/v1/tasks")
    return response.status_code == 200 and [each["id"] for each in response.json()["tasks"]] == [task]


async def test_lists_that_come_together_share_a_look(bench: Bench) -> None:
    records = [task_record("together") for _ in range(50)]
    for record in records:
        await put(bench.connection, record)
    pages = await asyncio.gather(*(bench.listed("together") for _ in range(40)))
    assert all(page == [record.id for record in reversed(records)] for page in pages)
