"""Status records: how a task stands, in the bucket `tasks` and over HTTP; and the statistics of a lane."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.errors import ErrorInfo
from contracts.fields import By, Call, Count, Id, LaneName, Ordinal, Seconds, Step, Tenant, Time
from contracts.journal.parts import Incomplete, Parent, Timings, Usage
from contracts.tasks import Priority
from contracts.valve_keys import ValveKind

Status = Literal["queued", "running", "waiting", "dead_lettered", "completed", "failed", "cancelled", "expired"]
"""
queued: accepted, no worker has it yet.  running: a worker has claimed a step.
waiting: for a person, or for a child.   dead_lettered: a step gave up; a replay continues the task.
completed, failed, cancelled, expired: ended, for good.
"""
STATUSES: tuple[Status, ...] = (
    "queued",
    "running",
    "waiting",
    "dead_lettered",
    "completed",
    "failed",
    "cancelled",
    "expired",
)
ENDED: frozenset[Status] = frozenset({"completed", "failed", "cancelled", "expired"})

Metadata = dict[str, str | int | bool]


class Links(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where to go on from here. `events` is the SSE stream at the edge; `cancel` and `inputs` take a POST."""

    self_: str = msgspec.field(name="self")
    events: str
    cancel: str | None = None
    inputs: str | None = None


def links_of(task: str, events_base_url: str, base_url: str = "") -> Links:
    """A task's links. All but `events` are at the ingress: paths there, or with `base_url` whole URLs."""
    path = f"/v1/tasks/{task}"
    own = f"{base_url}{path}"
    return Links(self_=own, events=f"{events_base_url}{path}/events", cancel=f"{own}/cancel", inputs=f"{own}/inputs")


class OpenApproval(msgspec.Struct, frozen=True, kw_only=True):
    """A call that waits for a person's decision."""

    call: Call
    tool: LaneName
    arguments: dict[str, Any]
    expires_at: Time


class OpenQuestion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A question that waits for the user's answer."""

    question: str
    call: Call | None = None
    expires_at: Time | None = None


class OpenDeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A step that gave up and waits to be repaired."""

    step: Step
    gen: Count
    code: str


WaitsFor = Literal[
    "worker",
    "no-worker",
    "runner",
    "no-runner",
    "pause",
    "provider",
    "retry",
    "approval",
    "question",
    "subtask",
    "repair",
    "step",
]
"""
worker, runner: its turn, or its call, waits in a queue for a free place.  no-worker, no-runner: nobody who lives takes
from that queue.  pause: somebody has paused it.  provider: no provider of its pool is called at present.
retry: a try failed, and a timer brings the next one.  approval, question: a person has to say something.
subtask: a child has to end.  repair: a step gave up.  step: a turn or call is being carried out.
"""


class Waiting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a task that has not ended waits for, and since when. `detail` says it in one sentence, for people.

    `step` is the turn or call in question, `tool` that of a call; `until` when the wait ends by itself; `ahead` how
    many messages stand before it in its queue; `worker` who carries it out; `task` the child that has to end.
    """

    on: WaitsFor
    since: Time
    detail: str
    step: Step | None = None
    tool: LaneName | None = None
    until: Time | None = None
    ahead: Count | None = None
    worker: str | None = None
    task: Id | None = None


EtaBasis = Literal["free", "drain", "pool", "places", "no-worker", "no-provider", "paused", "begun", "unknown"]
"""
What an ETA was worked out from.  free: a place is free.  drain: how many tasks of its lane began a second, while some
waited.  pool: the same of the pool's other lanes, shared out by weight.  places: how many places there are, and how
long a task has one. Without an ETA, why there is none.  no-worker: nobody who lives serves the pool.  no-provider: no
provider of it is called at present.  paused: people have paused the lane, its pool, the tenant, or all that the pool
could ask.  begun: it waits for no place any more.  unknown: nothing was measured yet.
"""


