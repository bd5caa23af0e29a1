"""What an actor does next, as a function of its fold: the table of PROTOCOL.md, section 12, with a switch in each rule.

A plan is a row of operations; after the last one the actor is idle. `()` is: send nothing more.
"""

from __future__ import annotations

from tests.model.journal import Event, EventKind, Journal, StepGen, Task
from tests.model.rules import ALL_RULES, Off, Rules
from tests.model.state import Actor, Body, Operation

Plan = tuple[Operation, ...]

READ = Operation("read")
ASK_LEADER = Operation("ask leader")
EFFECT = Operation("effect")
PROJECT = Operation("project")
WRITE_RECORD = Operation("write record")
ACK = Operation("ack")
NAK = Operation("nak")
DELETE = Operation("delete")

SETTLE_DEAD_LETTER: Plan = (PROJECT, WRITE_RECORD, DELETE)
REFUSE: Plan = (DELETE,)


def append(event: Event) -> Plan:
    """The plan to append an event; what follows is decided then."""
    return (Operation("append", event=event),)


def turn_of(step: str) -> str:
    """The turn that a step is, or belongs to."""
    return step.partition("-")[0]


def open_calls(view: Journal, task: Task, turn: str) -> list[str]:
    """Calls of a turn that have no result."""
    return [call for call in task.calls_of(turn) if call not in view.results]


def unasked(view: Journal, task: Task, turn: str) -> list[str]:
    """Calls of a turn for which approval is still to be requested."""
    return [call for call in task.calls_of(turn) if call in task.approvals and call not in view.approvals]


def unseen(view: Journal, turn: str, off: Rules) -> list[int]:
    """Inputs that came too late for a turn's prompt."""
    bases = view.bases_by_text if Off.BASE_BY_TEXT in off else view.bases
    return [n for n in view.inputs if n > bases.get(turn, 0)]


def base_of_claim(view: Journal, turn: str) -> int:
    """The base that a claim says: a text that is there was made from its own, and is gone on with."""
    return view.bases.get(turn, 0) if turn in view.texts | view.results else view.length


def is_last(view: Journal, task: Task, turn: str, off: Rules) -> bool:
    """Whether nothing follows a completed turn but the task's end."""
    return not task.calls_of(turn) and not unseen(view, turn, off)


def due_after(view: Journal, task: Task, step: str, off: Rules = ALL_RULES) -> list[Body]:
    """What is due once a step is done: a turn's calls, or the next turn after the last result.

    Of a step that waits for its next try: the timer that brings it; of one that was released: its message.
    """
    turn, step_gen = turn_of(step), (step, view.gen(step))
    if view.ended:
        return []
    if step_gen in (view.timed if Off.RELEASED_TO_TIMER in off else view.next_tries):
        return [retry_timer(view, step)]
    if step_gen in view.released and not _is_over(view, task, step, off):
        return [work_of(view, step)]
    if turn not in view.results or is_last(view, task, turn, off):
        return []
    calls = open_calls(view, task, turn)
    if not calls:
        following = str(int(turn) + 1)
        return [_work_or_timer(view, following)]
    return [
        _work_or_timer(view, call)
        for call in calls
        if step in (turn, call) and (call not in task.approvals or call in view.resolved)
    ]


def _is_over(view: Journal, task: Task, step: str, off: Rules) -> bool:
    """Whether a released step needs nobody to go on with it."""
    return step in view.results if Off.RELEASED_END_UNSENT in off else is_done(view, task, step, off)


def steps_due(view: Journal, task: Task) -> list[str]:
    """The steps that a task goes on by now, each of them by a work message, or by the timer of its next try."""
    completed = max((int(step) for step in view.results if "-" not in step), default=0)
    steps = ["1"]
    if completed:
        turn = str(completed)
        ends = is_last(view, task, turn, ALL_RULES) or unasked(view, task, turn)
        steps = [turn] if ends else open_calls(view, task, turn) or [str(completed + 1)]
    asleep = task.approvals - view.resolved
    return [step for step in steps if (step, view.gen(step)) not in view.dead and step not in asleep]


def retry_timer(view: Journal, step: str) -> Body:
    """The timer that brings a step's next try."""
    gen = view.gen(step)
    return Body("retry", step, gen, tries=view.tries[step, gen])


