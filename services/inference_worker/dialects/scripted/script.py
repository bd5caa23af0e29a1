"""Scripts of the scripted model: their grammar, and the tokens and calls they make. Pure.

Each line that begins with `!` is a directive, and what stands between them is said as it is:

    !say N             the tokens "t0 " "t1 " … "t<N-1> "
    !rate R            at R tokens a second from here on; 0, and at the start: as fast as they are taken
    !hang S            S seconds of silence
    !call NAME JSON    a call of a tool; the arguments are {} if absent. All calls of a turn go out together, at its end
    !ask QUESTION      a call of the tool that asks the user
    !then              the end of a turn: the next lines script the next one
    !fail KIND [N [S]] the first N tries fail (N is 1 if absent), and ask to be tried again no sooner than in S seconds;
                       several of these take turns, one after the other
    !exit N            the first N deliveries kill their process, halfway through the tokens
    !cached N          N of the tokens that the turn reads count as read from a cache
    !reasoning N       the turn counts N tokens of reasoning more, which nobody sees

`!fail disconnect` fails halfway through the tokens, the other kinds before the first. A turn that no script is for
gets a short answer, made from what the user said last or from what the tools have answered since.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast, get_args

from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.records.tools import ASK_USER, CALLS_PER_TURN_MAX
from inference_worker.models.chunks import RequestedCall
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer
from mesh.task.failures import StepFailed

SAY_TOKENS_MAX = 200_000
"""Tokens of all `!say` of one script: some 1.4 MB, three times what a task may put out."""
RATE_MIN = 0.01
"""The slowest rate that is not 0: a token in 100 s."""
RATE_MAX = 100_000.0
HANG_SECONDS_MAX = 3600.0
"""All `!hang` of one script together."""
REPEATS_MAX = 1_000_000
"""Largest N of `!fail` and `!exit`."""
RETRY_AFTER_SECONDS_MAX = 3600.0
"""Longest S of `!fail`."""
EXCERPT_CHARACTERS_MAX = 160
"""How much of a plain text, or of a tool's answer, is in an answer."""
TOOL_ANSWERS_MAX = 16
"""How many tools' answers are in an answer."""

SCRIPTS_KEPT = 16
"""Scripts that need not be read again at each of their turns."""

FailureKind = Literal["rate_limit", "overloaded", "server_error", "bad_request", "disconnect"]

_WORD = re.compile(r"\s+|\S+\s*")
_INTEGER = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Say:
    """So many numbered tokens."""

    count: int

    def tokens(self) -> Iterator[str]:
        """The tokens in order."""
        return (f"t{number} " for number in range(self.count))


@dataclass(frozen=True, slots=True)
class Text:
    """A text, said word by word. The tokens joined are the text."""

    text: str

    @property
    def count(self) -> int:
        """How many tokens it is."""
        return sum(1 for _ in self.tokens())

    def tokens(self) -> Iterator[str]:
        """The tokens in order: each a word with the white space behind it."""
        return (match.group() for match in _WORD.finditer(self.text))


