"""Streams as an earlier version made them: `meshctl up` brings them up to this one, and loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contracts.identifiers import new_id
from contracts.streams import STREAMS
from mesh.archive.lookup import journal_of
from mesh.broker.connection import Connection
from mesh.broker.provisioning import compare, declared
from mesh.configuration.settings import Settings
from mesh.errors import SettingsError
from meshctl.supervision.broker_setup import provision
from steward.provisioning_check import create_missing
from tests.support.up import ENVIRONMENT, meshctl, up

pytestmark = pytest.mark.integration

LANE = "CONSUMER.{}.TASKS.default-normal"


async def make_older(connection: Connection) -> None:
    """TIMERS without schedules, and without what fires; a bucket that is missing; a lane that can't be changed."""
    requests = connection.requests
    for name in ("TIMERS", "KV_walks"):
        await requests.api(f"STREAM.DELETE.{name}")
    timers = next(stream for stream in STREAMS if stream.name == "TIMERS").as_config()
    older = {**timers, "subjects": timers["subjects"][:1], "allow_msg_schedules": False, "max_msgs_per_subject": -1}
    await requests.api("STREAM.CREATE.TIMERS", older)
    await requests.publish(timers["subjects"][0].replace(">", "approval.default.x"), b"waits")
    config = (await requests.api(LANE.format("INFO")))["config"]
    await requests.api(LANE.format("DELETE"))
    older = {**config, "max_waiting": 512}
    await requests.api(LANE.format("DURABLE.CREATE"), {"stream_name": "TASKS", "config": older, "action": ""})
    await requests.publish("tasks.default.normal.default", b"waits")


async def held(connection: Connection) -> list[int]:
    """How many messages wait: timers, and what the lane still has to deliver."""
    timers = await connection.requests.api("STREAM.INFO.TIMERS")
    lane = await connection.requests.api(LANE.format("INFO"))
    return [timers["state"]["messages"], lane["num_pending"]]


async def test_the_streams_of_a_home_become_what_is_declared_and_keep_what_they_hold(
    connection: Connection, settings: Settings
) -> None:
    await make_older(connection)
    await provision(settings, ours=True)
    assert await compare(connection.requests, declared(settings)) == []
    assert await held(connection) == [1, 1]


async def test_a_broker_of_ones_own_gets_what_takes_nothing(connection: Connection, settings: Settings) -> None:
    await make_older(connection)
    await connection.requests.api("CONSUMER.DELETE.TOOLS.tool-add")
    await provision(settings, ours=False)
    left = {each.name: set(each.fields) for each in await compare(connection.requests, declared(settings))}
    assert left == {"TIMERS": {"max_msgs_per_subject"}, "TASKS/default-normal": {"max_waiting"}}
    assert await held(connection) == [1, 1]


async def test_a_steward_gives_them_as_much(connection: Connection, settings: Settings) -> None:
    await make_older(connection)
    await create_missing(connection.requests, settings)
    left = {each.name: set(each.fields) for each in await compare(connection.requests, declared(settings))}
    assert left == {"TIMERS": {"max_msgs_per_subject"}, "TASKS/default-normal": {"max_waiting"}}


async def test_whoever_wants_to_be_asked_is_told_in_one_line_what_to_do(
    connection: Connection, settings: Settings
) -> None:
    await make_older(connection)
    asks = replace(settings, upgrade_streams=False)
    with pytest.raises(SettingsError) as told:
        await provision(asks, ours=False)
    assert "TIMERS (subjects, " in str(told.value)
    assert "allow_msg_schedules" in str(told.value)
    assert "meshctl streams apply" in str(told.value)
    assert "\n" not in str(told.value)
    info = await connection.requests.api("STREAM.INFO.TIMERS")
    assert not info["config"].get("allow_msg_schedules")


async def test_a_plan_is_made_before_the_mesh_runs(tmp_path: Path) -> None:
    # A size of its own: what others put on the disk meanwhile is not to count.
    file, home = tmp_path / "mesh.toml", tmp_path / "home"
    file.write_text('[storage]\ntotal = "4GiB"\n')
    environment = {**ENVIRONMENT, "MESH_CONFIG": str(file), "MESH_HOME": str(home)}
    async with up(home, variables=environment):
        pass
    for arguments, status in (
        (("plan", "--ack-wait-seconds", "7"), 3),
        (("apply", "--ack-wait-seconds", "7"), 0),
        (("plan", "--ack-wait-seconds", "7"), 0),
    ):
        ended = await meshctl("streams", *arguments, environment=environment)
        assert (ended.returncode, ended.stderr) == (status, ""), ended.stdout


async def test_without_an_archive_nothing_is_packed(connection: Connection) -> None:
    for name in ("ARCHIVE", "KV_archive"):
        await connection.requests.api(f"STREAM.DELETE.{name}")
    assert await journal_of(connection.requests, "default", new_id()) == []
