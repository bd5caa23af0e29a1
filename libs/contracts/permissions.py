"""What each process may publish and subscribe at the broker: its least rights, from what is declared.

The lists are data, and nothing here speaks to a broker: deploy/nats/accounts.conf is rendered from them, the embedded
broker's users, and what `meshctl permissions` prints. Who has a list may do what it names, and no more: the server
refuses the rest itself. Subjects carry no tenant that a service could be held to, since one serves all of them.

Two facts of the server (tried with 2.15.1) bound what a list can do. A direct get and a leader read of a stream take
the subject in their payload, so that the right to one of a stream is that to all of it; of a bucket one key can be
named. And the server sends an answer to whatever subject the request names, also to one that its sender may not publish
to: so whoever is not trusted gets an account of its own (`contracts.guests`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

from contracts import subjects
from contracts.errors import InvalidName
from contracts.links import LINK_KEYS_KEY
from contracts.permission_lists import Lists, Permissions, Responses
from contracts.streams import (
    ADVISORIES,
    ARCHIVE,
    ARCHIVE_BUCKET,
    BACKLOG,
    BUCKETS,
    BUDGETS_BUCKET,
    CONTROL,
    CRITIC_CONSUMER,
    DEAD_LETTERS,
    EVENTS,
    KEYS_BUCKET,
    LANES_BUCKET,
    LEDGER_KEY,
    PROVIDERS_BUCKET,
    RESULTS,
    SIGNALS,
    STORAGE_BUCKET,
    STREAMS,
    TASKS,
    TASKS_BUCKET,
    TIMERS,
    TOOLS,
    TOOLS_BUCKET,
    TRIGGERS_BUCKET,
    TURNS,
    USAGE,
    VALVES_BUCKET,
    WALKS_BUCKET,
    WORKERS_BUCKET,
    lane_consumer,
    tool_consumer,
    webhook_consumer,
)
from contracts.valve_keys import VALVES_ALL, VALVES_CHANGED

Role = Literal["ingress", "stream_edge", "inference_worker", "tool_runner", "steward", "operator", "supervisor"]
"""A process of the mesh: a service by its name, `operator` for meshctl's commands, `supervisor` for `meshctl up`."""
ROLES: Final[tuple[Role, ...]] = get_args(Role)

INBOXES: Final[dict[Role, str]] = {role: role for role in ROLES} | {"operator": "meshctl", "supervisor": "meshctl"}
"""Whose inbox a role's answers come to: `_INBOX_<name>.>`."""
USER_INFO: Final = "$SYS.REQ.USER.INFO"
"""Tells a connection its own rights. Its answer comes from the server that it is at."""

_ALL_STREAMS: Final = (*(each.name for each in STREAMS), *(each.stream_name for each in BUCKETS))
_QUEUES: Final = (TASKS.name, TURNS.name, TOOLS.name)
_TASK_TIMERS: Final = tuple(f"timers.at.{kind}.*.*.*" for kind in subjects.TIMER_KINDS)


def permissions_of(
    role: Role,
    *,
    domain: str | None = None,
    pools: Iterable[str] | None = None,
    tools: Iterable[str] | None = None,
    webhooks: Iterable[str] | None = None,
) -> Permissions:
    """The least rights of a role. `domain`: that of JetStream, for a server that is not of it, such as a leaf.

    `pools`, `tools` and `webhooks` narrow what a worker, a runner and the steward pull to what they serve; None is
    all of them, whatever mesh.toml will say. Raises `InvalidName`.
    """
    lists = Lists(domain)
    lists.publish(USER_INFO)
    lists.subscribe(f"_INBOX_{INBOXES[role]}.>")
    match role:
        case "ingress":
            _ingress(lists)
        case "stream_edge":
            _stream_edge(lists)
        case "inference_worker":
            _inference_worker(lists, pools)
        case "tool_runner":
            _tool_runner(lists, tools)
        case "steward":
            _steward(lists, webhooks)
        case "operator":
            _operator(lists)
        case "supervisor":
            _supervisor(lists)
    if role not in ("operator", "supervisor"):
        _service(lists, role)
    return lists.made()._replace(allow_responses=None if role == "operator" else Responses())


