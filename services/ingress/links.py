"""Where a task is, and where its events are."""

from __future__ import annotations

from contracts.records.status import Links, links_of
from mesh.configuration.settings import Settings


def task_path(task: str) -> str:
    """Path of a task."""
    return f"/v1/tasks/{task}"


def task_links(settings: Settings, task: str) -> Links:
    """The links of a task, with its events where the edge is."""
    return links_of(task, settings.events_base_url)
