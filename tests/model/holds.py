"""Holds (PROTOCOL.md, section 8a): an owner that streams, and commands whose appends come too late each time.

A command reads, and appends later: what the owner has stored in between makes it a conflict. A hold asks the owner to
append nothing for a moment; it may get lost, come late, or twice. Of times two things are taken for granted: a pause
lasts for a conflict and the try after it, unless it ends too early; a rest lasts for an append.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.model import checker
from tests.model.rules import Off, Rules

Doing = Literal["queued", "asks", "reads", "appends", "gives back", "acks", "acked"]
"""Where a command is: in its queue, or in a steward's hands, which does this next with it."""


class Bounds(NamedTuple):
    """How often each misfortune may still happen."""

    lost: int = 0
    """Holds that get lost."""
    twice: int = 0
    """Holds that come once more, any time later."""
    late: int = 0
    """Holds that are on their way for a while."""
    early: int = 0
    """Pauses that end while somebody is still about to append: it took longer than they last."""
    crashes: int = 0
    """Stewards that die with a command in hand."""


class Command(NamedTuple):
    """A command. `revision`: what its steward has read; `entered`: whether its event is in the journal."""

    doing: Doing = "queued"
    revision: int = 0
    conflicts: int = 0
    entered: bool = False


class Streaming(NamedTuple):
    """Everything. Commands are sorted: which of them is which makes no difference."""

    commands: tuple[Command, ...]
    left: Bounds
    to_append: int
    """What the owner still has to append: deltas, and the turn's end."""
    revision: int = 0
    owner_revision: int = 0
    """Up to where the owner has folded."""
    sent: bool = False
    """Whether an append of the owner is under way."""
    holds: int = 0
    """Holds on their way."""
    paused: bool = False
    rests: bool = False
    """Whether the owner goes on, whoever asks, since nobody came in its last pause."""
    in_vain: bool = False
    """Whether nobody came in a pause, and the owner has appended nothing since."""


Step = checker.Step[Streaming]


@dataclass(frozen=True, slots=True)
class Stream:
    """An owner with so much to append, and commands to its task."""

    name: str
    bounds: Bounds
    to_append: int = 5
    commands: int = 1
    conflicts_max: int = 2
    """Conflicts after which a command gives its place back."""

    def model(self, off: Rules) -> HoldModel:
        """The model with some rules switched off."""
        return HoldModel(self, off)