_DISPENSABLE: Final = (
    # What is created and changed elsewhere, or shown, or only comes sooner by it.
    "API.STREAM.LIST",
    "API.STREAM.CREATE.",
    "API.STREAM.UPDATE.",
    "API.CONSUMER.DURABLE.CREATE.",
    "API.CONSUMER.DELETE.",
    f"API.CONSUMER.MSG.NEXT.{DEAD_LETTERS.name}.{CRITIC_CONSUMER}",
    f"$JS.ACK.{DEAD_LETTERS.name}.{CRITIC_CONSUMER}",
    f".{DEAD_LETTERS.name}.{CRITIC_CONSUMER}.*",
    USER_INFO,
    "$SRV.",
    f"KV_{KEYS_BUCKET.name}",
    f"$KV.{KEYS_BUCKET.name}.",
    # Whoever needs it, since a tenant has a budget, says so where it lacks it.
    BUDGETS_BUCKET.stream_name,
    f"$KV.{BUDGETS_BUCKET.name}.",
    "process.",
    subjects.CONFIGURATION_RELOAD,
    subjects.STORE_ROOM,
    subjects.OPERATOR_ACTS,
    subjects.LANES_WAITING,
    subjects.PROVIDERS_CHANGED,
    f"KV_{VALVES_BUCKET.name}",
    f"$KV.{VALVES_BUCKET.name}.",
    VALVES_CHANGED,
    subjects.PROVIDERS_PACED,
    "stats.lanes.",
    subjects.PROVIDER_SPEEDS,
    ".preview",
)


def essentials_of(role: Role, domain: str | None = None) -> Permissions:
    """The part of a role's rights without which its work stands still: readiness asks for these."""
    whole = permissions_of(role, domain=domain)
    publish, subscribe = (
        tuple(each for each in names if not _is_dispensable(each)) for names in (whole.publish, whole.subscribe)
    )
    return Permissions(publish, subscribe, whole.allow_responses)


def _is_dispensable(subject: str) -> bool:
    return any(part in subject for part in _DISPENSABLE)


# Parts of a list


def _service(lists: Lists, role: str) -> None:
    """What each service does: it shows up (NATS micro), takes orders, tells of itself, and sees how the mesh stands."""
    lists.publish("$SRV.INFO")
    lists.call("STREAM.LIST")
    lists.info(EVENTS.name, TASKS.name, TASKS_BUCKET.stream_name)
    lists.write(WORKERS_BUCKET)
    lists.read_bucket(VALVES_BUCKET)
    lists.subscribe(VALVES_ALL, VALVES_CHANGED)
    lists.subscribe("$SRV.*", f"$SRV.*.{role}", f"$SRV.*.{role}.*", "process.*.drain", subjects.CONFIGURATION_RELOAD)


def _read_journals(lists: Lists) -> None:
    """Journals, those that are packed included."""
    lists.read(EVENTS.name, ARCHIVE.name)
    lists.read_bucket(ARCHIVE_BUCKET)


def _append(lists: Lists, *parts: str) -> None:
    """Append to journals, and keep their records."""
    _read_journals(lists)
    lists.publish(*(f"events.*.*.{part}" for part in parts))
    lists.write(TASKS_BUCKET)
    lists.read_bucket(TASKS_BUCKET)


def _send_on(lists: Lists) -> None:
    """What follows on a step: work, timers, and word to a parent or its children."""
    lists.publish(
        *TASKS.subjects, *TURNS.subjects, *TOOLS.subjects, *_TASK_TIMERS, "control.cancel.*", "control.child_done.*"
    )
    lists.info(TIMERS.name)
    lists.call(f"STREAM.PURGE.{TIMERS.name}")
    lists.publish(*DEAD_LETTERS.subjects)


