"""`meshctl doctor`: what is well with a mesh, and what to do about the rest. Gathers facts; `checks` judges them."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import ssl
from contextlib import suppress
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import nats.errors

from contracts.declarations import MESSAGE_BYTES_MAX
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.sizes import SIZES
from contracts.streams import EVENTS
from mesh.broker.connection import Connection
from mesh.broker.credential_files import LoginUnusable
from mesh.broker.credentials import Credentials
from mesh.broker.dead_streams import DeadStream, dead_streams
from mesh.broker.levels import Level, read_disk_level, read_levels
from mesh.broker.mesh_identity import mesh_id
from mesh.broker.other_meshes import look
from mesh.broker.provisioning import compare, find_declared
from mesh.broker.replication import read_copies
from mesh.broker.rights import Missing
from mesh.broker.suitability import Foreign, foreign_streams, missing_rights, streams_of
from mesh.clock import wall_clock
from mesh.configuration.broker_urls import parse_broker_url, without_password
from mesh.configuration.checking import unknown_variables
from mesh.configuration.digest import configuration_digest
from mesh.configuration.secret_sources import named_variables
from mesh.configuration.settings import BROKER_ROLES, Settings, load_settings, load_variables
from mesh.errors import BrokerDistrusted, BrokerError, BrokerRefused
from mesh.fleet.findings import Fleet
from mesh.fleet.looking import read_fleet
from mesh.journal.reconciliation import Reconciliation
from mesh.telemetry import traces
from meshctl.commands.config import mistakes_of
from meshctl.diagnosis import disk
from meshctl.diagnosis.check import Check
from meshctl.diagnosis.checks import (
    BrokerInfo,
    ClusterSeen,
    Facts,
    StreamsSeen,
    TasksSeen,
    clock_ahead_seconds,
    diagnose,
    exit_status,
)
from meshctl.diagnosis.cluster_checks import diagnose_cluster
from meshctl.diagnosis.configuration_check import SeenConfiguration, check_configuration
from meshctl.display import output
from meshctl.display.tables import checks_table
from meshctl.errors import MeshGone
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.broker_setup import connected
from meshctl.supervision.home import Home

PROBE_SECONDS_MAX: Final = 3.0
"""How long a broker may take for its first line."""
OTHERS_SECONDS: Final = 0.5
"""How long to gather answers on `$SRV.INFO` of other meshes: nobody says which one is the last."""
RECORDS_AT_ONCE_MAX: Final = 200
OPEN_MAX: Final = 1_000
"""Each costs some requests: more of them are `meshctl repair`'s to look at."""
TASKS_SECONDS_MAX: Final = 5.0
"""How long to look: a mesh with many records has more of them than a glance takes in."""
_INFO_LINE_BYTES_MAX: Final = 64 * 1024
_SETTINGS = (
    "home",
    "nats_url",
    "nats_domain",
    "nats_port",
    "ack_wait_seconds",
    "max_deliver",
    "high_water_percent",
    "filling_percent",
)
_DESCRIPTION = """\
Look at a mesh and say of each thing that it is well, or what to do: the broker, its version, JetStream, the
streams and how full they are, when writes are synced, how fast the disk is and the ceiling that follows; the
processes, whether each answers, and whether all are of one build, one configuration and one time; queues that
nobody pulls, that are paused or full; breakers, MCP servers, tasks whose message is gone, the clock, the limit
of open files, and variables MESH_* that nobody reads. Changes nothing.

Ends with 1 if a line says fail. Into a pipe each line is a JSON object: check, status (ok, warn or fail),
detail, remedy.
"""


