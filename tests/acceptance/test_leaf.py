"""A mesh and a leaf: services that use the JetStream of another domain, and a leaf's mesh whose hub goes away."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from mesh.broker import key_value, object_store
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import last_sequence
from mesh.broker.mesh_identity import mesh_id
from mesh.broker.provisioning import apply, compare, declared
from mesh.broker.scanning import Scan
from mesh.configuration.settings import load_settings
from mesh.errors import BrokerUnavailable
from mesh.serving.service import Service, probe_mesh
from tests.support import children
from tests.support.agents import Agents
from tests.support.broker import Broker
from tests.support.http_client import PatientClient
from tests.support.leaf import LEAF, leaf_and_hub
from tests.support.patience import ended
from tests.support.processes import Mesh, serving
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")


async def test_services_at_a_hub_may_use_the_jetstream_of_a_leaf(tmp_path: Path) -> None:
    async with leaf_and_hub(tmp_path) as pair:
        mesh = Mesh(tmp_path, pair.hub, {"MESH_NATS_DOMAIN": LEAF})
        async with serving(mesh, *SERVICES), connect(mesh.settings, "test") as connection:
            agents = Agents(connection)
            script = '!call add {"a": 1, "b": 2}\n!then\n!ask Which one?\n!then\ndone'
            task = await agents.submit(script, tools=["add", "ask_user"])
            await agents.until_asked(task, "2-0")
            await agents.say(task, "the third")
            await agents.until_status(task, "completed")
            async with PatientClient(base_url=mesh.edge_url) as client:
                told = await client.get(f"/v1/tasks/{task}/events")
            assert "event: task.completed" in told.text
            await use_all_kinds_of_requests(connection)
            # Acknowledgements cross the link as well.
            await until_no_work_is_left(connection)
        assert mesh.tracebacks() == []
        at_hub = load_settings({**mesh.environment, "MESH_NATS_DOMAIN": ""})
        async with connect(at_hub, "test") as connection:
            assert (await connection.requests.api("STREAM.NAMES")).get("streams") is None


async def use_all_kinds_of_requests(connection: Connection) -> None:
    requests = connection.requests
    payload = b"x" * 700_000
    reference = await object_store.put(requests, "results", "default.probe", payload)
    assert await object_store.get(requests, reference) == payload
    assert await object_store.purge_objects(requests, "results", ["default.probe"]) == 1
    revision = await key_value.put(requests, "walks", "probe", b"1")
    assert await key_value.compare_and_set(requests, "walks", "probe", b"2", revision)
    found = await key_value.get(requests, "walks", "probe")
    assert found is not None
    assert found.value == b"2"
    assert (await key_value.get_many(requests, "walks", ["probe"]))["probe"].value == b"2"
    await key_value.delete(requests, "walks", "probe")
    events = await Scan(requests, "EVENTS").page(0)
    assert events.messages[-1].sequence == await last_sequence(requests, "EVENTS")


async def test_a_domain_that_nobody_has_is_named(tmp_path: Path) -> None:
    async with leaf_and_hub(tmp_path) as pair:
        settings = load_settings({"MESH_NATS_URL": pair.hub.url, "MESH_NATS_DOMAIN": "elsewhere"})
        async with connect(settings, "test") as connection:
            with pytest.raises(BrokerUnavailable, match="in domain elsewhere"):
                await connection.requests.api("STREAM.NAMES")


async def test_a_mesh_does_not_start_beside_another_one_in_its_account(tmp_path: Path) -> None:
    async with leaf_and_hub(tmp_path) as pair:
        first, second = Mesh(tmp_path / "first", pair.hub, {}), Mesh(tmp_path / "second", pair.leaf, {})
        first.folder.mkdir()
        second.folder.mkdir()
        async with serving(first, "ingress", "steward"):
            # Streams alone would store the other's tasks.
            command = [sys.executable, "-m", "meshctl", "streams", "apply"]
            applied = await children.run(command, second.environment)
            assert (applied.returncode, applied.stdout) == (2, "")
            assert "another mesh in the same account" in applied.stderr
            with pytest.raises(RuntimeError, match="did not start"):
                async with serving(second, "steward"):
                    pass
            [refused] = second.processes
            assert refused._popen is not None
            assert await ended(refused._popen, 5) == 2
            [line] = refused.log.read_text().splitlines()
            assert re.match(
                r"steward: another mesh in the same account would run each task again: mesh \w{26} \(", line
            )
            assert refused.is_running is False
            # Its own account is not to blame: one more process of the first mesh starts as ever.
            await first.start("inference_worker")


async def test_meshes_that_come_to_share_an_account_say_so(tmp_path: Path) -> None:
    async with leaf_and_hub(tmp_path) as pair:
        first, second = Mesh(tmp_path / "first", pair.hub, {}), Mesh(tmp_path / "second", pair.leaf, {})
        first.folder.mkdir()
        second.folder.mkdir()
        await pair.hub.stop()
        async with serving(second, "ingress"):
            await pair.hub.start()
            async with connect(first.settings, "test") as connection:
                await apply(connection.requests, declared(first.settings), update=False)
                mesh = await mesh_id(connection.requests)
                assert mesh is not None
                await pair.until_linked()
                service = Service("steward", first.settings, connection)
                neighbours = service.neighbours
                neighbours.metadata["mesh"] = mesh
                assert neighbours.checks() == []

                async def seen() -> bool:
                    await neighbours.look_again()
                    return bool(neighbours.checks())

                await until(seen)
                [check] = neighbours.checks()
                assert (check.name, check.ok) == ("other_mesh", False)
                assert "ingress-" in (check.detail or "")
                # So say the process's record, and the readiness of whoever serves HTTP.
                assert check in service.wellness.ailments()
                assert check in await probe_mesh(service)
                told = await children.run([sys.executable, "-m", "meshctl", "doctor"], first.environment)
                assert told.returncode == 1
                lines = [json.loads(line) for line in told.stdout.splitlines()]
                assert [line["status"] for line in lines if line["check"] == "other_mesh"] == ["fail"]
                await second.processes[0].stop()
                await neighbours.look_again()
                assert neighbours.checks() == []


async def test_a_mesh_keeps_its_id_and_an_older_one_gets_one_that_all_of_it_agree_on(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    await broker.start()
    try:
        settings = load_settings({"MESH_NATS_URL": broker.url})
        async with connect(settings, "test") as connection:
            requests = connection.requests
            assert await mesh_id(requests) is None
            await apply(requests, declared(settings), update=False)
            first = await mesh_id(requests)
            assert first is not None
            config = (await requests.api("STREAM.INFO.EVENTS"))["config"]
            await requests.api("STREAM.UPDATE.EVENTS", config | {"max_bytes": 2**30})
            assert await apply(requests, declared(settings), update=True) != []
            assert await mesh_id(requests) == first
            # As an earlier version, or `nats stream add`, has made it.
            await requests.api("STREAM.UPDATE.EVENTS", config | {"metadata": {}})
            found = await asyncio.gather(*(mesh_id(requests) for _ in range(8)))
            assert len(set(found)) == 1
            assert found[0] not in (None, first)
            assert await compare(requests, declared(settings)) == []
    finally:
        await broker.stop()