def _step(lists: Lists) -> None:
    """A step of a task: it is claimed, written down and followed up, and lets others write in between."""
    _append(lists, "log", "delta")
    _send_on(lists)
    lists.subscribe("live.events.*.*.log", "hold.*.*", subjects.LANES_WAITING)


def _fleet(lists: Lists) -> None:
    """Who is there, and how queues stand."""
    lists.publish("$SRV.PING")
    lists.read_bucket(WORKERS_BUCKET, PROVIDERS_BUCKET, LANES_BUCKET)
    lists.call(*(f"CONSUMER.LIST.{stream}" for stream in _QUEUES))
    lists.info(*_QUEUES)


def _count(lists: Lists) -> None:
    """Count what was used, and see what was."""
    lists.publish(*USAGE.subjects)
    _read_usage(lists)


def _read_usage(lists: Lists) -> None:
    """See what was used."""
    lists.read(USAGE.name)
    lists.info(USAGE.name)


def _budgets(lists: Lists) -> None:
    """See what tenants have left of their budgets, and book what they use, or will."""
    lists.read_bucket(BUDGETS_BUCKET)
    lists.write(BUDGETS_BUCKET)


def _put_off(lists: Lists) -> None:
    """Put a turn into the backlog, and tell the stewards; see which lanes they order."""
    lists.publish(*BACKLOG.subjects, subjects.BACKLOG_GREW)
    lists.read_keys(LANES_BUCKET)


def _levels(lists: Lists) -> None:
    """How full the streams, the account and the disk are."""
    lists.info(*_ALL_STREAMS)
    lists.call("INFO")
    lists.publish(subjects.STORE_ROOM)


def _take_credentials(lists: Lists) -> None:
    """Hold API keys and links against what there is: those that are not known, at the leader."""
    lists.read_keys(KEYS_BUCKET)
    lists.call(f"STREAM.MSG.GET.{KEYS_BUCKET.stream_name}")
    lists.subscribe(f"$KV.{KEYS_BUCKET.name}.>")


# Roles


def _ingress(lists: Lists) -> None:
    _append(lists, "log")
    lists.publish(*TASKS.subjects, *(f"control.{kind}.*" for kind in ("cancel", "input", "approval", "replay")))
    lists.publish("timers.at.deadline.*.*.*", *DEAD_LETTERS.subjects)
    _put_off(lists)
    _read_usage(lists)
    _budgets(lists)
    lists.write(VALVES_BUCKET)
    lists.publish(VALVES_CHANGED)
    lists.read(TASKS.name, BACKLOG.name, TURNS.name, TOOLS.name, CONTROL.name, DEAD_LETTERS.name)
    lists.call(
        f"STREAM.MSG.DELETE.{DEAD_LETTERS.name}",
        *(f"CONSUMER.INFO.{stream}.*" for stream in (TASKS.name, TURNS.name, TOOLS.name)),
        f"CONSUMER.NAMES.{TOOLS.name}",
    )
    _fleet(lists)
    _levels(lists)
    lists.read_bucket(TOOLS_BUCKET)
    lists.info(TOOLS_BUCKET.stream_name)
    _take_credentials(lists)
    # The first link of a mesh makes the key that signs it.
    lists.write(KEYS_BUCKET, LINK_KEYS_KEY)
    lists.subscribe("live.events.*.*.*", subjects.PROVIDERS_CHANGED, f"$KV.{LANES_BUCKET.name}.{subjects.BACKLOG_KEY}")


def _stream_edge(lists: Lists) -> None:
    _read_journals(lists)
    _take_credentials(lists)
    lists.subscribe("live.events.*.*.*")


