"""Names on the pages for contributors: each is there, where the page says, and the pictures are those of the code."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from mesh.task.decisions import Decision
from tests.support.pages import ROOT, check_unrun, read_page, targets
from tests.unit.test_layering import PACKAGES

ARCHITECTURE = "docs/architecture.md"
CONTRIBUTING = "CONTRIBUTING.md"
PACKAGES_DECISION = "libs/contracts/spec/decisions/ADR-7-packages.md"
PAGES = (ARCHITECTURE, CONTRIBUTING, PACKAGES_DECISION)
ROOTS = (ROOT / "libs", ROOT / "services")
LIBRARIES = frozenset(path.parent.name for root in ROOTS for path in root.glob("*/__init__.py"))
SYMBOL_LINK = re.compile(r"\[`([^`]+)`\]\(([^)\s#]+\.py)\)")
CODE = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"[a-z_]+(?:\.\w+)+")
METHOD = re.compile(r"\b[A-Z]\w+\.\w+\b")
PATH = re.compile(r"(?:libs|services|tests|docs|examples|deploy)/[\w./-]+")
MAKE = re.compile(r"`make ([a-z-]+)")
QUESTIONS = {
    "Where is it decided what follows on a failed try?": ("libs/mesh/task/failures.py", "decide_failure"),
    "Where is an event type added?": ("libs/contracts/journal/events.py", "JournalEvent"),
    "Where does the edge join history and live?": ("libs/mesh/journal/following.py", "Follower.batches"),
    "Where are a pool's settings read?": ("libs/mesh/configuration/mesh_toml.py", "PoolConfiguration"),
    "What may a module in `task` import?": ("libs/mesh/task/__init__.py", "mesh.task"),
}


def text_of(page: str) -> str:
    """A page."""
    return (ROOT / page).read_text(encoding="utf-8")


def symbols(path: Path) -> set[str]:
    """What a module defines on top, and in its classes: `fold`, `StepLife`, `StepLife.live`, `TASKS`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        found |= _names(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for inner in node.body for name in _names(inner)}
    return found


