"""Pieces of Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

GENERATED = "<!-- Rendered by `make schemas` from the declarations in libs. Change them, not this page. -->"
"""Stands in each page that is rendered."""
LINE_CHARACTERS_MAX = 140
_DROPPED_IN_ANCHORS = re.compile(r"[^a-z0-9 _-]")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with these columns."""
    head, *lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in (titles, *rows)]
    return "\n".join([head, "|---" * len(titles) + "|", *lines])


def anchor(heading: str) -> str:
    """What a link to a heading ends in, behind the `#`."""
    return _DROPPED_IN_ANCHORS.sub("", heading.lower()).replace(" ", "-")


def link(heading: str) -> str:
    """A link to a heading of the same page, which is code."""
    return f"[{code(heading)}](#{anchor(heading)})"


def code(text: str) -> str:
    """A short text as code."""
    return f"`{text}`"


def alternatives(words: Iterable[str]) -> str:
    """The words as an English list: `a, b or c`."""
    *before, last = words
    return f"{', '.join(before)} or {last}" if before else last


def block(language: str, text: str) -> str:
    """A fenced block."""
    return f"```{language}\n{text.strip()}\n```"


def paragraphs(text: str) -> str:
    """A text whose paragraphs are wrapped anew."""
    return "\n\n".join(
        textwrap.fill(" ".join(paragraph.split()), LINE_CHARACTERS_MAX, break_long_words=False, break_on_hyphens=False)
        for paragraph in text.split("\n\n")
    )


def page(*blocks: str) -> str:
    """A page of blocks, with a blank line between each two."""
    return "\n\n".join(blocks) + "\n"
