"""`meshctl approve`, `deny`, `say`: what a person says to a task that waits, or runs."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from contracts.api.inputs import ApprovalInput, MessageInput
from contracts.records.status import OpenApproval, TaskRecord
from meshctl.client import Client
from meshctl.commands.tasks import client_of, text_of
from meshctl.display import output
from meshctl.display.rendering import approval_text
from meshctl.errors import MeshctlError


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register the commands."""
    _add_decision(commands, common, "approve", "let a call that waits for it be run", "approved")
    _add_decision(commands, common, "deny", "refuse a call that waits for approval", "denied")
    text = (
        "Say something to a task. It answers the oldest open question; if there is none, the model's next turn sees it."
        " With --redirect the turn under way begins again with it, and what else waits for a person is called off."
    )
    say = commands.add_parser("say", parents=[common], help="answer a task, or say something to it", description=text)
    say.add_argument("task", help="id of the task")
    say.add_argument("text", help="what to say; - reads it from standard input")
    say.add_argument("--redirect", action="store_true", help="don't wait for the next turn: begin this one again")
    say.add_argument("--key", help="idempotency key: the same key and text are the same message")
    say.set_defaults(run=_run_say)


def _add_decision(commands: Any, common: argparse.ArgumentParser, name: str, does: str, decision: str) -> None:
    description = f"{does[0].upper()}{does[1:]}. `meshctl get TASK` shows what waits."
    parser = commands.add_parser(name, parents=[common], help=does, description=description)
    parser.add_argument("task", help="id of the task")
    parser.add_argument("call", nargs="?", help="id of the call, such as 1-0; may be left out if only one waits")
    parser.add_argument("--reason", metavar="TEXT", help="why; a model that is refused is told")
    parser.set_defaults(run=_run_decision, decision=decision)


def _run_decision(arguments: argparse.Namespace) -> int:
    return asyncio.run(_decide(arguments))


def _run_say(arguments: argparse.Namespace) -> int:
    return asyncio.run(_say(arguments))


async def _decide(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        call = arguments.call or await _only_call(client, arguments.task)
        said = ApprovalInput(call=call, decision=arguments.decision, reason=arguments.reason)
        answer = await client.say(arguments.task, said)
    if output.for_people():
        print(f"call {_named(answer.value, call)} of {answer.value.id} will be {arguments.decision}")
    else:
        output.raw_line(answer.raw)
    return 0


async def _say(arguments: argparse.Namespace) -> int:
    said = MessageInput(text=text_of(arguments.text), mode="redirect" if arguments.redirect else "append")
    async with client_of(arguments) as client:
        answer = await client.say(arguments.task, said, arguments.key)
    if output.for_people():
        print(f"{answer.value.id} will be told")
    else:
        output.raw_line(answer.raw)
    return 0


async def _only_call(client: Client, task: str) -> str:
    return only_approval((await client.get(task)).value).call


def only_approval(record: TaskRecord) -> OpenApproval:
    """The approval that a task waits for. Raises `MeshctlError` unless there is exactly one."""
    if not record.approvals:
        raise MeshctlError(f"task {record.id} is {record.status}, and waits for no approval", code="conflict")
    if len(record.approvals) > 1:
        waiting = "; ".join(approval_text(approval) for approval in record.approvals)
        raise MeshctlError(f"{len(record.approvals)} calls wait, so name one: {waiting}", code="conflict")
    return record.approvals[0]


def _named(record: TaskRecord, call: str) -> str:
    """A call with its tool, where the record still says which."""
    tools = [approval.tool for approval in record.approvals or [] if approval.call == call]
    return f"{call} ({tools[0]})" if tools else call
