"""Panels of Grafana dashboards, as data, and their JSON."""

from __future__ import annotations

import re
from typing import Any, Final, Literal, NamedTuple

SCHEMA_VERSION: Final = 39
"""Of Grafana 10 and later, which take this form, and change it to their own."""
COLUMNS: Final = 24
HEIGHT: Final = 8

Kind = Literal["timeseries", "stat", "bargauge"]
Unit = Literal["short", "s", "bytes", "percentunit", "reqps", "none"]


class Query(NamedTuple):
    """PromQL, with `{}` or `{label="value"}` at each metric, and what its lines are called."""

    expression: str
    legend: str = ""


class Panel(NamedTuple):
    """A picture. `width` is in columns, of which a row has 24. `description` says how to read it."""

    title: str
    unit: Unit
    queries: tuple[Query, ...]
    width: int = 12
    kind: Kind = "timeseries"
    description: str = ""


class Dashboard(NamedTuple):
    """A page of panels. `name` is its file's."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def of_job(expression: str) -> str:
    """PromQL that asks for the chosen job alone."""
    return re.sub(r"\{(?=[a-z])", '{job=~"$job", ', expression).replace("{}", '{job=~"$job"}')


def dashboard_json(board: Dashboard) -> dict[str, Any]:
    """What Grafana imports."""
    return {
        "uid": f"taskmesh-{board.name}",
        "title": board.title,
        "tags": ["taskmesh"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []},
        "links": [_LINK],
        "templating": {"list": [_DATASOURCE, _JOB]},
        "panels": _placed(board.panels),
    }


_LINK: Final = {
    "type": "dashboards",
    "title": "taskmesh",
    "tags": ["taskmesh"],
    "icon": "external link",
    "tooltip": "the other dashboards of the mesh",
    "asDropdown": True,
    "targetBlank": False,
    "includeVars": True,
    "keepTime": True,
}
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_DATASOURCE: Final = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
_JOB: Final = {
    "name": "job",
    "label": "Mesh",
    "type": "query",
    "datasource": _SOURCE,
    "query": {"query": "label_values(taskmesh_broker_connected, job)", "refId": "job"},
    "refresh": 2,
    "includeAll": False,
    "multi": False,
    "sort": 1,
}


def _placed(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    """The panels from left to right, and from top to bottom."""
    placed: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > COLUMNS:
            x, y = 0, y + HEIGHT
        placed.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": HEIGHT}))
        x += panel.width
    return placed


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        **({"description": panel.description} if panel.description else {}),
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + place_),
                "datasource": _SOURCE,
                "expr": of_job(query.expression),
                "legendFormat": query.legend or "__auto",
                **({"instant": True, "range": False} if panel.kind != "timeseries" else {}),
            }
            for place_, query in enumerate(panel.queries)
        ],
    }
