"""Which tasks, or dead letters, a list is asked for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from contracts.api.dead_letters import ListedDeadLetter
from contracts.records.status import Status, TaskRecord
from ingress.listing.keys import EVERY, OPEN, scalar_text, status_label
from ingress.listing.rows import code_label, metadata_label, tool_label


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks are asked for. `since` is inclusive, `until` is not; both are held against `updated_at`.

    `metadata`: keys with the texts of their values, all of which a task must have. Tasks have no label of their pool,
    priority and age: these are looked at row by row.
    """

    status: Status | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    pool: str | None = None
    priority: str | None = None
    created_before: datetime | None = None

    @property
    def labels(self) -> list[int]:
        """What each task that fits is found by; empty is all of them."""
        labels = [metadata_label(key, text) for key, text in self.metadata]
        return labels if self.status is None else [*labels, status_label(self.status)]

    def takes(self, record: TaskRecord) -> bool:
        """Whether a task that has the labels has the values: two of them may share a label, and others have none."""
        if self.pool not in (None, record.pool) or self.priority not in (None, record.priority):
            return False
        if self.created_before is not None and record.created_at >= self.created_before:
            return False
        has = record.metadata or {}
        return all(key in has and scalar_text(has[key]) == text for key, text in self.metadata)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are asked for. `since` is inclusive, `until` is not; both are held against `time`."""

    tool: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    only_open: bool = True

    @property
    def labels(self) -> list[int]:
        """What each dead letter that fits is found by."""
        labels = [tool_label(self.tool)] if self.tool is not None else []
        if self.code is not None:
            labels.append(code_label(self.code))
        if self.only_open:
            labels.append(OPEN)
        return labels or [EVERY]

    def takes(self, letter: ListedDeadLetter) -> bool:
        """Whether a dead letter that has the labels has the values: two of them may share a label."""
        return (self.tool is None or letter.tool == self.tool) and (self.code is None or letter.error.code == self.code)
