"""A task and its sub-tasks, as pure as they are: each member is a folded journal, and nothing lies between them.

What a member may use, and what it is told, comes from the real functions. How many tokens a turn takes, how many
sub-tasks it asks for, and what happens next is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from random import Random

from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.identifiers import new_id, turn_of
from contracts.journal import events
from contracts.journal.events import JournalEvent, Stamp, decode_event
from contracts.journal.parts import Timings, ToolCall, Usage
from contracts.messages.control import AnyCommand, CancelCommand
from contracts.messages.work import TurnWork
from contracts.records.tools import SPAWN_TASK
from contracts.tasks import TaskRequest
from inference_worker.turn.task_ends import task_completed
from mesh.task.budget import budget_left, budget_left_with, share_of_budget, tokens
from mesh.task.decisions import queued_event
from mesh.task.fold import fold
from mesh.task.limits import is_last_turn, output_tokens_max
from mesh.task.outbox import messages_after
from mesh.task.state import TaskState
from mesh.task.subtasks import child_id
from steward.command_decisions import ToAppend, decide_command
from tests.unit.journals import START, TENANT

Share = Callable[[TaskState, str], int | None]
Action = Callable[[], None]
CALLS_MAX = 3
DEPTH_MAX = 4
MEMBERS_MAX = 40
"""From so many on nobody asks for more, so that a tree comes to its end."""
INPUT_TOKENS_MAX = 60


@dataclass(eq=False, slots=True)
class Member:
    """A task of the tree. `used` is what its own turns have really taken, those that were cut off too."""

    work: TurnWork
    state: TaskState
    used: int = 0
    excess: int = 0
    """By how much one of its turns went beyond what was left when it began; the first that does is its last."""
    children: dict[int, list[Member]] = field(default_factory=dict)
    """By the turn that asked for them."""

    @property
    def tree(self) -> Iterator[Member]:
        """Itself, and all below it."""
        yield self
        for child in (child for batch in self.children.values() for child in batch):
            yield from child.tree

    @property
    def excess_max(self) -> int:
        """One turn of each member that may have run at one time: its own last one, or those of one turn's sub-tasks."""
        return max([self.excess, *(sum(child.excess_max for child in batch) for batch in self.children.values())])

    @property
    def excess_untold(self) -> int:
        """What went beyond in turns that were cut off, or below a member that had ended: nobody can count that."""
        if isinstance(self.state.terminal, events.TaskCancelled):
            return sum(member.excess for member in self.tree)
        return sum(child.excess_untold for batch in self.children.values() for child in batch)


