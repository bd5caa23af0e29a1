"""Budgets over real processes: one bounds a task with all of its sub-tasks, and what goes beyond it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from contracts.codec import encode
from contracts.journal import events
from contracts.records.tools import SPAWN_TASK
from mesh.broker.connection import connect
from mesh.task.budget import tokens, usage_so_far
from mesh.task.state import TaskState
from tests.support.agents import Agents
from tests.support.processes import running_mesh

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

SERVICES = ("inference_worker", "tool_runner", "steward")
BUDGET = 60
CHILDREN = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agents(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agents]:
    async with (
        running_mesh(tmp_path_factory.mktemp("budgets"), *SERVICES) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        yield Agents(connection)
        assert mesh.tracebacks() == []


def spawning(child: str, text: str = "Planned.") -> str:
    """A first turn that asks for as many sub-tasks, all with this script."""
    call = f"!call {SPAWN_TASK} {encode({'input': child}).decode()}"
    return "\n".join([text, *[call] * CHILDREN, "!then", "done"])


async def tree_of(agents: Agents, task: str) -> tuple[TaskState, list[TaskState]]:
    """A task that has ended, and its sub-tasks, which have as well."""
    state = await agents.until_status(task, "completed")
    return state, [await agents.state(started.child) for started in state.children.values()]


async def test_sub_tasks_share_what_the_task_has_left(agents: Agents) -> None:
    task = await agents.submit(spawning("!say 500"), tools=[SPAWN_TASK], budget_tokens=BUDGET)
    state, children = await tree_of(agents, task)
    first, last = (state.turn(turn).completed for turn in (1, 2))
    assert first is not None
    assert last is not None
    shares = [started.budget_tokens for started in state.children.values()]
    # Those that begin later have less, if one of them has ended by then and has used more than it was given.
    assert shares[0] == max(share or 0 for share in shares) == (BUDGET - tokens(first.usage)) // (CHILDREN + 1)
    assert [child.queued.budget_tokens for child in children if child.queued] == shares
    for child, share in zip(children, shares, strict=True):
        assert share is not None
        assert isinstance(child.terminal, events.TaskCompleted)
        assert child.terminal.incomplete == "budget"
        assert child.terminal.over_budget_tokens == tokens(usage_so_far(child)) - share
    used = tokens(usage_so_far(state)) + sum(tokens(usage_so_far(child)) for child in children)
    assert isinstance(state.terminal, events.TaskCompleted)
    assert state.terminal.tree_usage is not None
    assert tokens(state.terminal.tree_usage) == used
    assert state.terminal.over_budget_tokens == used - BUDGET <= tokens(last.usage)


async def test_a_task_whose_sub_tasks_have_left_nothing_ends_without_asking_a_model(agents: Agents) -> None:
    """Each of them reads more than it may, which nobody can know before."""
    task = await agents.submit(spawning("\n".join(["word"] * 40)), tools=[SPAWN_TASK], budget_tokens=BUDGET)
    state, children = await tree_of(agents, task)
    last = state.turn(2).completed
    assert last is not None
    assert (last.text, tokens(last.usage), last.budget_left_tokens) == ("", 0, 0)
    end = state.terminal
    assert isinstance(end, events.TaskCompleted)
    assert (end.output.strip(), end.incomplete) == ("Planned.", "budget")
    over = tokens(usage_so_far(state)) + sum(tokens(usage_so_far(child)) for child in children) - BUDGET
    assert end.over_budget_tokens == over > 0


async def test_a_call_for_which_nothing_is_left_is_refused(agents: Agents) -> None:
    script = spawning("hi")
    words = len(script.split())
    task = await agents.submit(script, tools=[SPAWN_TASK], budget_tokens=words + CHILDREN)
    state = await agents.until_status(task, "completed")
    refused = [result for result in state.call_results.values() if isinstance(result, events.ToolFailed)]
    assert refused
    assert {each.error.code for each in refused} == {"tool-refused"}
    assert all("budget" in each.error.message for each in refused)