@dataclass(frozen=True, slots=True)
class Rate:
    """From here on so many tokens a second; 0 is unlimited."""

    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Silence."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """So many tries fail in this way."""

    kind: FailureKind
    tries: int
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Halfway:
    """Half of the tokens are said: here a process is killed, or a connection breaks."""


Act = Say | Text | Rate | Hang
Moment = str | Rate | Hang | Halfway


@dataclass(frozen=True, slots=True)
class Script:
    """What the scripted model does in a turn."""

    acts: tuple[Act, ...] = ()
    failures: tuple[Failure, ...] = ()
    exits: int = 0
    calls: tuple[RequestedCall, ...] = ()
    cached: int = 0
    reasoning: int = 0

    @property
    def token_count(self) -> int:
        """How many tokens the whole turn has."""
        return sum(act.count for act in self.acts if isinstance(act, Say | Text))

    def failure(self, tries: int) -> Failure | None:
        """How the try after `tries` failed ones fails; None if it does not."""
        for failure in self.failures:
            if tries < failure.tries:
                return failure
            tries -= failure.tries
        return None

    def moments(self, token_count: int, covered: int = 0) -> Iterator[Moment]:
        """What happens, in order, up to `token_count` tokens, without what `covered` characters of prefix hold.

        The prefix may end within a token: then the rest of that comes first. A silence within the prefix has been
        kept already.
        """
        cut = token_count < self.token_count
        number = position = 0
        if token_count == 0:
            yield Halfway()
        for act in self.acts:
            if cut and number == token_count:
                return
            if isinstance(act, Rate):
                yield act
            elif isinstance(act, Hang):
                if position >= covered:
                    yield act
            else:
                for token in act.tokens():
                    if number == token_count:
                        return
                    if number == token_count // 2:
                        yield Halfway()
                    if position + len(token) > covered:
                        yield token[max(0, covered - position) :]
                    number += 1
                    position += len(token)


def script_of_turn(entries: Sequence[ConversationItem]) -> Script:
    """What to do in the turn that a conversation has come to. Raises `StepFailed` (invalid-script).

    The newest message of the user with a script says it, or used to: each turn since then has done a part of it.
    """
    turns_since = 0
    for entry in reversed(entries):
        if isinstance(entry, AssistantTurn):
            turns_since += 1
        elif not isinstance(entry, ToolAnswer) and entry.role == "user" and is_script(entry.content):
            parts = parse_script(entry.content)
            return parts[turns_since] if turns_since < len(parts) else plain_answer(entries)
    return plain_answer(entries)


def is_script(text: str) -> bool:
    """Whether a text is a script, right or wrong."""
    return text.startswith("!") or "\n!" in text


def plain_answer(entries: Sequence[ConversationItem]) -> Script:
    """A short answer to whatever stands last: the same words for the same conversation."""
    answers: list[ToolAnswer] = []
    for entry in reversed(entries):
        if isinstance(entry, ToolAnswer):
            answers.append(entry)
        elif not isinstance(entry, AssistantTurn) and entry.role == "user":
            return Script((Text(_to_tools(answers[::-1]) if answers else _to_user(entry.content)),))
    return Script((Text(_to_tools(answers[::-1]) if answers else _to_user(_last_words(entries))),))


@lru_cache(SCRIPTS_KEPT)
def parse_script(text: str) -> tuple[Script, ...]:
    """Read a script, turn by turn. Raises `StepFailed` (invalid-script) that names the line at fault."""
    draft = _Draft()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.startswith("!"):
            draft.text.append(line)
            continue
        try:
            draft.add(line[1:])
        except ValueError as error:
            raise invalid_script(f"line {number}: {error}") from None
    return draft.parts()


def invalid_script(message: str) -> StepFailed:
    """The failure of a script that no other try can make right."""
    return StepFailed("invalid-script", message, retryable=False, terminal=True)


def _to_user(said: str) -> str:
    return f"You said: {_excerpt(said)}\nI am the scripted model, and this is all I have to say about it."


def _to_tools(answers: list[ToolAnswer]) -> str:
    told = [
        f"{answer.call} {'failed:' if answer.is_error else '='} {_excerpt(answer.content)}"
        for answer in answers[:TOOL_ANSWERS_MAX]
    ]
    if len(answers) > TOOL_ANSWERS_MAX:
        told.append(f"and {len(answers) - TOOL_ANSWERS_MAX} more")
    return f"The tools said: {'; '.join(told)}"


def _last_words(entries: Sequence[ConversationItem]) -> str:
    last = entries[-1] if entries else None
    return last.text if isinstance(last, AssistantTurn) else last.content if last else ""


def _excerpt(text: str) -> str:
    words = " ".join(text.split())
    if len(words) <= EXCERPT_CHARACTERS_MAX:
        return words
    return words[:EXCERPT_CHARACTERS_MAX].rstrip() + "…"


@dataclass(slots=True)
class _Draft:
    """A script as far as it is read. What it rejects is a ValueError."""

    ended: list[Script] = field(default_factory=list)
    """The turns before this one."""
    acts: list[Act] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    exits: int = 0
    calls: list[RequestedCall] = field(default_factory=list)
    cached: int = 0
    reasoning: int = 0
    text: list[str] = field(default_factory=list)
    """Lines since the last directive."""
    say_tokens: int = 0
    hang_seconds: float = 0.0

    def parts(self) -> tuple[Script, ...]:
        self._end_turn()
        return tuple(self.ended)

    def add(self, directive: str) -> None:
        """Add a directive, given without its `!`."""
        self._end_text()
        name, arguments = [*directive.split(None, 1), "", ""][:2]
        add = _DIRECTIVES.get(name)
        if add is None:
            raise ValueError(
                f"!{name:.40} is no directive; these are: {', '.join(f'!{known}' for known in _DIRECTIVES)}"
            )
        add(self, arguments)

    def add_say(self, arguments: str) -> None:
        count = _integer("say", arguments)
        self.say_tokens += count
        _check_at_most("say", self.say_tokens, SAY_TOKENS_MAX, "tokens in total")
        self.acts.append(Say(count))

    def add_rate(self, arguments: str) -> None:
        rate = _number("rate", arguments)
        _check_at_most("rate", rate, RATE_MAX, "tokens a second")
        if 0 < rate < RATE_MIN:
            raise ValueError(f"!rate: {rate:g} is less than {RATE_MIN:g} tokens a second")
        self.acts.append(Rate(rate))

    def add_hang(self, arguments: str) -> None:
        seconds = _number("hang", arguments)
        self.hang_seconds += seconds
        _check_at_most("hang", self.hang_seconds, HANG_SECONDS_MAX, "seconds in total")
        self.acts.append(Hang(seconds))

    def add_fail(self, arguments: str) -> None:
        kinds = get_args(FailureKind)
        kind, tries_text, after_text = [*arguments.split(None, 2), "", "", ""][:3]
        if kind not in kinds:
            raise ValueError(f"!fail takes one of {', '.join(kinds)}, and how often")
        tries = _integer("fail", tries_text or "1")
        _check_at_most("fail", tries, REPEATS_MAX, "tries")
        after_seconds = _number("fail", after_text) if after_text else None
        _check_at_most("fail", after_seconds or 0.0, RETRY_AFTER_SECONDS_MAX, "seconds")
        self.failures.append(Failure(cast("FailureKind", kind), tries, after_seconds))

    def add_exit(self, arguments: str) -> None:
        exits = _integer("exit", arguments)
        _check_at_most("exit", exits, REPEATS_MAX, "deliveries")
        self.exits = max(self.exits, exits)

    def add_cached(self, arguments: str) -> None:
        self.cached = _integer("cached", arguments)

    def add_reasoning(self, arguments: str) -> None:
        self.reasoning = _integer("reasoning", arguments)
        _check_at_most("reasoning", self.reasoning, SAY_TOKENS_MAX, "tokens")

    def add_call(self, arguments: str) -> None:
        tool, given = [*arguments.split(None, 1), "", ""][:2]
        if not tool:
            raise ValueError("!call takes the name of a tool, and its arguments as a JSON object")
        self._add_call(_requested(tool, given.rstrip() or "{}"))

    def add_ask(self, arguments: str) -> None:
        question = arguments.rstrip()
        if not question:
            raise ValueError("!ask takes a question")
        self._add_call(RequestedCall(ASK_USER, {"question": question}))

    def add_then(self, arguments: str) -> None:
        if arguments:
            raise ValueError("!then stands alone")
        self._end_turn()

    def _add_call(self, call: RequestedCall) -> None:
        self.calls.append(call)
        _check_at_most("call", len(self.calls), CALLS_PER_TURN_MAX, "calls in a turn")

    def _end_turn(self) -> None:
        self._end_text()
        said = tuple(self.acts), tuple(self.failures), self.exits, tuple(self.calls)
        self.ended.append(Script(*said, cached=self.cached, reasoning=self.reasoning))
        self.acts.clear()
        self.failures.clear()
        self.calls.clear()
        self.exits = self.cached = self.reasoning = 0

    def _end_text(self) -> None:
        # Blank lines around a text are layout.
        text = "\n".join(self.text).strip("\r\n")
        self.text.clear()
        if text.strip():
            self.acts.append(Text(text + "\n"))


_DIRECTIVES: dict[str, Callable[[_Draft, str], None]] = {
    "say": _Draft.add_say,
    "rate": _Draft.add_rate,
    "hang": _Draft.add_hang,
    "call": _Draft.add_call,
    "ask": _Draft.add_ask,
    "then": _Draft.add_then,
    "fail": _Draft.add_fail,
    "exit": _Draft.add_exit,
    "cached": _Draft.add_cached,
    "reasoning": _Draft.add_reasoning,
}


def _requested(tool: str, arguments: str) -> RequestedCall:
    """A call as a model makes it: what it gives as arguments may be anything."""
    try:
        return RequestedCall(tool, decode(arguments.encode(), dict[str, Any]))
    except InvalidPayload as error:
        return RequestedCall(tool, None, str(error))


def _integer(name: str, argument: str) -> int:
    if _INTEGER.fullmatch(argument.rstrip()) is None:
        raise ValueError(f"!{name} takes one whole number of at most nine digits")
    return int(argument)


def _number(name: str, argument: str) -> float:
    if _NUMBER.fullmatch(argument.rstrip()) is None:
        raise ValueError(f"!{name} takes one number, such as 3 or 0.5")
    return float(argument)


def _check_at_most(name: str, value: float, limit: float, unit: str) -> None:
    if value > limit:
        raise ValueError(f"!{name}: {value:g} is more than {limit:g} {unit}")
