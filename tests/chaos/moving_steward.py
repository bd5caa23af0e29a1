"""`python -m tests.chaos.moving_steward`: the steward, with a short lease of moves, and no early sweeps.

A sweep that comes soon would take away what a death in the middle of a move leaves behind.
"""

from __future__ import annotations

from unittest import mock

from mesh.serving.service import run
from steward.__main__ import main
from steward.admission import lease
from tests.support.patience import stretched

TAKEOVER_SECONDS = 2.0
"""It is written again each second."""

if __name__ == "__main__":
    with mock.patch.object(lease, "TAKEOVER_SECONDS", stretched(TAKEOVER_SECONDS)):
        run("steward", main)
