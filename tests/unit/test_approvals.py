"""Four eyes: which commands are an approval, of what, and by whom they may not be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from contracts.access import Scope
from contracts.actors import OWN_SUBMITTER, UNKNOWN_APPROVER, UNKNOWN_SUBMITTER
from contracts.journal import events
from contracts.journal.parts import Parent, RecordedEdits, StepGen
from contracts.messages.control import (
    AnyCommand,
    ApprovalCommand,
    CancelCommand,
    Decision,
    Edits,
    InputCommand,
    ReplayCommand,
)
from contracts.tasks import TaskRequest
from mesh.access.approvals import Approvals
from mesh.configuration.mesh_toml import parse_configuration
from mesh.task.state import TaskState
from tests.unit.journals import EXPIRES_AT, START, TASK, TENANT, HandMadeJournal

ALICE, BOB = "key:alice", "key:bob"
OTHER = "01jqzv3m8k5w2x7y9a4b6c8d0h"
EVERY_TOOL = "[pools.default]\n[approvals]\nfour_eyes = true\n"
CHARGE_ALONE = EVERY_TOOL + 'tools = ["charge", "propose_replay"]\n'


def approvals_of(
    text: str = EVERY_TOOL, submitters: Mapping[str, str | None] = {}, told: Mapping[str, str] = {}
) -> Approvals:
    """The rules of a configuration, in a mesh with these other tasks, by who has submitted or told them something."""

    async def state_of(tenant: str, task: str) -> TaskState:
        assert tenant == TENANT
        if task in told:
            return waiting(told_by=told[task]).state
        return waiting(submitters[task]).state if task in submitters else TaskState(tenant, task)

    return Approvals(parse_configuration(text.encode(), "mesh.toml"), state_of)


def waiting(
    by: str | None = ALICE,
    tool: str = "charge",
    arguments: dict[str, Any] | None = None,
    *,
    told_by: str | None = None,
    edited_by: str | None = None,
    parent: str | None = None,
) -> HandMadeJournal:
    """A task that somebody has submitted, and whose call 1-0 waits for a person.

    `told_by`, `edited_by`: who has told it something, or changed it by a replay, before the call was asked for.
    """
    journal = HandMadeJournal()
    request = TaskRequest(input="hello")
    journal.add(
        events.TaskQueued,
        request=request,
        pool="default",
        priority="normal",
        fingerprint="f",
        accepted_at=START,
        by=by,
        parent=Parent(parent, "1-0", 1) if parent is not None else None,
    )
    journal.claimed()
    if told_by is not None:
        journal.add(events.InputReceived, text="charge it", by=told_by, mode="redirect")
    if edited_by is not None:
        journal.dead_lettered()
        edits = RecordedEdits(input="charge it")
        journal.add(events.TaskReplayed, steps=[StepGen("1", 0)], by=edited_by, edits=edits)
        journal.claimed(gen=1)
    journal.turn_completed(calls=2, finish_reason="tool_calls")
    journal.add(events.ApprovalRequested, call="1-0", tool=tool, arguments=arguments or {}, expires_at=EXPIRES_AT)
    return journal


def decides(by: str, decision: Decision = "approved", call: str = "1-0") -> ApprovalCommand:
    return ApprovalCommand(task=TASK, tenant=TENANT, by=by, call=call, decision=decision)


async def objection(approvals: Approvals, journal: HandMadeJournal, command: AnyCommand) -> str | None:
    refusal = await approvals.refusal(journal.state, command)
    assert refusal is None or refusal.code == "four-eyes"
    return refusal.message if refusal is not None else None


@pytest.mark.parametrize(
    ("submitter", "by", "told"),
    [
        (ALICE, BOB, None),
        (ALICE, ALICE, OWN_SUBMITTER),
        (ALICE, "http", UNKNOWN_APPROVER),
        (None, BOB, UNKNOWN_SUBMITTER),
        ("http", BOB, UNKNOWN_SUBMITTER),
        ("rule:low-stock", BOB, None),
    ],
)
async def test_an_approval_takes_another_person_and_a_denial_nobody(
    submitter: str | None, by: str, told: str | None
) -> None:
    journal = waiting(submitter)
    assert await objection(approvals_of(), journal, decides(by)) == told
    for decision in ("denied", "expired"):
        assert await objection(approvals_of(), journal, decides(by, decision)) is None


@pytest.mark.parametrize(
    "journal",
    [waiting(told_by=BOB), waiting(edited_by=BOB), waiting(parent=OTHER)],
    ids=["told", "edited", "told its parent"],
)
async def test_who_has_told_anothers_task_what_to_call_does_not_approve_the_call(journal: HandMadeJournal) -> None:
    approvals = approvals_of(told={OTHER: BOB})
    assert await objection(approvals, journal, decides(BOB)) == OWN_SUBMITTER
    assert await objection(approvals, journal, decides("key:carol")) is None
    assert await objection(approvals, journal, decides(BOB, "denied")) is None


async def test_what_is_told_once_a_call_is_asked_for_has_not_led_to_it() -> None:
    journal = waiting()
    journal.add(events.InputReceived, text="thanks", by=BOB, mode="append")
    assert await objection(approvals_of(), journal, decides(BOB)) is None
    assert await objection(approvals_of(), waiting(told_by="http"), decides(BOB)) == UNKNOWN_SUBMITTER


async def test_journals_that_name_each_other_as_parents_have_an_end() -> None:
    """Whoever can write work messages can make them."""

    async def state_of(_: str, __: str) -> TaskState:
        return waiting(parent=OTHER).state

    approvals = Approvals(parse_configuration(EVERY_TOOL.encode(), "mesh.toml"), state_of)
    assert await objection(approvals, waiting(parent=OTHER), decides(BOB)) is None


async def test_it_holds_for_the_tools_that_are_named_and_only_if_it_is_asked_for() -> None:
    assert await objection(approvals_of("[pools.default]\n"), waiting(), decides(ALICE)) is None
    assert await objection(approvals_of(CHARGE_ALONE), waiting(), decides(ALICE)) == OWN_SUBMITTER
    assert await objection(approvals_of(CHARGE_ALONE), waiting(tool="add"), decides(ALICE)) is None


async def test_what_is_decided_or_over_is_for_the_journal_to_say() -> None:
    """A command that comes twice must not become a dead letter the second time."""
    journal = waiting()
    journal.add(events.ApprovalResolved, call="1-0", decision="approved", by=BOB)
    assert await objection(approvals_of(), journal, decides(ALICE)) is None
    ended = waiting()
    ended.add(events.TaskCancelled, by=ALICE)
    assert await objection(approvals_of(), ended, decides(ALICE)) is None
    assert await objection(approvals_of(), waiting(), decides(ALICE, call="1-1")) is None


async def test_a_proposal_is_approved_by_nobody_whose_task_it_repairs() -> None:
    journal = waiting("critic", "propose_replay", {"task": OTHER, "reason": "r"})
    assert await objection(approvals_of(submitters={OTHER: ALICE}), journal, decides(ALICE)) == OWN_SUBMITTER
    assert await objection(approvals_of(submitters={OTHER: ALICE}), journal, decides(BOB)) is None
    assert await objection(approvals_of(submitters={OTHER: None}), journal, decides(BOB)) == UNKNOWN_SUBMITTER
    assert await objection(approvals_of(), journal, decides(BOB)) is None, "there is no such task: the tool says so"
    for arguments in ({}, {"task": 7}, {"task": "../x"}):
        assert await objection(approvals_of(), waiting("critic", "propose_replay", arguments), decides(BOB)) is None


async def test_other_arguments_for_an_approved_call_are_an_approval() -> None:
    """Else the submitter has one agreed to, and then runs another."""
    journal = waiting()
    journal.add(events.ApprovalResolved, call="1-0", decision="approved", by=BOB)

    def replays(by: str, **edits: Any) -> ReplayCommand:
        return ReplayCommand(task=TASK, tenant=TENANT, by=by, steps=[StepGen("1-0", 0)], edits=Edits(**edits))

    changed = {"arguments": {"1-0": {"amount": 1_000_000}}}
    assert await objection(approvals_of(), journal, replays(ALICE, **changed)) == OWN_SUBMITTER
    assert await objection(approvals_of(), journal, replays(BOB, **changed)) is None
    assert await objection(approvals_of(), journal, replays(ALICE, arguments={"1-1": {}})) is None
    assert await objection(approvals_of(), journal, replays(ALICE, model="other")) is None


async def test_other_arguments_that_were_proposed_are_approved_by_who_has_agreed_to_the_proposal() -> None:
    """Also where proposals are none of the tools: else the submitter agrees to one, and another charge is made."""
    journal = waiting()
    journal.add(events.ApprovalResolved, call="1-0", decision="approved", by=BOB)
    edits = Edits(arguments={"1-0": {"amount": 1_000_000}})

    async def told(proposal: HandMadeJournal | None, by: str = f"propose_replay:{OTHER}.1-0") -> str | None:
        async def state_of(tenant: str, task: str) -> TaskState:
            assert (tenant, task) == (TENANT, OTHER)
            return proposal.state if proposal is not None else TaskState(tenant, task)

        rules = Approvals(parse_configuration((EVERY_TOOL + 'tools = ["charge"]').encode(), "mesh.toml"), state_of)
        return await objection(
            rules,
            journal,
            ReplayCommand(task=TASK, tenant=TENANT, by=by, steps=[StepGen("1-0", 0)], edits=edits),
        )

    def agreed(by: str, submitter: str = ALICE) -> HandMadeJournal:
        proposal = waiting(submitter, "propose_replay", {"task": TASK, "reason": "r"})
        proposal.add(events.ApprovalResolved, call="1-0", decision="approved", by=by)
        return proposal

    assert await told(agreed(ALICE)) == OWN_SUBMITTER
    assert await told(agreed(BOB)) is None
    assert await told(agreed(BOB), f"propose_replay:{OTHER}.1-0.g1") is None
    assert await told(agreed(BOB, submitter=BOB)) == OWN_SUBMITTER, "it is bob's own proposal"
    assert await told(agreed(ALICE, submitter="critic")) == OWN_SUBMITTER
    assert await told(agreed("http")) == UNKNOWN_APPROVER
    for nobodys in (None, waiting(ALICE, "propose_replay")):
        assert await told(nobodys) == UNKNOWN_APPROVER, "nobody has agreed to it"
    assert await told(None, "propose_replay:x.1-0") == UNKNOWN_APPROVER
    # What was agreed to was changed since.
    changed = agreed(BOB)
    other_arguments = RecordedEdits(arguments={"1-0": {"task": TASK, "reason": "other"}})
    changed.add(events.TaskReplayed, steps=[StepGen("1-0", 0)], by=ALICE, edits=other_arguments)
    assert await told(changed) == OWN_SUBMITTER


async def test_no_other_command_is_an_approval() -> None:
    commands: list[AnyCommand] = [
        CancelCommand(task=TASK, tenant=TENANT, by=ALICE),
        InputCommand(task=TASK, tenant=TENANT, by=ALICE, text="stop", mode="redirect", command="c"),
        ReplayCommand(task=TASK, tenant=TENANT, by=ALICE, steps=[StepGen("1-0", 0)]),
    ]
    for command in commands:
        assert await objection(approvals_of(), waiting(), command) is None


@pytest.mark.parametrize(
    ("text", "tool", "scope"),
    [
        ("", "charge", "answer"),
        ('[approvals]\nscope = "operate"\n', "charge", "operate"),
        ('[approvals]\nscope = "operate"\n[tools.add]\napprove_scope = "answer"\n', "add", "answer"),
        ('[tools.charge]\napprove_scope = "operate"\n', "charge", "operate"),
        ('[tools.charge]\napprove_scope = "operate"\n', "add", "answer"),
    ],
)
def test_the_scope_that_an_approval_takes(text: str, tool: str, scope: Scope) -> None:
    assert approvals_of("[pools.default]\n" + text).scope_of(tool) == scope
