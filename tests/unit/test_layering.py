"""Imports go one way: contracts ← mesh ← services, meshctl. Nothing is imported here: the sources are read as text."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = ("libs", "services")
LIBRARIES = frozenset({"contracts", "mesh", "meshctl"})
# A module is one noun; past this many lines it is probably two.
MODULE_LINES_MAX = 600
TEST_MODULE_LINES_MAX = 450

# What each library may import of the project. Whatever lies in services/ has the last line.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "contracts": frozenset(),
    "mesh": frozenset({"contracts"}),
    "meshctl": frozenset({"contracts", "mesh"}),
}
A_SERVICE_MAY_IMPORT = frozenset({"contracts", "mesh"})
# The wire has to be readable without a broker's client or a web framework beside it.
CONTRACTS_MAY_IMPORT = frozenset(sys.stdlib_module_names) | {"msgspec"}


def packages_in(root: str) -> frozenset[str]:
    """The import names in one of the two roots: its folders that hold Python files."""
    return frozenset(folder.name for folder in (REPOSITORY / root).glob("*") if any(folder.glob("*.py")))


def modules_in(*folders: str) -> list[Path]:
    """Every Python file below the folders, as paths relative to the repository."""
    return sorted(path.relative_to(REPOSITORY) for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def imports_of(source: str) -> Iterator[tuple[int, str]]:
    """Line number and top-level name of every absolute import, wherever in the file it stands.

    A relative import stays inside its package and is nobody's business here.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name.partition(".")[0]) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module.partition(".")[0]


def is_allowed(importer: str, imported: str, project: frozenset[str]) -> bool:
    """Whether the package `importer` may import the top-level name `imported`; `project` holds the project's own."""
    if imported == importer:
        return True
    if importer == "contracts":
        return imported in CONTRACTS_MAY_IMPORT
    return imported not in project or imported in MAY_IMPORT.get(importer, A_SERVICE_MAY_IMPORT)


PROJECT = packages_in("libs") | packages_in("services")


def test_the_libraries_are_the_three_that_have_a_rule() -> None:
    assert packages_in("libs") == LIBRARIES == MAY_IMPORT.keys()
    assert packages_in("services"), "services/ holds no package"


def test_no_package_hides_another() -> None:
    """A name in both roots, or one of the standard library's, would make the import depend on the path's order."""
    assert not packages_in("libs") & packages_in("services")
    assert not PROJECT & sys.stdlib_module_names


@pytest.mark.parametrize("module", modules_in(*ROOTS), ids=str)
def test_a_module_imports_only_what_its_layer_may(module: Path) -> None:
    importer = module.parts[1]
    source = (REPOSITORY / module).read_text(encoding="utf-8")
    found = [
        f"{module}:{line} imports {name}"
        for line, name in imports_of(source)
        if not is_allowed(importer, name, PROJECT)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("folders", "lines_max"), [(ROOTS, MODULE_LINES_MAX), (("tests",), TEST_MODULE_LINES_MAX)])
def test_no_module_outgrows_its_noun(folders: tuple[str, ...], lines_max: int) -> None:
    lines = {module: len((REPOSITORY / module).read_bytes().splitlines()) for module in modules_in(*folders)}
    assert not {str(module): count for module, count in lines.items() if count > lines_max}


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("contracts", "msgspec", True),
        ("contracts", "hashlib", True),
        ("contracts", "contracts", True),
        ("contracts", "nats", False),
        ("contracts", "mesh", False),
        ("mesh", "contracts", True),
        ("mesh", "nats", True),
        ("mesh", "meshctl", False),
        ("mesh", "steward", False),
        ("ingress", "mesh", True),
        ("ingress", "litestar", True),
        ("ingress", "steward", False),
        ("ingress", "meshctl", False),
        ("meshctl", "mesh", True),
        ("meshctl", "ingress", False),
    ],
)
def test_the_rule_tells_the_layers_apart(importer: str, imported: str, *, allowed: bool) -> None:
    project = LIBRARIES | {"ingress", "steward"}
    assert is_allowed(importer, imported, project) is allowed


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import mesh.journal.journal, json
from contracts.journal.events import Event
from . import neighbour
from .inner import thing

def late() -> None:
    if True:
        from ingress import routes as _
"""
    assert sorted(imports_of(source)) == [(2, "json"), (2, "mesh"), (3, "contracts"), (9, "ingress")]