def _work_or_timer(view: Journal, step: str) -> Body:
    return retry_timer(view, step) if (step, view.gen(step)) in view.next_tries else work_of(view, step)


def work_of(view: Journal, step: str) -> Body:
    """The message of a step, after as many failed tries as a timer has brought it, and as many releases."""
    tries, releases = epoch(view, step, view.gen(step))
    return Body("work", step, view.gen(step), tries=tries, releases=releases)


def epoch(view: Journal, step: str, gen: int) -> tuple[int, int]:
    """Timed tries and releases of a (step, gen): its message says both."""
    return view.tries.get((step, gen), 0), view.releases.get((step, gen), 0)


def publish(bodies: list[Body]) -> Plan:
    """The plan to publish messages, and timers."""
    return tuple(Operation("publish", body=body) for body in bodies)


def settle(view: Journal, task: Task, step: str, off: Rules) -> Plan:
    """Project, publish what is due, ack (rules 1 and 2)."""
    due = () if Off.NO_DUE_WHEN_SETTLING in off else publish(due_after(view, task, step, off))
    # While a task runs its record may lag: that projection is nobody's to wait for, and may be lost.
    projection = (PROJECT,) if view.ended or view.dead or view.approvals - view.resolved else ()
    return (*projection, ACK, *due) if Off.ACK_FIRST in off else (*projection, *due, ACK)


def owns(view: Journal, actor: Actor, off: Rules) -> bool:
    """Whether a claim is still the last one of its (step, gen), in a task that goes on (rules 3 and 5)."""
    step, gen = actor.body.step, actor.body.gen
    if view.ended and Off.GOES_ON_AFTER_END not in off:
        return False
    if Off.NO_GEN_IN_DECISION not in off and view.gen(step) != gen:
        return False
    if (step, gen) in view.released and Off.RELEASED_STILL_OWNS not in off:
        return False
    return is_last_claim(view, actor, off) and not _dead(view, step, gen, off)


def is_last_claim(view: Journal, actor: Actor, off: Rules) -> bool:
    """Whether nobody else has claimed the (step, gen) since."""
    last = view.claims.get((actor.body.step, actor.body.gen))
    if Off.NO_CLAIM_ID in off:
        return last is not None
    return last == (actor.sequence, actor.delivery)


def _dead(view: Journal, step: str, gen: int, off: Rules) -> bool:
    return bool(view.dead) if Off.DEAD_LETTER_OF_TASK in off else (step, gen) in view.dead


def is_done(view: Journal, task: Task, step: str, off: Rules) -> bool:
    """Whether a step has its result; a turn also what its worker appends after that: requests, or the task's end."""
    if step not in view.results or "-" in step:
        return step in view.results
    return not is_last(view, task, step, off) and not unasked(view, task, step)


def decide(view: Journal, task: Task, actor: Actor, lease_held: bool, off: Rules) -> Plan:
    """What to do with a delivery that is not claimed."""
    match actor.kind:
        case "worker":
            return _decide_work(view, task, actor, lease_held or Off.NO_LEASE_CLOCK in off, off)
        case "steward":
            return _decide_command(view, task, actor, lease_held, off)
        case "sweep":
            return _decide_stranded(view, task, actor, off)
        case "ingress":
            return () if view.queued else append(Event("task.queued"))
        case "reconciler":
            return ()  # It has looked already.


def _decide_work(view: Journal, task: Task, actor: Actor, lease_held: bool, off: Rules) -> Plan:
    decision = _of_work(view, task, actor, off)
    begins = decision[0].event is not None and decision[0].event.kind in ("task.queued", "step.claimed")
    # A process that slept must not begin (rule 4).
    return () if begins and not lease_held else decision


