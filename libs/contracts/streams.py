"""Streams, consumers and buckets, declared once, as data.

`as_config()` renders what the JetStream API and `nats stream add --config` take: durations in nanoseconds,
sizes in bytes. Every stream has numeric limits. deploy/nats/streams/*.json is rendered from here.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from contracts import subjects
from contracts.sizes import DEFAULT_TOTAL_BYTES, share_out

ACK_WAIT_SECONDS = 5.0
"""Lease of a step: how long a delivery may go without a heartbeat. MESH_ACK_WAIT_SECONDS overrides it."""
MAX_DELIVER = 10
"""The net under crash loops; tries by policy are fewer (`contracts.retries`). MESH_MAX_DELIVER overrides it."""
DUPLICATE_WINDOW_SECONDS = 600
MESSAGE_BYTES_MAX = 1024 * 1024
"""NATS's own default `max_payload`."""
LANE_BACKLOG_MAX = 5_000
"""Waiting tasks of one tenant in one lane."""
TASKS_MAX = 50_000
"""Waiting tasks of the whole mesh."""
LANE_CONSUMERS_MAX = 10_000
"""Consumers of a stream that has one for each lane or tool. An explicit number lifts the server's own bound of 1,000
(`default_max_consumers`). Each takes some 30 KiB of the server's memory; a cluster bears about 2,000."""
WAITING_PULLS_MAX = 10_000
"""Pulls that wait at a lane or tool: one for each of its workers or runners. The next one is refused."""
FEW_WAITING_PULLS_MAX = 512
"""The same of consumers that only the steward pulls."""
ACK_PENDING_MAX = 10_000
"""Deliveries in flight in one lane, delayed retries included. The server's default of 1,000 stops a lane early."""
SIGNALS_MAX = 1_000_000
"""Signals that are kept, and so may wait."""
WORKERS_TTL_SECONDS = 90
FIRED_TTL_SECONDS = 30 * 24 * 3600
"""How long what a timer has fired is kept for a steward that is not there: longer than any is away. One that is there
deletes it as soon as it is carried out, so that this costs nothing."""
FIRINGS_MAX = 1_000
"""Firings of one schedule that wait for a steward which is not there: what is older is not caught up."""
TOOLS_TTL_SECONDS = 600
"""How long a tool is offered after its last runner has declared it; runners do so each minute."""
TOOL_CONSUMER_IDLE_SECONDS = 24 * 3600
"""How long the consumer of a tool that does not come along stays after its last runner has pulled. What waits on the
tool's subject stays, for the consumer that its next runner creates."""
WEBHOOK_CONSUMER_PREFIX = "webhook-"
CRITIC_CONSUMER = "critic"
BUILT_IN_TOOLS = ("add", "calculator", "current_time", "http_get", "propose_replay", "send_signal", "spawn_task")
"""The tools that the tool runner brings along; each has a consumer."""

_BYTES = share_out(DEFAULT_TOTAL_BYTES)
"""What is declared where nobody has said how large the disk is; `contracts.sizes` shares out what there is."""
_NANOSECONDS = 1_000_000_000


class StreamDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """A stream. Sizes in bytes, times in seconds; -1 is no limit of that kind, and then another kind has one.

    The server reserves `max_bytes` of all streams together against the limit of the account, if that has one. As
    declared they come to 24 GiB (`contracts.sizes`); a mesh replaces them by what its disk and mesh.toml say.
    """

    name: str
    description: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["old", "new"] = "old"
    discard_new_per_subject: bool = False
    max_msgs: int = -1
    max_msgs_per_subject: int = -1
    max_bytes: int
    max_age_seconds: float = 0
    max_msg_bytes: int = MESSAGE_BYTES_MAX
    max_consumers: int = 256
    duplicate_window_seconds: float = DUPLICATE_WINDOW_SECONDS
    allow_direct: bool = True
    allow_msg_schedules: bool = False
    allow_msg_ttl: bool = False
    allow_rollup_headers: bool = False
    deny_delete: bool = False
    republish: tuple[str, str] | None = None

    def as_config(self, replicas: int = 1) -> dict[str, Any]:
        """The JSON of a JetStream StreamConfig."""
        config: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "subjects": list(self.subjects),
            "retention": self.retention,
            "discard": self.discard,
            "discard_new_per_subject": self.discard_new_per_subject,
            "storage": "file",
            "num_replicas": replicas,
            "max_msgs": self.max_msgs,
            "max_msgs_per_subject": self.max_msgs_per_subject,
            "max_bytes": self.max_bytes,
            "max_age": int(self.max_age_seconds * _NANOSECONDS),
            "max_msg_size": self.max_msg_bytes,
            "max_consumers": self.max_consumers,
            "duplicate_window": int(self.duplicate_window_seconds * _NANOSECONDS),
            "allow_direct": self.allow_direct,
            "allow_rollup_hdrs": self.allow_rollup_headers,
            "deny_delete": self.deny_delete,
        }
        if self.allow_msg_schedules:
            config["allow_msg_schedules"] = True
        if self.allow_msg_ttl:
            config["allow_msg_ttl"] = True
        if self.republish is not None:
            config["republish"] = {"src": self.republish[0], "dest": self.republish[1]}
        return config


class ConsumerDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """A durable pull consumer with explicit ack. Its `backoff` list stays unset: it would overwrite `ack_wait`."""

    stream: str
    name: str
    filter_subject: str
    ack_wait_seconds: float = ACK_WAIT_SECONDS
    max_deliver: int = MAX_DELIVER
    max_ack_pending: int = ACK_PENDING_MAX
    max_waiting: int = FEW_WAITING_PULLS_MAX
    inactive_threshold_seconds: float = 0
    deliver_policy: Literal["all", "new"] = "all"

    def as_config(self) -> dict[str, Any]:
        """The JSON of a JetStream ConsumerConfig."""
        config: dict[str, Any] = {
            "durable_name": self.name,
            "name": self.name,
            "filter_subject": self.filter_subject,
            "deliver_policy": self.deliver_policy,
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait_seconds * _NANOSECONDS),
            "max_deliver": self.max_deliver,
            "max_ack_pending": self.max_ack_pending,
            "max_waiting": self.max_waiting,
        }
        if self.inactive_threshold_seconds:
            config["inactive_threshold"] = int(self.inactive_threshold_seconds * _NANOSECONDS)
        return config


class BucketDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """A key-value bucket with direct reads, and one value kept for each key."""

    name: str
    description: str
    max_bytes: int
    ttl_seconds: float = 0

    @property
    def stream_name(self) -> str:
        """Name of the stream under the bucket."""
        return f"KV_{self.name}"

    def as_stream(self) -> StreamDeclaration:
        """The stream under the bucket (NATS ADR-8)."""
        return StreamDeclaration(
            name=self.stream_name,
            description=self.description,
            subjects=(f"$KV.{self.name}.>",),
            discard="new",
            max_msgs_per_subject=1,
            max_bytes=self.max_bytes,
            max_age_seconds=self.ttl_seconds,
            # JetStream takes no duplicate window longer than the age of the messages.
            duplicate_window_seconds=min(120.0, self.ttl_seconds) if self.ttl_seconds else 120.0,
            allow_rollup_headers=True,
            deny_delete=True,
        )


TASKS = StreamDeclaration(
    name="TASKS",
    description="First turns that wait for a worker. Bounded; a full lane refuses.",
    subjects=("tasks.*.*.*",),
    retention="workqueue",
    discard="new",
    discard_new_per_subject=True,
    max_msgs=TASKS_MAX,
    max_msgs_per_subject=LANE_BACKLOG_MAX,
    max_bytes=_BYTES["TASKS"],
    max_consumers=LANE_CONSUMERS_MAX,
)
TURNS = StreamDeclaration(
    name="TURNS",
    description="Later turns that wait for a worker. Bounded by what TASKS let in.",
    subjects=("turns.*.*.*",),
    retention="workqueue",
    discard="new",
    max_bytes=_BYTES["TURNS"],
    max_consumers=LANE_CONSUMERS_MAX,
)
TOOLS = StreamDeclaration(
    name="TOOLS",
    description="Tool calls that wait for a runner.",
    subjects=("tools.*",),
    retention="workqueue",
    discard="new",
    max_bytes=_BYTES["TOOLS"],
    max_consumers=LANE_CONSUMERS_MAX,
)
CONTROL = StreamDeclaration(
    name="CONTROL",
    description="Commands to tasks: cancel, input, approval, replay, child_done.",
    subjects=("control.*.*",),
    retention="workqueue",
    discard="new",
    max_bytes=_BYTES["CONTROL"],
)
EVENTS = StreamDeclaration(
    name="EVENTS",
    description="Journals: everything that happened to every task.",
    subjects=subjects.EVENTS_ALL,
    # Full means refused: evicting the first event of a living task would break its fence.
    discard="new",
    max_bytes=_BYTES["EVENTS"],
    republish=("events.>", "live.events.>"),
)
DEAD_LETTERS = StreamDeclaration(
    name="DEAD_LETTERS",
    description="Work that gave up, with all that is needed to repair it.",
    subjects=("dead.*.*",),
    discard="new",
    max_bytes=_BYTES["DEAD_LETTERS"],
)
ADVISORIES = StreamDeclaration(
    name="ADVISORIES",
    description="Work whose process died on each delivery.",
    subjects=("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*",),
    max_msgs=100_000,
    max_bytes=_BYTES["ADVISORIES"],
)
TIMERS = StreamDeclaration(
    name="TIMERS",
    description="What is due later.",
    subjects=("timers.at.>", "timers.fired.>"),
    # Schedules can't be combined with discard new (10052): a full stream drops its oldest timer. So whoever publishes
    # one waits before that (`mesh.broker.levels`), and the ingress refuses tasks. A schedule takes 400 to 500 bytes:
    # there is room for half a million.
    discard="old",
    max_bytes=_BYTES["TIMERS"],
    # Of anything but firings of a rule's schedule there is one on a subject.
    max_msgs_per_subject=FIRINGS_MAX,
    allow_msg_schedules=True,
    # What has fired goes by itself.
    allow_msg_ttl=True,
    # The server switches this on with schedules.
    allow_rollup_headers=True,
)
SIGNALS = StreamDeclaration(
    name="SIGNALS",
    description="Events from outside that may start tasks.",
    subjects=("signals.>",),
    max_msgs=SIGNALS_MAX,
    max_bytes=_BYTES["SIGNALS"],
    max_age_seconds=7 * 24 * 3600,
)

