"""Whether an endless loop is well: told at its first failure, every few minutes while it lasts, and at its end.

A loop that is kept up by its own retries fails in silence otherwise: one line, hours ago, is no news.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

REMIND_SECONDS = 300.0
"""A failure that lasts is told again this often: seen by whoever looks at the last minutes of a log, and no flood."""

_all: weakref.WeakSet[LoopHealth] = weakref.WeakSet()


class Failing(NamedTuple):
    """A loop that fails: its name, for how long without a break, why last, and the fields of its log line."""

    name: str
    seconds: float
    error: str
    fields: dict[str, object]


class LoopHealth:
    """The health of one loop. `event` is what its log line is called, its first word the loop's name in metrics.

    `log` is a structlog logger. `fields` are in each line, such as which consumer it is that can't be pulled.
    """

    def __init__(self, log: Any, event: str, *, clock: Callable[[], float] = time.monotonic, **fields: object) -> None:
        self.name = event.partition(".")[0]
        self._log = log
        self._event = event
        self._clock = clock
        self._fields = fields
        self._failing_since: float | None = None
        self._told_at = 0.0
        self._error = ""
        _all.add(self)

    @property
    def failing_seconds(self) -> float:
        """How long it has failed without a break; 0 while it is well."""
        return 0.0 if self._failing_since is None else self._clock() - self._failing_since

    def failed(self, error: Exception) -> None:
        """A round failed. Told if it is the first, or if the last line is a while ago."""
        at = self._clock()
        self._error = str(error)
        if self._failing_since is None:
            self._failing_since = self._told_at = at
            self._log.warning(self._event, error=str(error), **self._fields)
        elif at - self._told_at >= REMIND_SECONDS:
            self._told_at = at
            self._log.warning(
                self._event, error=str(error), failing_seconds=round(at - self._failing_since), **self._fields
            )

    def succeeded(self) -> None:
        """A round was well. Told if the one before was not."""
        if self._failing_since is not None:
            failed_seconds = round(self._clock() - self._failing_since, 3)
            self._failing_since = None
            self._log.info("loop.well_again", loop=self.name, failed_seconds=failed_seconds, **self._fields)

    @property
    def failing(self) -> Failing | None:
        """How it fails; None while it is well."""
        if self._failing_since is None:
            return None
        return Failing(self.name, self.failing_seconds, self._error, self._fields)


def failing() -> list[Failing]:
    """The loops that fail in this process, of each name the one that has failed longest."""
    longest: dict[str, Failing] = {}
    for each in filter(None, (health.failing for health in list(_all))):
        if each.name not in longest or each.seconds > longest[each.name].seconds:
            longest[each.name] = each
    return list(longest.values())


def failing_seconds() -> dict[str, float]:
    """How long the loops of each name have failed in this process, the longest of those that share one."""
    longest: dict[str, float] = {}
    for health in list(_all):
        longest[health.name] = max(longest.get(health.name, 0.0), health.failing_seconds)
    return longest
