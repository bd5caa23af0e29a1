"""Why a list can't be answered though the broker is there."""

from __future__ import annotations

from contracts.errors import TaskmeshError


class ListUnavailable(TaskmeshError):
    """The index is still being built, or can't be written. `retry_after_seconds`: when to ask again."""

    code = "list-unavailable"
    retryable = True

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
