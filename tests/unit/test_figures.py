"""Figures of the mesh, and Prometheus' text: bounded, never old, and nothing of it where nobody asks for it."""

from __future__ import annotations

import json
import sys
from itertools import count

import pytest

from mesh.telemetry import figures, metrics
from mesh.telemetry.figures import FRESH_SECONDS, OTHER, Figure
from mesh.telemetry.instruments import REGISTRY
from tests.support import children
from tests.support.prometheus import samples, series

_numbers = count(1)
LOADED = """
import json, os, sys
from mesh.configuration.settings import load_settings
from mesh.telemetry import metrics, traces
traces.configure(load_settings(), sys.argv[1])
metrics.task_accepted("default", "high")
with traces.span("a span") as span:
    recording = span.is_recording()
text = ""
if "mesh.telemetry.prometheus" in sys.modules:
    text = sys.modules["mesh.telemetry.prometheus"].exposition().decode()
loaded = ["prometheus_client" in sys.modules, "opentelemetry.sdk" in sys.modules]
print(json.dumps([traces.enabled(), recording, *loaded, text]))
"""


@pytest.fixture
def at() -> list[float]:
    """What time it is."""
    return [0.0]


@pytest.fixture
def figure(at: list[float]) -> Figure:
    """A figure of two points at most. It leaves the registry as it was."""
    name = f"taskmesh.test.figure{next(_numbers)}"
    made = Figure(name, "{thing}", "Of a test.", "taskmesh.tool", points_max=2, clock=lambda: at[0])
    del REGISTRY[name]
    return made


def told(figure: Figure) -> dict[str, float]:
    """Its points."""
    return {point["taskmesh.tool"]: value for value, point in figure.points()}


def test_names_beyond_the_bound_are_told_as_one(figure: Figure) -> None:
    figure.tell({("d",): 4, ("a",): 1, ("c",): 3, ("b",): 2})
    assert told(figure) == {"a": 1, "b": 2, OTHER: 7}


def test_the_same_names_are_told_each_time_whatever_their_values(figure: Figure) -> None:
    figure.tell({("a",): 0, ("b",): 0, ("c",): 1_000})
    assert told(figure) == {"a": 0, "b": 0, OTHER: 1_000}


def test_of_ages_the_rest_is_as_old_as_its_oldest() -> None:
    tools: dict[tuple[str, ...], float] = {
        (f"tool{number:03}",): float(number) for number in range(figures.TOOLS_MAX + 3)
    }
    figures.tool_oldest.tell(tools)
    points = figures.tool_oldest.points()
    figures.tool_oldest.tell({})
    assert len(points) == figures.TOOLS_MAX + 1
    assert points[-1] == (figures.TOOLS_MAX + 2, {"taskmesh.tool": OTHER})


def test_what_is_gone_is_told_no_more(figure: Figure) -> None:
    figure.tell({("a",): 1})
    figure.tell({("b",): 2})
    assert told(figure) == {"b": 2}


def test_a_figure_that_nobody_tells_any_more_is_not_exported(figure: Figure, at: list[float]) -> None:
    assert told(figure) == {}
    figure.tell({("a",): 1})
    at[0] = FRESH_SECONDS
    assert told(figure) == {"a": 1}
    at[0] = FRESH_SECONDS + 1
    assert told(figure) == {}


def test_every_metric_has_its_own_name_in_prometheus() -> None:
    families = {name.removesuffix("_total").removesuffix("_bucket") for name in series() if name.startswith("taskmesh")}
    ours = [name for name in REGISTRY if name.startswith("taskmesh.")]
    assert metrics.REGISTRY is REGISTRY
    assert len({name.removesuffix("_sum").removesuffix("_count") for name in families}) == len(ours)


def loaded(service: str, **variables: str) -> tuple[bool, bool, bool, bool, str]:
    """Of a process with these variables: is anything measured, a span made, what is loaded, and Prometheus' text."""
    answer = children.run_blocking([sys.executable, "-c", LOADED, service], {"MESH_CONFIG": "/dev/null", **variables})
    answer.check_returncode()
    enabled, recording, client, sdk, text = json.loads(answer.stdout.splitlines()[-1])
    return enabled, recording, client, sdk, text


@pytest.mark.processes
@pytest.mark.parametrize(
    ("service", "variables"), [("ingress", {}), ("meshctl", {"MESH_OPS_ADDRESS": "127.0.0.1:9000"})]
)
def test_where_nobody_asks_nothing_is_measured_or_loaded(service: str, variables: dict[str, str]) -> None:
    assert loaded(service, **variables) == (False, False, False, False, "")


@pytest.mark.processes
def test_an_address_for_operators_switches_metrics_on_and_makes_no_spans() -> None:
    enabled, recording, _, _, text = loaded("ingress", MESH_OPS_ADDRESS="127.0.0.1:9000")
    assert (enabled, recording) == (True, False)
    found = {sample.name: sample for sample in samples(text)}
    accepted = found["taskmesh_task_accepted_total"]
    assert (accepted.value, accepted.labels) == (1, {"taskmesh_pool": "default", "taskmesh_priority": "high"})
    assert found["target_info"].labels["service_name"] == "taskmesh-ingress"
    assert found["target_info"].labels["taskmesh_build"]
    assert found["process_resident_memory_bytes"].value > 0