class QueueState(msgspec.Struct, frozen=True, kw_only=True):
    """A task's place in line, and when it begins.

    `depth`: turns that wait in its lane; null while nobody has counted. `position`: 1 is the task that begins next;
    null where nobody knows. `eta_seconds`: about how long until it begins; null while nothing was measured. `basis`:
    what that was worked out from, or why there is none.
    """

    depth: Count | None
    position: Ordinal | None = None
    eta_seconds: Seconds | None
    basis: EtaBasis = "unknown"


class Pause(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What keeps a task from going on that people have paused: the `kind` and name of it, since when, and why.

    It goes on by itself at `until`, if there is one. Of a provider it is said where all that the pool has are paused.
    """

    kind: ValveKind
    name: str
    since: Time
    until: Time | None = None
    reason: str | None = None


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task's status, folded from its journal up to stream sequence `sequence`.

    In the bucket `tasks` under `<tenant>.<task>`, where a record is only ever replaced by one with a higher
    `sequence`; over HTTP with `links`, and one that has not ended and is read by its id with `waiting`, with `queue`
    while it is `queued`, and with `pause` if it waits since people have paused something. `usage` is of the task's own
    turns, `tree_usage` of its sub-tasks' too; `over_budget_tokens` is what they have used beyond its budget. `by`: who
    has submitted it.
    """

    id: Id
    tenant: Tenant
    status: Status
    pool: LaneName
    priority: Priority
    created_at: Time
    updated_at: Time
    sequence: Count
    turn: Ordinal | None = None
    output: str | None = None
    incomplete: Incomplete | None = None
    usage: Usage | None = None
    error: ErrorInfo | None = None
    timings: Timings | None = None
    model: str | None = None
    deadline: Time | None = None
    metadata: Metadata | None = None
    approvals: list[OpenApproval] | None = None
    questions: list[OpenQuestion] | None = None
    dead_letters: list[OpenDeadLetter] | None = None
    parent: Parent | None = None
    tree_usage: Usage | None = None
    over_budget_tokens: Ordinal | None = None
    by: By | None = None
    waiting: Waiting | None = None
    queue: QueueState | None = None
    pause: Pause | None = None
    links: Links | None = None


class TaskLink(msgspec.Struct, frozen=True, kw_only=True):
    """A URL of a task's events that needs no header: whoever has it reads them until `expires_at`."""

    url: str
    expires_at: Time


class TaskAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a 202. It has all that a `TaskRecord` has to have, so that a client may take it for one.

    `sequence` is 0 of a task that is new: nothing of its journal was read. `link` is there for who has asked for one by
    `Prefer: link`, `pause` while people have paused what the task needs: it waits until that goes on.
    """

    id: Id
    tenant: Tenant = "default"
    status: Status
    pool: LaneName
    priority: Priority
    created_at: Time
    updated_at: Time | None = None
    sequence: Count = 0
    queue: QueueState
    links: Links
    link: TaskLink | msgspec.UnsetType = msgspec.UNSET
    pause: Pause | msgspec.UnsetType = msgspec.UNSET


class TaskList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of tasks, the most recently changed first. `cursor` is null on the last page.

    Each is a task's record without its `output`, with no more than 500 characters of an error and 2 KiB of what it
    waits for: the task itself has all of that.
    """

    tasks: list[TaskRecord]
    cursor: str | None


class TaskCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many tasks a tenant has of each status, at present."""

    counts: dict[Status, Count]


Rate = Annotated[float, Meta(ge=0)]
"""So many a second."""
TENANTS_TOLD_MAX = 32
"""Tenants of a lane that its statistics name: those with the most work."""


class TenantRate(msgspec.Struct, frozen=True, kw_only=True):
    """How many tasks of a tenant began a second in a lane, and how many tokens its turns used there, of late."""

    tenant: Tenant
    tasks_per_second: Rate
    tokens_per_second: Rate = 0.0


class LaneStatistics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A lane as the steward sees it, in the bucket `lanes` under `<pool>.<priority>`.

    `depth` counts waiting turns, `backlog` those of them that wait in BACKLOG, `running` delivered and unacked ones;
    `held`, of `backlog`, those whose tenant gets no place at present, however many are free; `waiting_tasks`, of the
    others, those that are to begin a task: null of a writer that does not count them.
    `drain_per_second` is over the last minute, null while nothing drained. `tasks_per_second`: how many tasks got
    through their first turn a second while some waited, newer ones counting more; null until enough did.
    `task_seconds`: how long a task has a place, all of its turns together. Waits are seconds from acceptance to claim,
    over the last minute. `tenants`: those that used the most tokens, of late; `tokens_per_second`: what all tenants
    used, named or not, null of a writer that does not count it. `output_tokens_p50`: what a turn puts out, of those
    that ended lately.
    """

    pool: LaneName
    priority: Priority
    time: Time
    depth: Count
    running: Count
    waiting_tasks: Count | None = None
    drain_per_second: Rate | None = None
    tasks_per_second: Rate | None = None
    task_seconds: Seconds | None = None
    wait_seconds_p50: Seconds | None = None
    wait_seconds_p95: Seconds | None = None
    wait_seconds_p99: Seconds | None = None
    tenants: Annotated[list[TenantRate], Meta(max_length=TENANTS_TOLD_MAX)] = []
    tokens_per_second: Rate | None = None
    backlog: Count = 0
    held: Count = 0
    output_tokens_p50: Count | None = None


class LaneSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker reports of a lane about once a second on `stats.lanes.<pool>.<priority>`, not stored.

    `finished` counts turns since the last report; `wait_seconds` holds at most 64 of the waits seen. `tokens`: what the
    turns of each tenant have used, read and put out; `begun`: how many of them were first turns. Both of at most 256
    tenants: the others come with the next report. `output_tokens`: what some of the turns have put out, at most 64.
    `busy_seconds`: how long all of the turns were worked on.
    """

    worker: str
    finished: Count
    wait_seconds: list[Seconds]
    tokens: dict[Tenant, Count] = {}
    begun: dict[Tenant, Count] = {}
    output_tokens: list[Count] = []
    busy_seconds: Seconds = 0.0


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that must be well. `detail` says what is not."""

    name: str
    ok: bool
    detail: str | None = None


class PoolCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """What the servers of a pool bear, as one worker sees it.

    `limit`: how many turns at once they take from this worker; `of_all` from all workers, of which `workers` share it.
    `why`: what that follows from, in a few words for people.
    """

    limit: Count
    of_all: Count
    workers: Ordinal
    why: str


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process, in the bucket `workers`, written again every 30 s and gone 90 s after the last time.

    `pools` and `tools` are what it serves, `concurrency` how many steps it takes at once, if it takes any, `running`
    how many it has.
    `places`: how many of those each pool gets at present, if not all of them, and `capacity` what the pool's servers
    bear, if that is known.
    `mcp_servers`: the MCP servers that it is to reach, each with why it is away, or null while it is there.
    `build` and `configuration` are digests, alike in a fleet that runs one code with one configuration.
    `clock_ahead_seconds`: its machine's clock less the broker's. `checks`: what is not well with it at present.
    `draining`: it takes no more work, and ends. `http`: where it serves HTTP, `<host>:<port>`.
    """

    worker: str
    service: str
    version: str
    pid: Ordinal
    host: str
    pools: tuple[LaneName, ...] = ()
    tools: tuple[LaneName, ...] = ()
    mcp_servers: dict[str, str | None] = {}
    concurrency: Ordinal | None = None
    places: dict[LaneName, Count] = {}
    capacity: dict[LaneName, PoolCapacity] = {}
    running: Count
    started_at: Time
    time: Time
    build: str | None = None
    configuration: str | None = None
    clock_ahead_seconds: float | None = None
    checks: list[HealthCheck] = []
    draining: bool = False
    http: str | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/health/ready`: 200 if all is ok, else 503."""

    service: str
    version: str
    ok: bool
    checks: list[HealthCheck]
