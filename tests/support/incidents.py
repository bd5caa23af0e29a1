"""The table of incidents: what was done to a mesh, and what it said of itself, as docs/incidents.md has it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "incidents.md"
WRITE_VARIABLE: Final = "WRITE_INCIDENTS"
"""Set, a run writes the table anew; else it is compared with the page."""
_BEGIN: Final = "<!-- the table: written by tests/acceptance/test_incidents.py -->\n\n"
_HEAD: Final = "| what was done | `meshctl doctor` | readiness | metric | `meshctl why` |\n|---|---|---|---|---|\n"
_OURS: Final = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC|\d\d:\d\d:\d\d UTC"), "TIME"),
    (
        re.compile(r"\b(ingress|stream_edge|inference_worker|tool_runner|steward)-\d+@[^\s,;:()]*[^\s,;:().]"),
        r"\1-PID@HOST",
    ),
    (re.compile(r"\b(127\.0\.0\.1|localhost):\d+"), r"\1:PORT"),
    (re.compile(r"\b[0-9a-hjkmnp-tv-z]{26}\b"), "TASK"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "DIGEST"),
    (re.compile(r"/\S+/"), "…/"),
    (re.compile(r"\d[\d,.]* s\b"), "N s"),
    (re.compile(r"\((\d+) messages?\)"), "(N messages)"),
    (re.compile(r"after \d+ failed tr(y|ies)"), "after N failed tries"),
    (re.compile(r"\ball \d+ streams\b"), "all N streams"),
    (re.compile(r"\band \d+ more\b"), "and N more"),
)
"""What differs from run to run, and what stands for it."""


@dataclass
class Incident:
    """A row. Empty: it says nothing of that. `doctor`, `readiness` and `why` are what was said."""

    done: str
    doctor: str = ""
    readiness: str = ""
    metric: str = ""
    why: str = ""

    def row(self) -> str:
        """The row of the table."""
        cells = (self.done, *map(ours, (self.doctor, self.readiness, self.metric, self.why)))
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def ours(said: str) -> str:
    """A text without what differs from run to run."""
    for pattern, instead in _OURS:
        said = pattern.sub(instead, said)
    return said


def table(incidents: list[Incident]) -> str:
    """The whole table."""
    return _HEAD + "".join(incident.row() for incident in incidents)


def table_of_page() -> str:
    """The table as the page has it."""
    return PAGE.read_text().partition(_BEGIN)[2]


def write_page(incidents: list[Incident]) -> None:
    """Put the table into the page, in place of the one that it has."""
    PAGE.write_text(PAGE.read_text().partition(_BEGIN)[0] + _BEGIN + table(incidents))
