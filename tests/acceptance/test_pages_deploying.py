"""docs/deploying.md: what a mesh of `meshctl up` can answer is asked; the rest is held to programs, flags and files.

tests/acceptance/test_deploy_files.py holds the files against the tools that read them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import ROOT, read_page
from tests.support.walks import Walk, page_mesh

pytestmark = pytest.mark.acceptance

PAGE = read_page("docs/deploying.md")
WALKS = (PAGE,)


async def test_the_page_works_as_printed(tmp_path: Path) -> None:
    with page_mesh(tmp_path) as mesh:
        await Walk(mesh).through(PAGE)


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"\bdeploy/[\w./@-]+[\w]", (ROOT / "docs" / "deploying.md").read_text()))
    # What the reader writes.
    named -= {"deploy/docker/worker.env", "deploy/docker/.env"}
    named = {name for name in named if not re.fullmatch(r"deploy/docker/secrets(/.*)?", name)}
    assert len(named) > 6
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
