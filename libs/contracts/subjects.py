"""Subjects: the only place where one is built or taken apart.

Every builder refuses names with characters outside the grammar (`InvalidName`), so that a wildcard, a dot,
white space or an API prefix can never be smuggled into a subject. Builders are injective: different names
give different subjects, and `parse_*` gives the names back.
"""

from __future__ import annotations

import hashlib
import re
import string
from functools import lru_cache, partial
from typing import Final, Literal, NamedTuple

from contracts.errors import InvalidName

TENANT_PATTERN = r"[a-z0-9][a-z0-9-]{0,31}"
TASK_PATTERN = r"[0-9a-hjkmnp-tv-z]{26}"
LANE_NAME_PATTERN = r"[a-z0-9][a-z0-9_-]{0,47}"
CALL_PATTERN = r"[1-9][0-9]{0,5}-(0|[1-9][0-9]{0,5})"
STEP_PATTERN = r"[1-9][0-9]{0,5}(-(0|[1-9][0-9]{0,5}))?"
TIMER_NAME_PATTERN = rf"{STEP_PATTERN}(-g[0-9]{{1,9}}-t[0-9]{{1,9}})?|task"
SIGNAL_PATTERN = r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,15}"
"""What follows `signals.<tenant>.`: the signal's own name."""
SIGNAL_FILTER_PATTERN = r"(>|([A-Za-z0-9_-]{1,64}|\*)(\.([A-Za-z0-9_-]{1,64}|\*)){0,15}(\.>)?)"
"""The same with wildcards: `*` is any one token, `>` at the end is one or more."""
CONTROL_KINDS = ("cancel", "input", "approval", "replay", "child_done")
TIMER_KINDS = ("approval", "retry", "deadline", "room")
"""What a timer's command is of: a step, or the whole task."""
PRIORITIES = ("high", "normal", "low")
"""Lanes of a pool, the most urgent first."""

NAMES_KEPT_MAX: Final = 1024
"""Names of each kind that are known to be valid: each message has some of the same ones on its way, again and again."""
WORKER_CHARACTERS_MAX = 255
"""Longest name of a worker: a process and a host."""

_TENANT = re.compile(TENANT_PATTERN)
_TASK = re.compile(TASK_PATTERN)
_LANE_NAME = re.compile(LANE_NAME_PATTERN)
_CALL = re.compile(CALL_PATTERN)
_TIMER_NAME = re.compile(TIMER_NAME_PATTERN)
_SIGNAL = re.compile(SIGNAL_PATTERN)
_SERVER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SEQUENCE_END = 2**63
_KEY_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_")

EVENTS_LOG = "events.*.*.log"
"""The milestones of all journals, as a filter."""
EVENTS_ALL = (EVENTS_LOG, "events.*.*.delta")
LIVE_PREFIX = "live."
PREVIEW = "preview"
CRON = "cron"
"""The kind of timers that are schedules of trigger rules, and no commands."""
CRON_ALL = "timers.at.cron.>"
CRON_FIRED_PREFIX = "timers.fired.cron."
CRON_FIRED = CRON_FIRED_PREFIX + ">"
LANES_WAITING_PREFIX = "lanes.waiting."
LANES_WAITING = LANES_WAITING_PREFIX + "*.*"
PROVIDERS_CHANGED = "providers.changed.*"
PROVIDERS_PACED = "providers.paced.*"
PROVIDER_SPEEDS = "stats.providers"
KEYS_PREFIX = "$KV.keys."
KEYS_ALL = KEYS_PREFIX + "*"
"""The records of API keys, and what else lies in their bucket under names that begin with `_`."""
STORE_ROOM = "storage.room"
"""Asks whoever runs the broker how much room its store has; core NATS, a request."""
CONFIGURATION_RELOAD = "configuration.reload"
"""A step of a reload, to all processes; core NATS, each answers."""
OPERATOR_ACTS = "audit.act"
"""What an operator has done at the broker itself, for a steward to log; core NATS, a request."""
USAGE_ALL = "usage.*.*.*.*.*.*"
"""Counters of what tenants have used, as a filter."""
BACKLOG_GREW = "backlog.grew"
"""Something has come into BACKLOG: told to stewards, on core NATS, with the lane and tenant as JSON."""
BACKLOG_KEY = "_backlog"
"""Key of the stewards' record of the backlog, in the bucket `lanes`. No pool is named so."""
TRIGGER_RULES = "$KV.triggers.*.*"
"""The rules among what the bucket `triggers` holds."""
MALFORMED = "malformed"
"""Stands for the task in the dead letter of a message from which no task can be read."""
NO_TENANT = "_"
"""Stands for the tenant there when that can't be read either. Not a valid tenant, so it collides with none."""


