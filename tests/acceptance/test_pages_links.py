"""docs/links.md and docs/audit.md: each command as printed, against a mesh of `meshctl up`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.pages import read_page
from tests.support.walks import PageMesh, Walk, page_mesh

pytestmark = pytest.mark.acceptance

LINKS = read_page("docs/links.md")
AUDIT = read_page("docs/audit.md")
WALKS = (LINKS, AUDIT)
ASK = "meshctl submit '!ask Well?'"
LINK = "curl -s -X POST localhost:8080/v1/tasks/TASK/links"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageMesh]:
    with page_mesh(tmp_path_factory.mktemp("links")) as running:
        yield running


async def test_each_command_of_the_page_on_links(mesh: PageMesh) -> None:
    shows = {
        ASK: [],
        LINK: ['{"url":"http://localhost:8081/v1/tasks/TASK/events?link=', '"expires_at":"'],
        LINK + """ --json '{"expires_in_seconds": 600}'""": ['"url":"'],
        "meshctl keys rotate-links": ["links are signed with key", "links of before hold until"],
        "meshctl keys rotate-links --grace 0s": ["links are signed with key"],
    }
    await Walk(mesh, shows=shows).through(LINKS)


async def test_each_command_of_the_page_on_audit(mesh: PageMesh) -> None:
    shows = {ASK: [], "meshctl cancel TASK": [], "grep -h audit .mesh/logs/ingress.log": ["cancel", "TASK", "http"]}
    await Walk(mesh, shows=shows, folder=mesh.home.parent).through(AUDIT)