def _names(node: ast.stmt) -> set[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return {name}
        case ast.Assign(targets=assigned):
            return {target.id for target in assigned if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def module_file(name: str) -> Path | None:
    """The file of a module or package; None if there is none."""
    for root in ROOTS:
        path = root / name.replace(".", "/")
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    return None


def is_there(dotted: str) -> bool:
    """Whether a dotted name is a module, a package, or what one of them defines."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        file = module_file(".".join(parts[:length]))
        if file is not None:
            return length == len(parts) or ".".join(parts[length:]) in symbols(file)
    return False


def misnamed(page: str, text: str) -> list[str]:
    """Links to a Python file whose text, as code, is neither a symbol of the file nor its module."""
    wrong = []
    for name, target in SYMBOL_LINK.findall(text):
        file = (ROOT / page).parent.joinpath(target).resolve()
        is_module = module_file(name) == file
        if not file.exists() or not (is_module or name in symbols(file) or name.startswith("meshctl ")):
            wrong.append(f"{name} in {target}")
    return wrong


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table with this head."""
    lines = text.splitlines()
    found = []
    for line in lines[lines.index(head) + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.split("|")[1:-1]])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_symbol_is_in_the_file_that_its_link_leads_to(page: str) -> None:
    assert misnamed(page, text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_dotted_name_is_there(page: str) -> None:
    named = [name for name in CODE.findall(text_of(page)) if DOTTED.fullmatch(name)]
    ours = [name for name in named if name.partition(".")[0] in LIBRARIES and name != "mesh.toml"]
    assert ours, "the scan sees them"
    assert [name for name in ours if not is_there(name)] == []


@pytest.mark.parametrize("page", [ARCHITECTURE, CONTRIBUTING])
def test_every_path_in_code_is_there(page: str) -> None:
    named = [path for code in CODE.findall(text_of(page)) for path in PATH.findall(code)]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_what_is_not_there_is_found() -> None:
    link = "[`{}`](../libs/mesh/task/fold.py)"
    assert misnamed(ARCHITECTURE, link.format("fold")) == []
    assert misnamed(ARCHITECTURE, link.format("mesh.task.fold")) == []
    assert misnamed(ARCHITECTURE, link.format("unfold")) == ["unfold in ../libs/mesh/task/fold.py"]
    assert misnamed(ARCHITECTURE, "[`fold`](../libs/mesh/fold.py)") == ["fold in ../libs/mesh/fold.py"]
    assert is_there("mesh.task")
    assert is_there("mesh.journal.journal.Journal.append")
    assert not is_there("mesh.dues")
    assert not is_there("mesh.task.fold.unfold")


# Architecture


def picture() -> list[list[str]]:
    """The floors of the picture, the topmost first: the words of each line, its first column left out."""
    block = next(block for block in read_page(ARCHITECTURE).blocks if "contracts   generation" in block.text)
    return [line[12:].split() for line in block.text.splitlines() if "──" not in line]


def floor_of(package: str) -> int:
    """The line of the picture that a package is on; each is on one."""
    library, _, name = package.partition(".")
    lines = range(1, 7) if library == "mesh" else range(7, 13)
    (found,) = [number for number in lines if name in picture()[number]]
    return found


@pytest.mark.parametrize("package", [name for name in PACKAGES if name.startswith(("mesh.", "contracts."))])
def test_the_picture_has_each_package_above_what_it_imports(package: str) -> None:
    for imported in PACKAGES[package]:
        if "." in imported:
            assert floor_of(package) < floor_of(imported), imported


def test_the_picture_has_the_services_and_the_modules_below() -> None:
    floors = picture()
    services = {path.parent.name for path in (ROOT / "services").glob("*/__init__.py")}
    assert set(floors[0]) == services | {"libs/meshctl"}
    for library, line in (("mesh", floors[6]), ("contracts", [name for floor in floors[12:] for name in floor])):
        modules = {path.stem for path in (ROOT / "libs" / library).glob("*.py")}
        assert set(line) == modules - {"__init__", "generate"}


def test_the_picture_of_a_delivery_names_what_is_there() -> None:
    block = next(block for block in read_page(ARCHITECTURE).blocks if "Consumption._fill" in block.text)
    named = set(METHOD.findall(block.text))
    assert len(named) > 5
    every = {symbol for root in ROOTS for path in root.rglob("*.py") for symbol in symbols(path)}
    assert named <= every


def test_each_package_of_the_runtime_has_a_row() -> None:
    packages = [cells[0].strip("`") for cells in rows(text_of(ARCHITECTURE), "| package | question that it answers |")]
    assert sorted(packages) == sorted(name for name in PACKAGES if name.startswith("mesh."))


def test_each_decision_has_a_row() -> None:
    names = [CODE.findall(cells[0])[0] for cells in rows(text_of(ARCHITECTURE), "| decision | what follows |")]
    assert sorted(names) == sorted(kind.__name__ for kind in get_args(Decision))


def test_each_part_of_the_steward_has_a_row() -> None:
    """Its parts are what its `__main__` takes from its own modules."""
    main = ast.parse((ROOT / "services" / "steward" / "__main__.py").read_text(encoding="utf-8"))
    parts = {
        alias.name
        for node in main.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steward.")
        for alias in node.names
    }
    names = [CODE.findall(cells[0])[0] for cells in rows(text_of(ARCHITECTURE), "| part | what it does |")]
    assert set(names) == parts
    assert len(names) == len(parts)


# Contributing


@pytest.mark.parametrize(("question", "answer"), QUESTIONS.items())
def test_a_strangers_question_has_its_path(question: str, answer: tuple[str, str]) -> None:
    (said,) = [cells[1] for cells in rows(text_of(CONTRIBUTING), "| question | answer |") if cells[0] == question]
    path, symbol = answer
    assert (symbol, path) in SYMBOL_LINK.findall(said)


def test_every_answer_leads_to_a_file() -> None:
    answers = rows(text_of(CONTRIBUTING), "| question | answer |")
    assert len(answers) > len(QUESTIONS)
    assert [question for question, answer in answers if ".py)" not in answer] == []


@pytest.mark.processes
def test_the_commands_are_ones_that_there_are() -> None:
    commands = read_page(CONTRIBUTING).commands
    assert commands
    for command in commands:
        check_unrun(replace(command, text=command.text.removeprefix(".venv/bin/")))
        for path in PATH.findall(command.text):
            assert (ROOT / path).exists(), command.where
    (path, word) = next(re.findall(r"pytest .*(tests/\S+) -k (\w+)", command.text)[0] for command in commands[-1:])
    assert any(word in name for name in symbols(ROOT / path)), "it runs a test"
    named = set(MAKE.findall(text_of(CONTRIBUTING)))
    assert named >= {"check", "test", "model", "chaos", "bench", "schemas"}
    assert named <= targets()
