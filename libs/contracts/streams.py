"""Streams, consumers and buckets, declared once, as data.

`as_config()` renders what the JetStream API and `nats stream add --config` take: durations in nanoseconds,
sizes in bytes. Every stream has numeric limits. deploy/nats/streams/*.json is rendered from here.
"""

from __future__ import annotations

from contracts import subjects
from contracts.declarations import (
    ACK_PENDING_MAX,
    ACK_WAIT_SECONDS,
    FEW_WAITING_PULLS_MAX,
    MAX_DELIVER,
    BucketDeclaration,
    ConsumerDeclaration,
    StreamDeclaration,
)
from contracts.sizes import DEFAULT_TOTAL_BYTES, share_out

LANE_BACKLOG_MAX = 5_000
"""Tasks of one tenant that wait in one lane's backlog, unless its settings say less."""
TASKS_WINDOW = 64
"""First turns of one tenant and lane in TASKS, those that run included; what is beyond waits in BACKLOG. A fleet that
has more places widens it (`steward`)."""
TASKS_MAX = 50_000
"""First turns that wait or run, of the whole mesh."""
BACKLOG_MAX = 100_000
"""Tasks of the whole mesh that wait behind those."""
LANE_CONSUMERS_MAX = 10_000
"""Consumers of a stream that has one for each lane or tool. An explicit number lifts the server's own bound of 1,000
(`default_max_consumers`). Each takes some 30 KiB of the server's memory; a cluster bears about 2,000."""
WAITING_PULLS_MAX = 10_000
"""Pulls that wait at a lane or tool: one for each of its workers or runners. The next one is refused."""
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
BACKLOG = StreamDeclaration(
    name="BACKLOG",
    description="Turns that wait for their tenant's turn. Nobody pulls them: stewards move them on, in fair order.",
    subjects=("backlog.*.*.*",),
    retention="workqueue",
    discard="new",
    discard_new_per_subject=True,
    max_msgs=BACKLOG_MAX,
    max_msgs_per_subject=LANE_BACKLOG_MAX,
    max_bytes=_BYTES["BACKLOG"],
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

USAGE = StreamDeclaration(
    name="USAGE",
    description="Counters: what each tenant has used, by day, provider, model and pool.",
    subjects=(subjects.USAGE_ALL,),
    # Counters can't be combined with discard new (NATS ADR-49). What is lost is counted again from journals.
    discard="old",
    max_msgs_per_subject=1,
    max_bytes=_BYTES["USAGE"],
    allow_msg_counter=True,
)

STREAMS: tuple[StreamDeclaration, ...] = (
    TASKS,
    BACKLOG,
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
    USAGE,
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
LEDGER_KEY = "ledger"
"""Of the record there that says how far usage is counted, and by whom."""
STORAGE_BUCKET = BucketDeclaration(
    name="storage", description="How full the streams were, an hour apart.", max_bytes=_BYTES["KV_storage"]
)
KEYS_BUCKET = BucketDeclaration(name="keys", description="API keys, hashed.", max_bytes=_BYTES["KV_keys"])
VALVES_BUCKET = BucketDeclaration(
    name="valves", description="What people have paused, or limited for a while.", max_bytes=_BYTES["KV_valves"]
)

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
    VALVES_BUCKET,
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
