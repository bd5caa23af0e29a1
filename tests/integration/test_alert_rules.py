"""The alerts in Prometheus itself: each fires where it should, and stays quiet beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import children
from tests.support.toolchains import REPOSITORY, prometheus
from tests.unit.test_observability import alert_rules

pytestmark = pytest.mark.processes

FOLDER = REPOSITORY / "deploy" / "observability"
INTERVAL_SECONDS = 15
MINUTES = 60
LONG = f"x{MINUTES * 60 // INTERVAL_SECONDS}"


class Case(NamedTuple):
    """Series under which an alert fires after an hour, and some under which it does not.

    Values are in promtool's form: `1+0x240` stays 1 for an hour.
    """

    fires: dict[str, str]
    quiet: dict[str, str]


def stays(value: float) -> str:
    """A series that stays as it is."""
    return f"{value}+0{LONG}"


def grows(by: float) -> str:
    """A series that grows by so much each 15 s."""
    return f"0+{by}{LONG}"


def one(name: str, fires: str, quiet: str, labels: str = "") -> Case:
    """A case of one series."""
    series = f"{name}{{{_with_job(labels)}}}"
    return Case({series: fires}, {series: quiet})


def _with_job(labels: str) -> str:
    return ", ".join(filter(None, ('job="taskmesh"', 'instance="a:1"', labels)))


STEWARD = 'taskmesh_workers_alive{job="taskmesh", instance="s:1", taskmesh_service="steward"}'
SCRAPED = 'up{job="taskmesh", instance="s:1"}'
QUIET_BASE = {STEWARD: stays(1), SCRAPED: stays(1)}
"""A mesh with one steward, of which nothing is said."""
POOL = 'taskmesh_pool="default"'
LANE = f'{POOL}, taskmesh_priority="low", taskmesh_stream="TASKS"'
LETTERS = 'taskmesh_status="dead_lettered"'


def _named(name: str, labels: str) -> str:
    return f"{name}{{{_with_job(labels)}}}"


DEPTH = _named("taskmesh_tool_depth", 'taskmesh_tool="add"')
RUNNERS = _named("taskmesh_tool_runners", 'taskmesh_tool="add"')
STARTS = _named("taskmesh_process_starts_total", 'taskmesh_service="tool_runner"')
ALIVE = _named("taskmesh_workers_alive", 'taskmesh_service="tool_runner"')
USED = _named("taskmesh_storage_used_bytes", 'taskmesh_stream="EVENTS"')
LIMIT = _named("taskmesh_storage_limit_bytes", 'taskmesh_stream="EVENTS"')

CASES = {
    "TaskmeshNoSteward": Case({STEWARD: "1+0x20"}, {}),
    "TaskmeshNoWorker": one("taskmesh_pool_workers", stays(0), stays(1), POOL),
    "TaskmeshServiceGone": one("taskmesh_workers_alive", stays(0), stays(2), 'taskmesh_service="ingress"'),
    "TaskmeshProcessDown": one("up", stays(0), stays(1)),
    "TaskmeshProcessSilent": one("taskmesh_workers_silent", stays(1), stays(0), 'taskmesh_service="steward"'),
    "TaskmeshCheckFailing": one(
        "taskmesh_checks_failing", stays(1), stays(0), 'taskmesh_check="broker", taskmesh_service="steward"'
    ),
    # Two processes, each of which starts about every minute; and one start of each in all.
    "TaskmeshRestarts": Case({STARTS: grows(0.5), ALIVE: stays(2)}, {STARTS: "0+0x200 2+0x40", ALIVE: stays(2)}),
    "TaskmeshNotWell": one("taskmesh_fleet_findings", stays(1), stays(0), 'taskmesh_check="answers"'),
    "TaskmeshStreamDead": one("taskmesh_fleet_findings", stays(1), stays(0), 'taskmesh_check="stored"'),
    "TaskmeshTwoBuilds": one("taskmesh_fleet_builds", stays(2), stays(1)),
    "TaskmeshTwoConfigurations": one("taskmesh_fleet_configurations", stays(2), stays(1)),
    # promtool's time begins at 0.
    "TaskmeshCertificateEnds": one("taskmesh_tls_certificate_not_after_seconds", stays(600_000), stays(10_000_000)),
    "TaskmeshClockOff": one("taskmesh_clock_ahead_seconds", stays(-3), stays(0.5)),
    "TaskmeshLoopFailing": one("taskmesh_loop_failing_seconds", stays(400), stays(30), 'taskmesh_loop="retention"'),
    "TaskmeshQueueOld": one("taskmesh_lane_oldest_age_seconds", stays(500), stays(100), LANE),
    "TaskmeshToolNotServed": Case({DEPTH: stays(1), RUNNERS: stays(0)}, {DEPTH: stays(5), RUNNERS: stays(1)}),
    "TaskmeshPaused": one("taskmesh_consumers_paused", stays(1), stays(0), 'taskmesh_stream="TASKS"'),
    "TaskmeshValveShut": one("taskmesh_valves_shut", stays(1), "1+0x100 0+0x140", 'taskmesh_valve="pool"'),
    "TaskmeshStewardBehind": one(
        "taskmesh_consumer_depth", stays(2000), stays(10), 'taskmesh_stream="CONTROL", taskmesh_consumer="steward"'
    ),
    "TaskmeshStatisticsOld": one("taskmesh_statistics_age_seconds", grows(15), stays(15)),
    "TaskmeshDeadLettersGrow": one("taskmesh_tasks_listed", grows(1), stays(3), LETTERS),
    "TaskmeshRefusing": one("taskmesh_submission_refusals_total", grows(1), stays(9), 'error_type="queue-full"'),
    "TaskmeshBreakerOpen": one("taskmesh_breaker_open", stays(1), stays(0), 'taskmesh_provider="mine"'),
    "TaskmeshMcpAway": one("taskmesh_mcp_away", stays(1), stays(0), 'taskmesh_mcp_server="files"'),
    "TaskmeshBrokerAway": one("taskmesh_broker_connected", stays(0), stays(1)),
    "TaskmeshStorageFilling": Case({USED: stays(75), LIMIT: stays(100)}, {USED: stays(60), LIMIT: stays(100)}),
    "TaskmeshStorageFull": Case({USED: stays(95), LIMIT: stays(100)}, {USED: stays(60), LIMIT: stays(100)}),
    "TaskmeshRetentionBehind": one(
        "taskmesh_retention_lag_seconds", stays(9000), stays(900), 'taskmesh_walk="packing"'
    ),
}
ALSO_FIRES = {"TaskmeshStorageFull": ["TaskmeshStorageFilling"], "TaskmeshStreamDead": ["TaskmeshNotWell"]}
"""What is full is filling as well, and a stream that is dead is one of the things that are not well."""


def _test(name: str, series: dict[str, str], firing: list[str]) -> dict[str, object]:
    """After an hour exactly these alerts fire."""
    return {
        "name": name,
        "interval": f"{INTERVAL_SECONDS}s",
        "input_series": [{"series": each, "values": values} for each, values in ({**QUIET_BASE, **series}).items()],
        "promql_expr_test": [
            {
                "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{MINUTES}m",
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)],
            }
        ],
    }


def test_each_alert_has_its_case() -> None:
    assert CASES.keys() == alert_rules().keys()


def test_each_alert_fires_where_it_should_and_no_other_does(tmp_path: Path) -> None:
    tests = [_test("a quiet mesh", {}, [])]
    for name, case in CASES.items():
        tests.append(_test(f"{name} fires", case.fires, [name, *ALSO_FIRES.get(name, [])]))
        tests.append(_test(f"{name} is quiet", case.quiet, []))
    # JSON is YAML.
    file = tmp_path / "rules_test.yml"
    file.write_text(json.dumps({"rule_files": [str(FOLDER / "alerts.yml")], "tests": tests}))
    tried = children.run_blocking([str(prometheus("promtool")), "test", "rules", str(file)])
    assert tried.returncode == 0, (tried.stdout + tried.stderr)[-4000:]


def test_prometheus_takes_the_files() -> None:
    checked = children.run_blocking([str(prometheus("promtool")), "check", "config", str(FOLDER / "prometheus.yml")])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(CASES)} rules found" in checked.stdout