def _of_work(  # noqa: PLR0911 - a line of the table each
    view: Journal, task: Task, actor: Actor, off: Rules
) -> Plan:
    step, gen = actor.body.step, actor.body.gen
    base = base_of_claim(view, step) if turn_of(step) == step else None
    claim = append(Event("step.claimed", step, gen, (actor.sequence, actor.delivery), base=base))
    if not view.queued:
        # Only the first turn's message holds the request (rule 10).
        return append(Event("task.queued")) if (step, gen, actor.body.tries) == ("1", 0, 0) else (NAK,)
    if view.ended and Off.NO_FOLD_OF_RESULTS not in off:
        return settle(view, task, step, off)
    current = view.gen(step)
    if gen > current and Off.NO_GEN_IN_DECISION not in off:
        return (NAK,)
    if gen < current and Off.NO_GEN_IN_DECISION not in off:
        repaired = (step, gen) in view.repaired and Off.REPAIRED_UNWRITTEN not in off
        return SETTLE_DEAD_LETTER if repaired else (ACK,)
    said, now = _said(view, actor.body, off), epoch(view, step, gen)
    if said < now:
        return settle(view, task, step, off)  # A timer, or a release, has taken this message's place.
    if said > now:
        # A stale read: what this message comes after is not there yet.
        return (ACK,) if Off.NEW_RELEASE_DROPPED in off and said[1] > now[1] else (NAK,)
    bound = view.claims.get((step, gen)) if Off.RETRY_STAYS_BOUND in off else None
    message = bound[0] if bound else view.bindings.get((step, gen), actor.sequence)
    if Off.NO_BINDING not in off and message != actor.sequence:
        return (ACK,)
    if _dead(view, step, gen, off):
        return SETTLE_DEAD_LETTER
    if is_done(view, task, step, off) and Off.NO_FOLD_OF_RESULTS not in off:
        return settle(view, task, step, off)
    turn = turn_of(step)
    if turn == step and step != "1" and not _may_begin(view, task, str(int(turn) - 1), off):
        return (NAK,)
    if turn != step and turn not in view.results:
        return REFUSE if Off.ABSENCE_UNASKED in off else (ASK_LEADER,)
    if step in task.approvals and step not in view.resolved:
        return (NAK,)  # Whoever sent this: nobody has agreed yet.
    return claim


def _said(view: Journal, body: Body, off: Rules) -> tuple[int, int]:
    """The tries and releases that a message says, as far as anybody looks at them."""
    tries, releases = epoch(view, body.step, body.gen)
    if not (body.tries < tries and Off.OLD_TRY_CLAIMED in off) and not (
        body.tries > tries and Off.NEW_TRY_DROPPED in off
    ):
        tries = body.tries
    if not (body.releases < releases and Off.OLD_RELEASE_CLAIMED in off):
        releases = body.releases
    return tries, releases


def _may_begin(view: Journal, task: Task, before: str, off: Rules) -> bool:
    """Whether the turn before is completed, was not the last one, and all of its calls have their results."""
    return before in view.results and not is_last(view, task, before, off) and not open_calls(view, task, before)


def perform(view: Journal, task: Task, actor: Actor, off: Rules) -> Plan:
    """What the owner of a step does next."""
    if not owns(view, actor, off):
        return lose(view, task, actor, off)
    step, gen = actor.body.step, actor.body.gen

    def own(kind: EventKind, of: str = step) -> Plan:
        return append(Event(kind, of, gen, (actor.sequence, actor.delivery)))

    if "-" in step:
        if view.claim_counts[step, gen] > 1:
            return own("tool.failed")  # It is not idempotent, and may have run: the outcome is unknown.
        return (EFFECT, *own("tool.completed"))
    if step not in view.results:
        return _generate(view, task, actor, off)
    if is_last(view, task, step, off):
        return own("task.completed")
    for call in unasked(view, task, step):
        return append(Event("approval.requested", call))
    return settle(view, task, step, off)


def _generate(view: Journal, task: Task, actor: Actor, off: Rules) -> Plan:
    """What comes next of a turn that is not completed. Its prompt has the inputs before its base."""
    step, gen, author = actor.body.step, actor.body.gen, (actor.sequence, actor.delivery)
    if view.redirects.intersection(unseen(view, step, off)):
        return append(Event("turn.restarted", step, gen, author))
    if step in task.tokens and step not in view.texts:
        return append(Event("output.delta", step, gen, author))
    missed = unseen(view, step, off)
    shown = tuple(n for n in view.inputs if n not in missed)
    return append(Event("turn.completed", step, gen, author, shown=shown))


def lose(view: Journal, task: Task, actor: Actor, off: Rules) -> Plan:
    """The step is somebody else's: send nothing more. If the task has ended, nobody else has it: settle (rule 5)."""
    if view.ended and is_last_claim(view, actor, off):
        return settle(view, task, actor.body.step, off)
    return (ACK,) if Off.NO_SILENCE in off else ()