def add_commands(commands: Any) -> None:
    """Register `doctor`."""
    parser = commands.add_parser(
        "doctor",
        help="say what is well with a mesh, and what to do",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_setting_flags(parser, _SETTINGS)
    parser.set_defaults(run=_run_doctor)


def _run_doctor(arguments: argparse.Namespace) -> int:
    settings, seen = seen_configuration(environment_with(arguments, os.environ))
    # What the connection has to say is said by the lines.
    traces.configure(settings, "meshctl", least="error")
    facts = asyncio.run(gather(settings))
    checks = [*diagnose(facts), *diagnose_cluster(facts), check_configuration(seen)]
    _show(checks)
    return exit_status(checks)


def seen_configuration(environment: dict[str, str]) -> tuple[Settings, SeenConfiguration]:
    """The settings that the mesh is to be judged by, and what there is to say of them. Raises `SettingsError`.

    A mesh that runs on MESH_HOME goes by what it was started with, or reloaded, whatever mesh.toml says by now.
    """
    settings = load_variables(environment)
    running = discovery.running_configuration(settings)
    mistakes = mistakes_of(environment, secrets=False)
    offered = None if mistakes.file else load_settings(environment)
    judged = running or offered or settings
    return judged, SeenConfiguration(
        running=configuration_digest(running) if running is not None else None,
        offered=configuration_digest(offered) if offered is not None else None,
        mistakes=mistakes.file,
    )


def _show(checks: list[Check]) -> None:
    if output.for_people():
        output.show(checks_table(checks))
        return
    for check in checks:
        output.json_line(check._asdict())


async def gather(settings: Settings) -> Facts:
    """All facts about the mesh that these settings lead to."""
    home = Home(settings.home)
    broker: BrokerInfo | str
    try:
        settings = discovery.at_broker(settings)
        credentials, unusable = usable_credentials(settings)
        broker = await probe(settings.broker_url, credentials)
    except MeshGone as error:
        broker, unusable = str(error), ""
    ours = discovery.running_url(home) == settings.broker_url
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    streams: StreamsSeen | str | None = None
    fleet: Fleet | str | None = None
    dead: list[DeadStream] | None = None
    levels: list[Level] = []
    tasks: TasksSeen | None = None
    refusal, distrust = unusable, ""
    foreign: list[Foreign] = []
    missing: list[Missing] = []
    cluster: ClusterSeen | None = None
    if isinstance(broker, BrokerInfo) and not unusable:
        try:
            async with connected(settings) as connection:
                if broker.jetstream:
                    foreign = foreign_streams(await streams_of(connection.requests))
                    await connection.rights.learn()
                    missing = await missing_rights(connection.requests, connection.rights.granted)
                    streams = await seen_streams(connection, settings)
                    levels = await read_levels(connection.requests)
                    disk_level = await read_disk_level(connection.requests)
                    levels += [disk_level] if disk_level is not None else []
                    dead = await dead_streams(connection.requests, connection.rights)
                    fleet = await seen_fleet(connection, settings)
                    cluster = await seen_cluster(connection, settings)
                    if isinstance(streams, StreamsSeen):
                        tasks = await seen_tasks(connection, settings)
        except BrokerDistrusted as error:
            distrust = str(error)
        except (BrokerRefused, LoginUnusable) as error:
            refusal = str(error)
        except (TaskmeshError, nats.errors.Error) as error:
            streams = str(error)
    return Facts(
        url=without_password(settings.broker_url),
        broker=broker,
        streams=streams,
        fleet=fleet,
        sync_interval=discovery.sync_interval(home) if ours else None,
        fsyncs_per_second=await asyncio.to_thread(_measure, home) if ours else None,
        open_files=soft,
        open_files_hard=hard,
        levels=levels,
        high_water_percent=settings.high_water_percent,
        filling_percent=settings.filling_percent,
        tasks=tasks,
        refusal=refusal,
        foreign=foreign,
        missing_rights=missing,
        distrust=distrust,
        dead=dead,
        unknown_variables=unknown_variables(os.environ, named_variables(settings.configuration)),
        cluster=cluster,
        login_files=login_files(settings),
    )


def usable_credentials(settings: Settings) -> tuple[Credentials | None, str]:
    """What this command shows the broker, or None and why that can't be used."""
    try:
        credentials = Credentials(settings, "meshctl")
        credentials.check()
    except LoginUnusable as error:
        return None, str(error)
    return credentials, ""


def login_files(settings: Settings) -> list[str]:
    """What is wrong with files of logins: of this command, and of each service that has one of its own."""
    found: dict[str, None] = {}
    for role in BROKER_ROLES:
        if role != "meshctl" and role not in settings.of_role:
            continue
        try:
            credentials = Credentials(settings, role)
            found |= dict.fromkeys(credentials.open_to_others())
            if role != "meshctl":
                credentials.check()
        except LoginUnusable as error:
            if role != "meshctl":
                found[str(error)] = None
    return list(found)


async def seen_cluster(connection: Connection, settings: Settings) -> ClusterSeen:
    """The copies of each stream, and other meshes in the account. Raises `BrokerUnavailable`, `BrokerError`."""
    copies = await read_copies(connection.requests, SIZES)
    seen = await look(connection.client, await mesh_id(connection.requests), OTHERS_SECONDS)
    return ClusterSeen(copies, settings.configuration.storage.replicas == 1, str(seen))


async def probe(url: str, credentials: Credentials | None = None) -> BrokerInfo | str:
    """What the broker says first (`INFO {…}`), or why nothing came. The first one of a list that answers counts."""
    try:
        servers = parse_broker_url(url).servers
    except ValueError as error:
        return str(error)
    looks = (_probe(server, credentials) for server in servers)
    answers = dict(zip(servers, await asyncio.gather(*looks), strict=True))
    away = tuple(f"{server}: {answer}" for server, answer in answers.items() if isinstance(answer, str))
    for answer in answers.values():
        if isinstance(answer, BrokerInfo):
            return answer._replace(servers=len(answers), away=away)
    return "; ".join(away) if len(away) > 1 else str(answers[servers[0]])


async def _probe(server: str, credentials: Credentials | None) -> BrokerInfo | str:
    parts = urlsplit(server)
    host, port = parts.hostname or "", parts.port
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(PROBE_SECONDS_MAX):
            reader, writer = await asyncio.open_connection(host, port, limit=_INFO_LINE_BYTES_MAX)
            if credentials is not None and credentials.tls_first:
                await writer.start_tls(credentials.ssl_context(), server_hostname=host)
            line = await reader.readline()
    except TimeoutError:
        silence = f": {credentials.silence()}" if credentials is not None and writer is not None else ""
        return f"no answer within {PROBE_SECONDS_MAX:g} s{silence}"
    except ssl.SSLError as error:
        return str(error) if credentials is None else credentials.tls_failure(error)
    except (OSError, ValueError) as error:
        return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    finally:
        if writer is not None:
            writer.close()
    if not line and credentials is not None:
        return credentials.silence()
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, KeyError):
        verb, _, payload = line.partition(b" ")
        if verb == b"INFO":
            info = msgspec.json.decode(payload, type=dict[str, Any])
            max_payload = info.get("max_payload")
            return BrokerInfo(
                str(info["version"]),
                info.get("jetstream") is True,
                max_payload if isinstance(max_payload, int) else MESSAGE_BYTES_MAX,
            )
    return "what listens there does not speak NATS"


