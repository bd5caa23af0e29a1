"""What a process finds wrong with itself: its broker, its loops, and what its service adds. For operators."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from contracts.records.status import HealthCheck
from mesh import loop_health
from mesh.broker.connection import Connection

FAILING_SECONDS: Final = 5.0
"""How long a loop fails before that is called unwell: a leader's election, or a broker's restart, is over by then."""
CHECKS_MAX: Final = 20
"""So many of what is unwell are told: a runner has a loop for each tool, and all fail for one reason."""
DETAIL_CHARACTERS_MAX: Final = 200

Look = Callable[[], list[HealthCheck]]
Probe = Callable[[], Awaitable[list[HealthCheck]]]


class Wellness:
    """The health of this process. It is there from its start on, also while there is no broker yet."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        """None until the broker has been reached for the first time."""
        self.is_draining = False
        """Whether it takes no more work, and ends."""
        self._looks: list[Look] = []
        self._remarks: list[Look] = []
        self._probe: Probe | None = None

    def add_look(self, look: Look) -> None:
        """Have something looked at that is known here: `look` asks nobody, and is called about once a second."""
        self._looks.append(look)

    def add_remark(self, look: Look) -> None:
        """Have something told to operators that hinders no work: who is unwell by it alone is ready all the same."""
        self._remarks.append(look)

    def ready_by(self, probe: Probe) -> None:
        """Be ready by these checks in place of its own: a service that others send to knows better what they need."""
        self._probe = probe

    def ailments(self) -> list[HealthCheck]:
        """What is not well, by what is known here. Empty while all is."""
        remarks = [check for look in self._remarks for check in look()]
        return [check for check in [*self._checks(), *remarks] if not check.ok][:CHECKS_MAX]

    async def readiness(self) -> list[HealthCheck]:
        """What has to be well for work to be taken, each with whether it is."""
        draining = [HealthCheck(name="draining", ok=False, detail="it takes no more work, and ends")]
        first = draining if self.is_draining else []
        if self._probe is not None:
            return [*first, *await self._probe()]
        checks = self._checks()
        unwell = [check for check in checks if not check.ok]
        return [*first, *(check for check in checks if check.ok), *unwell[:CHECKS_MAX]]

    def _checks(self) -> list[HealthCheck]:
        connected = self.connection is not None and self.connection.is_connected
        broker = HealthCheck(name="broker", ok=connected, detail=None if connected else "not connected")
        checks = [broker]
        for look in self._looks:
            checks += look()
        return [*checks, *_of_loops()]


def _of_loops() -> list[HealthCheck]:
    """The loops that fail, the longest first; one line for all that are well."""
    failing = [each for each in loop_health.failing() if each.seconds >= FAILING_SECONDS]
    if not failing:
        return [HealthCheck(name="loops", ok=True)]
    return [
        HealthCheck(
            name=f"loop.{each.name}",
            ok=False,
            detail=f"fails for {each.seconds:.0f} s: {each.error}"[:DETAIL_CHARACTERS_MAX],
        )
        for each in sorted(failing, key=lambda each: -each.seconds)
    ]
