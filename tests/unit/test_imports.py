"""Which package imports which library of others, and that nobody loads one by way of somebody else."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support import children

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = {
    folder.parent.name: folder.parent
    for root in ("libs", "services")
    for folder in (REPOSITORY / root).glob("*/__init__.py")
}

# What each package imports, exactly: a new line here is a decision.
IMPORTS = {
    "contracts": {"msgspec"},
    "mesh": {
        "cryptography", "httptools", "httpx", "jsonschema_rs", "jwt", "litestar", "msgspec", "nats", "nkeys",
        "opentelemetry", "prometheus_client", "structlog", "uvicorn", "uvloop",
    },
    "meshctl": {"httpx", "msgspec", "nats", "rich", "structlog"},
    "ingress": {"litestar", "msgspec", "opentelemetry", "structlog"},
    "stream_edge": {"litestar", "opentelemetry", "structlog"},
    "inference_worker": {"httpx", "msgspec", "nats", "opentelemetry", "prometheus_client", "structlog"},
    "tool_runner": {
        "anyio", "httpx", "httpx2", "jsonschema_rs", "mcp", "mcp_types", "msgspec", "pydantic", "structlog",
    },
    "steward": {"httpx", "msgspec", "nats", "opentelemetry", "structlog"},
}  # fmt: skip

# What a library's own interface is made of comes with it: no line of pyproject.toml names these.
COME_WITH = {
    "anyio": "mcp",
    "cryptography": "jwt",
    "httpx2": "mcp",
    "mcp_types": "mcp",
    "pydantic": "mcp",
}

# Libraries that are slow to load: the packages in whose processes they are.
LOADED_BY = {
    "cryptography": {"mesh", "tool_runner"},
    "jwt": {"mesh"},
    "litestar": {"mesh", "ingress", "stream_edge"},
    "mcp": {"tool_runner"},
    "mcp_types": {"tool_runner"},
    "pydantic": {"tool_runner"},
}

LOAD_ALL = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def normalized(distribution: str) -> str:
    """A distribution's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def modules_of(package: str) -> Iterator[ast.Module]:
    for path in sorted(PACKAGES[package].rglob("*.py")):
        yield ast.parse(path.read_text(encoding="utf-8"))


def imported_by(module: ast.Module) -> Iterator[str]:
    """The top-level names that a module imports, wherever in it."""
    for node in ast.walk(module):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(name), level=0):
                yield name.partition(".")[0]


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The top-level names that are loaded in an interpreter once it has run this."""
    answer = children.run_blocking([sys.executable, "-c", code, *arguments])
    answer.check_returncode()
    return set(json.loads(answer.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_imports_the_libraries_of_its_line_and_no_others(package: str) -> None:
    found = {name for module in modules_of(package) for name in imported_by(module)}
    assert found - sys.stdlib_module_names - PACKAGES.keys() == IMPORTS[package]


def test_what_is_imported_is_declared_and_what_is_declared_imported() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {normalized(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in project["dependencies"]}
    distributions = packages_distributions()
    imported = set().union(*IMPORTS.values()) - COME_WITH.keys()
    assert set(COME_WITH.values()) <= imported
    by = {name: set(map(normalized, distributions[name])) & declared for name in imported}
    assert {name for name, found in by.items() if not found} == set()
    # zoneinfo imports tzdata.
    assert declared - set().union(*by.values()) == {"tzdata"}


@pytest.mark.processes
@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_large_ones_are_loaded_where_they_are_needed_alone(package: str) -> None:
    loaded = loaded_by(LOAD_ALL, package)
    assert package in loaded
    assert loaded & LOADED_BY.keys() == {name for name, packages in LOADED_BY.items() if package in packages}


@pytest.mark.processes
def test_a_tool_runner_without_servers_loads_no_mcp() -> None:
    """They are the slower half of its start."""
    code = "import json, sys, tool_runner.__main__; print(json.dumps(sorted(sys.modules)))"
    assert not loaded_by(code) & {"mcp", "mcp_types", "pydantic"}
