"""Turns of a tenant that is paused: they wait in BACKLOG until it goes on.

A paused tenant shares its lanes with others, so that no gate can be shut for it, and a message that went back to its
queue would use up its deliveries.
"""

from __future__ import annotations

from contracts.messages.work import TurnWork, Work
from mesh.valves.watched import Valves


class PausedTenants:
    """Puts off turns whose tenant is paused: `PutsOff`."""

    def __init__(self, valves: Valves) -> None:
        self._valves = valves

    def expect(self, work: Work) -> None:
        """Nothing is to be looked up: the valves are known here."""

    async def is_put_off(self, work: Work) -> bool:
        """Whether it is a turn of a tenant that is paused."""
        return isinstance(work, TurnWork) and self._valves.is_paused(tenant=work.tenant)
