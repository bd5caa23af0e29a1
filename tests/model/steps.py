"""The steps of the model: every single operation on the broker that may come next, and every misfortune."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.model import checker, decisions
from tests.model.invariants import judge_append, judge_effect, judge_rest
from tests.model.journal import NOTHING, Event, EventKind, Journal, Task
from tests.model.rules import ALL_RULES, Off, Rules
from tests.model.state import Actor, ActorKind, Body, Bounds, Message, Operation, State

Step = checker.Step[State]


@dataclass(frozen=True, slots=True)
class Configuration:
    """A task, and what may happen to it."""

    name: str
    task: Task
    bounds: Bounds
    workers: int = 2
    stewards: int = 1
    deliveries_max: int = 3
    """`max_deliver` of the work queues. Commands are delivered as often as it takes."""
    begun: bool = True
    """Whether the journal has begun; else the ingress has published turn 1, and is about to append `task.queued`."""
    cold: bool = False
    """Whether who reads a journal for the first time passes over the deltas of completed turns, as of a long one."""

    def model(self, off: Rules) -> Steps:
        """The model with some rules switched off."""
        return Steps(self, off)


def initial(configuration: Configuration) -> State:
    """The task is accepted: its first turn's message is in TASKS."""
    journal = Journal()
    body = Body("work", "1", 0)
    actors: tuple[Actor, ...] = ()
    if configuration.begun:
        journal = journal.append(Event("task.queued"))
    else:
        actors = (Actor("ingress", 0, 0, journal, decisions.append(Event("task.queued")), body),)
    return State(
        journal=journal,
        queue=(Message(1, body),),
        actors=actors,
        window=frozenset([body]),
        next_sequence=2,
        record=0,
        records=frozenset(),
        effects=frozenset(),
        commands=frozenset(),
        timers=frozenset(),
        due=frozenset(),
        left=configuration.bounds,
    )


GIVEN_UP = ("task.retrying", "task.dead_lettered", "step.released")
"""Appends after which the step is let go of anyway."""


