"""Journals, gathered from the milestones of all tasks as they lie in EVENTS. Pure.

Most tasks are short, and most of their milestones lie close together: whoever goes along the stream has them all when
the last one comes. What has begun before that is read by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from contracts import subjects
from contracts.errors import TaskmeshError
from contracts.journal.events import TERMINAL_TYPES, decode_head
from mesh.archive.pack import Milestone, milestone_of
from mesh.broker.direct_get import Stored

GATHERED_BYTES_MAX = 64 * 1024 * 1024
"""Of journals whose end has not come. Beyond that all are let go, and those that end later are read by themselves."""


class Ended(NamedTuple):
    """A task whose end was met. `milestones`: its whole journal, or none where it has to be read."""

    tenant: str
    task: str
    end: Milestone
    milestones: tuple[Milestone, ...]


@dataclass(slots=True)
class _Open:
    milestones: list[Milestone] = field(default_factory=list)
    is_whole: bool = False


class Gathering:
    """What was met so far of journals that have not ended."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._bytes = 0

    def add(self, stored: Stored) -> Ended | None:
        """Take a milestone; the task, if it ends it. Raises `TaskmeshError` for what can't be read."""
        try:
            journal = subjects.parse_journal(stored.subject)
            head = decode_head(stored.payload)
        except TaskmeshError:
            self._forget(stored.subject)
            raise
        gathered = self._open.get(stored.subject)
        if gathered is None:
            gathered = self._open[stored.subject] = _Open(is_whole=head.n == 0)
        milestone = milestone_of(stored)
        gathered.milestones.append(milestone)
        self._bytes += len(stored.payload)
        if head.type in TERMINAL_TYPES:
            self._forget(stored.subject)
            whole = tuple(gathered.milestones) if gathered.is_whole else ()
            return Ended(journal.tenant, journal.task, milestone, whole)
        if self._bytes > GATHERED_BYTES_MAX:
            self._open.clear()
            self._bytes = 0
        return None

    def _forget(self, subject: str) -> None:
        gathered = self._open.pop(subject, None)
        if gathered is not None:
            self._bytes -= sum(len(each.payload) for each in gathered.milestones)
