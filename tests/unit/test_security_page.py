"""docs/security.md: each line names a test that holds it, and that test is there."""

from __future__ import annotations

import re

import pytest

from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "security.md"
HELD = re.compile(r"\[(test_\w+)\]\(\.\./(tests/\w+/(test_\w+)\.py)\) `(test_\w+)`")
ACTORS = {
    *(
        "A caller",
        "Another tenant",
        "A page in a browser",
        "A stolen key",
        "A model, and what it reads",
        "An MCP server",
    ),
    *("A model provider", "A tool runner in another language", "A local user", "A stolen backup", "The network"),
}


def rows() -> list[tuple[str, str]]:
    """What is said, and what holds it."""
    lines = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [(cells[0].removeprefix("| "), cells[1]) for cells in lines if cells[0] != "| can or cannot"]


def test_the_page_speaks_of_everybody() -> None:
    found = set(re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE))
    assert found == ACTORS
    assert len(rows()) > 3 * len(ACTORS)


@pytest.mark.parametrize(("said", "held"), rows(), ids=[said[:40] for said, _ in rows()])
def test_a_line_is_held_by_a_test_that_is_there(said: str, held: str) -> None:
    tests = HELD.findall(held)
    assert tests, said
    assert len(tests) == held.count("`test_"), held
    for shown, path, module, name in tests:
        assert shown == module
        source = (ROOT / path).read_text()
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{path}: {name}"
