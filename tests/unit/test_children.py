"""Whatever tests start is started by one module, which sees to it that nothing is left behind."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support import children

TESTS = Path(__file__).resolve().parents[1]
STARTER = Path(children.__file__)
STARTING = {"Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}
"""Of `subprocess`."""
FORKING = {"fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen"}
"""Of `os`."""


def starts_in(source: str) -> list[int]:
    """The lines in which a process is started without `children`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="subprocess"), attr=name)) if name in STARTING:
                found.append(node.lineno)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr=name)) if name in FORKING:
                found.append(node.lineno)
            case ast.Call(func=ast.Attribute(attr=name)) if name.startswith("create_subprocess_"):
                found.append(node.lineno)
            case ast.ImportFrom(module="subprocess", names=names) if STARTING & {each.name for each in names}:
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.Popen(['true'])",
        "process = subprocess.run(['true'], check=True)",
        "await asyncio.create_subprocess_exec('true')",
        "os.fork()",
        "from subprocess import Popen",
    ],
)
def test_a_start_is_found(line: str) -> None:
    assert starts_in(f"async def test() -> None:\n    {line}\n") == [2]


def test_every_process_is_started_by_the_one_module() -> None:
    sources = [path for path in TESTS.rglob("*.py") if path != STARTER]
    assert not {str(path): lines for path in sources if (lines := starts_in(path.read_text()))}


def test_what_promises_to_start_no_process_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(children.NONE_VARIABLE, "1")
    with pytest.raises(RuntimeError, match=children.NONE_VARIABLE):
        children.start(["true"])
