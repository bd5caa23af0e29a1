"""README.md and docs/: their links lead somewhere, their commands are claimed by tests, and the README stays short."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from mesh.errors import SettingsError
from tests.support.pages import (
    LANGUAGES,
    ROOT,
    Block,
    Examples,
    anchors,
    check_fragment,
    links,
    pages_with_commands,
    prose,
    read_page,
    simple_commands,
)
from tests.support.walks import reads, submits

README_LINES_MAX = 200
COLUMNS_MAX = 140
OTHERS = ("CONTRIBUTING.md", "deploy/nats/README.md", "tests/model/README.md")
PENDING = {
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/failure.md",
    "docs/guarantees.md",
    "docs/operating.md",
    "docs/performance.md",
    "docs/reference/mesh-toml.md",
    "docs/reference/settings.md",
}
"""Pages that are linked to, and not there yet."""
LINKING = [
    *pages_with_commands(),
    *(path for path in OTHERS if path not in PENDING),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*/README.md")),
]
TASK = "01m7wkd0c5b9mdqnxfca30vxj7"
OTHER = "01m7wq3t5n8e2c4h6k9r1x7z0a"


def modules() -> list[str]:
    """The test modules that walk through pages. Each has a constant WALKS: the pages and sections that it takes."""
    return [path.stem for path in sorted((ROOT / "tests" / "acceptance").glob("test_pages_*.py"))]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES_MAX


def test_what_is_pending_is_not_there_yet() -> None:
    assert [path for path in PENDING if (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", LINKING)
def test_every_relative_link_leads_to_something(path: str) -> None:
    for line, target in links(path):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = ((ROOT / path).parent / name).resolve() if name else ROOT / path
        where = str(found.relative_to(ROOT))
        if where in PENDING:
            continue
        assert found.exists(), f"{path}:{line}: {target}"
        if anchor:
            assert anchor in anchors(where), f"{path}:{line}: {target}: no such heading"


@pytest.mark.parametrize("path", pages_with_commands())
def test_every_command_of_a_page_is_claimed(path: str) -> None:
    page = read_page(path)
    claimed = {
        command
        for module in modules()
        for walk in importlib.import_module(f"tests.acceptance.{module}").WALKS
        if walk.path == path
        for command in walk.commands
    }
    assert [command.where for command in page.commands if command not in claimed] == []


@pytest.mark.parametrize("path", pages_with_commands())
def test_a_page_keeps_to_the_convention(path: str) -> None:
    for block in read_page(path).blocks:
        assert block.language in LANGUAGES, f"{path}:{block.line}: a block of {block.language!r}"
        if block.language in ("toml", "json"):
            check_fragment(block)
        for line, text in enumerate(block.text.splitlines(), block.line):
            assert len(text) <= COLUMNS_MAX, f"{path}:{line}: {len(text)} columns"
    for line, text in prose(path):
        assert len(text) <= COLUMNS_MAX or text.startswith("|"), f"{path}:{line}: {len(text)} columns"
        assert not text.startswith("    "), f"{path}:{line}: an indented block; fence it, so that it is checked"


# ------------------------------------------------------------------------------------------------- reading a page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "page.md").write_text(
        "# A page\n\n```sh\nmeshctl list  # what there is\ncurl -s \\\n  localhost:8080\n# nothing\n```\n"
        "## With [a link](other.md#there), and `[none](x)`\n\n"
        "<!-- needs: a key -->\n\n```console\n$ meshctl get TASK\n01 it\n$ curl -sN x\nid: 7\n^C\n```\n\n## Then\n"
        '```json\n{"a": 1}\n```\n### Then\n[pic](a.png)\n'
    )
    return tmp_path


def test_blocks_commands_and_sections_are_read(folder: Path) -> None:
    page = read_page("page.md", folder)
    assert [(each.line, each.text, each.output, each.needs) for each in page.commands] == [
        (4, "meshctl list", None, None),
        (5, "curl -s \\\n  localhost:8080", None, None),
        (14, "meshctl get TASK", "01 it", "a key"),
        (16, "curl -sN x", "id: 7\n^C", "a key"),
    ]
    assert [command.is_interrupted for command in page.commands] == [False, False, False, True]
    assert [block.language for block in page.section("Then").blocks] == ["json"]
    assert len(page.section("A page").blocks) == 3
    with pytest.raises(AssertionError, match="no block under 'Never'"):
        page.section("Never")


def test_links_and_anchors_are_read(folder: Path) -> None:
    assert links("page.md", folder) == [(9, "other.md#there"), (26, "a.png")]
    assert anchors("page.md", folder) == {"a-page", "with-a-link-and-none", "then", "then-1"}


def test_a_mark_that_marks_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- needs: a key -->\nNo block.\n")
    with pytest.raises(AssertionError, match=r"page\.md:2"):
        read_page("page.md", tmp_path)


@pytest.mark.parametrize(
    ("expected", "output"),
    [
        ("a b", "a  b\r\n"),
        ('{"a":1, …,\n "b":2}', '{"a":1,"x":0,"b":2}'),
        ("first after 47 ms", "first after 1234 ms"),
        (f"{TASK} and {TASK}", f"{OTHER} and {OTHER}"),
        ('"id":"01m7…"', f'"id":"{OTHER}"'),
        ('"time":"2026-…"', '"time":"2031-01-02T03:04:05.678Z"'),
        ("…\nid: 1\n…\nz", "w\n\nid: 7\n\nx\ny\nz"),
        ("id: 6\nevent: a\n\nid: 8\n", "id: 60\nevent: a\n\nid: 61\n"),
        ("at localhost:8080", "at 127.0.0.1:5555"),
        ("took 0.00 s\nchanged 2026-11-26 20:03:30Z", "took    1.5 s\nchanged  2030-01-02 03:04:05Z"),
        ("by worker-4711@host with scripted", "by worker-1@a.example with scripted"),
        ("389 tasks a second", "12,001 tasks a second"),
    ],
)
def test_an_output_is_as_a_transcript_says(expected: str, output: str) -> None:
    examples = Examples({"localhost:8080": "127.0.0.1:5555"})
    assert examples.missed(expected, output, (r"[\d,]+ tasks",)) is None


@pytest.mark.parametrize(
    ("expected", "output"),
    [
        ("a", "b"),
        ("a", "a b"),
        ("…b", "abc"),
        ("…\na … b", "x\na\n\nb"),
        ("id: 1 … t1", "id: 1 t0\n\nid: 2 t1"),
        ("12 tokens", "13 tokens"),
        (f"{TASK} and {TASK}", f"{OTHER} and {TASK}"),
        ("at localhost:8080", "at localhost:8080"),
    ],
)
def test_another_output_is_missed(expected: str, output: str) -> None:
    examples = Examples({"localhost:8080": "127.0.0.1:5555"})
    missed = examples.missed(expected, output)
    assert missed is not None
    assert output in missed


def test_examples_stand_for_what_was_seen() -> None:
    examples = Examples({})
    assert examples.missed(f"id: 8\n{TASK}", f"id: 21\n{OTHER}") is None
    examples.put("TASK", OTHER)
    assert (
        examples.filled(f"get {TASK} -H 'Last-Event-ID: 8' --after 9")
        == f"get {OTHER} -H 'Last-Event-ID: 21' --after 9"
    )
    assert examples.filled("watch TASK, not SUBTASK") == f"watch {OTHER}, not SUBTASK"
    assert examples.missed(f"TASK {TASK} again", f"TASK {OTHER} again") is None
    assert examples.missed(f"{TASK} again", f"{TASK} again") is not None


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("meshctl get TASK", [["meshctl", "get", "TASK"]]),
        ("A=1 B='c d' meshctl up --workers 2", [["meshctl", "up", "--workers", "2"]]),
        ("printf '!say 3' | meshctl submit - < file", [["printf", "!say 3"], ["meshctl", "submit", "-"]]),
        ("curl -s \\\n  'x?a=1&b=2' && make run", [["curl", "-s", "x?a=1&b=2"], ["make", "run"]]),
    ],
)
def test_a_line_is_taken_apart(text: str, commands: list[list[str]]) -> None:
    assert simple_commands(text) == commands


def test_what_only_reads_is_told_from_what_does_something() -> None:
    assert all(map(reads, ["meshctl get TASK", "meshctl dead-letters list", "curl -s localhost:8080/v1/tasks"]))
    does = ["meshctl approve TASK", "curl -s x -d '{}'", "curl -sX POST x", "meshctl get TASK && rm -r x"]
    assert not any(map(reads, does))
    assert submits("curl -s localhost:8080/v1/tasks -d '{}'")
    assert submits("meshctl submit --watch Hello")
    assert not submits("curl -s localhost:8080/v1/tasks/TASK/inputs -d '{}'")


def test_a_fragment_is_what_the_real_code_takes() -> None:
    def block(language: str, text: str) -> Block:
        return Block("page.md", 1, language, text, None, ())

    check_fragment(block("toml", 'pools.default = { provider = "scripted" }'))
    check_fragment(block("toml", 'name = "r"\non.signal = "x"\ntask.input = "Hello"'))
    check_fragment(block("json", "[1]"))
    for wrong in ('pool.default = { provider = "scripted" }', 'pools.default = { provide = "scripted" }'):
        with pytest.raises((AssertionError, SettingsError)):
            check_fragment(block("toml", wrong))