def _checked(kind: str, pattern: re.Pattern[str], value: object) -> str:
    # fullmatch, not match with "$": "$" would accept a trailing newline.
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise InvalidName(f"not a valid {kind}: {value!r:.80} (expected {pattern.pattern})")
    return value


_tenants = lru_cache(NAMES_KEPT_MAX)(partial(_checked, "tenant", _TENANT))
_tasks = lru_cache(NAMES_KEPT_MAX)(partial(_checked, "task id", _TASK))
_pools = lru_cache(NAMES_KEPT_MAX)(partial(_checked, "pool", _LANE_NAME))


def check_tenant(value: str) -> str:
    """Return a valid tenant unchanged, else raise `InvalidName`."""
    try:
        return _tenants(value)
    except TypeError:  # It can't even be looked for, such as a list.
        return _checked("tenant", _TENANT, value)


def check_task(value: str) -> str:
    """Return a valid task id unchanged, else raise `InvalidName`."""
    try:
        return _tasks(value)
    except TypeError:
        return _checked("task id", _TASK, value)


def check_pool(value: str) -> str:
    """Return a valid pool name unchanged, else raise `InvalidName`."""
    try:
        return _pools(value)
    except TypeError:
        return _checked("pool", _LANE_NAME, value)


def check_tool(value: str) -> str:
    """Return a valid tool name unchanged, else raise `InvalidName`."""
    return _checked("tool", _LANE_NAME, value)


def check_webhook(value: str) -> str:
    """Return a valid name of a webhook unchanged, else raise `InvalidName`."""
    return _checked("webhook", _LANE_NAME, value)


def check_call(value: str) -> str:
    """Return a valid call id (`<turn>-<index>`) unchanged, else raise `InvalidName`."""
    return _checked("call", _CALL, value)


def check_rule(value: str) -> str:
    """Return a valid name of a trigger rule unchanged, else raise `InvalidName`."""
    return _checked("rule", _LANE_NAME, value)


def check_signal(value: str) -> str:
    """Return a valid name of a signal (`inventory.stock_level_zero`) unchanged, else raise `InvalidName`."""
    return _checked("signal", _SIGNAL, value)


def check_priority(value: str) -> str:
    """Return a valid priority unchanged, else raise `InvalidName`."""
    if value not in PRIORITIES:
        raise InvalidName(f"not a valid priority: {value!r:.80} (expected one of {', '.join(PRIORITIES)})")
    return value


class LaneSubject(NamedTuple):
    """A queue of turns: whose, where and how urgent."""

    pool: str
    priority: str
    tenant: str


class JournalSubject(NamedTuple):
    """Which journal a subject belongs to, and which part of it (`log` or `delta`)."""

    tenant: str
    task: str
    part: str


def jetstream_api(domain: str | None) -> str:
    """What the calls of JetStream's API begin with: those of the server at hand, or of a domain."""
    return f"$JS.{domain}.API." if domain else "$JS.API."


def tasks(pool: str, priority: str, tenant: str) -> str:
    """First turns: `tasks.<pool>.<priority>.<tenant>`."""
    return f"tasks.{check_pool(pool)}.{check_priority(priority)}.{check_tenant(tenant)}"