RESULTS = StreamDeclaration(
    name="OBJ_results",
    description="Object store: results of tools that are too large for an event.",
    # As NATS ADR-20 has it.
    subjects=("$O.results.C.>", "$O.results.M.>"),
    discard="new",
    max_bytes=_BYTES["OBJ_results"],
    allow_rollup_headers=True,
    # No age: a result lives for as long as its task, which may wait for months, and is purged with it.
)

ARCHIVE = StreamDeclaration(
    name="ARCHIVE",
    description="Packs: tasks that ended a while ago, many in one message.",
    subjects=("archive.*",),
    discard="new",
    max_bytes=_BYTES["ARCHIVE"],
)

STREAMS: tuple[StreamDeclaration, ...] = (
    TASKS,
    TURNS,
    TOOLS,
    CONTROL,
    EVENTS,
    DEAD_LETTERS,
    ADVISORIES,
    TIMERS,
    SIGNALS,
    RESULTS,
    ARCHIVE,
)

TASKS_BUCKET = BucketDeclaration(name="tasks", description="Status record of each task.", max_bytes=_BYTES["KV_tasks"])
WORKERS_BUCKET = BucketDeclaration(
    name="workers",
    description="Heartbeats of workers.",
    max_bytes=_BYTES["KV_workers"],
    ttl_seconds=WORKERS_TTL_SECONDS,
)
PROVIDERS_BUCKET = BucketDeclaration(
    name="providers", description="Breakers of model providers.", max_bytes=_BYTES["KV_providers"]
)
LANES_BUCKET = BucketDeclaration(name="lanes", description="Depth and pace of each lane.", max_bytes=_BYTES["KV_lanes"])
TOOLS_BUCKET = BucketDeclaration(
    name="tools", description="Declarations of tools.", max_bytes=_BYTES["KV_tools"], ttl_seconds=TOOLS_TTL_SECONDS
)
TRIGGERS_BUCKET = BucketDeclaration(
    name="triggers", description="Rules that start tasks.", max_bytes=_BYTES["KV_triggers"]
)
ARCHIVE_BUCKET = BucketDeclaration(
    name="archive", description="Where in ARCHIVE each packed task lies.", max_bytes=_BYTES["KV_archive"]
)
WALKS_BUCKET = BucketDeclaration(
    name="walks", description="How far the steward's walks are, and who has which piece.", max_bytes=_BYTES["KV_walks"]
)
STORAGE_BUCKET = BucketDeclaration(
    name="storage", description="How full the streams were, an hour apart.", max_bytes=_BYTES["KV_storage"]
)
KEYS_BUCKET = BucketDeclaration(name="keys", description="API keys, hashed.", max_bytes=_BYTES["KV_keys"])

