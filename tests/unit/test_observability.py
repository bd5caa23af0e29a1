"""deploy/observability: its metrics are there, its alerts have their paragraphs, and its dashboards are the code's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.telemetry import figures
from mesh.telemetry.figures import Figure
from meshctl.reference import dashboards
from tests.support.pages import ROOT, anchors
from tests.support.prometheus import series

FOLDER = ROOT / "deploy" / "observability"
ALERTS = (FOLDER / "alerts.yml").read_text()
RUNBOOK = "docs/runbook.md"
BUILT_IN = {"up"}
"""Prometheus' own, of each target."""
OF_TARGETS = {"job", "instance"}
_NAMES = re.compile(r"\b((?:taskmesh|gen_ai|process)_[a-z_]+|up)\b(?=[{)\[ ]|$)")
_LABELS = re.compile(r"\b([a-z_]+)(?==~?\"|!=~?\")")
_ONCE = re.compile(r"\b(?:max|group) ?(?:(?:by|without) \([a-z_, ]*\) ?)?\((?:delta\(|increase\()?$")
"""What stands before a metric of which there are several alike."""
_BY = re.compile(r"\b(?:by|on|without) \(([a-z_, ]*)\)")


def alert_rules() -> dict[str, dict[str, str]]:
    """Each alert's `expr` and annotations, by its name."""
    rules: dict[str, dict[str, str]] = {}
    for block in ALERTS.split("      - alert: ")[1:]:
        name, _, rest = block.partition("\n")
        folded = re.search(r"expr: (?:\|-\n((?:          .*\n)+)|(.*)\n)", rest)
        assert folded is not None, name
        expression = " ".join((folded[1] or folded[2]).split())
        told = dict(re.findall(r"^          (summary|description|runbook_url): (.*)$", rest, re.MULTILINE))
        rules[name] = {"expr": expression, **told}
    return rules


def queries() -> Iterator[tuple[str, str]]:
    """Every query of alerts and dashboards, with where it is."""
    for name, rule in alert_rules().items():
        yield name, rule["expr"]
    for board in dashboards.DASHBOARDS:
        for panel in board.panels:
            for query in panel.queries:
                yield f"{board.name}: {panel.title}", query.expression.replace("{}", "")


def test_alerts_are_read() -> None:
    assert len(alert_rules()) == ALERTS.count("- alert: ") > 20
    assert "\n" not in alert_rules()["TaskmeshStorageFull"]["expr"]


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_a_query_asks_for_metrics_and_labels_that_there_are(where: str, query: str) -> None:
    known = series()
    asked = set(_NAMES.findall(query)) - set(re.findall(r"by \(([a-z_]+)\)", query))
    names = {name for name in asked if name in known or name in BUILT_IN}
    assert names, f"{where}: {query}"
    labels = {label for name in names for label in known.get(name, set())} | OF_TARGETS
    grouped = {label for group in _BY.findall(query) for label in re.split(r", *", group) if label}
    assert asked - names <= labels, f"{where}: no such metric: {asked - names - labels}"
    assert grouped | set(_LABELS.findall(query)) <= labels, f"{where}: {query}"


def test_what_several_processes_tell_alike_is_never_added_up() -> None:
    """Two stewards tell the same: a sum of theirs would be twice as much."""
    alike = {"taskmesh_process_starts_total"}
    for figure in filter(lambda each: isinstance(each, Figure), vars(figures).values()):
        name = figure.name.replace(".", "_")
        alike |= {name, f"{name}_seconds", f"{name}_bytes"}
    for where, query in queries():
        for name in alike & set(_NAMES.findall(query)):
            before = query[: query.index(name)]
            assert _ONCE.search(before), f"{where}: {query}"


@pytest.mark.parametrize("alert", sorted(alert_rules()))
def test_each_alert_says_what_it_is_and_leads_to_its_paragraph(alert: str) -> None:
    rule = alert_rules()[alert]
    assert rule["runbook_url"] == f"{RUNBOOK}#{alert.lower()}"
    assert alert.lower() in anchors(RUNBOOK)
    assert rule["summary"]
    assert rule["description"].endswith('."')


def test_the_runbook_has_no_alert_that_is_none() -> None:
    headings = re.findall(r"^### (Taskmesh\w+)$", (ROOT / RUNBOOK).read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alert_rules())


def test_the_dashboards_are_as_the_code_has_them() -> None:
    rendered = dashboards.render()
    there = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / dashboards.FOLDER).glob("*.json")}
    assert there == rendered


@pytest.mark.parametrize("path", sorted(dashboards.render()))
def test_a_dashboard_is_one_that_grafana_imports(path: str) -> None:
    board = json.loads((Path(ROOT) / path).read_text())
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "job"}
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    assert len({panel["id"] for panel in board["panels"]}) == len(places)
    for panel in board["panels"]:
        for target in panel["targets"]:
            assert target["expr"].count('job=~"$job"') == len(re.findall(r"\{[a-z]", target["expr"]))


def test_the_issues_dashboards_are_there() -> None:
    assert {board.name for board in dashboards.DASHBOARDS} == {"overview", "task-latency", "models", "tools", "broker"}
