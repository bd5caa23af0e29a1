"""The files of deploy/docker, deploy/kubernetes and deploy/systemd, each held against the tool that reads it.

No container starts here, and no cluster: docs/deploying.md says what was tried by hand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from mesh.configuration.mesh_toml import load_configuration
from mesh.configuration.settings import Settings, variable_fields
from tests.support import children
from tests.support.broker import PROGRAM, free_port
from tests.support.commands import MESHCTL
from tests.support.deploy_tools import compose_loader, keda_schema, python_tool, read_yaml, rendered
from tests.support.toolchains import REPOSITORY, demand

pytestmark = [pytest.mark.acceptance]

DEPLOY = REPOSITORY / "deploy"
UNITS = DEPLOY / "systemd"
MODULES = {"ingress", "stream_edge", "inference_worker", "tool_runner", "steward"}
OVERLAYS = ("services", "keda", "trial")
KUBERNETES = "1.32"
"""The version whose definitions the manifests are held against."""
DRAINING = {"inference_worker", "tool_runner"}
OTHERS = {"MESH_BUILD", "MESH_X"}
"""Variables that are no settings."""
TEXTS = [path for folder in ("docker", "kubernetes", "systemd") for path in sorted((DEPLOY / folder).rglob("*"))]


def objects(overlay: str) -> list[dict[str, Any]]:
    """What kubectl would create."""
    return read_yaml(rendered(DEPLOY / "kubernetes" / overlay))


def pods(overlay: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Each object that starts pods, their specification, and their one container."""
    for each in objects(overlay):
        if each["kind"] in ("Deployment", "Job", "StatefulSet"):
            pod = each["spec"]["template"]["spec"]
            [container] = pod["containers"]
            yield each, pod, container


def composed() -> dict[str, Any]:
    """The compose file as `docker compose` loads it."""
    file = DEPLOY / "docker" / "compose.yaml"
    loaded = children.run_blocking([compose_loader(), file], {**os.environ, "NATS_PASSWORD": "s3cret"})
    assert loaded.returncode == 0, loaded.stderr
    project: dict[str, Any] = json.loads(loaded.stdout)
    return project


