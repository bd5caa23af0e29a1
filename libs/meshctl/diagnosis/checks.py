"""The doctor's checks: each a pure function from facts to one line, `ok`, or what is wrong and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from contracts.declarations import MESSAGE_BYTES_MAX
from mesh.broker.connection import SERVER_VERSION_MIN
from mesh.broker.dead_streams import DeadStream
from mesh.broker.levels import ACCOUNT, DISK, Level, above, refusing
from mesh.broker.provisioning import Difference
from mesh.broker.replication import Copies
from mesh.broker.rights import Missing, told
from mesh.broker.suitability import PAYLOAD_BYTES_LEAST, Foreign, check_payload
from mesh.configuration.storage_table import storage_key
from mesh.fleet.findings import CLOCK_SECONDS_MAX, Fleet
from mesh.wording import first_few
from meshctl.diagnosis.check import Check, Status
from meshctl.diagnosis.fleet_checks import check_fleet

FSYNCS_PER_TASK: Final = 10
"""Synchronous writes of a task of one turn, counted: TASKS takes it (1), task.queued (2), its record as queued (3),
step.claimed (4), its record as running (5), one output.delta at least (6), turn.completed (7), task.completed (8), its
record as completed (9), the ack (10). The server does not group commits."""
CEILING_TASKS_PER_SECOND_MIN: Final = 10.0
"""Below it even a small mesh feels its disk: a spinning disk of 100 fsyncs a second is just there."""
_MORE_ROOM_BY_RETENTION: Final = "keep ended tasks for less long (MESH_RETENTION_DAYS)"
_MORE_ROOM: Final = {
    "EVENTS": _MORE_ROOM_BY_RETENTION,
    "KV_tasks": _MORE_ROOM_BY_RETENTION,
    "DEAD_LETTERS": "give up or delete what nobody will repair (`meshctl dead-letters`)",
    "TIMERS": "end what nobody will answer: each approval, question and deadline has a timer",
    "OBJ_results": "it holds large results of tools for as long as their tasks",
    "ARCHIVE": _MORE_ROOM_BY_RETENTION,
    "KV_archive": _MORE_ROOM_BY_RETENTION,
    ACCOUNT: "give the broker more storage",
    DISK: "make room on the disk of MESH_HOME, or " + _MORE_ROOM_BY_RETENTION,
}
_MORE_ROOM_IN_QUEUES: Final = "start what takes its messages: workers, runners, stewards"
OPEN_FILES_MIN: Final = 4096
"""An edge's 4,096 streams, and the broker's files of many streams, are each a file."""
_NAMES_MAX: Final = 4


class BrokerInfo(NamedTuple):
    """What a broker says to whoever opens a connection, before anybody has to log in."""

    version: str
    jetstream: bool
    max_payload_bytes: int = MESSAGE_BYTES_MAX
    servers: int = 1
    """How many MESH_NATS_URL names."""
    away: tuple[str, ...] = ()
    """Those of them that give no answer, and why."""


class StreamsSeen(NamedTuple):
    """What JetStream says: differences, how many are declared, EVENTS' persist mode, and its clock less ours."""

    differences: Sequence[Difference]
    declared: int
    persist_mode: str
    clock_ahead_seconds: float


class ClusterSeen(NamedTuple):
    """The copies of each stream, whether mesh.toml asks for a single one, and which other meshes are there."""

    copies: Sequence[Copies]
    is_one_asked_for: bool
    other_meshes: str


class TasksSeen(NamedTuple):
    """Tasks that have not ended: how many were looked at, and how many of them wait for a message that is gone."""

    open: int
    lost: int