async def seen_streams(connection: Connection, settings: Settings) -> StreamsSeen | str:
    """What JetStream says of streams and consumers, and its clock; an error's text if it says nothing."""
    try:
        wanted = await find_declared(connection.requests, settings)
        differences = await compare(connection.requests, wanted)
        asked_at = wall_clock()
        try:
            info = await connection.requests.api(f"STREAM.INFO.{EVENTS.name}")
        except BrokerError:  # EVENTS is missing: any other answer tells the time too.
            asked_at = wall_clock()
            info = await connection.requests.api("STREAM.LIST")
        answered_at = wall_clock()
    except TaskmeshError as error:
        return str(error)
    told = info.get("ts")
    # An answer without a time tells nothing against the clock.
    ahead = clock_ahead_seconds(datetime.fromisoformat(told), asked_at, answered_at) if told else 0.0
    mode = str(info.get("config", {}).get("persist_mode", ""))
    return StreamsSeen(differences, len(wanted.streams) + len(wanted.consumers), mode, ahead)


async def seen_tasks(connection: Connection, settings: Settings) -> TasksSeen | None:
    """How many tasks wait for a message that is gone, of the first `OPEN_MAX`; None if that can't be found out."""
    reconciliation = Reconciliation(connection.requests, settings.reconcile_after_seconds)
    opened = lost = cursor = 0
    more = True
    try:
        async with asyncio.timeout(TASKS_SECONDS_MAX):
            at = await reconciliation.broker_time()
            while more and opened < OPEN_MAX:
                walk = await reconciliation.walk(cursor, at, RECORDS_AT_ONCE_MAX, RECORDS_AT_ONCE_MAX)
                cursor, more = walk.cursor, walk.more
                for task in walk.open:
                    # What can't be read is for `meshctl repair` to say.
                    with suppress(InvalidPayload):
                        lost += await reconciliation.examine(task, at) is not None
                    opened += 1
    except TimeoutError:
        pass  # What was seen by then is told.
    except TaskmeshError:
        return None
    return TasksSeen(opened, lost)


async def seen_fleet(connection: Connection, settings: Settings) -> Fleet | str:
    """The processes, queues and models; an error's text if they can't be looked at."""
    try:
        return await read_fleet(connection, settings.pools)
    except TaskmeshError as error:
        return str(error)


def _measure(home: Home) -> float | str:
    try:
        return disk.fsyncs_per_second(home.path)
    except OSError as error:
        return f"can't write to {home.path}: {error.strerror or error}"
