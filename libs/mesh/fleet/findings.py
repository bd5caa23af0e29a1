"""What is not well with a mesh, and what to do about it. Pure: from what was seen of it to findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from contracts.records.providers import ProviderRecord
from contracts.records.status import LaneStatistics, WorkerRecord
from contracts.records.valves import Valve
from contracts.streams import BUILT_IN_TOOLS
from contracts.subjects import PRIORITIES
from mesh.configuration.settings import SERVICES
from mesh.fleet.members import Member
from mesh.fleet.queues import FullLane, Queue, pools_with_work
from mesh.fleet.statistics import age_seconds, old_after_seconds
from mesh.wording import first_few

CLOCK_SECONDS_MAX: Final = 1.0
"""The mesh goes by the broker's clock: a machine's own tells people, logs and other programs another time."""
NEEDED: Final = ("ingress", "inference_worker", "steward")
"""Without one of these no task is accepted, carried out, or cancelled."""
_NAMES_MAX: Final = 4
_START: Final = "`meshctl up` starts again what has ended; by hand: `python -m {}`"
CHECKS: Final = (
    "services", "answers", "versions", "builds", "configurations", "variables", "clocks", "streams", "processes",
    "statistics", "queues", "lanes", "valves", "providers", "mcp_servers",
)  # fmt: skip
"""What is looked at. A finding has one of these names."""


class Finding(NamedTuple):
    """Something that is not well. `grave`: work stands still, or comes out wrong, until somebody does something.

    `for_all`: what anybody may read of it, where `detail` is for operators alone.
    """

    check: str
    detail: str
    remedy: str
    grave: bool = True
    for_all: str | None = None


class Fleet(NamedTuple):
    """What one look at a mesh has seen. `pools` are those that are configured, `at` is the broker's time, `valves` what
    people have paused."""

    members: Sequence[Member]
    queues: Sequence[Queue]
    full: Sequence[FullLane]
    providers: Sequence[ProviderRecord]
    statistics: Sequence[LaneStatistics]
    pools: Sequence[str]
    at: datetime
    valves: Sequence[Valve] = ()

    @property
    def alive(self) -> list[Member]:
        """The processes that answer."""
        return [member for member in self.members if member.answers]

    def has(self, service: str) -> bool:
        """Whether any process of a service answers."""
        return any(member.service == service for member in self.alive)

    def serves_pool(self, pool: str) -> bool:
        """Whether a worker of a pool answers, and does not drain. One without a record may serve any."""
        workers = [member.record for member in self.alive if member.service == "inference_worker"]
        return any(record is None or (pool in record.pools and not record.draining) for record in workers)

    def serves_tool(self, tool: str) -> bool:
        """Whether a runner of a tool answers, of whatever program, and does not drain.

        One of ours without a record may serve any.
        """
        return any(
            tool in member.record.tools and not member.record.draining
            if member.record is not None
            else member.service == "tool_runner"
            for member in self.alive
        )

    def serves(self, queue: Queue) -> bool:
        """Whether somebody pulls from a queue: who answers and says so, or a program that says nothing of itself.

        What a frozen process has asked for still waits at the broker, so a request is no sign of life where it may be
        one of those.
        """
        if self.serves_pool(queue.name) if queue.is_lane else self.serves_tool(queue.name):
            return True
        records = [member.record for member in self.members if member.record is not None]
        if any(queue.name in (record.pools if queue.is_lane else record.tools) for record in records):
            return False
        return queue.pulls > 0 or (queue.running > 0 and not queue.is_lane)

    def queue(self, name: str, priority: str = "") -> Queue | None:
        """A lane of a pool, or a tool's queue."""
        return next((each for each in self.queues if (each.name, each.priority) == (name, priority)), None)


def findings(fleet: Fleet) -> list[Finding]:
    """All that is not well, in the order of `CHECKS`."""
    found: list[Finding | None] = [
        _services(fleet),
        _answers(fleet),
        _versions(fleet),
        *(_alike(fleet, check, value, remedy) for check, value, remedy in _ALIKE),
        _clocks(fleet),
        *_ailments(fleet),
        _statistics(fleet),
        _queues(fleet),
        _lanes(fleet),
        _valves(fleet),
        _providers(fleet),
        _mcp_servers(fleet),
    ]
    return sorted((each for each in found if each is not None), key=lambda each: CHECKS.index(each.check))


def _services(fleet: Fleet) -> Finding | None:
    """Services of which nobody answers, and pools without a worker."""
    missing = [service for service in SERVICES if not fleet.has(service)]
    if len(missing) == len(SERVICES):
        frozen = f": {_silent(fleet.members)}" if fleet.members else ""
        return Finding(
            "services", f"none answers{frozen}", "start them with `meshctl up`, or each with `python -m <service>`"
        )
    told = [_missing(fleet, service) for service in missing]
    unserved = [] if "inference_worker" in missing else [pool for pool in _pools(fleet) if not fleet.serves_pool(pool)]
    if unserved:
        told.append(f"no worker of pool {first_few(unserved)} answers")
    if not told:
        return None
    start = ", ".join(f"`python -m {service}`" for service in missing or ["inference_worker"])
    remedy = f"start what is missing: {start}"
    if any(member.service in missing for member in fleet.members):
        remedy += "; a process that is there and does not answer: end it with `kill -9`, and start another"
    return Finding("services", "; ".join(told), remedy, grave=bool(unserved) or any(each in NEEDED for each in missing))


