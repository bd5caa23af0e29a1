"""Imports go one way: contracts ← mesh ← services, meshctl; and inside of each, from package to package.

Nothing is imported here: the sources are read as text.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = ("libs", "services")
LIBRARIES = frozenset({"contracts", "mesh", "meshctl"})
# A module is one noun; past this many lines it is probably two.
MODULE_LINES_MAX = 450

# What each library may import of the project. Whatever lies in services/ has the last line.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "contracts": frozenset(),
    "mesh": frozenset({"contracts"}),
    "meshctl": frozenset({"contracts", "mesh"}),
}
A_SERVICE_MAY_IMPORT = frozenset({"contracts", "mesh"})
# The wire has to be readable without a broker's client or a web framework beside it.
CONTRACTS_MAY_IMPORT = frozenset(sys.stdlib_module_names) | {"msgspec"}

# What each package inside of a library or service may import of its siblings: this is the order of the floors, and each
# package's docstring says the same. Modules on top of a library ("mesh.errors") are below all of its packages; those on
# top of a service ("steward.control_loop") are above them.
_BELOW_THE_JOURNAL = ("mesh", "mesh.configuration", "mesh.task", "mesh.broker", "mesh.telemetry")
PACKAGES: dict[str, tuple[str, ...]] = {
    "mesh": (),
    "mesh.configuration": ("mesh",),
    "mesh.task": ("mesh",),
    "mesh.broker": ("mesh", "mesh.configuration"),
    "mesh.telemetry": ("mesh", "mesh.configuration"),
    "mesh.archive": ("mesh", "mesh.task", "mesh.broker"),
    "mesh.admission": _BELOW_THE_JOURNAL,
    "mesh.journal": (*_BELOW_THE_JOURNAL, "mesh.archive", "mesh.admission"),
    "mesh.providers": _BELOW_THE_JOURNAL,
    "mesh.pacing": _BELOW_THE_JOURNAL,
    "mesh.rules": _BELOW_THE_JOURNAL,
    "mesh.ledger": ("mesh", "mesh.configuration", "mesh.task", "mesh.broker", "mesh.archive"),
    "mesh.budgets": (*_BELOW_THE_JOURNAL, "mesh.admission", "mesh.ledger", "mesh.serving"),
    "mesh.tools": _BELOW_THE_JOURNAL,
    "mesh.valves": _BELOW_THE_JOURNAL,
    "mesh.serving": (*_BELOW_THE_JOURNAL, "mesh.valves"),
    "mesh.fleet": (*_BELOW_THE_JOURNAL, "mesh.valves"),
    "mesh.access": (*_BELOW_THE_JOURNAL, "mesh.valves", "mesh.serving"),
    "mesh.steps": (
        *_BELOW_THE_JOURNAL,
        "mesh.archive",
        "mesh.admission",
        "mesh.journal",
        "mesh.providers",
        "mesh.rules",
        "mesh.tools",
        "mesh.serving",
    ),
    "contracts": (),
    "contracts.journal": ("contracts",),
    "contracts.records": ("contracts", "contracts.journal"),
    "contracts.messages": ("contracts", "contracts.journal", "contracts.records"),
    "contracts.triggers": ("contracts", "contracts.journal", "contracts.records"),
    "contracts.api": ("contracts", "contracts.journal", "contracts.messages", "contracts.records"),
    "contracts.generation": (
        "contracts",
        "contracts.journal",
        "contracts.records",
        "contracts.messages",
        "contracts.triggers",
        "contracts.api",
    ),
    "meshctl": (),
    "meshctl.diagnosis": ("meshctl",),
    "meshctl.reference": ("meshctl",),
    "meshctl.supervision": ("meshctl",),
    "meshctl.transfer": ("meshctl",),
    "meshctl.display": ("meshctl", "meshctl.diagnosis"),
    "meshctl.commands": (
        "meshctl",
        "meshctl.diagnosis",
        "meshctl.supervision",
        "meshctl.transfer",
        "meshctl.display",
    ),
    "ingress.listing": (),
    "inference_worker.models": (),
    "inference_worker.capacity": ("inference_worker.models",),
    "inference_worker.dialects": ("inference_worker.models",),
    "inference_worker.dialects.anthropic": ("inference_worker.models", "inference_worker.dialects"),
    "inference_worker.dialects.openai": ("inference_worker.models", "inference_worker.dialects"),
    "inference_worker.dialects.scripted": ("inference_worker.models",),
    "inference_worker.turn": ("inference_worker.models", "inference_worker.dialects"),
    "steward.admission": (),
    "steward.walks": (),
    "steward.archiving": ("steward.walks",),
    "steward.sweeps": ("steward.walks",),
    "steward.figures": (),
    "tool_runner.tools": (),
    "tool_runner.mcp_servers": ("tool_runner.tools",),
}
# Commands lie on top of a library, and may import all of it.
COMMANDS = frozenset({"contracts.generate", "meshctl.__main__"})
# What is pure imports nothing that could wait, or tell the time.
PURE = "mesh.task"
PURE_MAY_NOT_IMPORT = frozenset(
    {"asyncio", "time", "nats", "structlog", "opentelemetry", "httpx", "mesh.clock", "mesh.faults"}
)


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


def modules_imported(source: str) -> Iterator[tuple[int, str]]:
    """Line number and dotted name of everything that is imported: `from mesh.task import fold` is `mesh.task.fold`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)


