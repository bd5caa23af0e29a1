"""Metrics: what is measured, under which name, in one place.

Names, units and buckets are those of OpenTelemetry's conventions for generative AI where these have one, else
`taskmesh.*`. Attributes are few and of few values: never a task, a tenant or a text. Nothing is measured, and no
attribute built, unless `traces.enabled()`. What is of the mesh as a whole is in `figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from contracts.journal.parts import Usage
from mesh.clock import MESH_CLOCK
from mesh.loop_health import failing_seconds
from mesh.telemetry import figures, traces
from mesh.telemetry.instruments import REGISTRY
from mesh.telemetry.instruments import counter as _counter
from mesh.telemetry.instruments import histogram as _histogram
from mesh.telemetry.instruments import observable_gauge as _observable_gauge
from mesh.telemetry.instruments import up_down_counter as _up_down_counter

__all__ = ["REGISTRY", "figures"]

_GEN_AI = (
    *("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"),
    *("server.address", "server.port"),
)
# The conventions' own buckets, so that figures of different systems can be laid side by side.
_OPERATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(float(4**power) for power in range(14))
# Ours: a wait may be a moment or, behind a full lane or an approval, hours.
_WAIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_APPEND_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_TOKENS_PER_SECOND = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)

_accepted = _counter(
    "taskmesh.task.accepted",
    "{task}",
    "Tasks that this process has accepted: an ingress of clients, others of rules and of calls.",
    ("taskmesh.pool", "taskmesh.priority"),
)
_queue_wait = _histogram(
    "taskmesh.queue.wait",
    "s",
    "From the acceptance of a task to the first claim of its first turn.",
    ("taskmesh.pool", "taskmesh.priority"),
    _WAIT_SECONDS,
)
_task_duration = _histogram(
    "taskmesh.task.duration",
    "s",
    "From the acceptance of a task to its end.",
    ("taskmesh.pool", "taskmesh.status"),
    _WAIT_SECONDS,
)
_redeliveries = _counter(
    "taskmesh.step.redeliveries",
    "{delivery}",
    "Deliveries of a work message after its first one.",
    ("taskmesh.stream",),
)
_retention = _counter(
    "taskmesh.retention.items",
    "{item}",
    "What retention has done: tasks packed, dropped with their packs, or passed over as unreadable; turns whose deltas "
    "went; what was swept, by its kind.",
    ("taskmesh.kind",),
)
_hand_overs = _counter(
    "taskmesh.step.hand_overs",
    "{step}",
    "Steps that a process which stops has left to others.",
    ("taskmesh.stream",),
)
_discarded = _counter(
    "taskmesh.turn.discarded",
    "{token}",
    "Tokens that were taken back since their turn began again, four bytes of text counted as one.",
    ("taskmesh.pool", "taskmesh.reason"),
)
_refusals = _counter(
    "taskmesh.submission.refusals", "{request}", "Submissions that were answered with a problem.", ("error.type",)
)
_door_refusals = _counter(
    "taskmesh.http.refusals",
    "{request}",
    "Requests that were refused for who asks, or for how often, before anything of them was read.",
    ("error.type",),
)
_trigger_tasks = _counter("taskmesh.trigger.tasks", "{task}", "Tasks that rules have started.", ())
_trigger_refusals = _counter(
    "taskmesh.trigger.refusals", "{signal}", "Signals that are none, or that a rule could not act on.", ("error.type",)
)
_streams = _up_down_counter("taskmesh.edge.streams", "{stream}", "Streams open on an edge.", ())
_breaker_moves = _counter(
    "taskmesh.breaker.moves",
    "{move}",
    "Changes of a provider's breaker that this process made.",
    ("taskmesh.provider", "taskmesh.state"),
)
_pace_shuts = _counter(
    "taskmesh.pace.shuts",
    "{shut}",
    "Refusals (429) after which this process has shut a provider for all.",
    ("taskmesh.provider",),
)
_routed = _counter(
    "taskmesh.routing.choices",
    "{choice}",
    "Choices of a model for a turn, in pools that have a preference, by what they were made for.",
    ("taskmesh.provider", "taskmesh.reason"),
)
_tool_refusals = _counter(
    "taskmesh.tool.refusals", "{refusal}", "Tools whose consumer or declaration the broker refused, each time.", ()
)
_result_refusals = _counter(
    "taskmesh.result.refusals",
    "{result}",
    "Large results that were not stored: their tenant, or the whole bucket, has no room.",
    ("error.type",),
)
_results_swept = _counter(
    "taskmesh.results.swept",
    "{object}",
    "Results that lay in the object store without their task, and halves of results.",
    ("taskmesh.reason",),
)
_append = _histogram(
    "taskmesh.journal.append.duration",
    "s",
    "From an event to its being stored, tries after a conflict or a lost answer included.",
    ("taskmesh.journal.subject",),
    _APPEND_SECONDS,
)
_operation = _histogram(
    "gen_ai.client.operation.duration",
    "s",
    "A call of a model provider, from the request to the end of its stream.",
    (*_GEN_AI, "error.type"),
    _OPERATION_SECONDS,
)
_token_usage = _histogram(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens of a call, by the provider's own count.",
    (*_GEN_AI, "gen_ai.token.type"),
    _TOKENS,
)
_first_chunk = _histogram(
    "gen_ai.client.operation.time_to_first_chunk",
    "s",
    "From the request to a provider to the first chunk of its stream.",
    _GEN_AI,
    _OPERATION_SECONDS,
)
_per_chunk = _histogram(
    "gen_ai.client.operation.time_per_output_chunk",
    "s",
    "From one chunk of a stream to the next.",
    _GEN_AI,
    _OPERATION_SECONDS,
)
_token_rate = _histogram(
    "taskmesh.turn.tokens_per_second",
    "{token}/s",
    "Output tokens of a call over the time from the first one to the last.",
    _GEN_AI,
    _TOKENS_PER_SECOND,
)


_loop_failing = _observable_gauge(
    "taskmesh.loop.failing",
    "s",
    "How long an endless loop of this process has failed without a break; 0 while it is well.",
    ("taskmesh.loop",),
    lambda: [(seconds, {"taskmesh.loop": name}) for name, seconds in failing_seconds().items()],
)

_clock_ahead = _observable_gauge(
    "taskmesh.clock.ahead",
    "s",
    "How far the clock of this process's machine is ahead of the broker's; nothing hangs on it but logs.",
    (),
    lambda: [(MESH_CLOCK.own_clock_ahead_seconds(), {})] if MESH_CLOCK.is_learnt else [],
)


_broker: list[tuple[Callable[[], bool], Callable[[], float]]] = []
"""Of this process's connection: whether it is there, and its round trip in seconds."""
_connected = _observable_gauge(
    "taskmesh.broker.connected",
    "1",
    "1 while this process is connected to the broker, else 0.",
    (),
    lambda: [(float(is_connected()), {}) for is_connected, _ in _broker],
)
_round_trip = _observable_gauge(
    "taskmesh.broker.round_trip",
    "s",
    "How long requests of this process to the broker take at present, on average.",
    (),
    lambda: [(round_trip_seconds(), {}) for _, round_trip_seconds in _broker],
)
_starts = _counter(
    "taskmesh.process.starts",
    "{process}",
    "Processes that have come since this steward began to look.",
    ("taskmesh.service",),
)