class SmallTree:
    """All members, and the commands that are on their way between them."""

    def __init__(self, random: Random, budget: int | None, share: Share = share_of_budget, *, cancels: bool) -> None:
        self._random = random
        self._share = share
        self._cancels = cancels
        self._members: dict[str, Member] = {}
        self._commands: list[AnyCommand] = []
        request = TaskRequest(input="hello", tools=[SPAWN_TASK], budget_tokens=budget)
        root = new_id()
        self.root = self._begin(
            TurnWork(
                task=root, tenant=TENANT, turn=1, pool="default", priority="normal", request=request, accepted_at=START
            )
        )

    @property
    def used(self) -> int:
        """What all of them have really used."""
        return sum(member.used for member in self._members.values())

    def run(self) -> Iterator[None]:
        """Let one thing after the other happen, in any order, until nothing is left to happen."""
        while actions := list(self._actions()):
            self._random.choice(actions)()
            yield

    def _actions(self) -> Iterator[Action]:
        yield from (partial(self._carry_out, command) for command in self._commands)
        for member in self._members.values():
            state = member.state
            if state.terminal is not None:
                continue
            if self._cancels and self._random.random() < 0.02:
                yield partial(self._cancel, member)
            completed = state.last_completed
            waiting = completed is not None and (state.open_calls or is_last_turn(state, completed))
            if completed is None or not waiting:
                yield partial(self._take_turn, member)
            else:
                yield from (
                    partial(self._spawn, member, asked.call)
                    for asked in state.open_calls
                    if asked.call not in state.children
                )

    def _append(self, member: Member, build: Callable[[Stamp], JournalEvent]) -> None:
        state = member.state
        stamp = Stamp(new_id(), state.task, TENANT, state.next_n, START + timedelta(seconds=state.next_n))
        fold(state, state.revision + 1, decode_event(encode(build(stamp))))

    def _begin(self, work: TurnWork) -> Member:
        member = self._members[work.task] = Member(work, TaskState(TENANT, work.task))
        self._append(member, lambda stamp: queued_event(stamp, work))
        return member

    def _take_turn(self, member: Member) -> None:
        state = member.state
        turn = max(state.turns, default=0) + 1
        self._append(
            member,
            lambda stamp: events.StepClaimed(
                *stamp, step=f"{turn}", gen=0, message=turn, worker="test", delivery=1, turn=turn, attempt=1
            ),
        )
        left = budget_left(state)
        if left == 0:
            self._complete(member, turn, Usage(), 0, "length")
            return
        most = min(output_tokens_max(state) or INPUT_TOKENS_MAX, INPUT_TOKENS_MAX)
        usage = Usage(self._random.randint(1, INPUT_TOKENS_MAX), self._random.randint(0, most))
        member.used += tokens(usage)
        member.excess = 0 if left is None else max(0, tokens(usage) - left)
        if self._cancels and self._random.random() < 0.1:
            self._cancel(member)
            return
        deep = member.work.parent is not None and member.work.parent.depth >= DEPTH_MAX
        calls = 0 if deep or len(self._members) >= MEMBERS_MAX else self._random.choice([0, 1, 1, 2, CALLS_MAX])
        self._complete(member, turn, usage, calls, "tool_calls" if calls else "stop")

    def _complete(self, member: Member, turn: int, usage: Usage, calls: int, finish_reason: str) -> None:
        state = member.state
        self._append(
            member,
            lambda stamp: events.TurnCompleted(
                *stamp,
                turn=turn,
                text="",
                calls=[ToolCall(f"{turn}-{index}", SPAWN_TASK, {"input": "hi"}) for index in range(calls)],
                finish_reason=finish_reason,  # type: ignore[arg-type]  # one of them
                usage=usage,
                timings=Timings(),
                budget_left_tokens=budget_left_with(state, usage),
            ),
        )
        completed = state.turn(turn).completed
        assert completed is not None
        if is_last_turn(state, completed):
            self._append(member, lambda stamp: task_completed(stamp, state, turn))
            self._tell(member)

    def _spawn(self, member: Member, call: str) -> None:
        state, turn = member.state, turn_of(call)
        share = self._share(state, call)
        if share == 0:
            error = ErrorInfo("tool-refused", "nothing is left")
            self._append(
                member,
                lambda stamp: events.ToolFailed(
                    *stamp, turn=turn, call=call, tool=SPAWN_TASK, error=error, outcome="failed"
                ),
            )
            return
        child = child_id(state.task, call, 0)
        self._append(member, lambda stamp: events.SubtaskStarted(*stamp, call=call, child=child, budget_tokens=share))
        (due,) = messages_after(state, call)
        assert isinstance(due.payload, TurnWork)
        assert due.payload.budget_tokens == share
        member.children.setdefault(turn, []).append(self._begin(due.payload))

    def _cancel(self, member: Member) -> None:
        self._commands.append(CancelCommand(task=member.state.task, tenant=TENANT, by="user"))
        self._carry_out(self._commands[-1])

    def _carry_out(self, command: AnyCommand) -> None:
        self._commands.remove(command)
        member = self._members[command.task]
        had_ended = member.state.terminal is not None
        while isinstance(outcome := decide_command(member.state, command), ToAppend):
            self._append(member, outcome.build)
        if member.state.terminal is not None and not had_ended:
            self._tell(member)

    def _tell(self, member: Member) -> None:
        """What is due after an end: news for the parent, cancels for those below."""
        for due in messages_after(member.state, "1"):
            assert not isinstance(due.payload, TurnWork)
            self._commands.append(due.payload)  # type: ignore[arg-type]  # nor is it a call