def _missing(fleet: Fleet, service: str) -> str:
    silent = [member for member in fleet.members if member.service == service]
    return f"none of {service} answers" + (f" ({_silent(silent)})" if silent else "")


def _pools(fleet: Fleet) -> list[str]:
    return sorted({*fleet.pools, *pools_with_work(fleet.queues)})


def _answers(fleet: Fleet) -> Finding | None:
    """Processes that are frozen or gone, of services that others serve meanwhile."""
    silent = [member for member in fleet.members if not member.answers and fleet.has(member.service)]
    if not silent:
        return None
    remedy = "one that was killed is listed for 90 s more; one that is there and stuck: `kill -9`, and start another"
    return Finding("answers", _silent(silent), remedy, grave=False)


def _silent(members: Iterable[Member]) -> str:
    silent = [member.worker for member in members if not member.answers]
    return f"{first_few(silent)} {'does' if len(silent) == 1 else 'do'} not answer: frozen, or gone"


def _versions(fleet: Fleet) -> Finding | None:
    versions = _by(fleet.alive, lambda member: member.version)
    if len(versions) < 2:  # noqa: PLR2004 - more than one
        return None
    return Finding("versions", f"more than one version: {_groups(versions)}", "restart those of the older version")


def _of_record(field: Callable[[WorkerRecord], str | None]) -> Callable[[Member], str | None]:
    return lambda member: field(member.record) if member.record is not None and not member.record.draining else None


_ALIKE: Final = (
    (
        "builds",
        _of_record(lambda record: record.build),
        "end the deploy that has begun: restart those of the older build",
    ),
    (
        "configurations",
        _of_record(lambda record: record.configuration),
        "give all processes the same mesh.toml and variables, then `meshctl reload` or restart them",
    ),
)


def _alike(fleet: Fleet, check: str, value: Callable[[Member], str | None], remedy: str) -> Finding | None:
    """What has to be the same in all processes, but for those that are about to end."""
    groups = _by(fleet.alive, value)
    if len(groups) < 2:  # noqa: PLR2004 - more than one
        return None
    return Finding(check, f"more than one {check.removesuffix('s')}: {_groups(groups)}", remedy)


