"""Scripts of the scripted model: their grammar, and the tokens they make. Pure.

Text without a line that begins with `!` gets a short answer made from it. Else each such line is a directive,
and what stands between them is said as it is:

    !say N             the tokens "t0 " "t1 " … "t<N-1> "
    !rate R            at R tokens a second from here on; 0, and at the start: as fast as they are taken
    !hang S            S seconds of silence
    !fail KIND [N]     the first N tries fail (N is 1 if absent); several of these take turns, one after the other
    !exit N            the first N deliveries kill their process, halfway through the tokens

`!fail disconnect` fails halfway through the tokens, the other kinds before the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from mesh.decisions import StepFailed

SAY_TOKENS_MAX = 200_000
"""Tokens of all `!say` of one script: some 1.4 MB, three times what a task may put out."""
RATE_MIN = 0.01
"""The slowest rate that is not 0: a token in 100 s."""
RATE_MAX = 100_000.0
HANG_SECONDS_MAX = 3600.0
"""All `!hang` of one script together."""
REPEATS_MAX = 1_000_000
"""Largest N of `!fail` and `!exit`."""
EXCERPT_CHARACTERS_MAX = 160
"""How much of a plain text is in its answer."""

FailureKind = Literal["rate_limit", "overloaded", "server_error", "bad_request", "disconnect"]

_WORD = re.compile(r"\s+|\S+\s*")
_INTEGER = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_OF_LATER_VERSIONS = ("call", "then", "ask")


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

    @property
    def token_count(self) -> int:
        """How many tokens the whole turn has."""
        return sum(act.count for act in self.acts if isinstance(act, Say | Text))

    def failure(self, tries: int) -> FailureKind | None:
        """How the try after `tries` failed ones fails; None if it does not."""
        for failure in self.failures:
            if tries < failure.tries:
                return failure.kind
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


def parse_script(text: str) -> Script:
    """Read a script. Raises `StepFailed` (invalid-script) that names the line at fault."""
    lines = text.split("\n")
    if not any(line.startswith("!") for line in lines):
        return Script((Text(_answer(text)),))
    draft = _Draft()
    for number, line in enumerate(lines, 1):
        if not line.startswith("!"):
            draft.text.append(line)
            continue
        try:
            draft.add(line[1:])
        except ValueError as error:
            raise invalid_script(f"line {number}: {error}") from None
    return draft.script()


def invalid_script(message: str) -> StepFailed:
    """The failure of a script that no other try can make right."""
    return StepFailed("invalid-script", message, retryable=False, terminal=True)


def _answer(text: str) -> str:
    excerpt = " ".join(text.split())
    if len(excerpt) > EXCERPT_CHARACTERS_MAX:
        excerpt = excerpt[:EXCERPT_CHARACTERS_MAX].rstrip() + "…"
    return f"You said: {excerpt}\nI am the scripted model, and this is all I have to say about it."


@dataclass(slots=True)
class _Draft:
    """A script as far as it is read. What it rejects is a ValueError."""

    acts: list[Act] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    exits: int = 0
    text: list[str] = field(default_factory=list)
    """Lines since the last directive."""
    say_tokens: int = 0
    hang_seconds: float = 0.0

    def script(self) -> Script:
        self._end_text()
        return Script(tuple(self.acts), tuple(self.failures), self.exits)

    def add(self, directive: str) -> None:
        """Add a directive, given without its `!`."""
        self._end_text()
        name, *arguments = directive.split() or [""]
        if name in _OF_LATER_VERSIONS:
            raise ValueError(f"!{name} is not supported by this version")
        add = _DIRECTIVES.get(name)
        if add is None:
            raise ValueError(
                f"!{name:.40} is no directive; these are: {', '.join(f'!{known}' for known in _DIRECTIVES)}"
            )
        add(self, arguments)

    def add_say(self, arguments: list[str]) -> None:
        count = _integer("say", arguments)
        self.say_tokens += count
        _check_at_most("say", self.say_tokens, SAY_TOKENS_MAX, "tokens in total")
        self.acts.append(Say(count))

    def add_rate(self, arguments: list[str]) -> None:
        rate = _number("rate", arguments)
        _check_at_most("rate", rate, RATE_MAX, "tokens a second")
        if 0 < rate < RATE_MIN:
            raise ValueError(f"!rate: {rate:g} is less than {RATE_MIN:g} tokens a second")
        self.acts.append(Rate(rate))

    def add_hang(self, arguments: list[str]) -> None:
        seconds = _number("hang", arguments)
        self.hang_seconds += seconds
        _check_at_most("hang", self.hang_seconds, HANG_SECONDS_MAX, "seconds in total")
        self.acts.append(Hang(seconds))

    def add_fail(self, arguments: list[str]) -> None:
        kinds = get_args(FailureKind)
        if not arguments or arguments[0] not in kinds:
            raise ValueError(f"!fail takes one of {', '.join(kinds)}, and how often")
        tries = _integer("fail", arguments[1:] or ["1"])
        _check_at_most("fail", tries, REPEATS_MAX, "tries")
        self.failures.append(Failure(cast("FailureKind", arguments[0]), tries))

    def add_exit(self, arguments: list[str]) -> None:
        exits = _integer("exit", arguments)
        _check_at_most("exit", exits, REPEATS_MAX, "deliveries")
        self.exits = max(self.exits, exits)

    def _end_text(self) -> None:
        # Blank lines around a text are layout.
        text = "\n".join(self.text).strip("\r\n")
        self.text.clear()
        if text.strip():
            self.acts.append(Text(text + "\n"))


_DIRECTIVES: dict[str, Callable[[_Draft, list[str]], None]] = {
    "say": _Draft.add_say,
    "rate": _Draft.add_rate,
    "hang": _Draft.add_hang,
    "fail": _Draft.add_fail,
    "exit": _Draft.add_exit,
}


def _integer(name: str, arguments: list[str]) -> int:
    if len(arguments) != 1 or _INTEGER.fullmatch(arguments[0]) is None:
        raise ValueError(f"!{name} takes one whole number of at most nine digits")
    return int(arguments[0])


def _number(name: str, arguments: list[str]) -> float:
    if len(arguments) != 1 or _NUMBER.fullmatch(arguments[0]) is None:
        raise ValueError(f"!{name} takes one number, such as 3 or 0.5")
    return float(arguments[0])


def _check_at_most(name: str, value: float, limit: float, unit: str) -> None:
    if value > limit:
        raise ValueError(f"!{name}: {value:g} is more than {limit:g} {unit}")
