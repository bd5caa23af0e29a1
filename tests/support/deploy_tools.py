"""Tools that the files of deploy/ are held against: fetched once into build/, missed aloud where they can't be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support import children
from tests.support.toolchains import REPOSITORY, demand, miss

FOLDER = REPOSITORY / "tests" / "deploy_tools"
BUILD = REPOSITORY / "build" / "deploy_tools"
KEDA = "github.com/kedacore/keda/v2@v2.21.0"
"""The Go module that brings the definition of a ScaledObject."""
BUILD_SECONDS_MAX = 900


def python_tool(name: str) -> Path:
    """A program of tests/deploy_tools/requirements.txt, in an environment of its own."""
    environment = BUILD / "venv"
    program = environment / "bin" / name
    stamp = environment / ".installed"
    wanted = (FOLDER / "requirements.txt").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        _do(f"{name}", sys.executable, "-m", "venv", "--clear", str(environment))
        pip = (str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet")
        _do(f"{name}", *pip, "-r", str(FOLDER / "requirements.txt"))
        stamp.write_text(wanted)
    return program


def compose_loader() -> Path:
    """The loader of `docker compose`, built with Go."""
    demand("go", "deploy/docker/compose.yaml")
    program = BUILD / "compose"
    _do("the compose loader", "go", "-C", str(FOLDER), "build", "-o", str(program), ".")
    return program


def rendered(folder: Path) -> Path:
    """The objects that `kubectl apply --kustomize` would create, by kubectl itself. It asks no cluster."""
    demand("kubectl", str(folder))
    built = children.run_blocking(["kubectl", "kustomize", str(folder)])
    assert built.returncode == 0, built.stderr
    file = BUILD / f"{folder.name}.yaml"
    file.write_text(built.stdout)
    return file


def read_yaml(file: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    script = "import json, sys, yaml; json.dump([*yaml.safe_load_all(open(sys.argv[1]))], sys.stdout, default=str)"
    read = children.run_blocking([python_tool("python"), "-c", script, file])
    assert read.returncode == 0, read.stderr
    documents: list[dict[str, Any]] = json.loads(read.stdout)
    return documents


def keda_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind, such as `scaledobjects`, as KEDA's own definition has it."""
    demand("go", "deploy/kubernetes/keda")
    answer = children.run_blocking(["go", "mod", "download", "-json", KEDA], seconds=BUILD_SECONDS_MAX)
    if answer.returncode != 0:
        miss(f"go can't fetch {KEDA}: {(answer.stdout + answer.stderr)[-2000:]}")
    file = Path(json.loads(answer.stdout)["Dir"]) / "config" / "crd" / "bases" / f"keda.sh_{kind}.yaml"
    [definition] = read_yaml(file)
    [version] = definition["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    strict: dict[str, Any] = _strict(schema)
    return strict


def _strict(schema: Any) -> Any:
    """A schema that refuses keys which it does not name, as the API server prunes them without a word."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    # `metadata` is Kubernetes' own, and has no properties here.
    if isinstance(strict.get("properties"), dict) and strict.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    return strict


def _do(what: str, *command: str) -> None:
    done = children.run_blocking(command, seconds=BUILD_SECONDS_MAX)
    if done.returncode != 0:
        miss(f"{command[0]} can't bring {what}: {(done.stdout + done.stderr)[-2000:]}")