class Steps:
    """All that may come next, under the rules that are not switched off."""

    def __init__(self, configuration: Configuration, off: Rules = ALL_RULES) -> None:
        self._task = configuration.task
        self._configuration = configuration
        self._off = off

    def initial(self) -> State:
        """The task is accepted."""
        return initial(self._configuration)

    def judge_rest(self, state: State) -> str | None:
        """What is wrong in a state that nothing but a person could move, or None."""
        return judge_rest(state)

    def after(self, state: State) -> Iterator[Step]:
        """Every step from a state."""
        yield from self._deliveries(state)
        for actor in state.actors:
            yield from self._operation(state, actor)
            if state.left.crashes:
                yield Step(actor, "dies", state.with_actor(actor, None).spend("crashes"), progress=False)
        yield from self._lease_ends(state)
        if state.left.windows and state.window:
            yield Step(
                "broker", "forgets the message ids", state._replace(window=frozenset()).spend("windows"), progress=False
            )
        yield from self._clock(state)
        yield from self._people(state)
        yield from self._losses(state)
        if Off.NO_RECONCILIATION not in self._off:
            yield from self._reconciles(state)

    # The queue

    def _deliveries(self, state: State) -> Iterator[Step]:
        room: dict[ActorKind, int] = {
            "worker": self._configuration.workers,
            "steward": self._configuration.stewards,
            "sweep": 0 if Off.NO_SWEEP in self._off else 1,
        }
        for actor in state.actors:
            if actor.kind in room:
                room[actor.kind] -= 1
        for message in state.queue:
            if message.held == "ready":
                kind: ActorKind = "worker" if message.body.kind == "work" else "steward"
                if room[kind] > 0:
                    leased = message._replace(held="leased", deliveries=message.deliveries + 1)
                    yield self._taken(state.with_message(leased), kind, leased)
            elif message.held == "stranded" and room["sweep"] > 0:
                yield self._taken(state, "sweep", message)

    def _taken(self, state: State, kind: ActorKind, message: Message) -> Step:
        delivery = 0 if kind == "sweep" else message.deliveries
        actor = Actor(kind, message.sequence, delivery, NOTHING, (decisions.READ,), message.body)
        return Step(actor, f"takes {message.body}", state.with_actor(None, actor))

    def _lease_ends(self, state: State) -> Iterator[Step]:
        held = {(actor.sequence, actor.delivery) for actor in state.actors}
        for message in state.queue:
            if message.held != "leased":
                continue
            ended = state.with_message(self._given_back(message))
            if (message.sequence, message.deliveries) not in held:
                yield Step("broker", f"ends the lease of m{message.sequence}", ended)
            elif state.left.stalls:
                what = f"ends the lease of m{message.sequence}, whose holder stalls"
                yield Step("broker", what, ended.spend("stalls"), progress=False)

    def _given_back(self, message: Message) -> Message:
        exhausted = message.body.kind == "work" and message.deliveries >= self._configuration.deliveries_max
        return message._replace(held="stranded" if exhausted else "ready")

    def _put(self, state: State, body: Body) -> State:
        message_id = self._message_id(body)
        if message_id in state.window:
            return state
        return state._replace(
            queue=(*state.queue, Message(state.next_sequence, body)),
            window=state.window | {message_id},
            next_sequence=state.next_sequence + 1,
        )

    def _message_id(self, body: Body) -> Body:
        if Off.NO_GEN_IN_MESSAGE_ID in self._off:
            return body._replace(gen=0)
        if Off.NO_TRIES_IN_MESSAGE_ID in self._off and body.kind == "work":
            return body._replace(tries=0)
        if Off.NO_RELEASES_IN_MESSAGE_ID in self._off:
            return body._replace(releases=0)
        return body

    # Messages that are gone

    def _losses(self, state: State) -> Iterator[Step]:
        for message in state.queue:
            if state.left.losses and message.body.kind == "work":
                gone = state.without_message(message.sequence).spend("losses")
                yield Step("somebody", f"purges m{message.sequence}", gone, progress=False)

    def _reconciles(self, state: State) -> Iterator[Step]:
        """Look for what the task goes on by. It takes a journal that is quiet, and so nobody who is at work."""
        quiet, journal = not state.actors, state.journal
        if not journal.queued or not (state.left.looks if quiet else state.left.hasty_looks):
            return
        if journal.ended and quiet and not state.queue and state.record != journal.length:
            actor = Actor("reconciler", 0, 0, journal, (decisions.PROJECT,), Body("work"))
            yield Step(actor, "finds a record without its end", state.with_actor(None, actor).spend("looks"))
        for step in [] if journal.ended else decisions.steps_due(journal, self._task):
            body = decisions.work_of(journal, step)
            if self._is_there(state, body):
                continue
            plan = decisions.append(Event("step.released", step, body.gen))
            if Off.PUT_BACK_UNRELEASED in self._off:
                plan = decisions.publish([body])
            actor = Actor("reconciler", 0, 0, journal, plan, body)
            looked = state.with_actor(None, actor).spend("looks" if quiet else "hasty_looks")
            yield Step(actor, f"misses the message of {step}.g{body.gen}", looked, progress=quiet)

    @staticmethod
    def _is_there(state: State, body: Body) -> bool:
        """Whether a step's message is in its queue: the bound one, or any that may be meant."""
        bound = state.journal.bindings.get((body.step, body.gen))
        if (body.step, body.gen) in state.journal.next_tries:
            timer = decisions.retry_timer(state.journal, body.step)
            if timer in state.timers or any(each.body == timer for each in state.queue):
                return True
        work = [each for each in state.queue if each.body.kind == "work"]
        there = [each.sequence for each in work if (each.body.step, each.body.gen) == (body.step, body.gen)]
        return bound in there if bound is not None else bool(there)

    # Timers

    def _clock(self, state: State) -> Iterator[Step]:
        journal = state.journal
        tries = [Body("retry", step, gen, tries=journal.tries[step, gen]) for step, gen in journal.next_tries]
        for body in sorted({*tries, *state.timers} - state.due):
            yield Step("clock", f"says that {body} is due", state._replace(due=state.due | {body}))
        for body in sorted(state.timers & state.due):
            # Stored and not published: it has no message id any more.
            fired = state._replace(
                timers=state.timers - {body},
                queue=(*state.queue, Message(state.next_sequence, body)),
                next_sequence=state.next_sequence + 1,
            )
            yield Step("broker", f"fires {body}", fired)

    def _schedule(self, state: State, body: Body) -> State:
        """A subject holds one schedule: each try has its own."""
        if body in state.window:
            return state
        others = set(state.timers)
        if Off.ONE_TIMER_OF_STEP in self._off:
            others = {timer for timer in state.timers if timer.step != body.step}
        return state._replace(timers=frozenset({*others, body}), window=state.window | {body})

    # People

    def _people(self, state: State) -> Iterator[Step]:
        journal, left = state.journal, state.left
        if journal.ended or not journal.queued:
            return
        if left.cancels:
            yield self._command(state.spend("cancels"), Body("cancel"))
        number = sum(command.kind == "input" for command in state.commands)
        if left.inputs:
            yield self._command(state.spend("inputs"), Body("input", gen=number, decision="append"))
        if left.redirects:
            yield self._command(state.spend("redirects"), Body("input", gen=number, decision="redirect"))
        if left.approvals:
            for call in sorted(journal.approvals - journal.resolved):
                for decision in ("approved", "denied"):
                    yield self._command(state.spend("approvals"), Body("approval", call, decision=decision))
        if left.replays and journal.dead:
            yield self._command(state.spend("replays"), Body("replay", steps=tuple(sorted(journal.dead))))

    def _command(self, state: State, body: Body) -> Step:
        sent = self._put(state, body)
        return Step("a person", f"sends {body}", sent._replace(commands=state.commands | {body}), progress=False)

    # One operation

    def _operation(self, state: State, actor: Actor) -> Iterator[Step]:
        operation = actor.plan[0]
        done = actor._replace(plan=actor.plan[1:])
        match operation.kind:
            case "read":
                yield from self._read(state, actor)
            case "append" if operation.event is not None:
                yield from self._gives_up(state, actor, operation.event)
                yield from self._drains(state, actor, operation.event.kind)
                yield from self._append(state, actor, operation.event)
            case "look up" if operation.event is not None:
                yield self._look_up(state, actor, operation.event)
            case "ask leader":
                yield self._ask_leader(state, actor)
            case "effect":
                yield from self._gives_up(state, actor, None)
                yield from self._drains(state, actor, None)
                effect = (actor.body.step, actor.body.gen)
                changed = state._replace(effects=state.effects | {effect}).with_actor(actor, done)
                yield Step(actor, "has its effect on the world", changed, judge_effect(state, effect))
            case "project":
                changed = state._replace(record=max(state.record, actor.view.length))
                yield Step(actor, f"projects revision {actor.view.length}", changed.with_actor(actor, done))
            case "publish" if operation.body is not None:
                yield from self._publish(state, actor, done, operation.body)
            case "write record":
                changed = state._replace(records=state.records | {(actor.body.step, actor.body.gen)})
                yield Step(actor, "writes the dead letter's record", changed.with_actor(actor, done))
            case _:
                yield from self._answer(state, actor, done, operation)

    def _read(self, state: State, actor: Actor) -> Iterator[Step]:
        yield self._decided(state, actor, state.journal, f"reads up to {state.journal.length}")
        if not state.left.stale_reads:
            return
        older = state.journal.parent
        while older is not None:
            step = self._decided(state.spend("stale_reads"), actor, older, f"reads, stale, up to {older.length}")
            yield step._replace(progress=False)
            older = older.parent

    def _decided(self, state: State, actor: Actor, view: Journal, what: str) -> Step:
        view = view.cold() if self._configuration.cold else view
        plan = decisions.decide(view, self._task, actor, state.lease_held(actor), self._off)
        return Step(actor, what, state.with_actor(actor, actor._replace(view=view, plan=plan)))

    def _publish(self, state: State, actor: Actor, done: Actor, body: Body) -> Iterator[Step]:
        published = self._schedule(state, body) if body.kind == "retry" else self._put(state, body)
        note = "" if published is not state else ", a duplicate"
        yield Step(actor, f"publishes {body}{note}", published.with_actor(actor, done))
        if state.left.lost_answers:
            yield Step(actor, f"publishes {body}{note}, answer lost", published.spend("lost_answers"), progress=False)

    def _ask_leader(self, state: State, actor: Actor) -> Step:
        behind = actor.view.length != state.journal.length
        if behind:
            # A sweep comes again of itself; a delivery has to be given back.
            plan: decisions.Plan = () if actor.kind == "sweep" else (decisions.NAK,)
        else:
            plan = decisions.REFUSE
        what = "asks the leader: " + ("its read was stale" if behind else "there is no such call")
        return Step(actor, what, state.with_actor(actor, actor._replace(plan=plan)))

    def _answer(self, state: State, actor: Actor, done: Actor, operation: Operation) -> Iterator[Step]:
        changed = state.with_actor(actor, done)
        held = state.lease_held(actor)
        removed = changed.without_message(actor.sequence)
        if operation.kind == "nak":
            message = state.message(actor.sequence)
            if held and message is not None:
                changed = changed.with_message(self._given_back(message))
            yield Step(actor, "naks" if held else "sends nothing, its lease is over", changed)
        elif held or actor.kind == "sweep":
            yield Step(actor, "acks" if operation.kind == "ack" else "deletes its message", removed)
        else:
            # It may have looked at its clock just before the lease ended.
            yield Step(actor, "sends nothing, its lease is over", changed)
            yield Step(actor, f"sends a late {operation.kind}", removed, progress=False)

    # Appending

    def _gives_up(self, state: State, actor: Actor, event: Event | None) -> Iterator[Step]:
        """A step that fails, for good or for now, in place of its result."""
        if state.left.failures and actor.claimed and (event is None or event.kind == "turn.completed"):
            author = (actor.sequence, actor.delivery)
            dead_letter = Event("task.dead_lettered", actor.body.step, actor.body.gen, author)
            for step in self._append(state.spend("failures"), actor, dead_letter):
                yield step._replace(progress=False)
        if state.left.retries and actor.claimed and (event is None or event.kind == "turn.completed"):
            author = (actor.sequence, actor.delivery)
            retrying = Event("task.retrying", actor.body.step, actor.body.gen, author)
            for step in self._append(state.spend("retries"), actor, retrying):
                yield step._replace(progress=False)

    def _drains(self, state: State, actor: Actor, instead_of: EventKind | None) -> Iterator[Step]:
        """A worker that is told to stop releases its step, whatever would come next of it."""
        if state.left.releases and (actor.claimed or instead_of == "step.claimed") and instead_of not in GIVEN_UP:
            released = Event("step.released", actor.body.step, actor.body.gen, (actor.sequence, actor.delivery))
            for step in self._append(state.spend("releases"), actor, released):
                yield step._replace(progress=False)

    def _append(self, state: State, actor: Actor, event: Event) -> Iterator[Step]:
        unfenced = event.kind == "task.cancelled" and Off.CANCEL_UNFENCED in self._off
        if actor.view.length != state.journal.length and not unfenced:
            yield self._conflict(state, actor, event)
            return
        violation = judge_append(state, self._task, event)
        longer = state._replace(journal=state.journal.append(event))
        after = self._appended(longer, actor, event)
        yield Step(actor, f"appends {event}", longer.with_actor(actor, after), violation)
        if state.left.lost_answers:
            lost = actor._replace(plan=(Operation("look up", event=event),))
            changed = longer.with_actor(actor, lost).spend("lost_answers")
            yield Step(actor, f"appends {event}, answer lost", changed, violation, progress=False)

    def _look_up(self, state: State, actor: Actor, event: Event) -> Step:
        """An append without an answer is looked for by its event's id. Here it was stored."""
        if Off.NO_EVENT_ID in self._off:
            return self._conflict(state, actor, event)
        return Step(actor, f"finds its {event.kind}", state.with_actor(actor, self._appended(state, actor, event)))

    def _appended(self, state: State, actor: Actor, event: Event) -> Actor:
        """The actor after its append was stored."""
        view, off = actor.view.caught_up(state.journal), self._off
        told = actor._replace(view=view, claimed=actor.claimed or event.kind == "step.claimed")
        plan: decisions.Plan
        match event.kind:
            case "task.dead_lettered" if actor.kind == "worker" or Off.STRANDED_UNREAD in off:
                plan = decisions.SETTLE_DEAD_LETTER
            case "step.released" if actor.kind == "worker":
                plan = decisions.settle(view, self._task, actor.body.step, off)
            case "tool.completed" | "tool.failed" | "task.completed" | "task.retrying":
                plan = decisions.settle(view, self._task, actor.body.step, off)
            case "task.replayed":
                plan = decisions.settle_replay(view, event.steps, off)
            case _ if actor.kind == "reconciler":
                plan = decisions.publish([decisions.work_of(view, event.step)])
            case _ if told.claimed:
                plan = decisions.perform(view, self._task, told, off)
            case _:
                plan = decisions.decide(view, self._task, told, state.lease_held(actor), off)
        return told._replace(plan=plan)

    def _conflict(self, state: State, actor: Actor, event: Event) -> Step:
        """Read what was missed, and decide again (rule 5). Reading at once loses nothing: till then the fence holds."""
        view, off = actor.view.caught_up(state.journal), self._off
        told = actor._replace(view=view)
        plan: decisions.Plan
        if actor.kind == "reconciler":
            # It goes on by itself, then.
            plan = decisions.append(event) if Off.PUT_BACK_ANYWAY in off else ()
        elif Off.NO_SECOND_DECISION in off:
            plan = decisions.append(event)
        elif not actor.claimed:
            plan = decisions.decide(view, self._task, told, state.lease_held(actor), off)
            if event.kind == "step.released" and plan and plan[0].event and plan[0].event.kind == "step.claimed":
                plan = decisions.append(event)
        elif decisions.owns(view, actor, off):
            # An input that comes before the task's end makes another turn of it.
            again = event.kind == "task.completed" and Off.END_UNSEEN not in off
            plan = decisions.perform(view, self._task, told, off) if again else decisions.append(event)
        else:
            plan = decisions.lose(view, self._task, actor, off)
        changed = state.with_actor(actor, told._replace(plan=plan))
        return Step(actor, f"is refused {event}, and reads up to {view.length}", changed)
