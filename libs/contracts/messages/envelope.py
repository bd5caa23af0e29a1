"""The envelope of a message: what every version reads of it, also of one that it does not understand."""

from __future__ import annotations

from typing import Any

import msgspec

from contracts.codec import decode
from contracts.errors import TaskmeshError
from contracts.fields import Call, Count, Id, Ordinal, Tenant
from contracts.identifiers import turn_step
from contracts.journal.parts import StepGen


class Envelope(msgspec.Struct, frozen=True):
    """Fields of work messages and commands that no version may remove, rename or change in meaning."""

    kind: str
    task: Id
    tenant: Tenant
    pool: str | None = None
    priority: str | None = None
    tool: str | None = None
    request: Any = None
    turn: Any = None
    call: Any = None
    gen: Any = 0
    tries: Any = 0
    releases: Any = 0

    @property
    def step(self) -> StepGen | None:
        """The step of a work message, with its gen; None where it names none."""
        try:
            gen = msgspec.convert(self.gen, Count)
            if self.call is not None:
                return StepGen(msgspec.convert(self.call, Call), gen)
            return StepGen(turn_step(msgspec.convert(self.turn, Ordinal)), gen)
        except msgspec.ValidationError:
            return None

    @property
    def epoch(self) -> tuple[int, int]:
        """Timed tries and releases of the step when the message was published."""
        try:
            return msgspec.convert(self.tries, Count), msgspec.convert(self.releases, Count)
        except msgspec.ValidationError:
            return 0, 0


def read_envelope(payload: bytes, subject: str) -> Envelope | None:
    """The envelope of a message on a subject. None: no version can have written it, and none will understand it."""
    try:
        envelope = decode(payload, Envelope)
    except TaskmeshError:
        return None
    return envelope if _belongs_on(subject, envelope) else None


def _belongs_on(subject: str, envelope: Envelope) -> bool:
    """Whether a message agrees with what its subject says of it, in every version."""
    prefix, *names = subject.split(".")
    # A new kind comes on a subject of its own, so that of each subject is known.
    match prefix, names:
        case "tasks" | "turns" | "backlog", [pool, priority, tenant]:
            said = (envelope.kind, envelope.pool or pool, envelope.priority or priority, envelope.tenant)
            return said == ("turn", pool, priority, tenant) and (prefix != "tasks" or envelope.request is not None)
        case "tools", [tool]:
            return envelope.kind == "tool" and envelope.tool in (None, tool)
        case "control", [kind, tenant]:
            return (envelope.kind, envelope.tenant) == (kind, tenant)
        case "timers", ["fired", kind, tenant, task, _]:
            return (envelope.kind, envelope.tenant, envelope.task) == (kind, tenant, task)
        case _:
            return False
