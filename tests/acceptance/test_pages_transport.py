"""docs/transport.md: its settings are settings, its tables tables, and what it says by default holds by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.access import limits
from mesh.configuration.mesh_toml import parse_configuration
from mesh.serving.security_headers import HSTS_HEADER, SECURITY_HEADERS, security_headers
from mesh.serving.tls import LOOK_SECONDS, SOON
from tests.support.pages import ROOT, read_page
from tests.support.walks import Walk, page_mesh

pytestmark = pytest.mark.acceptance

PAGE = read_page("docs/transport.md")
WALKS = (PAGE,)
TEXT = (ROOT / "docs" / "transport.md").read_text()


async def test_the_page_works_as_printed(tmp_path: Path) -> None:
    with page_mesh(tmp_path) as mesh:
        await Walk(mesh, shows={command.text: [] for command in PAGE.commands}).through(PAGE)


def test_the_limits_that_the_page_prints_are_those_that_hold() -> None:
    printed = TEXT.partition("## Limits")[2].partition("```toml\n")[2].partition("```")[0]
    auth = parse_configuration(printed.encode(), "page").auth
    assert auth.requests_per_second == limits.REQUESTS_PER_SECOND
    assert auth.burst == limits.REQUESTS_PER_SECOND * limits.BURST_SECONDS
    assert auth.failures_per_minute == limits.FAILURES_PER_MINUTE
    assert f"{limits.CALLERS_MAX:,} callers" in TEXT
    assert limits.LOG_SECONDS == 10
    assert (LOOK_SECONDS, SOON.days) == (2, 14)


def test_the_headers_that_the_page_names_are_those_of_an_answer() -> None:
    told = TEXT.lower()
    for name, value in SECURITY_HEADERS:
        assert f"`{name}: {value.lower()}`" in told
    assert HSTS_HEADER in told
    assert dict(security_headers(365))[HSTS_HEADER] == "max-age=31536000"