def _inference_worker(lists: Lists, pools: Iterable[str] | None) -> None:
    _step(lists)
    for stream in (TASKS.name, TURNS.name):
        names = ["*"]
        if pools is not None:
            names = [lane_consumer(stream, pool, priority) for pool in pools for priority in subjects.PRIORITIES]
        lists.pull(stream, *names)
        lists.call(*(f"CONSUMER.INFO.{stream}.{name}" for name in names))
    lists.publish("stats.lanes.*.*", "live.events.*.*.preview", subjects.PROVIDERS_CHANGED, subjects.PROVIDERS_PACED)
    lists.publish(subjects.PROVIDER_SPEEDS)
    _put_off(lists)
    _budgets(lists)
    lists.write(PROVIDERS_BUCKET)
    lists.read_keys(PROVIDERS_BUCKET, TOOLS_BUCKET)
    # How many share a model server.
    lists.read_bucket(WORKERS_BUCKET)
    lists.read(RESULTS.name)
    lists.subscribe(subjects.PROVIDERS_CHANGED, subjects.PROVIDERS_PACED, subjects.PROVIDER_SPEEDS)
    # Which of its pools has most waiting.
    lists.subscribe(f"$KV.{LANES_BUCKET.name}.{subjects.BACKLOG_KEY}")


def _tool_runner(lists: Lists, tools: Iterable[str] | None) -> None:
    _step(lists)
    _put_off(lists)
    lists.pull(TOOLS.name, *(["*"] if tools is None else map(tool_consumer, tools)))
    lists.call(f"CONSUMER.LIST.{TOOLS.name}", f"CONSUMER.NAMES.{TOOLS.name}", f"CONSUMER.DURABLE.CREATE.{TOOLS.name}.*")
    lists.write(TOOLS_BUCKET)
    lists.publish(*RESULTS.subjects, *SIGNALS.subjects, "control.replay.*")
    lists.info(RESULTS.name)
    lists.call(f"STREAM.PURGE.{RESULTS.name}")


def _steward(lists: Lists, webhooks: Iterable[str] | None) -> None:
    _append(lists, "log")
    _send_on(lists)
    _fleet(lists)
    _levels(lists)
    lists.publish("timers.at.cron.*.*", "hold.*.*", subjects.LANES_WAITING, *ARCHIVE.subjects)
    lists.pull(CONTROL.name, "steward")
    lists.pull(TIMERS.name, "steward", "cron")
    lists.pull(SIGNALS.name, "steward")
    lists.pull(ADVISORIES.name, "steward")
    lists.pull(DEAD_LETTERS.name, CRITIC_CONSUMER)
    lists.pull(EVENTS.name, *(["*"] if webhooks is None else map(webhook_consumer, webhooks)))
    _put_off(lists)
    _count(lists)
    _budgets(lists)
    lists.read(*_QUEUES, BACKLOG.name, CONTROL.name, TIMERS.name, DEAD_LETTERS.name, SIGNALS.name, RESULTS.name)
    lists.read_bucket(TRIGGERS_BUCKET, WALKS_BUCKET, STORAGE_BUCKET)
    for bucket in (LANES_BUCKET, ARCHIVE_BUCKET, WALKS_BUCKET, STORAGE_BUCKET):
        lists.write(bucket)
    lists.write(TRIGGERS_BUCKET, "_pace.*.*")
    lists.call(f"STREAM.PURGE.{VALVES_BUCKET.stream_name}")
    lists.call(
        *(
            f"STREAM.MSG.DELETE.{stream}"
            for stream in (*_QUEUES, BACKLOG.name, CONTROL.name, TIMERS.name, ARCHIVE.name)
        ),
        *(f"STREAM.PURGE.{each}" for each in (EVENTS.name, TIMERS.name, DEAD_LETTERS.name, RESULTS.name, USAGE.name)),
        f"STREAM.PURGE.{TASKS_BUCKET.stream_name}",
        *(f"CONSUMER.LIST.{stream}" for stream in _ALL_STREAMS),
        f"CONSUMER.NAMES.{EVENTS.name}",
        *(f"CONSUMER.INFO.{stream}.*" for stream in _ALL_STREAMS),
        *(f"CONSUMER.DELETE.{stream}.*" for stream in _QUEUES),
    )
    _provide(lists)
    lists.subscribe("stats.lanes.*.*", subjects.LANES_WAITING, subjects.OPERATOR_ACTS, subjects.BACKLOG_GREW)