_certificate_ends: list[Callable[[], float]] = []
_certificate = _observable_gauge(
    "taskmesh.tls.certificate.not_after",
    "s",
    "When the certificate that this process shows to HTTP clients ends to be valid, in Unix time.",
    (),
    lambda: [(ends_at(), {}) for ends_at in _certificate_ends],
)

_capacity_limits: list[Callable[[], Mapping[str, int]]] = []
_capacity_limit = _observable_gauge(
    "taskmesh.capacity.limit",
    "{turn}",
    "How many turns at once a model provider takes from this worker, where that is followed.",
    ("taskmesh.provider",),
    lambda: [
        (limit, {"taskmesh.provider": provider}) for limits in _capacity_limits for provider, limit in limits().items()
    ],
)

_storage_levels: dict[str, float] = {}
_storage_level = _observable_gauge(
    "taskmesh.storage.level",
    "1",
    "How full storage is, as a part of its limit: streams, the records, the account, the disk.",
    ("taskmesh.stream",),
    lambda: [(level, {"taskmesh.stream": stream}) for stream, level in list(_storage_levels.items())],
)


def watch_broker(is_connected: Callable[[], bool], round_trip_seconds: Callable[[], float]) -> None:
    """Measure this process's connection. Once, when it has one."""
    _broker[:] = [(is_connected, round_trip_seconds)]


def watch_capacity(limits: Callable[[], Mapping[str, int]]) -> None:
    """Tell how many turns this worker may have at each provider. Once, in a worker."""
    _capacity_limits[:] = [limits]


def watch_certificate(not_after: Callable[[], float]) -> None:
    """Tell until when this process's certificate is valid. Once, when it has one."""
    _certificate_ends[:] = [not_after]


def task_accepted(pool: str, priority: str) -> None:
    """A task that was not there before lies in its lane."""
    if traces.enabled():
        _accepted.add(1, {"taskmesh.pool": pool, "taskmesh.priority": priority})


def processes_started(service: str, count: int) -> None:
    """So many processes of a service have come. 0 makes the counter known, so that its first step is seen."""
    if traces.enabled():
        _starts.add(count, {"taskmesh.service": service})


def queue_waited(pool: str, priority: str, seconds: float) -> None:
    """A first turn was claimed for the first time."""
    if traces.enabled():
        _queue_wait.record(seconds, {"taskmesh.pool": pool, "taskmesh.priority": priority})