def backlog(pool: str, priority: str, tenant: str) -> str:
    """Turns that wait for their tenant's turn: `backlog.<pool>.<priority>.<tenant>`."""
    return f"backlog.{check_pool(pool)}.{check_priority(priority)}.{check_tenant(tenant)}"


def turns(pool: str, priority: str, tenant: str) -> str:
    """Later turns: `turns.<pool>.<priority>.<tenant>`."""
    return f"turns.{check_pool(pool)}.{check_priority(priority)}.{check_tenant(tenant)}"


def tools(tool: str) -> str:
    """Tool calls: `tools.<tool>`."""
    return f"tools.{check_tool(tool)}"


def control(kind: str, tenant: str) -> str:
    """Commands to a task: `control.<kind>.<tenant>`."""
    if kind not in CONTROL_KINDS:
        raise InvalidName(f"not a control kind: {kind!r:.80}")
    return f"control.{kind}.{check_tenant(tenant)}"


def journal(tenant: str, task: str) -> str:
    """Both parts of a journal, as a filter: `events.<tenant>.<task>.*`. Also the fence of every append."""
    return f"events.{check_tenant(tenant)}.{check_task(task)}.*"


def journal_log(tenant: str, task: str) -> str:
    """Milestones of a task: `events.<tenant>.<task>.log`."""
    return f"events.{check_tenant(tenant)}.{check_task(task)}.log"


def journal_delta(tenant: str, task: str) -> str:
    """Tokens and progress of a task: `events.<tenant>.<task>.delta`."""
    return f"events.{check_tenant(tenant)}.{check_task(task)}.delta"


def live(tenant: str, task: str) -> str:
    """Where the broker republishes a journal as it is written: `live.events.<tenant>.<task>.*`."""
    return LIVE_PREFIX + journal(tenant, task)


def live_log(tenant: str, task: str) -> str:
    """The milestones alone of what is republished: `live.events.<tenant>.<task>.log`."""
    return LIVE_PREFIX + journal_log(tenant, task)


def live_preview(tenant: str, task: str) -> str:
    """Where a worker tells what it can't store at present: `live.events.<tenant>.<task>.preview`, of core NATS."""
    return f"{LIVE_PREFIX}events.{check_tenant(tenant)}.{check_task(task)}.{PREVIEW}"


def hold(tenant: str, task: str) -> str:
    """Core subject on which who works on a task is asked to append nothing for a moment: `hold.<tenant>.<task>`."""
    return f"hold.{check_tenant(tenant)}.{check_task(task)}"


def dead_letter(tenant: str, task: str) -> str:
    """Dead letters of a task: `dead.<tenant>.<task>`."""
    return f"dead.{check_tenant(tenant)}.{check_task(task)}"


def malformed_dead_letter(tenant: str | None) -> str:
    """Dead letter of a message that can't be read: `dead.<tenant, or _>.malformed`."""
    return f"dead.{NO_TENANT if tenant is None else check_tenant(tenant)}.{MALFORMED}"


def task_key(tenant: str, task: str) -> str:
    """Key of a task's record in the bucket `tasks`: `<tenant>.<task>`."""
    return f"{check_tenant(tenant)}.{check_task(task)}"


def parse_task_key(key: str) -> tuple[str, str]:
    """Tenant and task of a key of the bucket `tasks`."""
    tenant, _, task = key.partition(".")
    return check_tenant(tenant), check_task(task)


def archive(walk_from: int) -> str:
    """Packs of what a steward met in EVENTS from that sequence on: `archive.<sequence>`."""
    if not 0 < walk_from < _SEQUENCE_END:
        raise InvalidName(f"not a sequence: {walk_from!r:.80}")
    return f"archive.{walk_from}"


def archive_key(tenant: str, task: str) -> str:
    """Key in the bucket `archive` under which a task's place is: 4 hexadecimal digits.

    They are the first of SHA-256 over `<tenant>.<task>`.
    """
    return hashlib.sha256(task_key(tenant, task).encode()).hexdigest()[:4]


