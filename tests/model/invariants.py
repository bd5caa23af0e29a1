"""What must hold: at each append, at each effect on the world, and wherever nothing moves any more."""

from __future__ import annotations

from tests.model.journal import Event, Journal, StepGen, Task
from tests.model.state import Body, State

RESULTS = ("turn.completed", "tool.completed", "tool.failed")


def judge_append(state: State, task: Task, event: Event) -> str | None:
    """What an append breaks, or None."""
    journal = state.journal
    if journal.ended:
        return "an event follows the terminal one"
    match event.kind:
        case "task.queued" if journal.queued:
            return "a journal begins twice"
        case "step.claimed":
            return _judge_claim(state, task, event)
        case "task.dead_lettered" if event.step in journal.results and "-" in event.step:
            return "a call that has its result becomes a dead letter"
        case "task.dead_lettered" if (event.step, event.gen) in journal.dead:
            return "one (step, gen) has two dead letters"
        case "task.replayed" | "approval.resolved" | "input.received":
            return _judge_command(journal, event)
        case "step.released" if journal.claims.get((event.step, event.gen)) != event.author:
            return _judge_taking(state, event)
        case kind if kind in RESULTS and event.step in journal.results:
            return "a step has two results"
        case _:
            return _judge_author(journal, event)


def _judge_command(journal: Journal, event: Event) -> str | None:
    match event.kind:
        case "task.replayed" if not set(event.steps) <= journal.dead:
            return "a replay repairs what has no open dead letter"
        case "approval.resolved" if event.step in journal.resolved:
            return "an approval is resolved twice"
        case "input.received" if event.gen in journal.commands:
            return "an input is carried out twice"
        case _:
            return None


def _judge_author(journal: Journal, event: Event) -> str | None:
    step_gen = (event.step, event.gen)
    if event.author is None:
        return None
    if journal.claims.get(step_gen) != event.author:
        return "an event of a former owner follows the claim of the next"
    if step_gen in journal.dead or journal.gen(event.step) != event.gen:
        return "an event of a step that was given up, or replayed, since it was claimed"
    if step_gen in journal.next_tries:
        return "an event of a step whose next try a timer brings"
    if step_gen in journal.released:
        return "an event of a step that was released since it was claimed"
    if event.kind == "task.completed" and not journal.shown.issuperset(journal.inputs):
        return "a task ends by itself, and no turn of it was shown an input"
    return None


def _judge_claim(state: State, task: Task, event: Event) -> str | None:
    journal, step = state.journal, event.step
    before = journal.claims.get((step, event.gen))
    waits = (step, event.gen) in journal.next_tries
    if waits and Body("retry", step, event.gen, tries=journal.tries[step, event.gen]) not in state.due:
        return "a step is tried again before its next try is due"
    if before == event.author and before is not None:
        return "a delivery claims its step twice"
    if (taken := _judge_taking(state, event)) is not None:
        return taken
    turn, _, index = step.partition("-")
    if index and step in task.approvals and (step not in journal.resolved or step in journal.results):
        return "a call is claimed without its approval"
    if not index and turn != "1" and not journal.results.issuperset(task.calls_of(str(int(turn) - 1))):
        return "a turn begins before all calls of the turn before have their results"
    return None


def _judge_taking(state: State, event: Event) -> str | None:
    journal, step_gen = state.journal, (event.step, event.gen)
    owner = journal.claims.get(step_gen)
    if owner in (None, event.author) or step_gen in journal.next_tries | journal.released:
        return None
    message = state.message(owner[0])
    if message is not None and message.held == "leased" and message.deliveries == owner[1]:
        return "a step is taken from an owner whose lease holds"
    return None


def judge_effect(state: State, done: StepGen) -> str | None:
    """What an effect on the world breaks, or None. Each replay of a call is a person's leave to do it again."""
    if done in state.effects:
        return "a call that is not idempotent has its effect twice"
    again = sum(step == done[0] for step, _ in state.effects) + 1
    if again > state.journal.dead_counts.get(done[0], 0) + 1:
        return "a call has its effect more often than it was replayed"
    return None


def judge_rest(state: State) -> str | None:
    """What is wrong in a state that nothing but a person could move, or None."""
    journal = state.journal
    if state.queue:
        return "a message is left that nobody will get"
    for command in state.commands:
        if command.kind == "cancel" and not journal.ended:
            return "a cancel came to nothing"
        if command.kind == "input" and not journal.ended and command.gen not in journal.commands:
            return "an input came to nothing"
        if command.kind == "replay" and not journal.ended and journal.dead.intersection(command.steps):
            return "a replay came to nothing"
        if command.kind == "approval" and not journal.ended and command.step not in journal.resolved:
            return "a decision came to nothing"
    waiting = journal.approvals - journal.resolved
    if not (journal.ended or journal.dead or waiting):
        return "the task is stuck: it has not ended, and nothing can move it"
    if state.record != journal.length:
        return "the projection does not say what the journal says"
    if not journal.ended and not state.records >= journal.dead | journal.repaired:
        return "a dead letter has no record"
    return None
