"""A mesh small enough to be run in any order: for the property test of the pure core.

It is no stand-in for the broker: no service runs on it. Its processes are generators that call the real decisions
(fold, decide, dues, commands) in the order of PROTOCOL.md's rules for a writer, and stop wherever a process may stop,
die, or be overtaken: before and after each append, each publish and each ack.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from contracts.errors import ErrorInfo
from contracts.identifiers import call_message_id, turn_message_id
from contracts.journal import parts
from contracts.journal.events import JournalEvent, Stamp
from contracts.messages import control
from contracts.messages.control import AnyCommand
from contracts.messages.work import TurnWork, Work
from mesh.task.decisions import Begin, Expire, Leave, Refuse, SettleDeadLetter, decide_stranded
from mesh.task.failures import GiveUp
from steward import command_decisions
from steward.command_decisions import decide_command
from tests.unit.journals import START, TASK, TENANT
from tests.unit.small_broker import Delivery, Message, View
from tests.unit.small_worker import SmallWorker
from tests.unit.small_writer import Build, Lost, Steps, dead_lettered, expired, queued


@dataclass(slots=True)
class SmallMesh(SmallWorker):
    """One task's processes: its workers, its steward, and the world outside."""

    # The steward

    def carry_out_command(self, delivery: Delivery, behind: int) -> Steps:
        """One delivery of a command."""
        command = delivery.message.payload
        assert not isinstance(command, Work)
        if command.task != TASK:
            yield
            if command.task in self.children:
                self.end_child(command.task, "cancelled")
            yield from self._ack(delivery)
            return
        view = View(self.broker, behind)
        yield
        if isinstance(command, control.RoomCommand) and view.is_behind:
            self.broker.give_back(delivery)
            return
        while True:
            match decide_command(view.state, command):
                case command_decisions.ToAppend() as outcome:
                    try:
                        yield from self.append(
                            view,
                            partial(_as_commanded, view, command),
                            lambda state, outcome=outcome: (  # type: ignore[misc]  # mypy can't infer it
                                delivery.lease_held and decide_command(state, command) == outcome
                            ),
                        )
                    except Lost:
                        if not delivery.lease_held:
                            return
                case command_decisions.CarriedOut() as outcome:
                    yield from self._settle(view.state, outcome.steps, delivery, outcome.again)
                    return
                case command_decisions.Unknown(error):
                    if view.is_behind:
                        self.broker.give_back(delivery)
                        return
                    # The child of an earlier gen: another one stands for the call. Or a part of what was to be edited
                    # has been repaired since.
                    assert isinstance(command, control.ChildDoneCommand) or error.code == "edits-invalid", (
                        f"{command} is not known"
                    )
                    yield from self._ack(delivery)
                    return

    def sweep(self, message: Message) -> Steps:
        """A message that nobody will get any more."""
        work = message.payload
        assert isinstance(work, Work)
        view = View(self.broker)
        yield
        while True:
            decision = decide_stranded(view.state, work, message.sequence, self.now)
            match decision:
                case Begin():
                    build: Build = partial(queued, decision.work)
                case Expire():
                    build = expired
                case GiveUp():
                    build = partial(dead_lettered, work, ErrorInfo("deliveries-exhausted", "test"))
                case Refuse():
                    assert view.is_behind, f"nobody could ever do {work}"
                    return
                case Leave():
                    yield from self._publish_due(view.state, (work.step,))
                    break
                case SettleDeadLetter():
                    break
            try:
                yield from self.append(
                    view,
                    build,
                    lambda state, decision=decision: (  # type: ignore[misc]  # mypy can't infer it
                        decide_stranded(state, work, message.sequence, self.now) == decision
                    ),
                )
            except Lost:
                continue
        yield
        self.broker.delete(message)

    # The world outside

    def submit(self) -> TurnWork:
        """Put the first turn into its queue."""
        work = TurnWork(
            task=TASK,
            tenant=TENANT,
            turn=1,
            pool="default",
            priority="normal",
            request=self.request,
            accepted_at=START,
            deadline=self.deadline,
            budget_tokens=self.request.budget_tokens,
        )
        self.broker.publish(work, turn_message_id(TASK, 1, 0))
        return work

    def end_child(self, child: str, status: str = "completed", tokens: int = 1) -> None:
        """A sub-task ends, once, and says so, maybe again; it has used so many tokens, whatever it was given."""
        if child in self.ended_children:
            return
        self.ended_children.add(child)
        done = control.ChildDoneCommand(
            task=TASK,
            tenant=TENANT,
            by="test",
            call=self.children[child],
            child=child,
            status=status,
            output="done",
            usage=parts.Usage(0, tokens),
            uncounted_tokens=None if status == "completed" else 1,
        )
        self.broker.publish(done, control.child_done_message_id(child))

    def fire(self, subject: str) -> None:
        """A timer's time has come."""
        due = self.broker.timers.pop(subject)
        assert due.at is not None
        self.now = max(self.now, due.at)
        self.broker.stored += 1
        self.broker.queue[self.broker.stored] = Message(self.broker.stored, due.payload)

    def replay(self, steps: list[parts.StepGen], edits: control.Edits | None = None) -> None:
        """Somebody has repaired what made steps give up, and says so."""
        command = control.ReplayCommand(task=TASK, tenant=TENANT, by="test", steps=steps, edits=edits)
        self.broker.publish(command, control.replay_message_id(TASK, steps))


def message_id_of(work: Work) -> str:
    """The only id under which it may be published."""
    released = f".r{work.releases}" if work.releases else ""
    if work.tries:
        return control.retry_message_id(work.task, work.step, work.gen, work.tries) + released
    if isinstance(work, TurnWork):
        return turn_message_id(work.task, work.turn, work.gen) + released
    return call_message_id(work.task, work.turn, work.call, work.gen) + released


def _as_commanded(view: View, command: AnyCommand, stamp: Stamp) -> JournalEvent:
    outcome = decide_command(view.state, command)
    assert isinstance(outcome, command_decisions.ToAppend)
    return outcome.build(stamp)