def _by(members: Iterable[Member], value: Callable[[Member], str | None]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for member in members:
        key = value(member)
        if key is not None:
            groups.setdefault(key, []).append(member.worker)
    return groups


def _groups(groups: dict[str, list[str]]) -> str:
    """What most have comes first."""
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return "; ".join(f"{value}: {first_few(workers)}" for value, workers in ordered[:_NAMES_MAX])


def _clocks(fleet: Fleet) -> Finding | None:
    off = [(member.worker, ahead) for member in fleet.alive if abs(ahead := clock_ahead(member)) > CLOCK_SECONDS_MAX]
    if not off:
        return None
    detail = first_few(
        [f"{worker}: {abs(by):.1f} s {'ahead of' if by > 0 else 'behind'} the broker" for worker, by in off]
    )
    return Finding("clocks", detail, "let the machines follow NTP (`timedatectl set-ntp true`)")


def clock_ahead(member: Member) -> float:
    """How far a process's machine is ahead of the broker's clock, in seconds; 0 if it does not say."""
    return (member.record.clock_ahead_seconds or 0.0) if member.record is not None else 0.0


def _ailments(fleet: Fleet) -> list[Finding]:
    """What living processes say is not well with themselves, but for what is looked at otherwise."""
    told: dict[str, list[str]] = {check: [] for check in _REMEDIES}
    for member in fleet.alive:
        for ailment in member.record.checks if member.record is not None else ():
            if not ailment.ok and ailment.name not in ("clock", "draining"):
                check = ailment.name if ailment.name in _REMEDIES else "processes"
                told[check].append(f"{member.worker}: {ailment.detail or ailment.name}")
    return [Finding(check, first_few(details), _REMEDIES[check]) for check, details in told.items() if details]


_REMEDIES: Final = {
    "variables": "mend or unset them: nobody reads them",
    "streams": "see what with `meshctl streams plan`, and change it with `meshctl streams apply`",
    "processes": "look into the logs of these processes",
}


def _statistics(fleet: Fleet) -> Finding | None:
    """Whether estimates stand on anything: statistics of lanes are the steward's."""
    age = age_seconds((each for each in fleet.statistics if each.pool in fleet.pools), fleet.at)
    old_after = old_after_seconds(len(fleet.pools) * len(PRIORITIES))
    if any(_is_new(member, fleet.at, old_after) for member in fleet.alive if member.service == "steward"):
        return None  # It is about to write them.
    remedy = "start a steward (`python -m steward`); no wait is estimated meanwhile, and the figures of lanes are old"
    if age is None:
        return Finding("statistics", "there are none of any lane", remedy)
    if age <= old_after:
        return None
    return Finding("statistics", f"those of lanes are {age:.0f} s old: nobody counts", remedy)


def _is_new(member: Member, at: datetime, seconds: float) -> bool:
    return member.record is not None and (at - member.record.started_at).total_seconds() < seconds


def _queues(fleet: Fleet) -> Finding | None:
    """Queues with work that nobody who lives pulls."""
    idle = [queue for queue in fleet.queues if queue.waiting + queue.running and not fleet.serves(queue)]
    if not idle:
        return None
    detail = first_few([f"nobody who answers pulls from {queue.label} ({_messages(queue)})" for queue in idle])
    wanted = ["`python -m inference_worker`" if queue.is_lane else _runner_of(queue.name) for queue in idle]
    return Finding("queues", detail, f"start {first_few([*dict.fromkeys(wanted)])}")


def _messages(queue: Queue) -> str:
    count = queue.waiting + queue.running
    return f"{count:,} message{'' if count == 1 else 's'}"


def _runner_of(tool: str) -> str:
    return "`python -m tool_runner`" if tool in BUILT_IN_TOOLS else f"the runner that serves {tool}"


def _lanes(fleet: Fleet) -> Finding | None:
    """Queues that are paused, and lanes that refuse."""
    paused = [queue for queue in fleet.queues if queue.paused_seconds]
    told = [f"{queue.label} is paused for {queue.paused_seconds:,.0f} s more" for queue in paused]
    told += [f"{lane.label} is full: {lane.messages:,} of {lane.messages_max:,} messages" for lane in fleet.full]
    if not told:
        return None
    remedies = ["`nats consumer resume <stream> <consumer>`"] if paused else []
    remedies += (
        ["start more workers, or have its clients wait: new tasks are refused there (503, queue-full)"]
        if fleet.full
        else []
    )
    return Finding("lanes", first_few(told), "; ".join(remedies))


def _valves(fleet: Fleet) -> Finding | None:
    """What people have paused: it may have been forgotten."""
    if not fleet.valves:
        return None
    told = [
        f"{each.kind} {each.name} is paused by {each.by} since {_clock(each.since)}"
        + (f" until {_clock(each.until)}" if each.until is not None else "")
        + (f" ({each.reason})" if each.reason is not None else "")
        for each in sorted(fleet.valves, key=lambda valve: (valve.kind, valve.name))
    ]
    kinds = Counter(valve.kind for valve in fleet.valves)
    counts = [f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in sorted(kinds.items())]
    ignorant = [member.worker for member in fleet.alive if _knows_no_valves(member)]
    if ignorant:
        told.append(f"{first_few(ignorant)} of an older version do not go by it")
    return Finding(
        "valves",
        "; ".join([first_few(told[: len(fleet.valves)]), *told[len(fleet.valves) :]]),
        "let it go on: `meshctl resume <what> <name>`" + ("; end the upgrade" if ignorant else ""),
        grave=bool(ignorant),
        for_all=f"paused: {', '.join(counts)}",
    )


def _knows_no_valves(member: Member) -> bool:
    """Whether it is a worker, or a steward, of ours that takes up what is paused: it came before valves did."""
    return member.service in ("inference_worker", "steward") and member.version.startswith("0.1.")


def _providers(fleet: Fleet) -> Finding | None:
    down = [record for record in fleet.providers if record.state != "closed"]
    if not down:
        return None
    told = first_few(
        [
            f"the breaker of {each.provider} is {each.state.replace('_', '-')} since {_clock(each.since)}"
            for each in down
        ]
    )
    return Finding(
        "providers", told, "look at the provider, its address and its key: `meshctl providers` says why, and since when"
    )


def _clock(at: datetime) -> str:
    return f"{at:%H:%M:%S} UTC"


def _mcp_servers(fleet: Fleet) -> Finding | None:
    """MCP servers that a runner which lives can't reach."""
    runners: Counter[str] = Counter()
    away: dict[str, list[str]] = {}
    for member in fleet.alive:
        for server, reason in (member.record.mcp_servers if member.record is not None else {}).items():
            runners[server] += 1
            if reason is not None:
                away.setdefault(server, []).append(reason)
    if not away:
        return None
    told = first_few(
        [
            f"{server} is away ({reasons[0]})"
            if len(reasons) == runners[server]
            else f"{server} is away for {len(reasons)} of {runners[server]} runners ({reasons[0]})"
            for server, reasons in sorted(away.items())
        ]
    )
    remedy = "start what is away, or mend its table [mcp.<server>] in mesh.toml; calls of its tools fail meanwhile"
    return Finding("mcp_servers", told, remedy)
