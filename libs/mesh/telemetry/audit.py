"""The audit log: one line for each thing that somebody has asked for, with who it was and what came of it.

Its event is `audit`, its fields are always these, null where there is nothing to say. `docs/access.md` tells of them.
"""

from __future__ import annotations

from typing import Final

import structlog

from contracts.messages.control import ApprovalCommand, Command

log = structlog.get_logger("mesh.telemetry.audit")

ACCEPTED: Final = "accepted"
BROKER: Final = "broker"
"""The source of what did not come over HTTP."""


def what_of(command: Command) -> str:
    """What a line calls a command."""
    if isinstance(command, ApprovalCommand):
        return "approve" if command.decision == "approved" else "deny"
    return str(command.__struct_config__.tag)


def tell(
    *,
    what: str,
    by: str | None,
    source: str,
    result: str,
    tenant: str | None = None,
    task: str | None = None,
    target: str | None = None,
    reason: str | None = None,
) -> None:
    """Write a line. `result` is `accepted`, or the code of what it was refused with.

    `target`: what is meant that is no task, such as a valve; `reason`: why, as whoever asked has said.
    """
    say = log.info if result == ACCEPTED else log.warning
    say(
        "audit",
        what=what,
        task=task,
        tenant=tenant,
        target=target,
        by=by,
        reason=reason,
        source=source,
        result=result,
    )


def tell_left_out(refusals: int) -> None:
    """Say how many lines of refusals were left out, as more came than are written."""
    log.warning("audit.left_out", refusals=refusals)
