"""The tool `propose_replay`: an agent's repair of work that gave up, carried out once a person has agreed to it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta

from contracts import headers, subjects
from contracts.codec import encode
from contracts.fields import Id
from contracts.journal.events import TaskReplayed, decode_event
from contracts.journal.parts import StepGen
from contracts.messages.control import REASON_CHARACTERS_MAX, Edits, ReplayCommand, replay_message_id
from contracts.messages.work import ToolWork
from contracts.records.tools import PROPOSE_REPLAY
from contracts.tasks import BODY_BYTES_MAX
from mesh.broker.requests import NO_ROOM, Requests
from mesh.errors import BrokerError
from mesh.journal.journal import Journal
from mesh.journal.reading import milestones_of
from mesh.task.replays import edits_error, to_repair
from mesh.task.state import TaskState
from tool_runner.tools.tool import Call, Tool, ToolRefused, built_in

TIMEOUT_SECONDS = 60.0
REPLAYED_SECONDS_MAX = 30.0
"""How long a call waits to see its replay in the journal. The steward carries it out all the same."""
POLL_SECONDS = 0.1


class ProposeReplayArguments(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`task`: whose dead letters are replayed. `reason`: why that helps, for the person who decides.

    `edits`: what changes of the task from there on; each replaces all of what was there. `arguments` holds new ones by
    call, e.g. `{"1-0": {"a": 1}}`.
    """

    task: Id
    reason: Annotated[str, Meta(min_length=1, max_length=REASON_CHARACTERS_MAX)]
    edits: Edits | None = None


class Replayed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of it. `steps`: what was replayed, each with the gen that had given up. `note`: why it is nothing."""

    task: str
    steps: list[StepGen]
    note: str | None = None


def propose_replay(pools: tuple[str, ...], requests: Requests) -> Tool[ProposeReplayArguments]:
    """The tool, for a mesh with these pools."""

    async def run(arguments: ProposeReplayArguments, call: Call) -> Replayed:
        work = call.step.work
        if not isinstance(work, ToolWork):
            raise TypeError("not a claimed call")
        by = replayer(work.task, work.call, work.gen)
        journal = await Journal.load(requests, work.tenant, arguments.task)
        await journal.catch_up_with_leader()
        # An earlier run of this call may have asked for it. Read last: what is open no more is then known to be its.
        done = await _replayed_by(requests, work.tenant, arguments.task, by)
        if done is not None:
            return Replayed(task=arguments.task, steps=done)
        steps = check(journal.state, arguments, pools)
        if not steps:
            return Replayed(task=arguments.task, steps=[], note=nothing_open(journal.state))
        command = ReplayCommand(
            task=arguments.task,
            tenant=work.tenant,
            by=by,
            steps=steps,
            edits=arguments.edits,
            reason=arguments.reason,
        )
        await _send(requests, command)
        return await _outcome(requests, journal, command)

    return built_in(
        PROPOSE_REPLAY,
        "Proposes to go on with a task whose work gave up: all its open dead letters are replayed, with the edits. A "
        "person has to agree first. Gives the steps that were replayed.",
        ProposeReplayArguments,
        run,
        timeout_seconds=TIMEOUT_SECONDS,
        approval="always",
    )


def replayer(task: str, call: str, gen: int) -> str:
    """`by` of a replay that a call asks for: `propose_replay:<task>.<call>`, and `.g<gen>` where it was replayed."""
    return f"{PROPOSE_REPLAY}:{task}.{call}" + (f".g{gen}" if gen else "")


def check(state: TaskState, arguments: ProposeReplayArguments, pools: tuple[str, ...]) -> list[StepGen]:
    """The dead letters that would be replayed; none if none is open. Raises `ToolRefused` for what can't be."""
    if not state.exists:
        raise ToolRefused(f"there is no task {arguments.task}")
    edits = arguments.edits
    steps = to_repair(state) if state.terminal is None else []
    if not steps or edits is None:
        return steps
    if edits.pool is not None and edits.pool not in pools:
        raise ToolRefused(f"edits: there is no pool {edits.pool!r}; {', '.join(pools)}")
    if len(encode(edits)) > BODY_BYTES_MAX:
        raise ToolRefused(f"edits: larger than {BODY_BYTES_MAX} bytes")
    error = edits_error(state, edits, [each.step for each in steps])
    if error is not None:
        raise ToolRefused(f"edits: {error.message}")
    return steps


def nothing_open(state: TaskState) -> str:
    """Why nothing was replayed, for the model."""
    return f"nothing was replayed: the task is {state.status}, and has no open dead letter any more"


async def _send(requests: Requests, command: ReplayCommand) -> None:
    message_headers = {headers.MESSAGE_ID: replay_message_id(command.task, command.steps)}
    try:
        await requests.publish(subjects.control("replay", command.tenant), encode(command), message_headers)
    except BrokerError as error:
        if error.number in NO_ROOM:
            raise ToolRefused("there is no room for commands at present; nothing was replayed") from None
        raise


async def _outcome(requests: Requests, journal: Journal, command: ReplayCommand) -> Replayed:
    """Wait until the journal tells what has become of it."""
    give_up_at = asyncio.get_running_loop().time() + REPLAYED_SECONDS_MAX
    while asyncio.get_running_loop().time() < give_up_at:
        await journal.catch_up()
        still_open = to_repair(journal.state)
        if journal.state.terminal is not None or not any(step in still_open for step in command.steps):
            done = await _replayed_by(requests, command.tenant, command.task, command.by)
            note = "somebody else was faster: " + nothing_open(journal.state) if done is None else None
            return Replayed(task=command.task, steps=done or [], note=note)
        await asyncio.sleep(POLL_SECONDS)
    note = "the replay is asked for, and not carried out yet"
    return Replayed(task=command.task, steps=[], note=note)


async def _replayed_by(requests: Requests, tenant: str, task: str, by: str) -> list[StepGen] | None:
    """The steps of the replay that this `by` has asked for, as the journal has it; None if it has none."""
    for message in await milestones_of(requests, tenant, task):
        event = decode_event(message.payload)
        if isinstance(event, TaskReplayed) and event.by == by:
            return event.steps
    return None