class Facts(NamedTuple):
    """All that the doctor looks at. None, or an error's text: it could not be found out.

    `sync_interval` is None for a broker that is not the embedded one of MESH_HOME, as are `fsyncs_per_second`.
    """

    url: str
    broker: BrokerInfo | str
    streams: StreamsSeen | str | None
    fleet: Fleet | str | None
    sync_interval: str | None
    fsyncs_per_second: float | str | None
    open_files: int
    open_files_hard: int
    levels: Sequence[Level] = ()
    high_water_percent: float = 90.0
    filling_percent: float = 70.0
    tasks: TasksSeen | None = None
    refusal: str = ""
    """Why the broker does not let us in; empty if it does."""
    distrust: str = ""
    """Why we don't trust the broker's certificate; empty if we do, or there is none."""
    foreign: Sequence[Foreign] = ()
    missing_rights: Sequence[Missing] = ()
    dead: Sequence[DeadStream] | None = None
    unknown_variables: Sequence[str] = ()
    """One line for each variable MESH_* that nobody reads."""
    cluster: ClusterSeen | None = None
    login_files: Sequence[str] = ()
    """What is wrong with the files of logins, one line each."""


def diagnose(facts: Facts) -> list[Check]:
    """Every line there is something to say for: without a broker nothing is said of what is on it."""
    checks = [check_broker(facts.url, facts.broker)]
    if isinstance(facts.broker, BrokerInfo):
        checks += [check_version(facts.broker.version), check_jetstream(facts.broker.jetstream)]
        if facts.refusal:
            checks.append(check_login(facts.refusal))
        if facts.distrust:
            checks.append(check_certificate(facts.distrust))
        if facts.login_files:
            checks.append(check_login_files(facts.login_files))
        checks += check_suitable(facts)
        if facts.broker.jetstream and facts.streams is not None:
            checks.append(check_streams(facts.streams))
            if isinstance(facts.streams, StreamsSeen):
                checks.append(check_persist_mode(facts.streams.persist_mode))
                checks.append(check_clock(facts.streams.clock_ahead_seconds))
            if facts.dead is not None:
                checks.append(check_stored(facts.dead))
            if facts.levels:
                checks.append(check_storage(facts.levels, facts.high_water_percent, facts.filling_percent))
        checks.append(check_sync(facts.sync_interval))
    checks.append(check_disk(facts.fsyncs_per_second, facts.sync_interval))
    if facts.fleet is not None:
        checks += check_fleet(facts.fleet)
    if facts.tasks is not None:
        checks.append(check_tasks(facts.tasks))
    checks.append(check_open_files(facts.open_files, facts.open_files_hard))
    if facts.unknown_variables:
        checks.append(check_variables(facts.unknown_variables))
    return checks


def check_broker(url: str, broker: BrokerInfo | str) -> Check:
    """Whether somebody who speaks NATS answers."""
    if isinstance(broker, BrokerInfo):
        return Check("broker", "ok", f"answers at {url}")
    remedy = "start one with `meshctl up`, or name a running one with MESH_NATS_URL"
    return Check("broker", "fail", f"none at {url}: {broker}", remedy)


def check_version(version: str) -> Check:
    """Whether the server is new enough."""
    wanted = ".".join(map(str, SERVER_VERSION_MIN))
    match = re.match(r"v?([0-9]+)\.([0-9]+)", version)
    if match is None:
        return Check(
            "version", "warn", f"{version!r} is no version", f"make sure that it is nats-server {wanted} or newer"
        )
    if (int(match[1]), int(match[2])) < SERVER_VERSION_MIN:
        return Check("version", "fail", f"nats-server {version} is too old", f"upgrade it to {wanted} or newer")
    return Check("version", "ok", f"nats-server {version}")


def check_jetstream(on: bool) -> Check:
    """Whether the server stores anything."""
    if on:
        return Check("jetstream", "ok", "is on")
    return Check(
        "jetstream", "fail", "is off", "put a block `jetstream { store_dir: … }` into the server's configuration"
    )


def check_login(refusal: str) -> Check:
    """Why nobody of the mesh gets in. Where the login is taken there is nothing to say."""
    remedy = "look at the users of the broker's configuration, and at what the line names, for each service"
    return Check("login", "fail", refusal, remedy)


def check_login_files(problems: Sequence[str]) -> Check:
    """Files of logins that others can read, or that a service won't be able to use."""
    remedy = "give each file to the user that its service runs as, with mode 0600"
    return Check("login_files", "warn", "; ".join(problems[:_NAMES_MAX]), remedy)