def _provide(lists: Lists) -> None:
    """Create what is declared, and change it; of consumers those of streams that have some."""
    lists.call(
        *(f"STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE") for stream in _ALL_STREAMS),
        *(
            f"CONSUMER.DURABLE.CREATE.{each.name}.*"
            for each in STREAMS
            if each not in (RESULTS, ARCHIVE, BACKLOG, USAGE)
        ),
    )


def _compare(lists: Lists) -> None:
    """See what there is of streams and consumers, and delete those of lanes that are no more."""
    lists.call(
        "STREAM.LIST",
        *(f"CONSUMER.{verb}.{stream}" for verb in ("LIST", "NAMES") for stream in _ALL_STREAMS),
        *(f"CONSUMER.INFO.{stream}.*" for stream in _ALL_STREAMS),
        *(f"CONSUMER.DELETE.{stream}.*" for stream in _QUEUES),
    )


def _operator(lists: Lists) -> None:
    """meshctl: doctor, streams, workers, lanes, providers, triggers, repair, drain, reload, keys, export and import."""
    _append(lists, "log")
    _send_on(lists)
    _fleet(lists)
    _levels(lists)
    _provide(lists)
    lists.publish(
        "$SRV.INFO", subjects.CONFIGURATION_RELOAD, subjects.OPERATOR_ACTS, "process.*.drain", "timers.at.cron.*.*"
    )
    lists.publish(*(f"control.{kind}.*" for kind in subjects.CONTROL_KINDS), *SIGNALS.subjects, *ARCHIVE.subjects)
    lists.read(*_ALL_STREAMS)
    lists.read_keys(*BUCKETS)
    for bucket in (TRIGGERS_BUCKET, KEYS_BUCKET, ARCHIVE_BUCKET, VALVES_BUCKET):
        lists.write(bucket)
    lists.publish(VALVES_CHANGED)
    lists.write(WALKS_BUCKET, LEDGER_KEY)
    _put_off(lists)
    _count(lists)
    _compare(lists)
    lists.call(
        # The doctor finds out by it whether a stream takes anything. Who may change a stream can empty it anyhow.
        *(
            f"STREAM.PURGE.{each.name}"
            for each in (TASKS, BACKLOG, TURNS, TOOLS, CONTROL, EVENTS, DEAD_LETTERS, TIMERS, RESULTS, USAGE)
        ),
        f"STREAM.PURGE.{TASKS_BUCKET.stream_name}",
        f"STREAM.MSG.DELETE.{DEAD_LETTERS.name}",
    )


def _supervisor(lists: Lists) -> None:
    """`meshctl up`: it creates what is missing, tells how much room there is, and passes a reload on."""
    _levels(lists)
    _provide(lists)
    _fleet(lists)
    lists.publish("$SRV.INFO", subjects.CONFIGURATION_RELOAD, "process.*.drain")
    lists.read(EVENTS.name)
    lists.write(KEYS_BUCKET)
    lists.read_keys(KEYS_BUCKET)
    _compare(lists)
    lists.subscribe(subjects.STORE_ROOM, subjects.CONFIGURATION_RELOAD)


def check_role(value: str) -> Role:
    """Return a role unchanged, else raise `InvalidName`."""
    for role in ROLES:
        if role == value:
            return role
    raise InvalidName(f"not a role: {value!r:.80} (expected one of {', '.join(ROLES)})")