@lru_cache(maxsize=NAMES_KEPT_MAX)
def lane_key(pool: str, priority: str) -> str:
    """Key of a lane's statistics in the bucket `lanes`: `<pool>.<priority>`."""
    return f"{check_pool(pool)}.{check_priority(priority)}"


def worker_key(worker: str) -> str:
    """Key of a worker in the bucket `workers`: its name, which holds an @ and may hold dots, made one token."""
    if not 0 < len(worker) <= WORKER_CHARACTERS_MAX:
        raise InvalidName(f"not a worker's name: {worker!r:.80}")
    return as_token(worker)


def as_token(text: str) -> str:
    """A text as one token of a subject.

    Each byte of its UTF-8 that is no ASCII letter, digit, `-` or `_` is written as `=` and two hexadecimal digits.
    """
    return "".join(
        chr(byte) if chr(byte) in _KEY_CHARACTERS else f"={byte:02x}" for byte in text.encode("utf-8", "surrogatepass")
    )


def trigger_key(tenant: str, rule: str) -> str:
    """Key of a rule in the bucket `triggers`: `<tenant>.<rule>`."""
    return f"{check_tenant(tenant)}.{check_rule(rule)}"


def trigger_pace_key(tenant: str, rule: str) -> str:
    """Key of what a rule has let through lately: `_pace.<tenant>.<rule>`. No tenant begins so."""
    return f"_pace.{check_tenant(tenant)}.{check_rule(rule)}"


CRITIC_PACE_KEY = "_pace._.critic"
"""Key of what the critic has got lately. No tenant is named so."""


def signal(tenant: str, name: str) -> str:
    """An event from outside: `signals.<tenant>.<name>`."""
    return f"signals.{check_tenant(tenant)}.{check_signal(name)}"


def cron_at(tenant: str, rule: str) -> str:
    """A rule's schedule: `timers.at.cron.<tenant>.<rule>`."""
    return f"timers.at.cron.{check_tenant(tenant)}.{check_rule(rule)}"


def cron_fired(tenant: str, rule: str) -> str:
    """Where its firings are stored: `timers.fired.cron.<tenant>.<rule>`."""
    return f"timers.fired.cron.{check_tenant(tenant)}.{check_rule(rule)}"


def lane_statistics(pool: str, priority: str) -> str:
    """Core subject on which workers report waits of a lane: `stats.lanes.<pool>.<priority>`. Not stored."""
    return f"stats.lanes.{check_pool(pool)}.{check_priority(priority)}"


def lane_waiting(stream: str, consumer: str) -> str:
    """Core subject `lanes.waiting.<stream in lower case>.<consumer>`: messages wait there, and nobody has asked."""
    names = (_checked("stream", _SERVER_NAME, stream).lower(), _checked("consumer", _SERVER_NAME, consumer))
    return LANES_WAITING_PREFIX + ".".join(names)


def process_order(worker: str, order: str) -> str:
    """Core subject `process.<worker>.<order>`: an order to one process, such as `drain`. The worker as in its key."""
    return f"process.{worker_key(worker)}.{_checked('order', _LANE_NAME, order)}"


def provider_changed(provider: str, what: Literal["changed", "paced"] = "changed") -> str:
    """Core subject `providers.changed.<provider>`: its breaker is in another state. `providers.paced.…`: its pace."""
    return f"providers.{what}.{_checked('provider', _LANE_NAME, provider)}"


def _parts(subject: str, prefix: str, count: int) -> list[str]:
    parts = subject.split(".")
    if len(parts) != count or parts[0] != prefix:
        raise InvalidName(f"not a subject of {prefix}: {subject!r:.120}")
    return parts


def _lane(subject: str, prefix: str) -> LaneSubject:
    _, pool, priority, tenant = _parts(subject, prefix, 4)
    return LaneSubject(check_pool(pool), check_priority(priority), check_tenant(tenant))


def parse_tasks(subject: str) -> LaneSubject:
    """Take `tasks.<pool>.<priority>.<tenant>` apart."""
    return _lane(subject, "tasks")


