"""Decisions on calls, before they are given to the steward: who may approve, and that none is lost in another's."""

from __future__ import annotations

from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.identifiers import new_id
from contracts.messages.control import AnyCommand, ApprovalCommand
from contracts.streams import CONTROL
from ingress import commands
from ingress.journals import not_understood
from mesh.access.approvals import Approvals
from mesh.access.callers import Caller
from mesh.broker.direct_get import sequence_from_leader
from mesh.broker.requests import PubAck, Requests
from mesh.configuration.mesh_toml import Configuration
from mesh.journal.warm import WarmJournals
from mesh.serving.http import AnyRequest, RequestRefused
from mesh.task.state import TaskState


class Approving:
    """The operator's rules for approvals, at the ingress."""

    def __init__(self, requests: Requests, journals: WarmJournals, configuration: Configuration) -> None:
        self._requests = requests
        self._journals = journals
        self.configure(configuration)

    def configure(self, configuration: Configuration) -> None:
        """Go by these rules from the next request on."""
        self._configuration = configuration
        self._approvals = Approvals(configuration, self._state_of)

    async def check(self, caller: Caller, state: TaskState, command: AnyCommand) -> None:
        """Hold a command against the rules. Raises `RequestRefused`, `JournalNotUnderstood`, `BrokerUnavailable`."""
        if isinstance(command, ApprovalCommand) and command.decision == "approved":
            tool = state.approvals[command.call].tool
            scope = self._approvals.scope_of(tool)
            if scope not in caller.identity.scopes:
                raise RequestRefused("scope-missing", f"approving calls of {tool} takes the scope {scope!r}")
        refusal = await self._approvals.refusal(state, command)
        if refusal is not None:
            raise RequestRefused(refusal.code, refusal.message)

    async def send_again(
        self, state: TaskState, command: ApprovalCommand, message_id: str, ack: PubAck, request: AnyRequest, route: str
    ) -> None:
        """Give an approval to the steward that CONTROL takes for another's.

        Its message id says what is decided and not by whom. One that came past every ingress, and that the steward has
        refused, must not stand for it.
        """
        if not self._configuration.approvals.takes_four_eyes(state.approvals[command.call].tool):
            return
        stored = await sequence_from_leader(self._requests, CONTROL.name, ack.seq)
        if stored is None or decode(stored.payload, ApprovalCommand).by != command.by:
            await commands.send(self._requests, command, f"{message_id}.{new_id()}", request, route)

    async def _state_of(self, tenant: str, task: str) -> TaskState:
        try:
            return await self._journals.state_of(tenant, task)
        except InvalidPayload as error:
            raise not_understood("journal", tenant, task, error) from None
