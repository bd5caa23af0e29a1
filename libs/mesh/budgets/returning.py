"""When those may come again whom a budget had no room for: no more in one minute than it has room for then. Pure.

The budget of a minute is free again with the next one, for all who wait. Were each of them told that minute, most would
be refused once more. So each is told a minute of which less is promised than it has. A day and a month are longer than
anybody's plans, and all are told their end.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from mesh.budgets.limits import Limit, end_of

MINUTE: Final = timedelta(minutes=1)
AHEAD_MAX: Final = 10 * MINUTE
"""Nobody is sent away for longer because of those who were told to come before. Beyond it all come back spread."""
HEADROOM: Final = 0.8
"""The part of a minute's budget that is promised: others come as well, who were told nothing."""
TENANTS_MAX: Final = 10_000
"""So many tenants' promises are kept. Those go that were added to longest ago."""


@dataclass(slots=True)
class _Promised:
    """So much is promised of the minutes from `begin` on, the next ones first."""

    begin: datetime
    amount: float


class Returns:
    """What one process promises. The other processes, `sharers` in all, promise as much."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._promised: OrderedDict[tuple[str, Limit], _Promised] = OrderedDict()

    def take(
        self, tenant: str, limit: Limit, wanted: int, at: datetime, *, reserved: int = 0, sharers: int = 1
    ) -> datetime:
        """When one may come again who wants so much of a limit. `reserved`: what is taken of the next one by then."""
        first = end_of(limit.window, at)
        if limit.window != "minute":
            return first
        most = limit.most * HEADROOM
        share, wants = most / sharers, min(wanted, most)
        promised = self._promised.setdefault((tenant, limit), _Promised(first, 0.0))
        self._promised.move_to_end((tenant, limit))
        if len(self._promised) > TENANTS_MAX:
            self._promised.popitem(last=False)
        promised.amount = max(0.0, promised.amount - (first - promised.begin) / MINUTE * share)
        promised.begin = first
        ahead = max(promised.amount, reserved / sharers)
        # One who wants more than this process's share may be the only one.
        minutes = math.ceil((ahead + wants) / share) - 1 if ahead else 0
        if minutes * MINUTE > AHEAD_MAX:
            return first + int(self._chance() * (AHEAD_MAX / MINUTE)) * MINUTE
        promised.amount = ahead + wants
        return first + minutes * MINUTE