def parse_backlog(subject: str) -> LaneSubject:
    """Take `backlog.<pool>.<priority>.<tenant>` apart."""
    return _lane(subject, "backlog")


def parse_turns(subject: str) -> LaneSubject:
    """Take `turns.<pool>.<priority>.<tenant>` apart."""
    return _lane(subject, "turns")


def parse_tools(subject: str) -> str:
    """The tool of `tools.<tool>`."""
    return check_tool(_parts(subject, "tools", 2)[1])


def parse_control(subject: str) -> tuple[str, str]:
    """Kind and tenant of `control.<kind>.<tenant>`."""
    _, kind, tenant = _parts(subject, "control", 3)
    if kind not in CONTROL_KINDS:
        raise InvalidName(f"not a control kind: {kind!r:.80}")
    return kind, check_tenant(tenant)


def timer_at(kind: str, tenant: str, task: str, name: str) -> str:
    """A command that is due later, one for each subject: `timers.at.<kind>.<tenant>.<task>.<name>`.

    `name`: the step that it is about, with gen and tries if it brings its next try (`2-0-g1-t3`), or `task`.
    """
    return f"timers.at.{_timer_place(kind, tenant, task, name)}"


def timers_of(kind: str, tenant: str, task: str) -> str:
    """All timers of one kind that a task has, as a filter: `timers.at.<kind>.<tenant>.<task>.*`."""
    if kind not in TIMER_KINDS:
        raise InvalidName(f"not a kind of timer: {kind!r:.80}")
    return f"timers.at.{kind}.{check_tenant(tenant)}.{check_task(task)}.*"


def timer_fired(kind: str, tenant: str, task: str, name: str) -> str:
    """Where it is stored once it is due: `timers.fired.<kind>.<tenant>.<task>.<name>`."""
    return f"timers.fired.{_timer_place(kind, tenant, task, name)}"


def parse_timer_fired(subject: str) -> tuple[str, str]:
    """Kind and tenant of `timers.fired.<kind>.<tenant>.<task>.<name>`."""
    _, fired, kind, tenant, task, name = _parts(subject, "timers", 6)
    if fired != "fired":
        raise InvalidName(f"not a timer that has fired: {subject!r:.120}")
    _timer_place(kind, tenant, task, name)
    return kind, tenant


def _timer_place(kind: str, tenant: str, task: str, name: str) -> str:
    if kind not in TIMER_KINDS:
        raise InvalidName(f"not a kind of timer: {kind!r:.80}")
    return f"{kind}.{check_tenant(tenant)}.{check_task(task)}.{_checked('timer', _TIMER_NAME, name)}"


def parse_journal(subject: str) -> JournalSubject:
    """Take `events.<tenant>.<task>.<log|delta>` apart."""
    _, tenant, task, part = _parts(subject, "events", 4)
    if part not in ("log", "delta"):
        raise InvalidName(f"not a part of a journal: {part!r:.80}")
    return JournalSubject(check_tenant(tenant), check_task(task), part)


def parse_dead_letter(subject: str) -> tuple[str, str]:
    """Tenant and task of `dead.<tenant>.<task>`."""
    _, tenant, task = _parts(subject, "dead", 3)
    return check_tenant(tenant), check_task(task)


def parse_signal(subject: str) -> tuple[str, str]:
    """Tenant and name of `signals.<tenant>.<name>`."""
    prefix, _, rest = subject.partition(".")
    tenant, _, name = rest.partition(".")
    if prefix != "signals":
        raise InvalidName(f"not a signal: {subject!r:.120}")
    return check_tenant(tenant), check_signal(name)


def parse_cron(subject: str) -> tuple[str, str]:
    """Tenant and rule of `timers.at.cron.<tenant>.<rule>`, or of `timers.fired.cron.<tenant>.<rule>`."""
    _, part, kind, tenant, rule = _parts(subject, "timers", 5)
    if part not in ("at", "fired") or kind != CRON:
        raise InvalidName(f"not a schedule: {subject!r:.120}")
    return check_tenant(tenant), check_rule(rule)
