"""Orders that an operator gives to one process, and their answers; core NATS, nothing is stored."""

from __future__ import annotations

import msgspec

from contracts.fields import Count


class DrainOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Take no more work, and leave when what is in hand has ended, for good.

    `wait`: however long that takes. Else for as long as a stop waits, and what is left then is handed over.
    """

    wait: bool = False


class DrainAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """It drains from now on, if it did not already. `running`: what it has in hand."""

    worker: str
    running: Count