def name_of(module: Path) -> str:
    """The import name of a module's file: `libs/mesh/task/fold.py` is `mesh.task.fold`."""
    return ".".join(module.with_suffix("").parts[1:])


def package_of(name: str, folders: frozenset[str]) -> str:
    """The package that a dotted name lies in: the longest one that it begins with."""
    while name and name not in folders:
        name = name.rpartition(".")[0]
    return name


def turned_arrows(module: str, source: str, folders: frozenset[str]) -> list[str]:
    """Imports of a module, within its library or service, that go against the floors."""
    own, root = package_of(module.rpartition(".")[0], folders), module.partition(".")[0]
    if module in COMMANDS or own not in PACKAGES:
        return []
    allowed = {own, *PACKAGES[own]}
    return [
        f"{module}:{line} imports {name}"
        for line, name in modules_imported(source)
        if name.partition(".")[0] == root and package_of(name, folders) not in allowed
    ]


PROJECT = packages_in("libs") | packages_in("services")
FOLDERS = frozenset(
    name_of(module).removesuffix(".__init__") for module in modules_in(*ROOTS) if module.stem == "__init__"
)


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


@pytest.mark.parametrize("module", modules_in(*ROOTS), ids=str)
def test_imports_follow_the_floors_of_its_library(module: Path) -> None:
    found = turned_arrows(name_of(module), (REPOSITORY / module).read_text(encoding="utf-8"), FOLDERS)
    assert not found, "\n".join(found)


def test_each_package_has_a_floor() -> None:
    assert {name for name in FOLDERS if "." in name} <= PACKAGES.keys() <= FOLDERS


def test_the_floors_have_no_cycle() -> None:
    """Each arrow goes down: packages can be put in an order in which each imports only earlier ones."""
    placed: set[str] = set()
    while placed != PACKAGES.keys():
        ready = {name for name, below in PACKAGES.items() if name not in placed and placed.issuperset(below)}
        assert ready, f"a cycle among {sorted(PACKAGES.keys() - placed)}"
        placed |= ready


@pytest.mark.parametrize(("importer", "imported"), [(a, b) for a, below in PACKAGES.items() for b in below])
def test_an_arrow_that_is_turned_is_found(importer: str, imported: str) -> None:
    turned = f"def late() -> None:\n    from {importer}.anything import thing as _\n"
    if imported not in COMMANDS:
        assert turned_arrows(f"{imported}.module", turned, FOLDERS) == [
            f"{imported}.module:2 imports {importer}.anything.thing"
        ]
    right = f"from {imported} import anything\n"
    assert turned_arrows(f"{importer}.module", right, FOLDERS) == []


@pytest.mark.parametrize("package", [name for name in PACKAGES if "." in name])
def test_a_package_says_what_it_may_import(package: str) -> None:
    root = "libs" if package.partition(".")[0] in LIBRARIES else "services"
    source = (REPOSITORY / root / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    documentation = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    said = documentation.partition("May import: ")[2].partition(".  ")[0]
    assert {each for each in re.findall(r"`([a-z_.]+)`", said) if "nothing else" not in said} == set(
        PACKAGES[package]
    ), f"{package}: {said}"


@pytest.mark.parametrize("module", modules_in(f"libs/{PURE.replace('.', '/')}"), ids=str)
def test_what_is_pure_can_neither_wait_nor_tell_the_time(module: Path) -> None:
    tree = ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))
    imported = {name for _, name in modules_imported(ast.unparse(tree))}
    assert not [name for name in imported if any(f"{name}.".startswith(f"{each}.") for each in PURE_MAY_NOT_IMPORT)]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


def test_no_module_outgrows_its_noun() -> None:
    lines = {module: len((REPOSITORY / module).read_bytes().splitlines()) for module in modules_in(*ROOTS, "tests")}
    assert not {str(module): count for module, count in lines.items() if count > MODULE_LINES_MAX}


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


def test_the_prefix_of_the_jetstream_api_is_written_in_one_place() -> None:
    """What writes it itself forgets MESH_NATS_DOMAIN, and finds nobody, or another server's streams, at a leaf."""
    written = [str(module) for module in modules_in(*ROOTS) if '"$JS.API.' in (REPOSITORY / module).read_text()]
    assert written == ["libs/contracts/subjects.py"]
