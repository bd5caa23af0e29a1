"""Whether a turn waits until its tenant may go on: then its message goes into BACKLOG, before anybody claims it."""

from __future__ import annotations

from typing import Final, Protocol

from contracts.messages.work import Work


class PutsOff(Protocol):
    """Tells which work is to wait, whatever its queue and its provider say."""

    def expect(self, work: Work) -> None:
        """A delivery has come: what is to be known of it may be looked up while its journal is read."""
        ...

    async def is_put_off(self, work: Work) -> bool:
        """Whether it is to wait."""
        ...


class AnyPutsOff:
    """Work waits while any of several says so; they are asked in this order."""

    def __init__(self, *several: PutsOff) -> None:
        self._several = several

    def expect(self, work: Work) -> None:
        """A delivery has come."""
        for each in self._several:
            each.expect(work)

    async def is_put_off(self, work: Work) -> bool:
        """Whether one of them says that it is to wait."""
        for each in self._several:
            if await each.is_put_off(work):
                return True
        return False


class _Never:
    def expect(self, work: Work) -> None:
        """Nothing is looked up."""

    async def is_put_off(self, work: Work) -> bool:
        """Nothing waits."""
        return False


NEVER: Final[PutsOff] = _Never()
"""Nothing waits but for its queue."""
