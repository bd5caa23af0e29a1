"""The tool `send_signal`: an agent tells the mesh that something has happened, and rules may act on it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from contracts import headers, subject_filters, subjects
from contracts.codec import encode, exactly
from contracts.messages.work import ToolWork
from contracts.records.tools import SEND_SIGNAL
from contracts.subjects import SIGNAL_PATTERN
from contracts.triggers.rules import SIGNAL_BYTES_MAX
from mesh import faults
from mesh.broker.requests import NO_ROOM
from mesh.errors import BrokerError
from mesh.task.state import TaskState
from tool_runner.tools.tool import Call, Tool, ToolBroke, ToolRefused, built_in

TIMEOUT_SECONDS = 30.0


class SendSignalArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`subject`: what has happened, as words and dots, such as `inventory.reordered`. `payload`: the particulars."""

    subject: Annotated[str, exactly(SIGNAL_PATTERN, 256)]
    payload: dict[str, Any] = {}


class SentSignal(msgspec.Struct, frozen=True):
    """The whole subject that the signal is stored under."""

    subject: str


def send_signal(allowed: list[str]) -> Tool[SendSignalArguments]:
    """The tool, for a mesh whose settings allow these signals."""

    async def run(arguments: SendSignalArguments, call: Call) -> SentSignal:
        step, work = call.step, call.step.work
        if not isinstance(work, ToolWork):
            raise TypeError("not a claimed call")
        payload = encode(arguments.payload)
        check(step.state, arguments.subject, allowed)
        if len(payload) > SIGNAL_BYTES_MAX:
            raise ToolRefused(f"a signal has at most {SIGNAL_BYTES_MAX} bytes")
        subject = subjects.signal(work.tenant, arguments.subject)
        message_headers = {headers.TRIGGER_CHAIN: ",".join(chain(step.state))} if chain(step.state) else {}
        if faults.MESSAGE_ID_ON:
            message_headers[headers.MESSAGE_ID] = f"{work.task}.{work.call}.g{work.gen}.signal"
        try:
            await step.publish(subject, payload, message_headers)
        except BrokerError as error:
            if error.number in NO_ROOM:
                raise ToolBroke("there is no room for signals at present") from None
            raise
        return SentSignal(subject)

    return built_in(
        SEND_SIGNAL,
        "Sends a signal: tells other agents and systems that something has happened. It does not wait for them.",
        SendSignalArguments,
        run,
        timeout_seconds=TIMEOUT_SECONDS,
    )


def chain(state: TaskState) -> list[str]:
    """The rules that led to a task; none where a person or a program has submitted it."""
    trigger = state.queued.trigger if state.queued else None
    return trigger.chain if trigger else []


def check(state: TaskState, subject: str, allowed: list[str]) -> None:
    """Refuse what the settings, or the rule that started the task, do not allow. Raises `ToolRefused`."""
    if not any(subject_filters.matches(each, subject) for each in allowed):
        raise ToolRefused(f"the signal {subject!r} may not be sent here; {_named(allowed)}")
    trigger = state.queued.trigger if state.queued else None
    if trigger is None:
        return
    if trigger.sends is not None and not any(subject_filters.matches(each, subject) for each in trigger.sends):
        raise ToolRefused(f"the rule {trigger.rule} does not let its tasks send {subject!r}; {_named(trigger.sends)}")


def _named(allowed: list[str]) -> str:
    return f"allowed: {', '.join(allowed)}" if allowed else "none is allowed"