def seconds_of(duration: str) -> float:
    """`2m10s`, in seconds."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration))


# ------------------------------------------------------------------------------------------------- all of them


def test_every_variable_that_a_file_names_is_a_setting() -> None:
    known = {f"MESH_{field.name.upper()}" for field in variable_fields()} | OTHERS
    named = {
        (path.name, name)
        for path in TEXTS
        if path.is_file()
        for name in re.findall(r"\bMESH_[A-Z_]+", path.read_text())
    }
    assert len(named) > 20
    assert [each for each in sorted(named) if each[1] not in known] == []


@pytest.mark.parametrize("path", ["docker/mesh.toml", "kubernetes/services/mesh.toml"])
def test_a_configuration_that_comes_along_is_one(path: str) -> None:
    assert load_configuration(DEPLOY / path).pools.keys() == {"default"}


def test_what_a_configuration_shows_in_a_comment_is_one_too(tmp_path: Path) -> None:
    commented = re.findall(r"^# ?(.*)$", (DEPLOY / "docker" / "mesh.toml").read_text(), re.MULTILINE)
    file = tmp_path / "mesh.toml"
    file.write_text("\n".join(commented[commented.index("[providers.mine]") :]))
    assert load_configuration(file).pools["default"].model is not None


@pytest.mark.parametrize("path", ["docker/nats.conf", "kubernetes/trial/nats.conf"])
def test_a_brokers_configuration_is_one(path: str) -> None:
    checked = children.run_blocking([PROGRAM, "-t", "-c", DEPLOY / path], {**os.environ, "NATS_PASSWORD": "s3cret"})
    assert checked.returncode == 0, checked.stderr


async def test_the_streams_fit_into_what_the_broker_in_a_container_offers(tmp_path: Path) -> None:
    for ended in await applied(tmp_path, (DEPLOY / "docker" / "nats.conf").read_text(), "apply", "plan"):
        assert ended.returncode == 0, ended.stderr


async def test_a_broker_without_room_for_the_streams_is_told_with_what_to_do(tmp_path: Path) -> None:
    # Its account has no limit: so nobody knows before how much there is.
    text = (DEPLOY / "docker" / "nats.conf").read_text().replace("max_file: 20GB, max_mem: 64MB", "")
    [ended] = await applied(tmp_path, text.replace("max_file_store: 20GB", "max_file_store: 1GB"), "apply")
    assert ended.returncode == 2
    assert "set storage.total in mesh.toml" in ended.stderr.splitlines()[-1]


async def applied(tmp_path: Path, configuration: str, *commands: str) -> list[subprocess.CompletedProcess[str]]:
    """How these commands of `meshctl streams` ended, on a broker with this configuration, but for its addresses."""
    port = free_port()
    text = configuration.replace("0.0.0.0:4222", f"127.0.0.1:{port}").replace("/data", str(tmp_path / "data"))
    (tmp_path / "nats.conf").write_text(text.replace("0.0.0.0:8222", f"127.0.0.1:{free_port()}"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    variables = {**kept, "NATS_PASSWORD": "p1", "MESH_NATS_URL": f"nats://mesh:p1@127.0.0.1:{port}"}
    variables |= {"MESH_CONFIG": str(DEPLOY / "docker" / "mesh.toml"), "MESH_HOME": str(tmp_path / "home")}
    with children.start([PROGRAM, "-c", tmp_path / "nats.conf"], variables, stderr=children.DEVNULL) as broker:
        try:
            return [await children.run([*MESHCTL, "streams", command], variables) for command in commands]
        finally:
            broker.terminate()


def test_both_brokers_in_containers_have_one_configuration() -> None:
    assert (DEPLOY / "docker" / "nats.conf").read_text() == (DEPLOY / "kubernetes" / "trial" / "nats.conf").read_text()


# ------------------------------------------------------------------------------------------------- Docker


def test_the_dockerfile_is_as_hadolint_wants_it() -> None:
    linted = children.run_blocking([python_tool("hadolint"), DEPLOY / "docker" / "Dockerfile"])
    assert linted.returncode == 0, linted.stdout


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    taken = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    names = {name for line in copied for name in line.split()}
    assert names == taken
    assert all((REPOSITORY / name).exists() for name in names)


def test_compose_starts_every_service_and_each_may_write_nothing_and_drain() -> None:
    services = composed()["services"]
    assert services.keys() == MODULES | {"nats", "streams"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name in MODULES:
            assert service["command"] == [name]
            assert service["restart"] == "unless-stopped", name
            assert seconds_of(service["stop_grace_period"]) >= Settings().drain_seconds + 10, name
            assert service["environment"]["MESH_NATS_URL"] == "nats://mesh:s3cret@nats:4222"
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", f"{name} is for this machine, until somebody says otherwise"


def test_compose_asks_for_the_brokers_password() -> None:
    file = DEPLOY / "docker" / "compose.yaml"
    variables = {name: value for name, value in os.environ.items() if name != "NATS_PASSWORD"}
    loaded = children.run_blocking([compose_loader(), file], variables)
    assert loaded.returncode != 0
    assert "NATS_PASSWORD" in loaded.stderr


# ------------------------------------------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_are_what_kubernetes_knows(overlay: str) -> None:
    file = rendered(DEPLOY / "kubernetes" / overlay)
    validator = python_tool("kubernetes-validate")
    checked = children.run_blocking([validator, "--strict", "--kubernetes-version", KUBERNETES, file])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    passed = re.findall(r"passed for resource", checked.stdout + checked.stderr)
    # KEDA's own kinds are held against KEDA's definitions, below.
    assert len(passed) == len([each for each in read_yaml(file) if not each["apiVersion"].startswith("keda.sh/")])


def test_every_service_runs_as_nobody_in_a_file_system_that_it_cannot_write_to() -> None:
    seen = set()
    for overlay in OVERLAYS:
        for each, pod, container in pods(overlay):
            name = each["metadata"]["name"]
            assert pod["securityContext"]["runAsNonRoot"], name
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert pod["automountServiceAccountToken"] is False, name
            security = container["securityContext"]
            assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False), name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name
            seen.add(container.get("args", [""])[0])
    assert seen >= MODULES | {"meshctl"}


def test_every_deployment_is_probed_where_operators_are_served_and_has_time_to_drain() -> None:
    everything = objects("services")
    [literals] = [each["data"] for each in everything if each["metadata"]["name"].startswith("taskmesh-settings")]
    budgets = {
        each["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        for each in everything
        if each["kind"] == "PodDisruptionBudget"
    }
    deployments = [each for each in pods("services") if each[0]["kind"] == "Deployment"]
    assert {container["args"][0] for _, _, container in deployments} == MODULES
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    for each, pod, container in deployments:
        name = each["metadata"]["name"]
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert each["spec"]["selector"]["matchLabels"].items() <= labels.items(), name
        assert labels["app.kubernetes.io/name"] in budgets, name
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports, name
        assert container["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": "ops"}, name
        assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready", name
        assert f"MESH_OPS_ADDRESS=0.0.0.0:{ports['ops']}" in image, name
        drain = float(literals["MESH_DRAIN_SECONDS"]) if container["args"][0] in DRAINING else 0
        assert pod["terminationGracePeriodSeconds"] >= drain + 20, name


def test_services_lead_to_the_ports_that_the_image_listens_on() -> None:
    everything = objects("services")
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    listening = {"ingress": "MESH_INGRESS_ADDRESS", "stream-edge": "MESH_EDGE_ADDRESS"}
    found = {each["metadata"]["name"]: each["spec"] for each in everything if each["kind"] == "Service"}
    assert found.keys() == listening.keys()
    for name, variable in listening.items():
        [port] = found[name]["ports"]
        assert f"{variable}=0.0.0.0:{port['port']}" in image
        assert found[name]["selector"]["app.kubernetes.io/name"] == name


def test_keda_scales_by_a_number_that_the_ingress_serves_and_is_the_only_one_who_does() -> None:
    everything = objects("keda")
    [scaled] = [each for each in everything if each["kind"] == "ScaledObject"]
    schema = keda_schema("scaledobjects")
    jsonschema_rs.validate(schema, scaled)
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, {**scaled, "spec": {**scaled["spec"], "minReplicas": 1}})
    target = scaled["spec"]["scaleTargetRef"]["name"]
    [deployment] = [each for each in everything if (each["kind"], each["metadata"]["name"]) == ("Deployment", target)]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["args"] == ["inference_worker"]
    assert "replicas" not in deployment["spec"]
    [trigger] = scaled["spec"]["triggers"]
    # tests/acceptance/test_pool_load.py reads that number from a real ingress.
    assert trigger["metadata"]["url"] == "http://ingress.taskmesh.svc:8080/v1/pools/default/load"
    assert trigger["metadata"]["valueLocation"] == "wanted_workers"
    assert (trigger["metadata"]["targetValue"], trigger["metricType"]) == ("1", "AverageValue")


def test_keda_shows_the_ingress_a_key_from_a_secret() -> None:
    everything = objects("keda")
    [shown] = [each for each in everything if each["kind"] == "TriggerAuthentication"]
    jsonschema_rs.validate(keda_schema("triggerauthentications"), shown)
    [scaled] = [each for each in everything if each["kind"] == "ScaledObject"]
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] == shown["metadata"]["name"]
    # As KEDA's metrics-api scaler has it: a bearer token is the parameter `token`.
    assert trigger["metadata"]["authMode"] == "bearer"
    assert [each["parameter"] for each in shown["spec"]["secretTargetRef"]] == ["token"]


# ------------------------------------------------------------------------------------------------- systemd


def analyzed(*arguments: str | Path) -> str:
    """What systemd-analyze says, which must be well."""
    demand("systemd-analyze", "deploy/systemd")
    checked = children.run_blocking(["systemd-analyze", *arguments])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return checked.stdout + checked.stderr


def installed(folder: Path) -> list[Path]:
    """The units as they would lie in /etc/systemd/system, with the template's instances, and their program there."""
    for unit in UNITS.glob("*.service"):
        # The program is what this machine has not: verify says so, and nothing else.
        text = unit.read_text().replace("/opt/taskmesh/bin/meshctl", shutil.which("true") or "/bin/true")
        (folder / unit.name).write_text(text)
    return [folder / "taskmesh.service", *(folder / f"taskmesh@{name}.service" for name in sorted(MODULES))]


