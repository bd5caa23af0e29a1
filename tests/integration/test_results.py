"""Large results against a real broker: a tenant's share, how they go with their task, what is swept."""

from __future__ import annotations

from datetime import timedelta

import pytest

from contracts import result_objects, subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.records.archive import PackLocation
from contracts.records.tools import RESULT_BYTES_MAX, RESULTS_BUCKET
from contracts.result_objects import ResultName
from contracts.streams import RESULTS
from mesh.broker import key_value, object_store
from mesh.broker.connection import Connection
from mesh.broker.direct_get import subjects_of
from mesh.broker.provisioning import apply, compare, declared
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from steward import result_sweep
from steward.result_sweep import ResultSweep, Swept
from tests.support.limits import limit
from tests.support.tasks import begin_journal, turn_work
from tests.support.waiting import until
from tool_runner.result_store import OverQuota, ResultStore

pytestmark = pytest.mark.integration

LARGE = b"x" * (RESULT_BYTES_MAX + 1)
BUCKET_BYTES = 8 * 1024 * 1024
SHARE = 0.25
FIT = int(BUCKET_BYTES * SHARE) // len(LARGE)
"""So many of the large ones are a tenant's."""
NO_AGE = timedelta()


def result_of(tenant: str = "default", task: str | None = None, call: str = "1-0") -> ResultName:
    """A result of a claim of its own."""
    return ResultName(tenant, task or new_id(), call, new_id())


async def there(requests: Requests) -> set[str]:
    """All subjects of the bucket."""
    return set(await subjects_of(requests, RESULTS.name, ">"))


async def store(requests: Requests, name: ResultName, payload: bytes = LARGE) -> None:
    await ResultStore(requests, 1.0).store(name, payload)


async def store_half(requests: Requests, name: ResultName) -> None:
    """As a runner that dies after its first chunk."""
    chunks_id = result_objects.chunks_id(str(name), len(LARGE))
    await requests.publish(result_objects.chunks_subject(RESULTS_BUCKET, chunks_id), LARGE)


# A tenant's share


async def test_a_tenant_that_has_its_share_is_refused_and_others_are_not(connection: Connection) -> None:
    requests = connection.requests
    await limit(requests, RESULTS.name, max_bytes=BUCKET_BYTES)
    runner = ResultStore(requests, SHARE)
    names = [result_of("acme") for _ in range(FIT)]
    for name in names:
        await runner.store(name, LARGE)
    for other in (runner, ResultStore(requests, SHARE)):
        with pytest.raises(
            OverQuota, match=r"tenant acme take .* bytes that they may \(results\.tenant_share = 0\.25\)"
        ):
            await other.store(result_of("acme"), LARGE)
        assert (await other.store(result_of("default"), LARGE)).size == len(LARGE)
    await object_store.purge_objects(requests, RESULTS_BUCKET, [str(names[0])])
    assert (await ResultStore(requests, SHARE).store(result_of("acme"), LARGE)).size == len(LARGE)


async def test_what_other_runners_store_is_seen_before_the_share_is_used_up(connection: Connection) -> None:
    requests = connection.requests
    await limit(requests, RESULTS.name, max_bytes=BUCKET_BYTES)
    runners = [ResultStore(requests, SHARE) for _ in range(4)]
    stored = 0
    for number in range(3 * FIT):
        try:
            await runners[number % 4].store(result_of("acme"), LARGE)
            stored += 1
        except OverQuota:
            continue
    assert stored == FIT


async def test_what_a_runner_of_another_language_stores_counts_by_its_chunks(connection: Connection) -> None:
    requests = connection.requests
    await limit(requests, RESULTS.name, max_bytes=BUCKET_BYTES)
    for number in range(4):
        nuid = f"acme.{new_id()}"
        await object_store.put(requests, RESULTS_BUCKET, f"acme.theirs-{number}", LARGE, nuid)
    with pytest.raises(OverQuota):
        await ResultStore(requests, SHARE).store(result_of("acme"), LARGE)


async def test_an_object_of_before_counts_for_nobody(connection: Connection) -> None:
    requests = connection.requests
    await limit(requests, RESULTS.name, max_bytes=BUCKET_BYTES)
    for _ in range(2 * FIT):
        await object_store.put(requests, RESULTS_BUCKET, str(result_of("acme")), LARGE)
    assert (await ResultStore(requests, SHARE).store(result_of("acme"), LARGE)).size == len(LARGE)


# How they go


async def test_what_is_purged_is_gone_with_its_chunks_and_to_do_it_twice_is_the_same(connection: Connection) -> None:
    requests = connection.requests
    gone, stays = [result_of(), result_of()], result_of()
    for name in (*gone, stays):
        await store(requests, name, LARGE * 3)
    before = await there(requests)
    old = str(result_of())
    await object_store.put(requests, RESULTS_BUCKET, old, LARGE)
    names = [*map(str, gone), old, "of.nobody"]
    assert await object_store.purge_objects(requests, RESULTS_BUCKET, names) == 3
    assert await there(requests) == {each for each in before if str(stays) in each} | {
        result_objects.information_subject(RESULTS_BUCKET, str(stays))
    }
    assert await object_store.purge_objects(requests, RESULTS_BUCKET, names) == 0
    bucket = await connection.client.jetstream().object_store(RESULTS_BUCKET)
    assert (await bucket.get(str(stays))).data == LARGE * 3


