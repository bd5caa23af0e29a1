"""Places: how many messages of a pool a process may have in hand, beside how many it may have in all.

A process that serves one pool, and a server that bears whatever comes, need none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class Places(Protocol):
    """Of one process, by pool: the name in `Share.pool`."""

    def has_room(self, pool: str, in_hand: Mapping[str, int]) -> bool:
        """Whether one more message of a pool may be begun while each pool has so many in hand."""
        ...

    def room(self, pool: str, in_hand: Mapping[str, int]) -> int:
        """How many more may be, if no other pool begins any."""
        ...

    def holds(self, pool: str) -> bool:
        """Whether a message that comes while its pool has no room may wait here for it; else its lanes ask for none.

        Where another process has room for it, it had better wait at the broker.
        """
        ...

    def weight(self, pool: str) -> float:
        """The pool's share of the free places, as it stands to those of the others."""
        ...

    def waiting(self, pool: str, lane: str, messages: int) -> None:
        """So many messages wait in a lane of a pool: its consumer has said so with one that it gave."""
        ...

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever there may be more room than before."""
        ...