BUCKETS: tuple[BucketDeclaration, ...] = (
    TASKS_BUCKET,
    WORKERS_BUCKET,
    PROVIDERS_BUCKET,
    LANES_BUCKET,
    TOOLS_BUCKET,
    TRIGGERS_BUCKET,
    ARCHIVE_BUCKET,
    WALKS_BUCKET,
    STORAGE_BUCKET,
    KEYS_BUCKET,
)


def lane_consumer(stream: str, pool: str, priority: str) -> str:
    """Name of a lane's durable consumer on TASKS or TURNS: `<pool>-<priority>`."""
    if stream not in ("TASKS", "TURNS"):
        raise ValueError(f"lanes are on TASKS and TURNS, not {stream}")
    return f"{subjects.check_pool(pool)}-{subjects.check_priority(priority)}"


def tool_consumer(tool: str) -> str:
    """Name of a tool's durable consumer on TOOLS: `tool-<tool>`."""
    return f"tool-{subjects.check_tool(tool)}"


def webhook_consumer(webhook: str) -> str:
    """Name of a webhook's durable consumer on EVENTS: `webhook-<name>`."""
    return f"{WEBHOOK_CONSUMER_PREFIX}{subjects.check_webhook(webhook)}"


def webhook_consumers(
    webhooks: tuple[str, ...], ack_wait_seconds: float = ACK_WAIT_SECONDS
) -> list[ConsumerDeclaration]:
    """A durable consumer for each webhook, so that a slow endpoint delays no other.

    It begins with what happens after it was created. How often a notification is tried is the steward's to count, which
    writes down what it gives up.
    """
    return [
        ConsumerDeclaration(
            stream=EVENTS.name,
            name=webhook_consumer(webhook),
            filter_subject=subjects.EVENTS_LOG,
            ack_wait_seconds=ack_wait_seconds,
            max_deliver=-1,
            deliver_policy="new",
        )
        for webhook in webhooks
    ]


def critic_consumer(ack_wait_seconds: float = ACK_WAIT_SECONDS, max_deliver: int = MAX_DELIVER) -> ConsumerDeclaration:
    """The durable consumer of a mesh that has a critic. It begins with what gives up after it was created."""
    return ConsumerDeclaration(
        stream=DEAD_LETTERS.name,
        name=CRITIC_CONSUMER,
        filter_subject="dead.*.*",
        ack_wait_seconds=ack_wait_seconds,
        max_deliver=max_deliver,
        deliver_policy="new",
    )


def consumers(
    pools: tuple[str, ...],
    tools: tuple[str, ...],
    ack_wait_seconds: float = ACK_WAIT_SECONDS,
    max_deliver: int = MAX_DELIVER,
) -> list[ConsumerDeclaration]:
    """The durable consumers for these pools and tools, and the steward's."""
    declared: list[ConsumerDeclaration] = []

    def declare(
        stream: str,
        name: str,
        filter_subject: str,
        deliveries_max: int = max_deliver,
        pending_max: int = ACK_PENDING_MAX,
        waiting_max: int = FEW_WAITING_PULLS_MAX,
        idle_seconds: float = 0,
    ) -> None:
        declared.append(
            ConsumerDeclaration(
                stream=stream,
                name=name,
                filter_subject=filter_subject,
                ack_wait_seconds=ack_wait_seconds,
                max_deliver=deliveries_max,
                max_ack_pending=pending_max,
                max_waiting=waiting_max,
                inactive_threshold_seconds=idle_seconds,
            )
        )

    for pool in pools:
        for priority in subjects.PRIORITIES:
            for stream, prefix in (("TASKS", "tasks"), ("TURNS", "turns")):
                name, filter_subject = lane_consumer(stream, pool, priority), f"{prefix}.{pool}.{priority}.*"
                declare(stream, name, filter_subject, waiting_max=WAITING_PULLS_MAX)
    for tool in tools:
        idle_seconds = 0 if tool in BUILT_IN_TOOLS else TOOL_CONSUMER_IDLE_SECONDS
        declare("TOOLS", tool_consumer(tool), f"tools.{tool}", waiting_max=WAITING_PULLS_MAX, idle_seconds=idle_seconds)
    declare("CONTROL", "steward", "control.*.*")
    # What fires has no queue that could be swept, and is carried out once however often it comes.
    declare("TIMERS", "steward", "timers.fired.>", -1)
    declare("ADVISORIES", "steward", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*")
    # What waits for its rule's pace, or for room in a lane, holds a place here: it must hold up no other.
    declare("SIGNALS", "steward", "signals.>", -1, SIGNALS_MAX)
    declare("TIMERS", "cron", subjects.CRON_FIRED, -1)
    return declared
