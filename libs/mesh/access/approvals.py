"""Who may approve: the scope that it takes, and that another person does than those whose task it is.

The ingress asks before it takes a decision, and the steward again before it carries one out: a command can come past
every ingress. Denying is free to all who may decide.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from contracts import subjects
from contracts.access import Scope
from contracts.actors import four_eyes_objection, is_proposal, proposing_call
from contracts.errors import ErrorInfo, InvalidName
from contracts.journal.events import ApprovalRequested, InputReceived
from contracts.messages.control import AnyCommand, ApprovalCommand, ReplayCommand
from contracts.records.tools import DEPTH_MAX, PROPOSE_REPLAY
from mesh.configuration.mesh_toml import Configuration
from mesh.task.state import TaskState

FOUR_EYES: Final = "four-eyes"

StateOf = Callable[[str, str], Awaitable[TaskState]]
"""The state of a tenant's task, as its stream's leader has it; one that does not exist where there is no task."""


class Approvals:
    """What the operator says of approvals, held against a task."""

    def __init__(self, configuration: Configuration, state_of: StateOf) -> None:
        self._approvals = configuration.approvals
        self._tools = configuration.tools
        self._state_of = state_of

    def scope_of(self, tool: str) -> Scope:
        """The scope that it takes to approve a tool's calls."""
        return self._tools.of(tool).approve_scope or self._approvals.scope

    async def refusal(self, state: TaskState, command: AnyCommand) -> ErrorInfo | None:
        """Why this command is not to be carried out, as it is the submitter's own or may be; None if all is well.

        Raises `BrokerUnavailable`.
        """
        asked = self._asked(state, command)
        if not asked or state.queued is None or state.terminal is not None:
            return None
        submitters = submitters_of(state, max(each.n for each in asked))
        submitters += await self._submitters_above(state)
        if isinstance(command, ApprovalCommand):
            submitters += await self._submitters_of_repaired(state.tenant, asked)
        by = command.by
        if is_proposal(by):
            by, of_proposal = await self._approver_of_proposal(state.tenant, by)
            submitters += of_proposal
        objection = four_eyes_objection(by, submitters)
        return ErrorInfo(FOUR_EYES, objection) if objection is not None else None

    def _asked(self, state: TaskState, command: AnyCommand) -> list[ApprovalRequested]:
        """The calls under four eyes that a command lets run, or lets run with other arguments than were approved."""
        match command:
            case ApprovalCommand(decision="approved", call=call):
                calls = [call] if call not in state.resolutions else []
            case ReplayCommand(edits=edits) if edits is not None:
                calls = list(edits.arguments or ())
            case _:
                calls = []
        asked = [state.approvals[call] for call in calls if call in state.approvals]
        return [each for each in asked if self._approvals.takes_four_eyes(each.tool)]

    async def _submitters_above(self, state: TaskState) -> list[str | None]:
        """Whose work a sub-task is: what its parents were told has led to it."""
        found: list[str | None] = []
        for _ in range(DEPTH_MAX):  # Made-up journals may name each other.
            if state.queued is None or state.queued.parent is None:
                break
            state = await self._state_of(state.tenant, state.queued.parent.task)
            found += submitters_of(state)
        return found

    async def _approver_of_proposal(self, tenant: str, by: str) -> tuple[str, list[str | None]]:
        """Who has agreed to a proposed replay, or has changed it since, and whose proposal it is.

        Proposals need not be under four eyes where the calls are that they change. `by` itself, which is no person's,
        where nobody has agreed.
        """
        proposing = proposing_call(by)
        if proposing is None:
            return by, []
        task, call = proposing
        state = await self._state_of(tenant, task)
        resolution, asked = state.resolutions.get(call), state.approvals.get(call)
        if resolution is None or asked is None or resolution.decision != "approved":
            return by, []
        _, last = max([(resolution.n, resolution.by), *state.edited_by])
        return last, submitters_of(state, asked.n)

    async def _submitters_of_repaired(self, tenant: str, asked: list[ApprovalRequested]) -> list[str | None]:
        """Who has submitted the tasks that these calls would repair: their work is what goes on."""
        found: list[str | None] = []
        for each in asked:
            if each.tool != PROPOSE_REPLAY:
                continue
            try:
                task = subjects.check_task(str(each.arguments.get("task", "")))
            except InvalidName:
                continue  # The tool refuses it.
            found += submitters_of(await self._state_of(tenant, task))
        return found


def submitters_of(state: TaskState, until: int | None = None) -> list[str | None]:
    """Who has made a task what it is, by its event `until`: who has submitted it, told it something, or changed it.

    None is one that nobody knows. Who could have another's task ask for a call, and then approve that, would be alone.
    """
    if state.queued is None:
        return []
    told = [(each.n, each.by) for each in state.inputs]
    told += [(each.n, each.by) for each in state.call_results.values() if isinstance(each, InputReceived)]
    return [state.queued.by, *(by for n, by in (*told, *state.edited_by) if until is None or n < until)]