def check_certificate(distrust: str) -> Check:
    """Why nothing is sent to the broker: another may have taken its place."""
    remedy = (
        "MESH_NATS_TLS_CA names the file with the authority that signed the broker's, MESH_NATS_TLS_CERT and"
        " MESH_NATS_TLS_KEY what the broker is shown: set them for this command and for each service"
    )
    return Check("certificate", "fail", distrust, remedy)


def check_suitable(facts: Facts) -> list[Check]:
    """What a broker of one's own lacks. Of one that lacks nothing there is nothing to say."""
    checks: list[Check] = []
    if isinstance(facts.broker, BrokerInfo) and (problem := check_payload(facts.broker.max_payload_bytes)):
        status: Status = "fail" if facts.broker.max_payload_bytes < PAYLOAD_BYTES_LEAST else "warn"
        checks.append(Check("max_payload", status, problem, "set `max_payload: 1MB` in the broker's configuration"))
    if facts.foreign:
        remedy = "rename or delete what is in the way, or give the mesh an account of its own"
        checks.append(Check("subjects", "fail", "; ".join(each.detail for each in facts.foreign[:_NAMES_MAX]), remedy))
    if facts.missing_rights:
        remedy = "allow it to: `meshctl permissions` says what each user needs"
        checks.append(Check("rights", "fail", told(facts.missing_rights), remedy))
    return checks


def check_streams(streams: StreamsSeen | str) -> Check:
    """Whether streams, consumers and buckets are there, and as declared."""
    if isinstance(streams, str):
        return Check("streams", "fail", streams, "look at the server's log; may this account use JetStream?")
    missing = [difference.name for difference in streams.differences if difference.missing]
    other = [difference.name for difference in streams.differences if not difference.missing]
    if missing:
        detail = f"missing: {first_few(missing)}" + (f"; not as declared: {first_few(other)}" if other else "")
        return Check("streams", "fail", detail, "create them with `meshctl streams apply`")
    if other:
        remedy = "see what with `meshctl streams plan`, and change it with `meshctl streams apply`"
        return Check("streams", "fail", f"not as declared: {first_few(other)}", remedy)
    return Check("streams", "ok", f"all {streams.declared} streams, buckets and consumers are as declared")


def check_persist_mode(mode: str) -> Check:
    """Whether an acknowledged event is one that a crash of the broker leaves alone."""
    if mode == "async":
        remedy = "it can't be changed: back up, and create EVENTS again with the default persist mode"
        return Check(
            "persist_mode", "fail", "EVENTS is stored asynchronously: a crash gives sequences out twice", remedy
        )
    return Check("persist_mode", "ok", f"EVENTS has the {mode or 'default'} one")


def check_clock(ahead_seconds: float) -> Check:
    """Whether this machine and the broker's agree on the time."""
    if abs(ahead_seconds) <= CLOCK_SECONDS_MAX:
        return Check("clock", "ok", f"within {max(0.01, abs(ahead_seconds)):.2f} s of the broker's")
    way = "behind" if ahead_seconds > 0 else "ahead of"
    detail = f"this machine is {abs(ahead_seconds):.1f} s {way} the broker"
    return Check(
        "clock", "warn", detail, "let both follow NTP (`timedatectl set-ntp true`): logs and the mesh disagree"
    )


def check_storage(levels: Sequence[Level], high_water_percent: float, filling_percent: float) -> Check:
    """Whether there is room for more tasks, and if not, where."""
    fullest = max(levels, key=lambda level: level.percent)
    near = above(levels, filling_percent)
    if not near:
        return Check("storage", "ok", f"{fullest.name} is the fullest, {fullest.percent:.0f} % of its limit")
    full = refusing(levels, high_water_percent)
    detail = ", ".join(f"{level.name} {level.percent:.0f} %" for level in near)
    first = (full or near)[0].name
    remedy = f"{_MORE_ROOM.get(first, _MORE_ROOM_IN_QUEUES)}{_larger(first)}"
    if full:
        return Check("storage", "fail", f"new tasks are refused: {detail}", remedy)
    return Check("storage", "warn", f"new tasks are refused from {high_water_percent:g} % on: {detail}", remedy)


def _larger(name: str) -> str:
    if name in (ACCOUNT, DISK):
        return ""
    return f"; or raise its size (`{storage_key(name)}` in mesh.toml, then `meshctl streams apply`)"