def _decide_command(view: Journal, task: Task, actor: Actor, lease_held: bool, off: Rules) -> Plan:
    body = actor.body
    match body.kind:
        case _ if not view.queued:
            return (ASK_LEADER,)
        case "cancel":
            plan = (PROJECT, ACK) if view.ended else append(Event("task.cancelled"))
        case "approval" if view.ended or body.step in view.resolved:
            plan = settle(view, task, body.step, off)
        case "approval" if body.step not in view.approvals:
            plan = (ASK_LEADER,)
        case "approval":
            plan = append(Event("approval.resolved", body.step, decision=body.decision))
        case "input" if view.ended or (body.gen in view.commands and Off.INPUT_AGAIN not in off):
            plan = (PROJECT, ACK)
        case "input":
            plan = append(Event("input.received", gen=body.gen, decision=body.decision))
        case "retry" if Off.RETRY_UNASKED not in off and not view.ended and _is_ahead(view, body):
            plan = (ASK_LEADER,)  # A stale read: the retry that set this timer is not there yet.
        case "retry":
            plan = (PROJECT, *publish(_again(view, body, off)), ACK)
        case _:
            plan = _decide_replay(view, task, body, off)
    appends = plan[0].event is not None
    return () if appends and not lease_held else plan


def _is_ahead(view: Journal, body: Body) -> bool:
    """Whether a timer is of a try that the fold does not know of."""
    return body.gen > view.gen(body.step) or body.tries > view.tries.get((body.step, body.gen), 0)


def _again(view: Journal, body: Body, off: Rules) -> list[Body]:
    """The work that a timer has brought, if it is still the next try."""
    step, gen = body.step, body.gen
    if view.ended or (step, gen) not in view.next_tries or view.gen(step) != gen:
        return []
    if body.tries < view.tries[step, gen] and Off.OLD_TIMER_BRINGS not in off:
        return []
    return [work_of(view, step)]


def _decide_replay(view: Journal, task: Task, body: Body, off: Rules) -> Plan:
    if view.ended:
        return (PROJECT, ACK)
    if Off.REPLAY_ALWAYS in off:
        return append(Event("task.replayed", steps=tuple((step, view.gen(step)) for step, _ in body.steps)))
    still_open = tuple(step_gen for step_gen in body.steps if step_gen in view.dead)
    if still_open:
        return append(Event("task.replayed", steps=still_open))
    if any(view.gen(step) <= gen for step, gen in body.steps):
        return (ASK_LEADER,)  # A stale read: the dead letters that a person saw are not there yet.
    if Off.REPLAY_UNPUBLISHED in off:
        return (PROJECT, ACK)
    return settle_replay(view, body.steps, off)


def settle_replay(view: Journal, steps: tuple[StepGen, ...], off: Rules) -> Plan:
    """A replay that was carried out, perhaps by somebody who died then: its work may still have to be published."""
    body_of = work_of if Off.REPLAY_BEFORE_TIMER in off else _work_or_timer
    return (PROJECT, *publish([body_of(view, step) for step, gen in steps if view.gen(step) > gen]), ACK)


def _decide_stranded(view: Journal, task: Task, actor: Actor, off: Rules) -> Plan:
    """What to do with a message that nobody will get any more (rule 8)."""
    step, gen = actor.body.step, actor.body.gen
    give_up = append(Event("task.dead_lettered", step, gen))
    if Off.STRANDED_UNREAD in off and view.queued and not view.ended and (step, view.gen(step)) not in view.dead:
        return append(Event("task.dead_lettered", step, view.gen(step)))
    plan = _of_work(view, task, actor, off)
    first = plan[0]
    if first.event is not None:
        return plan if first.event.kind == "task.queued" else give_up
    match first.kind:
        case "nak" | "ask leader":
            return REFUSE if Off.ABSENCE_UNASKED in off else (ASK_LEADER,)
        case _ if plan == SETTLE_DEAD_LETTER:
            return plan
        case _ if Off.STRANDED_UNSETTLED in off:
            return (DELETE,)
        case _:
            return (PROJECT, *publish(due_after(view, task, step, off)), DELETE)
