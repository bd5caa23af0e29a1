"""README.md, docs/getting-started.md, docs/reference/scripted-model.md: each command as printed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.pages import read_page
from tests.support.walks import PageMesh, Walk, page_mesh

pytestmark = pytest.mark.acceptance

README = read_page("README.md")
SCRIPTED = read_page("docs/reference/scripted-model.md")
STARTED = read_page("docs/getting-started.md")
WALKS = (README, STARTED, SCRIPTED)
ELSEWHERE = {
    "make run": "test_the_first_task_runs_while_one_watches",
    "make demo": "test_the_demonstration_holds_and_leaves_nothing",
}
"""Command of the README → the test of what it calls: `meshctl up --first-task`, `meshctl demo`."""
ACTIVATE = ". .venv/bin/activate"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageMesh]:
    with page_mesh(tmp_path_factory.mktemp("mesh"), "--first-task") as running:
        yield running


async def test_the_first_run_prints_what_the_readme_shows(mesh: PageMesh) -> None:
    """`make run` is `meshctl up --first-task`, which has run by now."""
    [run] = [command for command in README.commands if command.text == "make run"]
    assert mesh.examples().missed(run.output or "", mesh.printed) is None


async def test_every_command_of_the_readme_does_what_it_says(mesh: PageMesh) -> None:
    walk = Walk(mesh, elsewhere=ELSEWHERE)
    await walk.through(README)


async def test_every_command_of_getting_started_does_what_it_says(mesh: PageMesh) -> None:
    await Walk(mesh, shows={ACTIVATE: []}).through(STARTED)


async def test_the_scripted_model_does_what_its_page_says(mesh: PageMesh) -> None:
    await Walk(mesh, statuses={"meshctl submit --watch '!sing'": 1}).through(SCRIPTED)
