"""The gate of a lane that can be paused, around the one that it has: while it is paused nothing is pulled there."""

from __future__ import annotations

from collections.abc import Callable

from mesh.broker.gates import ChangingRoom, Gate, Permit


class ValveGate(ChangingRoom):
    """The gate `inner`, but shut while `is_paused`. Call `update` when that may have changed.

    What came while it shut waits in hand, as in front of any gate, and uses up no further delivery.
    """

    def __init__(self, inner: Gate, is_paused: Callable[[], bool]) -> None:
        super().__init__()
        self._inner = inner
        self._is_paused = is_paused
        self._waiting = 0
        inner.on_changed(self.update)
        self.update()

    @property
    def waiting(self) -> int:
        """Messages in hand that wait for it: they wait for what is behind it, too."""
        return self._waiting

    @waiting.setter
    def waiting(self, count: int) -> None:
        self._inner.waiting += count - self._waiting
        self._waiting = count

    @property
    def is_paused(self) -> bool:
        """Whether somebody has paused it."""
        return self._is_paused()

    def room(self) -> int:
        """None while it is paused, else what the gate behind it has."""
        return 0 if self._is_paused() else self._inner.room()

    def _look(self) -> int:
        # What is behind it has just looked, if it is the one that tells.
        return 0 if self._is_paused() else self._inner.last_room

    @property
    def leaves_pulls_open(self) -> bool:
        """Not while it is paused."""
        return not self._is_paused() and self._inner.leaves_pulls_open

    def seconds_shut(self) -> float:
        """What the gate behind it knows. Nobody knows how long a pause is: it may end at any time."""
        return 0.0 if self._is_paused() else self._inner.seconds_shut()

    def ask(self) -> None:
        """There is a message: of a paused lane nothing is to be made ready."""
        if not self._is_paused():
            self._inner.ask()

    def __eq__(self, other: object) -> bool:
        """Those in front of one gate share its room."""
        return isinstance(other, ValveGate) and other._inner is self._inner

    def __hash__(self) -> int:
        return hash(id(self._inner))

    def acquire(self) -> Permit | None:
        """Leave to work on a message."""
        if self._is_paused():
            return None
        permit = self._inner.acquire()
        return _ValvePermit(permit, self) if permit is not None else None


def behind(permit: Permit | None) -> Permit | None:
    """The leave of the gate behind a valve; any other as it is."""
    return permit.behind if isinstance(permit, _ValvePermit) else permit


class _ValvePermit:
    """Leave to begin a step, as long as its lane is not paused before it has."""

    def __init__(self, permit: Permit, gate: ValveGate) -> None:
        self.behind = permit
        """The leave of the gate behind it."""
        self._gate = gate

    @property
    def is_valid(self) -> bool:
        """Whether work may begin now."""
        return not self._gate.is_paused and self.behind.is_valid

    def release(self) -> None:
        """Give leave back."""
        self.behind.release()
