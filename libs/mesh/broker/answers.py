"""Answers to a delivery. A handler returns one, and `Consumption` performs it: nothing else answers a message.

Each handler's module says which answer follows when; for steps that is `mesh.steps.postponement`.
"""

from __future__ import annotations

from dataclasses import dataclass

NOT_VISIBLE_SECONDS = 0.2
"""Delay of a message whose journal can't be seen yet: a replica that is behind has it by then."""
NO_PERMIT_SECONDS = 1.0
"""Delay of a message that has no permit, nor a place to wait in hand. It comes no sooner than its gate opens."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The message is done with. A double ack: the broker is known to have it.

    `confirmed=False` is for what is none of this reader's business: if the broker does not hear it, it comes again.
    """

    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Nak:
    """The message goes back to its queue, and is delivered again after the delay; that is one delivery more."""

    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Term:
    """The message is deleted without a result. Its dead letter is written before."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """No answer yet: the message waits in hand, its lease kept, for a permit of its gate; then it is handled again.

    Where too many wait already, it goes back with the delay.
    """

    delay_seconds: float = NO_PERMIT_SECONDS


Answer = Ack | Nak | Term | Hold
NOT_VISIBLE_YET = Nak(NOT_VISIBLE_SECONDS)
