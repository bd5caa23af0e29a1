"""Programs of other languages that tests need: built where their toolchain is there, missed aloud elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import children

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD_SECONDS_MAX = 900
_OPENAPI = REPOSITORY / "libs" / "contracts" / "spec" / "openapi.json"
_CLI = "github.com/nats-io/natscli/nats"


def required() -> bool:
    """Whether what is not there, or can't be built, is an error, and no reason to skip."""
    return os.environ.get("CI") == "true"


def nats_cli() -> Path:
    """The `nats` CLI: the one on the PATH, or that of tests/nats_cli, built with Go. Skips without either."""
    on_path = shutil.which("nats")
    if on_path is not None:
        return Path(on_path)
    if shutil.which("go") is None:
        pytest.skip("neither the nats CLI nor Go to build it is on the PATH: the operator's guide is not tried")
    program = REPOSITORY / "build" / "nats_cli" / "nats"
    _build("the nats CLI", "go", "-C", str(REPOSITORY / "tests" / "nats_cli"), "build", "-o", str(program), _CLI)
    return program


def prometheus(program: str) -> Path:
    """`prometheus` or `promtool`: the one on the PATH, or that of `make build/prometheus/usr/bin/promtool`.

    Skips without either, also in CI: not every package index has it.
    """
    on_path = shutil.which(program)
    fetched = REPOSITORY / "build" / "prometheus" / "usr" / "bin" / program
    if on_path is None and not fetched.exists():
        pytest.skip(f"{program} is not there (make build/prometheus/usr/bin/promtool): alerts are not tried in it")
    return Path(on_path) if on_path is not None else fetched


def go_tools() -> list[str]:
    """The command of examples/go, built. Skips without Go; in CI it must build where Go is."""
    demand("go", "examples/go")
    program = REPOSITORY / "build" / "examples" / "go_tools"
    _build("examples/go", "go", "-C", str(REPOSITORY / "examples" / "go"), "build", "-o", str(program), ".")
    return [str(program)]


def typescript_tools() -> list[str]:
    """The command of examples/typescript, compiled. Skips without Node and npm; in CI it compiles where they are."""
    demand("npm", "examples/typescript")
    folder = REPOSITORY / "examples" / "typescript"
    if not (folder / "node_modules" / "typescript").exists():
        _build("the packages of examples/typescript", "npm", "--prefix", str(folder), "ci", "--no-audit", "--no-fund")
    _build("examples/typescript", "npm", "--prefix", str(folder), "run", "build")
    return ["node", str(folder / "dist" / "main.js")]


def generated_client(language: str) -> list[str]:
    """A program of tests/generated_clients that runs a task through a client made of openapi.json, built.

    It takes the ingress's URL. Skips without the language's toolchain, or what it has to fetch: in CI that is an error
    where the toolchain is.
    """
    source = REPOSITORY / "tests" / "generated_clients" / language
    build = REPOSITORY / "build" / "generated_clients" / language
    shutil.copytree(source, build, dirs_exist_ok=True)
    return _GENERATED_CLIENTS[language](build)


def _generated_go(build: Path) -> list[str]:
    what = "the generated Go client"
    demand("go", what)
    (build / "api").mkdir(exist_ok=True)
    generate = ("-generate", "types,client", "-package", "api", "-o", str(build / "api" / "api.go"), str(_OPENAPI))
    _build(what, "go", "-C", str(build), "mod", "download")
    _compile(what, "go", "-C", str(build), "tool", "oapi-codegen", *generate)
    _compile(what, "go", "-C", str(build), "vet", "./...")
    _compile(what, "go", "-C", str(build), "build", "-o", "client", ".")
    return [str(build / "client")]


def _generated_typescript(build: Path) -> list[str]:
    what = "the generated TypeScript client"
    demand("npm", what)
    npm = ("npm", "--prefix", str(build))
    if not (build / "node_modules" / "openapi-typescript").exists():
        _build(what, *npm, "ci", "--no-audit", "--no-fund")
    _compile(what, *npm, "exec", "--", "openapi-typescript", str(_OPENAPI), "-o", str(build / "api.ts"))
    _compile(what, *npm, "exec", "--", "tsc", "--project", str(build))
    return ["node", str(build / "dist" / "main.js")]


def _generated_python(build: Path) -> list[str]:
    what = "the generated Python client"
    environment = build / "venv"
    python = environment / "bin" / "python"
    generator = environment / "bin" / "openapi-python-client"
    if not generator.exists():
        _build(what, sys.executable, "-m", "venv", str(environment))
        _build(what, str(python), "-m", "pip", "install", "--quiet", "-r", str(build / "requirements.txt"))
    generate = ("generate", "--path", str(_OPENAPI), "--output-path", str(build / "generated_client"), "--overwrite")
    _compile(what, str(generator), *generate, "--meta", "none", "--config", str(build / "generator.json"))
    main = str(build / "main.py")
    check = ("--strict", "--python-executable", str(python), "--config-file", os.devnull, "--follow-imports", "silent")
    _compile(what, sys.executable, "-m", "mypy", *check, main)
    return [str(python), main]


_GENERATED_CLIENTS: dict[str, Callable[[Path], list[str]]] = {
    "go": _generated_go,
    "typescript": _generated_typescript,
    "python": _generated_python,
}


def demand(program: str, purpose: str) -> None:
    """Skip a test whose toolchain is not on this machine, also in CI, and say so aloud."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on the PATH: {purpose} is not tried")


def _build(what: str, *command: str) -> None:
    built = children.run_blocking(command, seconds=BUILD_SECONDS_MAX)
    if built.returncode != 0:
        miss(f"{command[0]} can't build {what}: {(built.stdout + built.stderr)[-2000:]}")


def _compile(what: str, *command: str) -> None:
    """Make a client of our own description: once its tools are there, what does not compile is an error everywhere."""
    built = children.run_blocking(command, seconds=BUILD_SECONDS_MAX)
    if built.returncode != 0:
        pytest.fail(f"{what} does not compile: {(built.stdout + built.stderr)[-2000:]}")


def miss(complaint: str) -> None:
    """Skip a test that needs what can't be had, though its toolchain is there; in CI that is an error."""
    if required():
        pytest.fail(complaint)
    pytest.skip(complaint)
