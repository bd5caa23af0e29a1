"""What a client says to a task that goes on: which command it becomes, or why it is refused. Pure.

It is judged by what the ingress can see. The journal decides: of two decisions on a call that come at once the first
one counts, and the steward drops the other.
"""

from __future__ import annotations

from contracts.api.inputs import ApprovalInput, MessageInput, TaskInput, input_request
from contracts.journal.events import InputReceived
from contracts.messages.control import (
    ApprovalCommand,
    InputCommand,
    approval_message_id,
    input_message_id,
)
from mesh.errors import IdempotencyMismatch
from mesh.serving.http import RequestRefused
from mesh.task.state import TaskState


def shows(state: TaskState, said: TaskInput) -> bool:
    """Whether as much of the journal is folded as it takes to judge: what is not there yet might still come."""
    if not state.exists:
        return False
    if state.terminal is not None:
        return True
    return isinstance(said, MessageInput) or said.call in state.approvals


def message_id(tenant: str, task: str, said: TaskInput, idempotency_key: str | None) -> str:
    """`Nats-Msg-Id` of the command. One without a key is another at each call, where it is a message."""
    if isinstance(said, ApprovalInput):
        return approval_message_id(task, said.call, said.decision)
    return input_message_id(task, input_request(tenant, idempotency_key))


def was_carried_out(state: TaskState, said: TaskInput, command: str) -> bool:
    """Whether the journal has this very message. Raises `IdempotencyMismatch` if its key brought another one."""
    if isinstance(said, ApprovalInput) or command not in state.commands:
        return False
    answers = (result for result in state.call_results.values() if isinstance(result, InputReceived))
    for received in (*state.inputs, *answers):
        if received.command == command:
            check_same(said, received)
    return True


def check_same(said: MessageInput, before: InputReceived | InputCommand) -> None:
    """Hold a message against the one that its key has brought before. Raises `IdempotencyMismatch`."""
    if (said.text, said.mode) != (before.text, before.mode):
        raise IdempotencyMismatch("the key has brought another message to this task")


def command_for(state: TaskState, said: TaskInput, command: str, by: str) -> InputCommand | ApprovalCommand:
    """The command that carries it to the steward, from whom `by` says.

    Raises `RequestRefused`: there is no such call, or it is too late.
    """
    if state.terminal is not None:
        raise RequestRefused("conflict", f"task {state.task} is {state.status}: nobody listens any more")
    if isinstance(said, MessageInput):
        return InputCommand(
            task=state.task, tenant=state.tenant, by=by, text=said.text, mode=said.mode, command=command
        )
    if said.call not in state.approvals:
        raise RequestRefused("not-found", f"task {state.task} asks for no approval of a call {said.call}")
    resolution = state.resolutions.get(said.call)
    if resolution is not None:
        raise RequestRefused("conflict", f"call {said.call} is {resolution.decision} already, by {resolution.by}")
    return ApprovalCommand(
        task=state.task, tenant=state.tenant, by=by, call=said.call, decision=said.decision, reason=said.reason
    )
