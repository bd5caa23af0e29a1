"""Gates of lanes: whether what a lane holds can be run at present, so that what can't is not pulled.

To pull a message uses up one of its deliveries. So a lane whose gate is shut is left alone; what comes all the same,
since the gate shut while it was on its way, waits in hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from mesh.background import first_of

HELD_MAX = 8
"""Messages of a process that wait in hand for their gate, beside the steps that run."""
WITHHELD_SECONDS = 1.0
"""Delay of those that there is no room for. They come no sooner than their gate opens: nobody pulls them."""
PATIENCE_SECONDS = 0.5
"""How long one that has tried in vain leaves a gate of little room to others: the fault may be its own."""
UNLIMITED = 1_000_000
"""The room of a gate that is wide open."""


class Withheld(Exception):
    """The gate has shut: the step is not to be claimed now, and its message waits."""


class Entry(Protocol):
    """Leave to run one step."""

    @property
    def holds(self) -> bool:
        """Whether the step may be claimed now."""
        ...

    def leave(self) -> None:
        """The step is over, or will not be run now."""
        ...


def require(entry: Entry) -> None:
    """Raise `Withheld` if the step may not be claimed now."""
    if not entry.holds:
        raise Withheld


class Gate(Protocol):
    """Of the lanes whose steps need the same things. `opened` is set while there is room.

    `waiting` counts the steps in this process's hands that wait for it.
    """

    opened: asyncio.Event
    waiting: int

    def room(self) -> int:
        """How many more steps may be begun: `UNLIMITED`, a few, or none."""
        ...

    def enter(self) -> Entry | None:
        """Leave to run a step; None where there is no room."""
        ...

    def on_shut(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the last room is gone: pulls that are open must end."""
        ...


class _Always:
    holds = True

    def leave(self) -> None:
        """Nothing was taken."""


class AlwaysOpen:
    """The gate of lanes that have none."""

    def __init__(self) -> None:
        self.waiting = 0
        self.opened = asyncio.Event()
        self.opened.set()
        self._entry = _Always()

    def room(self) -> int:
        """No limit."""
        return UNLIMITED

    def enter(self) -> Entry | None:
        """Always."""
        return self._entry

    def on_shut(self, callback: Callable[[], None]) -> None:
        """It never shuts."""


class WaitingRoom:
    """Messages in hand whose gate is shut. Their leases are kept; they take no room from steps that can run.

    One that goes back instead uses up a delivery; so the few that came while a gate shut, and the one that probed in
    vain, stay here.
    """

    def __init__(self, on_room: Callable[[], None]) -> None:
        self.count = 0
        self._on_room = on_room
        self._closed = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return self.count < HELD_MAX and not self._closed.is_set()

    @property
    def nak_seconds(self) -> float:
        """The delay with which a message goes back."""
        return 0.0 if self._closed.is_set() else WITHHELD_SECONDS

    def close(self) -> None:
        """The process stops: all go back."""
        self._closed.set()

    async def wait(self, gate: Gate, *, tried: bool) -> Entry | None:
        """Leave to run, once the gate gives it. None if the message is to go back.

        Who has `tried` leaves single places to others, while there are any.
        """
        if not self.has_room:
            return None
        self.count += 1
        gate.waiting += 1
        self._on_room()
        try:
            while not self._closed.is_set():
                await first_of(gate.opened, self._closed, seconds=None)
                if tried and gate.room() < UNLIMITED:
                    await first_of(self._closed, seconds=PATIENCE_SECONDS)
                entry = None if self._closed.is_set() else gate.enter()
                if entry is not None:
                    return entry
            return None
        finally:
            self.count -= 1
            gate.waiting -= 1
