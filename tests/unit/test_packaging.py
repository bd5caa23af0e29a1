"""The distribution's name and version: each is said once, and no text sends anybody to somebody else's package."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from contracts import VERSION
from meshctl.__main__ import main
from meshctl.commands import example

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = PROJECT["name"]
# What follows `pip install`, options left out: a name, perhaps quoted, perhaps with extras.
INSTALLED = re.compile(r"""pip3? install\s+(?:-\S+\s+)*['"`]?([A-Za-z0-9._/-]+)""")


def strings_of(source: str) -> Iterator[str]:
    """Every string constant of a module: texts of errors and help, parts of f-strings, docstrings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def pages() -> Iterator[Path]:
    """Every page for people, wherever it lies."""
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "examples/*/*.md", "libs/**/*.md"):
        yield from REPOSITORY.glob(pattern)


def test_what_an_error_tells_to_install_is_ours() -> None:
    told = {
        name
        for root in ("libs", "services")
        for path in (REPOSITORY / root).rglob("*.py")
        for text in strings_of(path.read_text(encoding="utf-8"))
        for name in INSTALLED.findall(text)
    }
    assert told == {NAME}


@pytest.mark.parametrize("page", sorted(pages()), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_no_page_sends_anybody_to_the_taskmesh_of_somebody_else(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [name for name in INSTALLED.findall(text) if re.fullmatch("taskmesh([^-].*)?", name)] == []
    assert "taskmesh[" not in text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pip install 'taskmesh[broker]', or", ["taskmesh"]),
        ("`pip install taskmesh-nats[broker]`", ["taskmesh-nats"]),
        ("python -m pip install --upgrade -q httpx", ["httpx"]),
        ("install it with pip", []),
    ],
)
def test_the_scan_sees_what_is_told(text: str, names: list[str]) -> None:
    assert INSTALLED.findall(text) == names


def test_the_extras_are_our_own() -> None:
    own = [line for extra in PROJECT["optional-dependencies"].values() for line in extra if line.startswith("taskmesh")]
    assert own == [f"{NAME}[broker]"]


def test_the_version_is_the_codes() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert metadata.version(NAME) == VERSION
    newest = re.search(r"^## (\S+?),", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION


def test_the_example_is_printed_as_it_is(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["example"]) == 0
    assert capfdbinary.readouterr().out == (REPOSITORY / "mesh.example.toml").read_bytes()


def test_a_checkout_is_where_its_files_are(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["example", "--where"]) == 0
    assert Path(capfd.readouterr().out.rstrip("\n")) == example.folder() == REPOSITORY