def test_the_units_are_what_systemd_knows(tmp_path: Path) -> None:
    assert analyzed("verify", "--man=no", *installed(tmp_path)) == ""


@pytest.mark.parametrize("unit", ["taskmesh.service", "taskmesh@.service"])
def test_a_unit_is_confined(unit: str) -> None:
    found = analyzed("security", "--offline=true", "--threshold=25", "--no-pager", UNITS / unit)
    assert " OK " in found.splitlines()[-1]


@pytest.mark.parametrize("unit", ["taskmesh.service", "taskmesh@.service"])
def test_a_unit_waits_for_its_service_and_gives_it_time_to_drain(unit: str) -> None:
    lines = (UNITS / unit).read_text().splitlines()
    values = dict(line.partition("=")[::2] for line in lines if "=" in line and not line.startswith("#"))
    assert values["Type"] == "notify"
    assert float(values["TimeoutStopSec"]) >= Settings().drain_seconds + 20
    # Its own watchdog comes first, and says where the loop stood still.
    assert float(values["WatchdogSec"]) > Settings().watchdog_seconds
    assert values["KillMode"] == "mixed"


@pytest.mark.parametrize("instance", ["ingress", "inference_worker:2"])
def test_the_templates_command_starts_the_service_that_its_name_says(instance: str, tmp_path: Path) -> None:
    [line] = re.findall(r"^ExecStart=(.+)$", (UNITS / "taskmesh@.service").read_text(), re.MULTILINE)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    # As systemd does: %% is a %, $$ a $, %i the instance. It reads quotes as a shell does.
    command = (
        line.replace("%i", instance).replace("%%", "%").replace("$$", "$").replace("/opt/taskmesh/bin", str(tmp_path))
    )
    ran = children.run_blocking(["sh", "-c", command])
    assert ran.stdout.split() == ["-m", instance.partition(":")[0]]
