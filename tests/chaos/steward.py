"""`python -m tests.chaos.steward`: the steward, with short leases of walks, small packs, and sweeps that come soon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import ModuleType
from unittest import mock

from mesh.archive import pack
from mesh.broker import milestones
from mesh.serving.service import run
from steward import retention, sweeping
from steward.__main__ import main
from steward.archiving import packing
from steward.sweeps import kinds
from steward.walks import walking
from tests.support.patience import stretched

LEASE_SECONDS = 1.0
AGAIN_SECONDS = 4.0
"""Each walk begins anew so often: in a run of these once or twice, also while somebody is at a piece of it."""
LEFT_OVER_SECONDS = 3.0
"""So old is what a sweep looks at."""
SHORT: tuple[tuple[ModuleType, str, object], ...] = (
    (walking, "LEASE", timedelta(seconds=stretched(LEASE_SECONDS))),
    (walking, "AGAIN_EVERY", timedelta(seconds=AGAIN_SECONDS)),
    (retention, "ROUND_SECONDS", 0.1),
    (retention, "SHARE_MAX", 0.9),
    (sweeping, "ROUND_SECONDS", 0.3),
    (kinds, "MESSAGE_AGE", timedelta(seconds=LEFT_OVER_SECONDS)),
    (kinds, "TIMER_AGE", timedelta(seconds=LEFT_OVER_SECONDS)),
    # Several pieces in a run, several batches in a piece, several packs in a batch.
    (packing, "PIECE_SEQUENCES", 48),
    (milestones, "PAGE_EVENTS_MAX", 16),
    (packing, "BATCH_TASKS_MAX", 2),
    (pack, "PACK_TASKS_MAX", 1),
    # And one task that is too large for its pack. What is smaller is compressed by itself.
    (pack, "MEMBER_LINES_BYTES_MAX", 4 * 1024),
    (pack, "MEMBER_BYTES_MAX", 16 * 1024),
    (pack, "PART_BYTES_MAX", 16 * 1024),
)
"""What takes minutes and thousands of tasks in earnest."""


@contextmanager
def in_small() -> Iterator[None]:
    """Within it a few tasks of some seconds make several packs."""
    with ExitStack() as stack:
        for module, name, value in SHORT:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


if __name__ == "__main__":
    with in_small():
        run("steward", main)