class HoldModel:
    """All that may come next, under the rules that are not switched off."""

    def __init__(self, stream: Stream, off: Rules) -> None:
        self._stream = stream
        self._off = off

    def initial(self) -> Streaming:
        """The owner is about to speak, and people have sent commands."""
        return Streaming((Command(),) * self._stream.commands, self._stream.bounds, self._stream.to_append)

    def judge_rest(self, state: Streaming) -> str | None:
        """What is wrong where nothing moves any more, or None."""
        if state.to_append:
            return "the owner is stopped for ever"
        return None if all(command.entered for command in state.commands) else "a command came to nothing"

    def after(self, state: Streaming) -> Iterator[Step]:
        """Every step from a state."""
        yield from self._owner(state)
        yield from self._pause(state)
        for command in sorted(set(state.commands)):
            yield from self._steward(state, command)
            if state.left.crashes and command.doing not in ("queued", "acked"):
                died = _with(state, command, Command(entered=command.entered))
                yield Step("steward", "dies", _spend(died, "crashes"), progress=False)

    # The owner

    def _owner(self, state: Streaming) -> Iterator[Step]:
        if state.sent and state.owner_revision == state.revision:
            revision, to_append = state.revision + 1, state.to_append - 1
            stored = state._replace(revision=revision, owner_revision=revision, to_append=to_append, sent=False)
            yield Step("owner", "has its append stored", stored._replace(rests=False, in_vain=False))
        elif state.owner_revision < state.revision:
            # It watches its task, and who is refused reads, too.
            read = state._replace(sent=False, owner_revision=state.revision, paused=False, rests=False, in_vain=False)
            yield Step("owner", "reads what somebody else has written, and pauses no more", read)
        elif state.to_append and not state.paused:
            yield Step("owner", "sends an append", state._replace(sent=True))

    def _pause(self, state: Streaming) -> Iterator[Step]:
        if state.holds:
            yield self._heard(state._replace(holds=state.holds - 1), "owner", "hears a hold")
        if not state.paused or Off.PAUSE_ENDLESS in self._off:
            return
        ended = state._replace(paused=False, rests=Off.NO_REST not in self._off, in_vain=True)
        if not any(_is_at_it(command) for command in state.commands):
            yield Step("clock", "ends the pause", ended)
        elif state.left.early:
            yield Step("clock", "ends the pause before the append has come", _spend(ended, "early"), progress=False)

    def _heard(self, state: Streaming, who: str, what: str) -> Step:
        """The owner pauses, unless it rests."""
        if state.rests or state.paused or not state.to_append:
            return Step(who, what, state)
        starved = "an owner is asked again and again, and appends nothing" if state.in_vain else None
        return Step(who, what, state._replace(paused=True), starved)

    # The stewards

    def _steward(self, state: Streaming, command: Command) -> Iterator[Step]:
        match command.doing:
            case "queued":
                told = command._replace(doing=self._first())
                yield Step("steward", "takes a command", _with(state, command, told))
            case "asks":
                yield from self._ask(state, command)
            case "reads":
                told = command._replace(doing="acks" if command.entered else "appends", revision=state.revision)
                yield Step("steward", f"reads up to {state.revision}", _with(state, command, told))
            case "appends":
                yield self._append(state, command)
            case "gives back":
                yield Step("steward", "gives the command back to its queue", _with(state, command, Command()))
            case "acks":
                told = Command("acked", entered=command.entered)
                yield Step("steward", "acks the command", _with(state, command, told))
            case "acked":
                pass

    def _first(self) -> Doing:
        return "reads" if Off.NO_HOLD in self._off else "asks"

    def _ask(self, state: Streaming, command: Command) -> Iterator[Step]:
        asked = _with(state, command, command._replace(doing="reads"))
        yield self._heard(asked, "steward", "asks for a hold, and is heard")
        if state.left.lost:
            yield Step("steward", "asks for a hold, which gets lost", _spend(asked, "lost"), progress=False)
        on_its_way = asked._replace(holds=asked.holds + 1)
        if state.left.late:
            yield Step("steward", "asks for a hold, which is late", _spend(on_its_way, "late"), progress=False)
        if state.left.twice:
            heard = self._heard(_spend(on_its_way, "twice"), "steward", "asks for a hold, which comes twice")
            yield heard._replace(progress=False)

    def _append(self, state: Streaming, command: Command) -> Step:
        if command.revision == state.revision:
            told = Command("acks", entered=True)
            entered = _with(state._replace(revision=state.revision + 1), command, told)
            return Step("steward", "appends its event", entered)
        if Off.HOLD_IS_A_FENCE in self._off:
            unread = "an event is written by who has not read the one before it"
            return Step("steward", "appends its event, without a fence", state, unread)
        told = command._replace(doing=self._first(), conflicts=command.conflicts + 1)
        if told.conflicts < self._stream.conflicts_max:
            return Step("steward", "comes too late", _with(state, command, told))
        lucky = state.left == self._stream.bounds
        denied = "a command does not get in, though nothing keeps its owner from making way" if lucky else None
        told = told._replace(doing="acks" if Off.BUSY_ACKED in self._off else "gives back")
        return Step("steward", "comes too late, and tries no more", _with(state, command, told), denied)


def _is_at_it(command: Command) -> bool:
    """Whether a steward is between a hold and its append: a pause lasts for a conflict, and for the next try."""
    return command.doing in ("reads", "appends") or (command.doing == "asks" and command.conflicts > 0)


def _with(state: Streaming, old: Command, new: Command) -> Streaming:
    commands = list(state.commands)
    commands[commands.index(old)] = new
    return state._replace(commands=tuple(sorted(commands)))


def _spend(state: Streaming, what: str) -> Streaming:
    return state._replace(left=state.left._replace(**{what: getattr(state.left, what) - 1}))


STREAMS: tuple[Stream, ...] = (
    Stream("a hold", Bounds()),
    Stream("a hold, lost", Bounds(lost=2, crashes=1)),
    Stream("a hold, late or twice", Bounds(late=1, twice=1, crashes=1)),
    Stream("a hold, short pauses", Bounds(early=2, late=1)),
    Stream("holds of two", Bounds(), to_append=8, commands=2, conflicts_max=5),
    Stream("holds of two, late", Bounds(late=1, early=1, crashes=1), to_append=4, commands=2, conflicts_max=5),
)
