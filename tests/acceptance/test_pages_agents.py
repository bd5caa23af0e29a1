"""docs/agents.md: each command as printed, against a mesh of `meshctl up`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.pages import read_page
from tests.support.walks import PageMesh, Walk, page_mesh

pytestmark = pytest.mark.acceptance

WALKS = (read_page("docs/agents.md"),)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageMesh]:
    with page_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running


async def test_every_command_does_what_the_page_says(mesh: PageMesh) -> None:
    await Walk(mesh).through(WALKS[0])
