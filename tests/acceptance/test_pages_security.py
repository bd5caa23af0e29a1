"""docs/security.md and docs/hardening.md: each command as printed, against a mesh of `meshctl up`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pages import read_page
from tests.support.walks import Walk, page_mesh

pytestmark = pytest.mark.acceptance

PAGE = read_page("docs/hardening.md")
WALKS = (PAGE, read_page("docs/security.md"))
VARIES = (r"tm_[0-9a-z]{16}_\S+", r"\b[0-9a-z]{16}\b")
"""Keys, and their ids."""


async def test_the_guide_works_as_printed(tmp_path: Path) -> None:
    with page_mesh(tmp_path) as mesh:
        await Walk(mesh, varies=VARIES).through(PAGE)