@pytest.mark.parametrize("nuid", [">", "*", "acme.>", "", "a..b"])
async def test_an_object_that_says_that_all_chunks_are_its_own_purges_none(connection: Connection, nuid: str) -> None:
    requests = connection.requests
    await store(requests, result_of())
    before = await there(requests)
    made_up = result_objects.information_subject(RESULTS_BUCKET, "made-up")
    await requests.publish(made_up, encode({"name": "made-up", "nuid": nuid}))
    assert await object_store.purge_objects(requests, RESULTS_BUCKET, ["made-up"]) == 0
    assert await there(requests) == before | {made_up}


async def test_a_mesh_of_before_is_told_that_results_have_no_age_and_a_living_task_keeps_its_own(
    connection: Connection, settings: Settings
) -> None:
    requests = connection.requests
    await limit(requests, RESULTS.name, max_age=int(1e9), duplicate_window=int(1e9))
    short = [each for each in declared(settings).streams if each.name == RESULTS.name]
    wanted = declared(settings)._replace(streams=short, consumers=[])
    [difference] = await compare(requests, wanted)
    assert difference.changes.keys() >= {"max_age"}
    name = result_of()
    await store(requests, name)
    await apply(requests, wanted, update=True)
    assert await compare(requests, wanted) == []

    # By when what was stored after it is as old as it could have been before.
    witness = {"name": "WITNESS", "subjects": ["witness"], "max_age": int(1e9), "duplicate_window": int(1e9)}
    await requests.api("STREAM.CREATE.WITNESS", witness)
    await requests.publish("witness", b"")

    async def is_over() -> bool:
        return bool((await requests.api("STREAM.INFO.WITNESS"))["state"]["messages"] == 0)

    await until(is_over)
    bucket = await connection.client.jetstream().object_store(RESULTS_BUCKET)
    assert (await bucket.get(str(name))).data == LARGE


# The sweep


async def packed(requests: Requests, tenant: str, task: str, sequence: int) -> None:
    """Write into `archive` where a task lies."""
    places = {subjects.task_key(tenant, task): PackLocation(sequence, 0, 9)}
    await key_value.put(requests, "archive", subjects.archive_key(tenant, task), encode(places))


async def test_the_sweep_takes_results_of_tasks_that_are_nowhere_and_no_others(connection: Connection) -> None:
    requests = connection.requests
    pack = (await requests.publish("archive.1", b"a pack")).seq
    lives, is_packed, is_gone = turn_work().task, new_id(), new_id()
    await begin_journal(requests, turn_work(task=lives))
    await packed(requests, "default", is_packed, pack)
    for task in (lives, is_packed):
        await store(requests, result_of(task=task))
    await object_store.put(requests, RESULTS_BUCKET, "somebodys.file", LARGE)
    stays = await there(requests)
    await store(requests, result_of(task=is_gone))
    await store(requests, result_of(task=is_gone, call="1-1"))
    await store(requests, result_of(tenant="acme", task=lives))
    assert await ResultSweep(requests).round() == Swept(), "all are young"
    assert await ResultSweep(requests, NO_AGE).round() == Swept(results=3)
    assert await there(requests) == stays
    assert await ResultSweep(requests, NO_AGE).round() == Swept()


async def test_a_place_whose_pack_is_gone_keeps_no_result(connection: Connection) -> None:
    requests = connection.requests
    task = new_id()
    pack = (await requests.publish("archive.1", b"a pack")).seq
    await packed(requests, "default", task, pack)
    await store(requests, result_of(task=task))
    sweep = ResultSweep(requests, NO_AGE)
    assert await sweep.round() == Swept()
    await requests.api("STREAM.PURGE.ARCHIVE", {})
    assert await ResultSweep(requests, NO_AGE).round() == Swept(results=1)


async def test_the_sweep_takes_halves_also_of_living_tasks(connection: Connection) -> None:
    requests = connection.requests
    journal = await begin_journal(requests, turn_work())
    whole = result_of(task=journal.state.task)
    await store(requests, whole)
    stays = await there(requests)
    await store_half(requests, result_of(task=journal.state.task))
    await store_half(requests, result_of())
    assert await ResultSweep(requests).round() == Swept(), "all are young"
    assert await ResultSweep(requests, NO_AGE).round() == Swept(halves=2)
    assert await there(requests) == stays


async def test_a_round_looks_at_a_few_tasks_and_the_next_one_goes_on(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_sweep, "TASKS_PER_ROUND_MAX", 2)
    requests = connection.requests
    for _ in range(5):
        await store(requests, result_of())
    sweep = ResultSweep(requests, NO_AGE)
    assert [(await sweep.round()).results for _ in range(4)] == [2, 2, 1, 0]
    assert await there(requests) == set()