def task_ended(pool: str, status: str, seconds: float) -> None:
    """A task has its terminal event."""
    if traces.enabled():
        _task_duration.record(seconds, {"taskmesh.pool": pool, "taskmesh.status": status})


def kept(kind: str, count: int) -> None:
    """Retention has done something to so many."""
    if count and traces.enabled():
        _retention.add(count, {"taskmesh.kind": kind})


def redelivered(stream: str) -> None:
    """A work message came again."""
    if traces.enabled():
        _redeliveries.add(1, {"taskmesh.stream": stream})


def handed_over(stream: str) -> None:
    """A step was released, and another message of it published."""
    if traces.enabled():
        _hand_overs.add(1, {"taskmesh.stream": stream})


def discarded(pool: str, reason: str, tokens: int) -> None:
    """A turn has begun again, for this reason."""
    if traces.enabled() and tokens:
        _discarded.add(tokens, {"taskmesh.pool": pool, "taskmesh.reason": reason})


def request_refused(code: str) -> None:
    """A request got a problem document of this code, for who asks or how often."""
    if traces.enabled():
        _door_refusals.add(1, {"error.type": code})


def submission_refused(code: str) -> None:
    """A submission got a problem document of this code."""
    if traces.enabled():
        _refusals.add(1, {"error.type": code})


def trigger_started() -> None:
    """A rule has started a task."""
    if traces.enabled():
        _trigger_tasks.add(1)


def trigger_refused(code: str) -> None:
    """A signal can't be read, or a rule could not act on it."""
    if traces.enabled():
        _trigger_refusals.add(1, {"error.type": code})


def streams_changed(by: int) -> None:
    """A stream was opened (1) or closed (-1)."""
    if traces.enabled():
        _streams.add(by)


def storage_level(stream: str, level: float) -> None:
    """How full a stream, or the account, is: 0 to 1, or above."""
    if traces.enabled():
        _storage_levels[stream] = level


def found(checks: Mapping[str, bool], statistics_age_seconds: float | None) -> None:
    """Which checks of the mesh are not well; how old the statistics of its lanes are, None if there are none."""
    if traces.enabled():
        figures.findings.tell({(check,): float(is_found) for check, is_found in checks.items()})
        figures.statistics_age.tell({} if statistics_age_seconds is None else {(): statistics_age_seconds})


def breaker_moved(provider: str, state: str) -> None:
    """A breaker has become `closed`, `open` or `half_open`."""
    if traces.enabled():
        _breaker_moves.add(1, {"taskmesh.provider": provider, "taskmesh.state": state})


def pace_shut(provider: str) -> None:
    """A provider has refused a request as one too many: nobody calls it for a while."""
    if traces.enabled():
        _pace_shuts.add(1, {"taskmesh.provider": provider})


def routed(provider: str, why: str) -> None:
    """A turn goes to this provider, for a reason of one word."""
    if traces.enabled():
        _routed.add(1, {"taskmesh.provider": provider, "taskmesh.reason": why})


def tool_refused() -> None:
    """The broker does not take a tool's consumer or declaration."""
    if traces.enabled():
        _tool_refusals.add(1)


def result_refused(code: str) -> None:
    """A large result was not stored, and its call failed with this code."""
    if traces.enabled():
        _result_refusals.add(1, {"error.type": code})


def results_swept(reason: str, count: int) -> None:
    """A steward has purged what was left over: `task-gone` or `half`."""
    if traces.enabled() and count:
        _results_swept.add(count, {"taskmesh.reason": reason})


def appended(*, delta: bool, seconds: float) -> None:
    """An event was stored."""
    if traces.enabled():
        _append.record(seconds, {"taskmesh.journal.subject": "delta" if delta else "log"})


def chunk_came(attributes: Mapping[str, str | int], seconds: float) -> None:
    """One more chunk of a provider's stream, so long after the one before."""
    if traces.enabled():
        _per_chunk.record(seconds, attributes)


def model_called(
    attributes: Mapping[str, str | int],
    seconds: float,
    first_token_seconds: float | None,
    *,
    usage: Usage | None = None,
    error: str | None = None,
    continued: bool = False,
) -> None:
    """A provider's stream is over. `attributes` say whose. `usage` is None where the provider told none.

    `continued`: it went on with a text whose tokens are in `usage` too, so that they give no rate.
    """
    if not traces.enabled():
        return
    _operation.record(seconds, {**attributes, "error.type": error} if error else attributes)
    if first_token_seconds is not None:
        _first_chunk.record(first_token_seconds, attributes)
    if usage is None or error:
        return
    _token_usage.record(usage.input_tokens, {**attributes, "gen_ai.token.type": "input"})
    _token_usage.record(usage.output_tokens, {**attributes, "gen_ai.token.type": "output"})
    if continued or first_token_seconds is None:
        return
    if usage.output_tokens > 1 and seconds > first_token_seconds:
        streaming_seconds = seconds - first_token_seconds
        _token_rate.record((usage.output_tokens - 1) / streaming_seconds, attributes)