def check_stored(dead: Sequence[DeadStream]) -> Check:
    """Whether the streams that tasks need take what is published."""
    if not dead:
        return Check("stored", "ok", "the streams that tasks need take what is published")
    detail = first_few([f"{each.stream} takes nothing any more: {each.reason}" for each in dead])
    return Check(
        "stored", "fail", detail, "make room on the broker's disk, then restart nats-server: it won't recover by itself"
    )


def check_sync(sync_interval: str | None) -> Check:
    """When the broker's writes reach the disk. Only the embedded broker's is known."""
    if sync_interval is None:
        remedy = "look for `sync_interval` in its configuration: with `always` no power cut loses what was accepted"
        return Check("sync", "warn", "unknown: the broker is not the embedded one of this MESH_HOME", remedy)
    if sync_interval == "always":
        return Check("sync", "ok", "always: what was accepted survives a power cut")
    detail = f"every {sync_interval}: a power cut may lose that much of what was accepted"
    return Check("sync", "warn", detail, "set MESH_SYNC_INTERVAL=always if that is too much")


def check_disk(fsyncs_per_second: float | str | None, sync_interval: str | None) -> Check:
    """How many tasks a second the store's disk can take at most."""
    if fsyncs_per_second is None:
        return Check("disk", "ok", "not measured: it is not ours")
    if isinstance(fsyncs_per_second, str):
        return Check("disk", "fail", fsyncs_per_second, "make MESH_HOME a folder that can be written to")
    ceiling = fsyncs_per_second / FSYNCS_PER_TASK
    measured = f"{fsyncs_per_second:,.0f} fsyncs a second"
    if sync_interval not in (None, "always"):
        return Check("disk", "ok", f"{measured}; with sync every {sync_interval} they set no ceiling")
    detail = f"{measured}: at most about {ceiling:,.0f} tasks of one turn a second ({FSYNCS_PER_TASK} fsyncs each)"
    if ceiling >= CEILING_TASKS_PER_SECOND_MIN:
        return Check("disk", "ok", detail)
    remedy = "put MESH_HOME on a faster disk, or set MESH_SYNC_INTERVAL=1s if the last second may go in a power cut"
    return Check("disk", "warn", detail, remedy)


def check_variables(unknown: Sequence[str]) -> Check:
    """Variables that were meant to be settings, and are none."""
    return Check("variables", "fail", "; ".join(unknown[:_NAMES_MAX]), "mend or unset them: nobody reads them")


def check_tasks(tasks: TasksSeen) -> Check:
    """Whether a task would wait for ever: its message, or its timer, is gone from the broker."""
    if tasks.lost == 0:
        return Check("tasks", "ok", f"none of {tasks.open:,} that were looked at waits for a message that is gone")
    detail = f"{tasks.lost:,} of {tasks.open:,} that were looked at wait for a message that is gone"
    return Check("tasks", "warn", detail, "a steward puts them back, a little at a time; all at once: `meshctl repair`")


def check_open_files(limit: int, hard: int) -> Check:
    """How many files and sockets a process started from here may have open. Below 0: any number."""
    if limit < 0:
        return Check("open_files", "ok", "no limit")
    if limit >= OPEN_FILES_MIN:
        return Check("open_files", "ok", f"up to {limit:,} in a process")
    remedy = f"`ulimit -n {OPEN_FILES_MIN}` before `meshctl up`"
    if 0 <= hard < OPEN_FILES_MIN:
        remedy += f"; the hard limit is {hard:,}: raise that first (LimitNOFILE= of its unit, or limits.conf)"
    return Check("open_files", "warn", f"up to {limit:,} in a process", remedy)


def exit_status(checks: Sequence[Check]) -> int:
    """0, or 1 if any line says `fail`."""
    return int(any(check.status == "fail" for check in checks))


def clock_ahead_seconds(broker_time: datetime, asked_at: datetime, answered_at: datetime) -> float:
    """The broker's clock less ours, taken at the middle of the request."""
    return (broker_time - (asked_at + (answered_at - asked_at) / 2)).total_seconds()
