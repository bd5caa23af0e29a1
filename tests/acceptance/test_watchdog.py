"""A test that hangs is ended with the stacks of all threads, and the processes that it has started end with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import children
from tests.support.guardian import marked
from tests.support.processes import ROOT
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

RUN = """
import asyncio
import sys
import time
from pathlib import Path

from tests.support import children, watchdog

watchdog.TEST_SECONDS, watchdog.GRACE_SECONDS = 0.5, 1.5


def test_that_ends():
    time.sleep(0.1)

def test_that_hangs(tmp_path):
    children.start(["sleep", "600"])
    Path(__file__).with_name("mark").write_text(children.mark())
    while True:
        time.sleep(0.01)
"""


async def test_a_test_that_hangs_is_ended_and_says_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "test_hanging.py"
    file.write_text(RUN)
    command: list[str | Path] = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "tests.conftest"]
    command += ["-n", "0", "-v", "-p", "no:cacheprovider", "--basetemp", tmp_path / "scratch", file]
    ended = await children.run(command, cwd=ROOT)
    assert ended.returncode == 1
    assert "test_that_ends PASSED" in ended.stdout
    assert "Timeout (" in ended.stderr
    assert "in test_that_hangs" in ended.stderr
    if sys.platform == "linux":
        mark = (tmp_path / "mark").read_text()
        await until(lambda: not marked(mark), 20)
