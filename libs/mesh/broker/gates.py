"""Gates of consumers: whether what one holds can be worked on at present, so that what can't is not pulled.

To pull a message uses up one of its deliveries. So a consumer whose gate is shut is left alone; what comes all the
same, since the gate shut while it was on its way, waits in hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

from mesh.background import first_of

HELD_MAX = 8
"""Messages of a process that wait in hand for their gate, beside those that are worked on."""
HELD_SECONDS_MAX = 2.0
"""A gate that is known to stay shut for longer has nobody wait in hand."""
LOOK_SECONDS = 0.5
"""How often those that wait look whether it is."""
PATIENCE_SECONDS = 0.5
"""How long one that has tried in vain leaves a gate of little room to others: the fault may be its own."""
UNLIMITED = 1_000_000
"""The room of a gate that is wide open."""


class Permit(Protocol):
    """Leave to work on one message."""

    @property
    def is_valid(self) -> bool:
        """Whether work may begin now."""
        ...

    def release(self) -> None:
        """The work is over, or will not be begun now."""
        ...


class Gate(Protocol):
    """Of the consumers whose messages need the same things. `opened` is set while there is room.

    `waiting` counts the messages in this process's hands that wait for it.
    """

    opened: asyncio.Event
    waiting: int

    def room(self) -> int:
        """How many more messages may be worked on: `UNLIMITED`, a few, or none."""
        ...

    @property
    def last_room(self) -> int:
        """The same, as it was when those were told who hear of changes."""
        ...

    @property
    def leaves_pulls_open(self) -> bool:
        """Whether lanes that are empty may wait for their next message at the broker."""
        ...

    def seconds_shut(self) -> float:
        """For how long there is no room for sure; 0 if that is not known."""
        ...

    def ask(self) -> None:
        """There is a message, or may be one, and a place to work on it, but no room."""
        ...

    def acquire(self) -> Permit | None:
        """Leave to work on a message; None where there is no room."""
        ...

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever there is another room: pulls may begin, or those that are open must end."""
        ...


class _Always:
    is_valid = True

    def release(self) -> None:
        """Nothing was taken."""


ALWAYS: Permit = _Always()
"""Leave that nobody has to give."""
permit_in_hand: ContextVar[Permit | None] = ContextVar("permit_in_hand", default=None)
"""Under which a message is worked on, for whatever is done with it."""


class ChangingRoom:
    """What gates have in common whose room changes: `opened`, and who is told. `update` looks at it."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._room = 0

    @property
    def last_room(self) -> int:
        """The room as it was when it was looked at last."""
        return self._room

    def room(self) -> int:
        """How many more messages may be worked on."""
        raise NotImplementedError

    def _look(self) -> int:
        return self.room()

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever there is another room than before."""
        self._callbacks.append(callback)

    def update(self) -> None:
        """Look again: something that the room hangs on has changed."""
        before, self._room = self._room, self._look()
        if self._room > 0:
            self.opened.set()
        else:
            self.opened.clear()
        if self._room != before:
            for callback in self._callbacks:
                callback()


class AlwaysOpen:
    """The gate of consumers that have none."""

    def __init__(self) -> None:
        self.waiting = 0
        self.opened = asyncio.Event()
        self.opened.set()

    @property
    def last_room(self) -> int:
        """No limit."""
        return self.room()

    def room(self) -> int:
        """No limit."""
        return UNLIMITED

    @property
    def leaves_pulls_open(self) -> bool:
        """Always."""
        return True

    def seconds_shut(self) -> float:
        """It never is."""
        return 0.0

    def ask(self) -> None:
        """There always is room."""

    def acquire(self) -> Permit | None:
        """Always."""
        return ALWAYS

    def on_changed(self, callback: Callable[[], None]) -> None:
        """It never does."""


class WaitingRoom:
    """Messages in hand whose gate is shut. Their leases are kept; they take no room from those that can be worked on.

    One that goes back instead uses up a delivery; so the few that came while a gate shut, and the one that probed in
    vain, stay here.
    """

    def __init__(self, on_room: Callable[[], None]) -> None:
        self.count = 0
        self._on_room = on_room
        self._closed = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether the process stops."""
        return self._closed.is_set()

    def close(self) -> None:
        """The process stops: all go back."""
        self._closed.set()

    async def wait(self, gate: Gate, *, tried: bool) -> Permit | None:
        """Leave to work, once the gate gives it. None if the message is to go back: there is no room to wait in.

        Nor is there where the gate stays shut for long. Who has `tried` leaves single places to others, while there
        are any.
        """
        if self.is_closed or self.count >= HELD_MAX:
            return None
        self.count += 1
        gate.waiting += 1
        self._on_room()
        try:
            while not self._closed.is_set():
                if gate.seconds_shut() > HELD_SECONDS_MAX:
                    return None
                await first_of(gate.opened, self._closed, seconds=LOOK_SECONDS)
                if not gate.opened.is_set():
                    continue
                if tried and gate.room() < UNLIMITED:
                    await first_of(self._closed, seconds=PATIENCE_SECONDS)
                permit = None if self._closed.is_set() else gate.acquire()
                if permit is not None:
                    return permit
            return None
        finally:
            self.count -= 1
            gate.waiting -= 1
