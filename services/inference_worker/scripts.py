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
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from mesh.decisions import StepFailed

SAY_TOKENS_MAX = 200_000
"""Tokens of all `!say` of one script: some 1.4 MB, three times what a task may put out."""
RATE_MAX = 100_000.0
HANG_SECONDS_MAX = 3600.0
"""All `!hang` of one script together: nobody's slot is taken for longer."""
REPEATS_MAX = 1_000_000
"""Largest N of `!fail` and `!exit`."""
EXCERPT_CHARACTERS_MAX = 160
"""How much of a plain text is in its answer."""

FailureKind = Literal["rate_limit", "overloaded", "server_error", "bad_request", "disconnect"]

_WORD = re.compile(r"\s+|\S+\s*")
_INTEGER = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_LATER = ("call", "then", "ask")


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
        return sum(1 for _ in _WORD.finditer(self.text))

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
    """Half of the tokens are said: where a process is killed, or a connection breaks."""


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

    def moments(self, token_count: int, covered: int) -> Iterator[Moment]:
        """What happens, in order, up to `token_count` tokens, without what `covered` characters of prefix hold.

        The prefix may end within a token: then the rest of it comes first. A silence before the prefix's end has been
        kept already.
        """
        position = 0
        number = 0
        for act in self.acts:
            if isinstance(act, Hang):
                if position >= covered:
                    yield act
            elif isinstance(act, Rate):
                yield act
            else:
                for token in act.tokens():
                    if number == token_count // 2:
                        yield Halfway()
                    if number == token_count:
                        return
                    number += 1
                    position += len(token)
                    if position > covered:
                        yield token[max(0, covered - (position - len(token))) :]
        if token_count == 0:
            yield Halfway()


def parse_script(text: str) -> Script:
    """Read a script. Raises `StepFailed` (invalid-script) that names the line at fault."""
    lines = text.split("\n")
    if not any(line.startswith("!") for line in lines):
        return Script((Text(_answer(text)),))
    script = Script()
    spoken: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.startswith("!"):
            spoken.append(line)
            continue
        script = _with_text(script, spoken)
        spoken = []
        try:
            script = _with_directive(script, line[1:].strip())
        except ValueError as error:
            raise invalid_script(f"line {number}: {error}") from None
    return _with_text(script, spoken)


def invalid_script(message: str) -> StepFailed:
    """The script is at fault, and no other try can succeed."""
    return StepFailed("invalid-script", message, retryable=False, terminal=True)


def _answer(text: str) -> str:
    excerpt = " ".join(text.split())
    if len(excerpt) > EXCERPT_CHARACTERS_MAX:
        excerpt = excerpt[:EXCERPT_CHARACTERS_MAX].rstrip() + "…"
    return f"You said: {excerpt}\nI am the scripted model, and this is all I have to say about it."


def _with_text(script: Script, lines: list[str]) -> Script:
    """Add text that stands between directives; blank lines around it are layout."""
    text = "\n".join(lines).strip("\r\n")
    return replace(script, acts=(*script.acts, Text(text + "\n"))) if text.strip() else script


def _with_directive(script: Script, directive: str) -> Script:
    """Add a directive, written without its `!`. Raises ValueError."""
    name, *arguments = directive.split()
    if name in _LATER:
        raise ValueError(f"!{name} is not supported by this version")
    add = _DIRECTIVES.get(name)
    if add is None:
        raise ValueError(f"!{name:.40} is no directive; there are {', '.join(f'!{known}' for known in _DIRECTIVES)}")
    return add(script, arguments)


def _add_say(script: Script, arguments: list[str]) -> Script:
    say = Say(_integer("say", arguments))
    _check_at_most(
        "say, in total", say.count + sum(act.count for act in script.acts if isinstance(act, Say)), SAY_TOKENS_MAX
    )
    return replace(script, acts=(*script.acts, say))


def _add_rate(script: Script, arguments: list[str]) -> Script:
    rate = Rate(_number("rate", arguments))
    _check_at_most("rate", rate.tokens_per_second, RATE_MAX)
    return replace(script, acts=(*script.acts, rate))


def _add_hang(script: Script, arguments: list[str]) -> Script:
    hang = Hang(_number("hang", arguments))
    total = hang.seconds + sum(act.seconds for act in script.acts if isinstance(act, Hang))
    _check_at_most("hang, in total", total, HANG_SECONDS_MAX)
    return replace(script, acts=(*script.acts, hang))


def _add_fail(script: Script, arguments: list[str]) -> Script:
    kinds = get_args(FailureKind)
    if not arguments or arguments[0] not in kinds:
        raise ValueError(f"!fail takes one of {', '.join(kinds)}, and how often")
    tries = _integer("fail", arguments[1:] or ["1"])
    _check_at_most("fail", tries, REPEATS_MAX)
    return replace(script, failures=(*script.failures, Failure(cast("FailureKind", arguments[0]), tries)))


def _add_exit(script: Script, arguments: list[str]) -> Script:
    exits = _integer("exit", arguments)
    _check_at_most("exit", exits, REPEATS_MAX)
    return replace(script, exits=max(script.exits, exits))


_DIRECTIVES: dict[str, Callable[[Script, list[str]], Script]] = {
    "say": _add_say,
    "rate": _add_rate,
    "hang": _add_hang,
    "fail": _add_fail,
    "exit": _add_exit,
}


def _integer(name: str, arguments: list[str]) -> int:
    if len(arguments) != 1 or _INTEGER.fullmatch(arguments[0]) is None:
        raise ValueError(f"!{name} takes one whole number of at most nine digits")
    return int(arguments[0])


def _number(name: str, arguments: list[str]) -> float:
    if len(arguments) != 1 or _NUMBER.fullmatch(arguments[0]) is None:
        raise ValueError(f"!{name} takes one number, such as 3 or 0.5")
    return float(arguments[0])


def _check_at_most(what: str, value: float, limit: float) -> None:
    if value > limit:
        raise ValueError(f"!{what}: {value:g} is more than {limit:g}")
