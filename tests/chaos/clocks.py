"""Shorter waits for workers and runners of these runs: what takes ten seconds in earnest takes one here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from mesh.task import failures

NAK_SECONDS_MAX = 1.0
"""What is to be tried again later than that is brought by a timer."""


@contextmanager
def short_waits() -> Iterator[None]:
    """Within it a short pause goes through a timer, too."""
    with mock.patch.object(failures, "NAK_SECONDS_MAX", NAK_SECONDS_MAX):
        yield
