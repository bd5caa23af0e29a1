"""What the doctor says of facts, and how it is shown. Pure, but for a disk and a port of the test's own."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from contracts.records.providers import Probe, ProviderRecord
from contracts.records.status import HealthCheck, LaneStatistics, PoolCapacity, WorkerRecord
from mesh.broker.dead_streams import DeadStream
from mesh.broker.levels import Level
from mesh.broker.provisioning import Difference
from mesh.broker.replication import Copies, copies_of
from mesh.configuration.settings import Settings
from meshctl.commands.doctor import probe
from meshctl.diagnosis import checks, disk
from meshctl.diagnosis.check import Check
from meshctl.diagnosis.checks import (
    BrokerInfo,
    ClusterSeen,
    Facts,
    StreamsSeen,
    TasksSeen,
    diagnose,
    exit_status,
)
from meshctl.diagnosis.cluster_checks import check_servers, diagnose_cluster
from meshctl.display.tables import checks_table, lanes_table, providers_table, workers_table
from meshctl.supervision import discovery
from meshctl.supervision.home import Home
from tests.support.broker import free_port
from tests.unit.small_fleet import WELL as WELL_FLEET

WELL = Facts(
    url="nats://127.0.0.1:4222",
    broker=BrokerInfo("2.15.1", jetstream=True),
    streams=StreamsSeen([], declared=25, persist_mode="", clock_ahead_seconds=0.002),
    fleet=WELL_FLEET,
    dead=[],
    sync_interval="always",
    fsyncs_per_second=4_000.0,
    open_files=65_536,
    open_files_hard=65_536,
    levels=[Level("EVENTS", 12, 100), Level("account", 5, -1)],
)
TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def missing(name: str) -> Difference:
    return Difference("stream", name, missing=True, fields={}, obstacles={})


def differs(name: str) -> Difference:
    return Difference("stream", name, missing=False, fields={"max_bytes": (2, 1)}, obstacles={})


def seen(**more: Any) -> StreamsSeen:
    assert isinstance(WELL.streams, StreamsSeen)
    return WELL.streams._replace(**more)


def test_a_mesh_that_is_well_gets_an_ok_on_each_line() -> None:
    told = diagnose(WELL)
    assert [check.check for check in told] == [
        "broker", "version", "jetstream", "streams", "persist_mode", "clock", "stored", "storage", "sync", "disk",
        "services", "builds", "clocks", "statistics", "queues", "open_files",
    ]  # fmt: skip
    assert {(check.status, check.remedy) for check in told} == {("ok", "")}
    assert exit_status(told) == 0


@pytest.mark.parametrize(
    ("change", "check", "status", "detail", "remedy"),
    [
        ({"broker": "Connection refused"}, "broker", "fail", "none at nats://127.0.0.1:4222: Conn", "meshctl up"),
        ({"broker": BrokerInfo("2.12.9", jetstream=True)}, "version", "fail", "2.12.9 is too old", "2.14 or newer"),
        ({"broker": BrokerInfo("2.14.0", jetstream=True)}, "version", "ok", "2.14.0", ""),
        ({"broker": BrokerInfo("3.0.0-rc1", jetstream=True)}, "version", "ok", "3.0.0-rc1", ""),
        ({"broker": BrokerInfo("main", jetstream=True)}, "version", "warn", "no version", "2.14 or newer"),
        ({"broker": BrokerInfo("2.15.1", jetstream=False)}, "jetstream", "fail", "is off", "jetstream {"),
        ({"streams": seen(differences=[missing("TASKS"), differs("EVENTS")])}, "streams", "fail",
         "missing: TASKS; not as declared: EVENTS", "streams apply"),
        ({"streams": seen(differences=[differs(f"S{n}") for n in range(6)])}, "streams", "fail",
         "S0, S1, S2, S3 and 2 more", "streams plan"),
        ({"streams": "no responders"}, "streams", "fail", "no responders", "log"),
        ({"levels": [Level("TIMERS", 75, 100)]}, "storage", "warn", "from 90 % on: TIMERS 75 %", "approval"),
        ({"levels": [Level("EVENTS", 70, 100)]}, "storage", "warn", "EVENTS 70 %", "storage.events` in mesh.toml"),
        ({"levels": [Level("ARCHIVE", 95, 100)]}, "storage", "warn", "from 90 % on: ARCHIVE 95 %", "MESH_RETENTION"),
        ({"levels": [Level("ARCHIVE", 95, 100), Level("disk", 92, 100)]}, "storage", "fail", "refused: ARCHIVE 95 %, d",
         "make room on the disk"),
        ({"levels": [Level("TOOLS", 91, 100)]}, "storage", "fail", "are refused: TOOLS 91 %", "runners"),
        ({"levels": [Level("KV_tasks", 95, 100)]}, "storage", "fail", "KV_tasks 95 %", "MESH_RETENTION_DAYS"),
        ({"streams": seen(persist_mode="async")}, "persist_mode", "fail", "twice", "create EVENTS again"),
        ({"streams": seen(clock_ahead_seconds=1.5)}, "clock", "warn", "1.5 s behind the broker", "NTP"),
        ({"streams": seen(clock_ahead_seconds=-90.0)}, "clock", "warn", "90.0 s ahead of the broker", "NTP"),
        ({"streams": seen(clock_ahead_seconds=-1.0)}, "clock", "ok", "within 1.00 s", ""),
        ({"sync_interval": "1s"}, "sync", "warn", "every 1s", "MESH_SYNC_INTERVAL=always"),
        ({"sync_interval": None}, "sync", "warn", "unknown", "sync_interval"),
        ({"fsyncs_per_second": 4_000.0}, "disk", "ok", "4,000 fsyncs a second: at most about 400 tasks", ""),
        ({"fsyncs_per_second": 60.0}, "disk", "warn", "about 6 tasks", "faster disk"),
        ({"fsyncs_per_second": 60.0, "sync_interval": "1s"}, "disk", "ok", "no ceiling", ""),
        ({"fsyncs_per_second": None}, "disk", "ok", "not measured", ""),
        ({"fsyncs_per_second": "can't write to .mesh"}, "disk", "fail", "can't write", "MESH_HOME"),
        ({"fleet": "no answer in time"}, "services", "fail", "can't be looked at: no answer", "above"),
        ({"fleet": WELL_FLEET._replace(members=[])}, "services", "fail", "none answers", "meshctl up"),
        ({"dead": [DeadStream("EVENTS", "no space left on device")]}, "stored", "fail", "EVENTS takes nothing any",
         "restart nats-server"),
        ({"unknown_variables": ["MESH_WORKER: there is no such setting"]}, "variables", "fail", "MESH_WORKER", "unset"),
        ({"refusal": "refuses the user"}, "login", "fail", "refuses the user", "what the line names"),
        ({"distrust": "a certificate that is not trusted"}, "certificate", "fail", "not trusted", "MESH_NATS_TLS_CA"),
        ({"tasks": TasksSeen(7, 0)}, "tasks", "ok", "none of 7", ""),
        ({"tasks": TasksSeen(1_007, 6)}, "tasks", "warn", "6 of 1,007", "meshctl repair"),
        ({"open_files": 1024}, "open_files", "warn", "up to 1,024", "ulimit -n 4096"),
        ({"open_files": 1024, "open_files_hard": 2048}, "open_files", "warn", "1,024", "hard limit is 2,048"),
        ({"open_files": -1}, "open_files", "ok", "no limit", ""),
    ],
)  # fmt: skip
def test_what_is_not_well_is_said_with_what_to_do(
    change: dict[str, Any], check: str, status: str, detail: str, remedy: str
) -> None:
    told = diagnose(WELL._replace(**change))
    [line] = [line for line in told if line.check == check]
    assert line.status == status
    assert detail in line.detail
    assert remedy in line.remedy
    assert bool(line.remedy) == (status != "ok")
    assert exit_status(told) == int(status == "fail")


def test_without_a_broker_nothing_is_said_of_what_is_on_it() -> None:
    told = diagnose(WELL._replace(broker="refused", streams=None, fleet=None, fsyncs_per_second=None))
    assert [line.check for line in told] == ["broker", "disk", "open_files"]


def test_the_clock_is_compared_at_the_middle_of_the_request() -> None:
    asked_at = TIME
    answered_at = TIME + timedelta(seconds=4)
    assert checks.clock_ahead_seconds(TIME + timedelta(seconds=2), asked_at, answered_at) == 0
    assert checks.clock_ahead_seconds(TIME + timedelta(seconds=5), asked_at, answered_at) == 3


def test_the_disk_is_measured_within_its_bound_and_nothing_is_left(tmp_path: Path) -> None:
    assert disk.fsyncs_per_second(tmp_path, 0.05) > 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        disk.fsyncs_per_second(tmp_path / "missing")


async def test_a_probe_tells_who_listens() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(line)
        await writer.drain()
        writer.close()

    async def told(line: bytes) -> BrokerInfo | str:
        server = await asyncio.start_server(lambda reader, writer: answer(reader, writer, line), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await probe(f"nats://user:pass@127.0.0.1:{port}")

    assert await told(b'INFO {"version":"2.15.1","jetstream":true} \r\n') == BrokerInfo("2.15.1", jetstream=True)
    assert await told(b'INFO {"version":"2.15.1"}\r\n') == BrokerInfo("2.15.1", jetstream=False)
    stranger = "what listens there does not speak NATS"
    assert await told(b"SSH-2.0-OpenSSH\r\n") == stranger
    assert await told(b"INFO []\r\n") == stranger
    assert await told(b"") == stranger
    assert await probe(f"127.0.0.1:{free_port()}") == "Connection refused"
    assert "port" in str(await probe("nats://127.0.0.1:many")).lower()


async def test_of_a_list_each_server_is_asked_and_who_is_away_is_named() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.15.1","jetstream":true}\r\n')
        await writer.drain()
        writer.close()

    away = f"127.0.0.1:{free_port()}"
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        there = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        seen = await probe(f"nats://user:pass@{away},{there}")
    assert seen == BrokerInfo("2.15.1", jetstream=True, servers=2, away=(f"nats://{away}: Connection refused",))
    assert isinstance(seen, BrokerInfo)
    assert check_servers(seen).status == "warn"
    assert check_servers(seen._replace(away=())).status == "ok"
    other = f"127.0.0.1:{free_port()}"
    refused = f"nats://{away}: Connection refused; nats://{other}: Connection refused"
    assert await probe(f"{away},{other}") == refused


def test_copies_on_a_cluster_are_told_by_name_and_of_a_single_server_nothing_is_said() -> None:
    def said(*copies: Copies, one_is_asked_for: bool = False, other_meshes: str = "") -> list[tuple[str, str, str]]:
        seen = ClusterSeen(copies, one_is_asked_for, other_meshes)
        return [(each.check, each.status, each.detail) for each in diagnose_cluster(WELL._replace(cluster=seen))]

    one, three = Copies("A", 1, "", is_on_cluster=True), Copies("B", 3, "", is_on_cluster=True)
    assert said(Copies("A", 1, "", is_on_cluster=False)) == []
    [(check, status, detail)] = said(one, three)
    assert (check, status) == ("replicas", "fail")
    assert detail.startswith("R1 on a cluster: 1 of 2 streams and buckets have one copy")
    assert said(one, one_is_asked_for=True)[0][1] == "warn"
    late = three._replace(behind="n3 behind")
    assert said(late) == [("replicas", "warn", "not all copies are current: B: n3 behind")]
    assert said(three) == [("replicas", "ok", "3 copies of each stream and bucket, all current")]
    assert said(other_meshes="mesh x (steward-1@a)")[0][:2] == ("other_mesh", "fail")


@pytest.mark.parametrize(
    ("cluster", "behind"),
    [
        (None, ""),
        ({"name": "c", "leader": "n1", "replicas": [{"name": "n2", "current": True}, {"name": "n3", "current": True}]},
         ""),
        ({"name": "c", "leader": "n1", "replicas": [{"name": "n3", "current": False}, {"name": "n2", "current": True}]},
         "n3 behind"),
        ({"name": "c", "leader": "n1", "replicas": [{"name": "n3", "current": True, "offline": True},
                                                    {"name": "n2", "current": True}]}, "n3 behind"),
        ({"name": "c", "leader": "n1", "replicas": [{"name": "n2", "current": True}]}, "1 of 3 copies missing"),
        ({"name": "c", "replicas": []}, "no leader"),
    ],
)  # fmt: skip
def test_what_a_stream_says_of_its_copies(cluster: dict[str, Any] | None, behind: str) -> None:
    info = {"config": {"name": "S", "num_replicas": 3}, "cluster": cluster}
    assert copies_of(info) == Copies("S", 3, behind, is_on_cluster=cluster is not None)


def test_the_embedded_broker_of_a_home_is_found_while_it_lives(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.nats_ports.mkdir()
    settings = Settings(home=tmp_path)
    assert discovery.at_broker(settings).broker_url == "nats://127.0.0.1:4222"
    (home.nats_ports / "nats-server_999999999.ports").write_text('{"nats":["nats://127.0.0.1:1"]}')
    (home.nats_ports / "nats-server_x.ports").write_text("{")
    assert discovery.running_url(home) is None
    (home.nats_ports / f"nats-server_{os.getpid()}.ports").write_text('{"nats":["nats://127.0.0.1:7777"]}')
    assert discovery.at_broker(settings).broker_url == "nats://127.0.0.1:7777"
    told = Settings(home=tmp_path, nats_port=4333)
    assert discovery.at_broker(told).broker_url == "nats://127.0.0.1:4333"
    assert discovery.sync_interval(home) is None
    home.nats_config.write_text('jetstream {\n  sync_interval: "1s"\n}\n')
    assert discovery.sync_interval(home) == "1s"


def shown(table: Any) -> list[str]:
    console = Console(color_system=None, width=120)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_line_shows_its_remedy_below_and_drives_no_terminal() -> None:
    told = [Check("open_files", "warn", "a [bold]few[/bold]\x1b[2J", "raise it"), Check("broker", "ok", "there")]
    assert shown(checks_table(told)) == [
        "warn  open files  a [bold]few[/bold]\ufffd[2J",
        "                  → raise it",
        "ok    broker      there",
    ]


def test_workers_and_lanes_are_told_as_of_now() -> None:
    worker = WorkerRecord(
        worker="inference_worker-7@host", service="inference_worker", version="0.1.0", pid=7, host="host",
        pools=("default", "large"), concurrency=64, running=3, started_at=TIME, time=TIME + timedelta(hours=2),
        build="0123456789ab", draining=True, checks=[HealthCheck(name="loop.consumer", ok=False, detail="fails")],
    )  # fmt: skip
    at = TIME + timedelta(hours=2, seconds=4)
    assert shown(workers_table([worker], at))[1].split() == [
        "inference_worker-7@host", "0.1.0", "0123456789ab", "default,", "large", "3/64", "2h", "4s", "ago",
        "draining;", "loop.consumer:", "fails",
    ]  # fmt: skip
    bears = {"default": PoolCapacity(limit=3, of_all=6, workers=2, why="main: 6 slots")}
    measured = msgspec.structs.replace(worker, capacity=bears, draining=False, checks=[])
    assert shown(workers_table([measured], at))[1].endswith(" ago  default 3 of 6 (main: 6 slots)")
    lane = LaneStatistics(
        pool="default", priority="high", time=TIME, depth=5, running=2, drain_per_second=1.25, wait_seconds_p50=0.5
    )
    assert shown(lanes_table([lane], TIME + timedelta(days=3)))[1].split() == [
        "default,", "high", "5", "2", "1.2", "0.50", "s", "-", "3d", "ago",
    ]  # fmt: skip


def test_breakers_are_told_with_their_next_probe() -> None:
    since, at = TIME, TIME + timedelta(minutes=3)
    down = ProviderRecord(
        provider="main", state="open", since=since, time=at, reason="failures", retry_at=at + timedelta(seconds=4.5),
        opened_times=2, failures=9, samples=10,
    )  # fmt: skip
    probe = Probe(worker="inference_worker-7@host", until=at + timedelta(seconds=10))
    tried = msgspec.structs.replace(down, state="half_open", retry_at=None, probe=probe)
    due = msgspec.structs.replace(down, retry_at=at)
    well = ProviderRecord(provider="main", state="closed", since=since, time=since)
    lines = [shown(providers_table([record], at))[1].split() for record in (down, tried, due, well)]
    assert lines == [
        ["main", "open", "3m", "ago", "failures", "9/10", "in", "4.5", "s"],
        ["main", "half-open", "3m", "ago", "failures", "9/10", "now,", "by", "inference_worker-7@host"],
        ["main", "open", "3m", "ago", "failures", "9/10", "with", "the", "next", "step"],
        ["main", "closed", "3m", "ago", "-", "-", "-"],
    ]
