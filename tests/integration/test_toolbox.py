"""Declarations through a real broker, and results in a real object store."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from contracts import streams
from contracts.codec import encode
from contracts.records.tools import RESULTS_BUCKET, ToolDeclaration
from contracts.streams import TOOLS_BUCKET
from mesh.background import background
from mesh.broker import key_value, object_store
from mesh.broker.answers import Ack, Answer
from mesh.broker.connection import Connection
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.broker.direct_get import last_sequence
from mesh.broker.provisioning import compare, declared
from mesh.clock import lease_clock
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.settings import Settings
from mesh.configuration.tool_tables import ToolsConfiguration
from mesh.tools.toolbox import Toolbox, consumers_of_tools
from tests.support.waiting import until
from tool_runner.declaring import declare

pytestmark = pytest.mark.integration

FOREIGN = ToolDeclaration(name="files_read", description="Reads.", parameters={"type": "object"}, timeout_seconds=9)


async def test_what_a_runner_declares_a_worker_reads(connection: Connection, settings: Settings) -> None:
    toolbox = Toolbox(connection.requests, ToolsConfiguration())
    assert await toolbox.declarations(["files_read", "nobodys"]) == {}
    await declare(connection.requests, settings, [FOREIGN])
    assert await toolbox.declarations(["nobodys", "files_read"]) == {"files_read": FOREIGN}


async def test_a_tool_that_is_not_built_in_gets_its_consumer(connection: Connection, settings: Settings) -> None:
    await declare(connection.requests, settings, [FOREIGN])
    info = await connection.requests.api("CONSUMER.INFO.TOOLS.tool-files_read")
    assert info["config"]["filter_subject"] == "tools.files_read"
    assert info["config"]["ack_wait"] == int(settings.ack_wait_seconds * 1e9)
    assert await compare(connection.requests, declared(settings)) == []


async def test_a_declaration_is_written_each_time_since_the_bucket_forgets(
    connection: Connection, settings: Settings
) -> None:
    await declare(connection.requests, settings, [FOREIGN])
    before = await last_sequence(connection.requests, TOOLS_BUCKET.stream_name)
    await declare(connection.requests, settings, [FOREIGN])
    assert await last_sequence(connection.requests, TOOLS_BUCKET.stream_name) == before + 1


async def test_the_operators_settings_outrank_the_declaration(connection: Connection, settings: Settings) -> None:
    configuration = parse_configuration(b"[tools.files_read]\napproval = 'always'\ntimeout_seconds = 3")
    await declare(connection.requests, settings, [FOREIGN])
    toolbox = Toolbox(connection.requests, configuration.tools)
    read = (await toolbox.declarations(["files_read"]))["files_read"]
    assert read == msgspec.structs.replace(FOREIGN, approval="always", timeout_seconds=3)
    assert toolbox.operator_approval("files_read") == "always"
    assert toolbox.operator_approval("add") is None


@pytest.mark.parametrize("payload", [b"", b"rubbish", encode(msgspec.structs.replace(FOREIGN, name="other"))])
async def test_a_declaration_that_can_not_be_read_is_none(connection: Connection, payload: bytes) -> None:
    await key_value.put(connection.requests, TOOLS_BUCKET.name, "files_read", payload)
    assert await Toolbox(connection.requests, ToolsConfiguration()).declarations(["files_read"]) == {}


async def test_a_tool_that_the_broker_refuses_takes_no_other_tool_away_and_comes_when_it_may(
    connection: Connection, settings: Settings
) -> None:
    """Somebody else's consumer takes the tool's subject: no two may."""
    in_the_way = {"durable_name": "other", "filter_subject": "tools.files_read", "ack_policy": "explicit"}
    await connection.requests.api(
        "CONSUMER.DURABLE.CREATE.TOOLS.other", {"stream_name": "TOOLS", "config": in_the_way, "action": ""}
    )
    neighbour = msgspec.structs.replace(FOREIGN, name="files_write")
    toolbox = Toolbox(connection.requests, ToolsConfiguration())
    assert await declare(connection.requests, settings, [FOREIGN, neighbour]) == {"files_read"}
    assert await toolbox.declarations(["files_read", "files_write"]) == {"files_write": neighbour}
    await connection.requests.api("CONSUMER.DELETE.TOOLS.other")
    assert await declare(connection.requests, settings, [FOREIGN, neighbour]) == set()
    assert (await toolbox.declarations(["files_read"])).keys() == {"files_read"}


async def test_the_consumer_of_a_tool_that_is_gone_goes_and_its_calls_wait_for_the_tools_return(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "TOOL_CONSUMER_IDLE_SECONDS", 1)
    await declare(connection.requests, settings, [FOREIGN])
    await connection.requests.publish("tools.files_read", b"{}")

    async def gone() -> bool:
        return "files_read" not in await consumers_of_tools(connection.requests)

    await until(gone)
    handled: list[str] = []

    async def handle(delivery: Delivery) -> Answer:
        handled.append(delivery.subject)
        return Ack()

    # The runner pulls before it has declared, and goes on when it has.
    consumption = Consumption.of_one(connection, settings, "TOOLS", "tool-files_read", handle)
    async with background(consumption.run()):
        await declare(connection.requests, settings, [FOREIGN])
        await until(lambda: handled == ["tools.files_read"])
        stays_until = lease_clock() + 2
        await until(lambda: lease_clock() > stays_until)
        assert not await gone(), "a pull that waits keeps it"


async def test_a_consumer_that_never_went_learns_to_go_and_keeps_its_lease(
    connection: Connection, settings: Settings
) -> None:
    await declare(connection.requests, replace(settings, ack_wait_seconds=7.0), [FOREIGN])
    info = await connection.requests.api("CONSUMER.INFO.TOOLS.tool-files_read")
    await connection.requests.api(
        "CONSUMER.DURABLE.CREATE.TOOLS.tool-files_read",
        {"stream_name": "TOOLS", "config": info["config"] | {"inactive_threshold": 0}, "action": ""},
    )
    await declare(connection.requests, settings, [FOREIGN])
    info = await connection.requests.api("CONSUMER.INFO.TOOLS.tool-files_read")
    assert info["config"]["inactive_threshold"] == streams.TOOL_CONSUMER_IDLE_SECONDS * 10**9
    assert info["config"]["ack_wait"] == 7 * 10**9


@pytest.mark.parametrize("size", [1, object_store.CHUNK_BYTES, object_store.CHUNK_BYTES * 2 + 1])
async def test_an_object_is_read_by_any_client(connection: Connection, size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    reference = await object_store.put(connection.requests, RESULTS_BUCKET, "default.a.1-0.b", payload)
    assert (reference.bucket, reference.name, reference.size) == (RESULTS_BUCKET, "default.a.1-0.b", size)
    store = await connection.client.jetstream().object_store(RESULTS_BUCKET)
    read = await store.get(reference.name)
    assert read.data == payload
    assert read.info.digest == reference.digest
