"""The Grafana dashboards of `deploy/observability/grafana`.

Each panel is a title, a unit, and queries in PromQL. What every steward tells is taken once, by `max`; what each
process counts for itself is added up. Every query asks for the job that is chosen above the panels: a mesh is a job.
"""

from __future__ import annotations

import json
from typing import Final

from meshctl.reference.panels import Dashboard, Panel, Query, dashboard_json

FOLDER: Final = "deploy/observability/grafana"


def _quantiles(histogram: str, by: str = "", where: str = "{}", legend: str = "") -> tuple[Query, ...]:
    """The median and the 95th percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return tuple(
        Query(
            f"histogram_quantile({quantile}, sum by ({labels}) (rate({histogram}_bucket{where}[$__rate_interval])))",
            f"{legend} {name}".strip(),
        )
        for quantile, name in (("0.5", "p50"), ("0.95", "p95"))
    )


_LANE = "{{taskmesh_pool}} {{taskmesh_priority}}"
_MODEL = "{{gen_ai_request_model}}"
_BY_MODEL = "gen_ai_provider_name, gen_ai_request_model"

OVERVIEW: Final = Dashboard(
    "overview",
    "taskmesh: overview",
    (
        Panel(
            "Not well",
            "none",
            (Query("max by (taskmesh_check) (taskmesh_fleet_findings{}) > 0", "{{taskmesh_check}}"),),
            6,
            "stat",
            "What `meshctl doctor` would find. No data: nothing, or no ingress.",
        ),
        Panel(
            "Processes that answer",
            "none",
            (Query("max by (taskmesh_service) (taskmesh_workers_alive{})", "{{taskmesh_service}}"),),
            12,
            "stat",
        ),
        Panel(
            "Dead letters open",
            "none",
            (Query('max(taskmesh_tasks_listed{taskmesh_status="dead_lettered"})', "tasks"),),
            6,
            "stat",
        ),
        Panel(
            "Accepted",
            "reqps",
            (
                Query(
                    "sum by (taskmesh_pool) (rate(taskmesh_task_accepted_total{}[$__rate_interval]))",
                    "{{taskmesh_pool}}",
                ),
            ),
        ),
        Panel(
            "Ended",
            "reqps",
            (
                Query(
                    "sum by (taskmesh_status) (rate(taskmesh_task_duration_seconds_count{}[$__rate_interval]))",
                    "{{taskmesh_status}}",
                ),
            ),
        ),
        Panel(
            "Waiting in lanes",
            "short",
            (
                Query(
                    "sum by (taskmesh_pool, taskmesh_priority) (max without (instance) (taskmesh_lane_depth{}))", _LANE
                ),
            ),
        ),
        Panel(
            "Running, by lane",
            "short",
            (
                Query(
                    "sum by (taskmesh_pool, taskmesh_priority) (max without (instance) (taskmesh_lane_running{}))",
                    _LANE,
                ),
            ),
        ),
        Panel(
            "Open tasks",
            "short",
            (
                Query(
                    "max by (taskmesh_status) "
                    '(taskmesh_tasks_listed{taskmesh_status=~"queued|running|waiting|dead_lettered"})',
                    "{{taskmesh_status}}",
                ),
            ),
        ),
        Panel(
            "Refused submissions",
            "reqps",
            (
                Query(
                    "sum by (error_type) (rate(taskmesh_submission_refusals_total{}[$__rate_interval]))",
                    "{{error_type}}",
                ),
            ),
        ),
        Panel(
            "Processes that came",
            "short",
            (
                Query(
                    "max by (taskmesh_service) (increase(taskmesh_process_starts_total{}[10m]))", "{{taskmesh_service}}"
                ),
            ),
            description="In ten minutes, as a steward has seen them.",
        ),
        Panel(
            "Paused by people",
            "short",
            (
                Query("max by (taskmesh_valve) (taskmesh_valves_shut{})", "{{taskmesh_valve}}"),
                Query("max(taskmesh_tenants_limited{})", "tenants with other limits"),
            ),
            description="`meshctl valves` says which, by whom and why.",
        ),
        Panel(
            "Memory",
            "bytes",
            (Query("sum by (instance) (process_resident_memory_bytes{})", "{{instance}}"),),
        ),
    ),
)

LATENCY: Final = Dashboard(
    "task-latency",
    "taskmesh: task latency",
    (
        Panel("From acceptance to the first claim", "s", _quantiles("taskmesh_queue_wait_seconds")),
        Panel(
            "The same, 95th percentile by lane",
            "s",
            (
                Query(
                    "histogram_quantile(0.95, sum by (le, taskmesh_pool, taskmesh_priority) "
                    "(rate(taskmesh_queue_wait_seconds_bucket{}[$__rate_interval])))",
                    _LANE,
                ),
            ),
        ),
        Panel("From acceptance to the end", "s", _quantiles("taskmesh_task_duration_seconds")),
        Panel(
            "Oldest turn that waits",
            "s",
            (Query("max by (taskmesh_pool, taskmesh_priority) (taskmesh_lane_oldest_age_seconds{})", _LANE),),
        ),
        Panel(
            "Redeliveries",
            "reqps",
            (
                Query(
                    "sum by (taskmesh_stream) (rate(taskmesh_step_redeliveries_total{}[$__rate_interval]))",
                    "{{taskmesh_stream}}",
                ),
            ),
            description="Deliveries after the first one: somebody died, or lost its lease.",
        ),
        Panel(
            "Handed over",
            "reqps",
            (
                Query(
                    "sum by (taskmesh_stream) (rate(taskmesh_step_hand_overs_total{}[$__rate_interval]))",
                    "{{taskmesh_stream}}",
                ),
            ),
        ),
        Panel(
            "Timers that wait",
            "short",
            (Query("max by (taskmesh_kind) (taskmesh_timers_waiting{})", "{{taskmesh_kind}}"),),
        ),
        Panel("Timers that are due", "short", (Query("max(taskmesh_timers_due{})", "due"),)),
        Panel("Streams open at edges", "short", (Query("sum(taskmesh_edge_streams{})", "streams"),)),
    ),
)

MODELS: Final = Dashboard(
    "models",
    "taskmesh: models",
    (
        Panel(
            "Breakers",
            "none",
            (Query("max by (taskmesh_provider) (taskmesh_breaker_open{})", "{{taskmesh_provider}}"),),
            24,
            "stat",
            "1: the provider is not called, or only tried.",
        ),
        Panel(
            "Calls",
            "reqps",
            (
                Query(
                    f"sum by ({_BY_MODEL}) "
                    "(rate(gen_ai_client_operation_duration_seconds_count{}[$__rate_interval]))",
                    _MODEL,
                ),
            ),
        ),
        Panel(
            "Calls that failed",
            "reqps",
            (
                Query(
                    "sum by (gen_ai_request_model, error_type) "
                    '(rate(gen_ai_client_operation_duration_seconds_count{error_type!=""}[$__rate_interval]))',
                    "{{gen_ai_request_model}} {{error_type}}",
                ),
            ),
        ),
        Panel(
            "Tokens a second",
            "short",
            (
                Query(
                    f"sum by ({_BY_MODEL}, gen_ai_token_type) "
                    "(rate(gen_ai_client_token_usage_sum{}[$__rate_interval]))",
                    "{{gen_ai_request_model}} {{gen_ai_token_type}}",
                ),
            ),
        ),
        Panel(
            "Tokens thrown away",
            "short",
            (
                Query(
                    "sum by (taskmesh_reason) (rate(taskmesh_turn_discarded_total{}[$__rate_interval]))",
                    "{{taskmesh_reason}}",
                ),
            ),
            description="A second, by turns that began again.",
        ),
        Panel(
            "To the first chunk",
            "s",
            _quantiles("gen_ai_client_operation_time_to_first_chunk_seconds", "gen_ai_request_model", legend=_MODEL),
        ),
        Panel(
            "From chunk to chunk",
            "s",
            _quantiles("gen_ai_client_operation_time_per_output_chunk_seconds", "gen_ai_request_model", legend=_MODEL),
        ),
        Panel(
            "A whole call",
            "s",
            _quantiles("gen_ai_client_operation_duration_seconds", "gen_ai_request_model", legend=_MODEL),
        ),
        Panel(
            "Tokens a second of one call",
            "short",
            _quantiles("taskmesh_turn_tokens_per_second", "gen_ai_request_model", legend=_MODEL),
        ),
    ),
)

TOOLS: Final = Dashboard(
    "tools",
    "taskmesh: tools",
    (
        Panel(
            "Calls that wait", "short", (Query("max by (taskmesh_tool) (taskmesh_tool_depth{})", "{{taskmesh_tool}}"),)
        ),
        Panel(
            "Calls that run", "short", (Query("max by (taskmesh_tool) (taskmesh_tool_running{})", "{{taskmesh_tool}}"),)
        ),
        Panel(
            "Oldest call that waits",
            "s",
            (Query("max by (taskmesh_tool) (taskmesh_tool_oldest_age_seconds{})", "{{taskmesh_tool}}"),),
        ),
        Panel(
            "Runners of each tool",
            "short",
            (Query("max by (taskmesh_tool) (taskmesh_tool_runners{})", "{{taskmesh_tool}}"),),
            kind="bargauge",
        ),
        Panel(
            "MCP servers that are away",
            "none",
            (Query("max by (taskmesh_mcp_server) (taskmesh_mcp_away{})", "{{taskmesh_mcp_server}}"),),
            kind="stat",
            description="For so many runners.",
        ),
        Panel(
            "Refusals",
            "reqps",
            (
                Query("sum(rate(taskmesh_tool_refusals_total{}[$__rate_interval]))", "tools"),
                Query(
                    "sum by (error_type) (rate(taskmesh_result_refusals_total{}[$__rate_interval]))",
                    "results {{error_type}}",
                ),
            ),
        ),
    ),
)

BROKER: Final = Dashboard(
    "broker",
    "taskmesh: broker",
    (
        Panel(
            "How full",
            "percentunit",
            (
                Query(
                    "max by (taskmesh_stream) (taskmesh_storage_used_bytes{}) "
                    "/ max by (taskmesh_stream) (taskmesh_storage_limit_bytes{})",
                    "{{taskmesh_stream}}",
                ),
            ),
        ),
        Panel(
            "Stored",
            "bytes",
            (Query("max by (taskmesh_stream) (taskmesh_storage_used_bytes{})", "{{taskmesh_stream}}"),),
        ),
        Panel(
            "Messages",
            "short",
            (Query("max by (taskmesh_stream) (taskmesh_storage_messages{})", "{{taskmesh_stream}}"),),
        ),
        Panel(
            "Waiting for a steward",
            "short",
            (
                Query(
                    "max by (taskmesh_stream, taskmesh_consumer) (taskmesh_consumer_depth{})",
                    "{{taskmesh_stream}} {{taskmesh_consumer}}",
                ),
                Query(
                    "max by (taskmesh_stream, taskmesh_consumer) (taskmesh_consumer_running{})",
                    "{{taskmesh_stream}} {{taskmesh_consumer}}, in hand",
                ),
            ),
        ),
        Panel(
            "Appends",
            "s",
            _quantiles(
                "taskmesh_journal_append_duration_seconds",
                "taskmesh_journal_subject",
                legend="{{taskmesh_journal_subject}}",
            ),
            description="Of an event, tries after a conflict included: mostly the disk's fsync.",
        ),
        Panel("Round trip", "s", (Query("max by (instance) (taskmesh_broker_round_trip_seconds{})", "{{instance}}"),)),
        Panel(
            "Connected",
            "none",
            (Query("sum(taskmesh_broker_connected{})", "yes"), Query("count(taskmesh_broker_connected{} == 0)", "no")),
        ),
        Panel(
            "Retention is behind by",
            "s",
            (Query("max by (taskmesh_walk) (taskmesh_retention_lag_seconds{})", "{{taskmesh_walk}}"),),
            description="Packing waits a quarter of an hour for more.",
        ),
        Panel(
            "What retention does",
            "reqps",
            (
                Query(
                    "sum by (taskmesh_kind) (rate(taskmesh_retention_items_total{}[$__rate_interval]))",
                    "{{taskmesh_kind}}",
                ),
                Query(
                    "sum by (taskmesh_reason) (rate(taskmesh_results_swept_total{}[$__rate_interval]))",
                    "results {{taskmesh_reason}}",
                ),
            ),
        ),
        Panel(
            "Loops that fail",
            "s",
            (
                Query(
                    "max by (instance, taskmesh_loop) (taskmesh_loop_failing_seconds{}) > 0",
                    "{{instance}} {{taskmesh_loop}}",
                ),
            ),
        ),
        Panel(
            "Clocks ahead of the broker's",
            "s",
            (Query("max by (instance) (taskmesh_clock_ahead_seconds{})", "{{instance}}"),),
        ),
    ),
)

DASHBOARDS: Final = (OVERVIEW, LATENCY, MODELS, TOOLS, BROKER)


def render() -> dict[str, str]:
    """Every dashboard: its path from the repository's root, and its JSON."""
    return {
        f"{FOLDER}/{board.name}.json": json.dumps(dashboard_json(board), indent=2, ensure_ascii=False) + "\n"
        for board in DASHBOARDS
    }
