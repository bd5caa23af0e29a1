"""Pages of Markdown as tests read them: their blocks, their commands, their links; and whether an output is as printed.

The convention, for README.md and all of docs/:

- a block ``sh`` holds commands and nothing else, one a line; a backslash at the end continues, ``  # …`` is a comment;
- a block ``console`` is a transcript: lines with ``$ `` are commands (a backslash continues one here too), the others
  are what is printed. ``^C`` as the last line: the reader interrupts there;
- a block ``toml`` is a fragment of mesh.toml or a trigger rule, a block ``json`` is JSON, and a block ``text`` is
  neither run nor read;
- ``<!-- needs: an OpenAI key -->`` right before a block: its commands can't be run by a test.

In a transcript whitespace does not count, but for blank lines. ``…`` on a line of its own stands for anything, within a
line for anything up to the next blank line, and a figure of time for any other. An id of a task, and the number in
``id: 8``, are examples: what stands there in the real output takes their place in all that follows.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

import msgspec

from contracts.codec import decode
from contracts.triggers.rules import TriggerRule, check_rule
from mesh.configuration.mesh_toml import KEYS, parse_configuration
from meshctl.__main__ import build_parser
from tests.support import children

ROOT: Final = Path(__file__).resolve().parents[2]
LANGUAGES: Final = frozenset({"sh", "console", "toml", "json", "text"})
PROGRAMS: Final = frozenset({"curl", "docker", "git", "nats", "npx", "ollama", "openssl", "pip", "python", "vllm"}) | {
    *("chmod", "chown", "install", "kubectl", "printf", "python3", "sed", "systemctl", "useradd"),
}
"""Programs of others that a page may call in a command that no test runs."""
VARIES: Final = (
    r"\d+(?:\.\d+)? m?s\b",
    r"[a-z_]+-\d+@[\w.-]+",
    r"\d{4}-\d\d-\d\d(?:T| )\d\d:\d\d:\d\d(?:\.\d+)?Z",
)
"""Figures that are others each time: how long it took, which process of which host, when."""

_FENCE = re.compile(r"^ {0,3}```(\w*)\s*$")
_NEEDS = re.compile(r"^<!-- needs: (.+?) -->$")
_HEADING = re.compile(r"^(#+) (.+?)\s*$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_INLINE_CODE = re.compile(r"`[^`]*`")
_COMMENT = re.compile(r"\s{2,}#.*$")
_ULID = "[0-7][0-9a-hjkmnp-tv-z]{25}"
_TASK = rf"\b{_ULID}\b"
_SHORT_TASK = r"\b[0-7][0-9a-hjkmnp-tv-z]{3,}…"
_SHORT_TIME = r"\b\d{4}-…"
_SEQUENCE = r"^id: \d+$"
_GAP = r"^[ \t]*…[ \t]*$"
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_BLANK_LINE = "\0"
_CURSOR = re.compile(r"(Last-Event-ID: |--after )(\d+)")
_MESH_TOML = frozenset(KEYS)


@dataclass(frozen=True)
class Command:
    """A command of a page. `output` is its transcript, absent in a block of commands alone."""

    page: str
    line: int
    text: str
    output: str | None
    needs: str | None

    @property
    def where(self) -> str:
        """For whom a test fails."""
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def is_interrupted(self) -> bool:
        """Whether the reader presses Ctrl-C once the transcript has been printed."""
        return self.output is not None and self.output.rstrip().endswith("^C")


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is that of its first line of text."""

    page: str
    line: int
    language: str
    text: str
    needs: str | None
    sections: tuple[str, ...]
    """The headings that it stands under, the outermost first."""

    def commands(self) -> Iterator[Command]:
        """Its commands, in their order."""
        if self.language == "sh":
            yield from self._listed()
        elif self.language == "console":
            yield from self._shown()

    def _listed(self) -> Iterator[Command]:
        lines = self.text.splitlines()
        at = 0
        while at < len(lines):
            text, behind = _command_at(lines, at)
            if text and not text.startswith("#"):
                yield Command(self.page, self.line + at, text, None, self.needs)
            at = behind

    def _shown(self) -> Iterator[Command]:
        lines = self.text.splitlines()
        starts = [index for index, line in enumerate(lines) if line.startswith("$ ")]
        assert starts[:1] == [0], f"{self.page}:{self.line}: a transcript begins with a command"
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            text, behind = _command_at(lines, start)
            output = "\n".join(lines[behind:end])
            yield Command(self.page, self.line + start, text.removeprefix("$ "), output, self.needs)


def _command_at(lines: list[str], at: int) -> tuple[str, int]:
    """The command that begins on a line, without comments, and the index of the line behind it."""
    text = _COMMENT.sub("", lines[at])
    while text.endswith("\\"):
        at += 1
        text = f"{text}\n{_COMMENT.sub('', lines[at])}"
    return text.strip(), at + 1


@dataclass(frozen=True)
class Page:
    """A page, or a section of one. `path` is from the repository's root on."""

    path: str
    blocks: tuple[Block, ...]

    @property
    def commands(self) -> list[Command]:
        """All of its commands, in their order."""
        return [command for block in self.blocks for command in block.commands()]

    def section(self, title: str) -> Page:
        """What stands under a heading, and under the ones below it."""
        blocks = tuple(block for block in self.blocks if title in block.sections)
        assert blocks, f"{self.path} has no block under {title!r}"
        return Page(self.path, blocks)


def read_page(path: str, root: Path = ROOT) -> Page:
    """A page of the repository."""
    blocks: list[Block] = []
    sections: list[tuple[int, str]] = []
    lines = (root / path).read_text().splitlines()
    needs: str | None = None
    at = 0
    while at < len(lines):
        line = lines[at]
        if fence := _FENCE.match(line):
            end = next(index for index in range(at + 1, len(lines)) if lines[index].strip() == "```")
            text = "\n".join(lines[at + 1 : end]) + "\n"
            titles = tuple(title for _, title in sections)
            blocks.append(Block(path, at + 2, fence[1], text, needs, titles))
            needs = None
            at = end
        elif heading := _HEADING.match(line):
            depth = len(heading[1])
            sections = [each for each in sections if each[0] < depth] + [(depth, heading[2])]
        elif marked := _NEEDS.match(line):
            needs = marked[1]
        elif line.strip():
            assert needs is None, f"{path}:{at + 1}: `needs` is followed by no block"
        at += 1
    return Page(path, tuple(blocks))


def pages_with_commands() -> list[str]:
    """README.md and all of docs/."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def prose(path: str, root: Path = ROOT) -> list[tuple[int, str]]:
    """The lines outside of blocks, with their numbers."""
    lines: list[tuple[int, str]] = []
    inside = False
    for number, line in enumerate((root / path).read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            lines.append((number, line))
    return lines


def links(path: str, root: Path = ROOT) -> list[tuple[int, str]]:
    """The targets of a page's links, with the lines that they stand on."""
    return [
        (number, target)
        for number, line in prose(path, root)
        for target in _LINK.findall(_INLINE_CODE.sub(lambda code: "`" * len(code[0]), line))
    ]


def anchors(path: str, root: Path = ROOT) -> set[str]:
    """What a link to a page may have behind `#`, as GitHub names headings."""
    found: dict[str, int] = {}
    names: set[str] = set()
    for _, line in prose(path, root):
        if heading := _HEADING.match(line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[2]).lower()
            name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
            found[name] = found.get(name, 0) + 1
            names.add(name if found[name] == 1 else f"{name}-{found[name] - 1}")
    return names


class Examples:
    """What stands for a page's examples: addresses, ids of tasks, sequences, and placeholders such as TASK."""

    def __init__(self, real: Mapping[str, str]) -> None:
        self._real = dict(real)
        self._tasks: dict[str, str] = {}
        self._sequences: dict[str, str] = {}

    def put(self, example: str, real: str) -> None:
        """From now on this stands for that. A placeholder in capitals is a word of its own."""
        self._real[example] = real

    def filled(self, command: str) -> str:
        """A command with the real things in it."""
        text = self._in_output(command)
        for example, real in self._tasks.items():
            text = text.replace(example, real)
        for placeholder, real in self._real.items():
            if placeholder.isupper():
                text = re.sub(rf"(?<![\w-]){placeholder}(?![\w-])", real.replace("\\", r"\\"), text)
        return _CURSOR.sub(lambda cursor: cursor[1] + self._sequences.get(cursor[2], cursor[2]), text)

    def _in_output(self, text: str) -> str:
        """What is printed has no placeholders: there `TASK` is the head of a table."""
        for example, real in self._real.items():
            if not example.isupper():
                text = text.replace(example, real)
        return text

    def missed(self, expected: str, output: str, varies: tuple[str, ...] = (), *, is_whole: bool = True) -> str | None:
        """Why an output is not as a transcript says; None if it is, and then its examples are known."""
        patterns = {
            "gap": _GAP,
            "any": "…",
            "task": _TASK,
            "short": _SHORT_TASK,
            "time": _SHORT_TIME,
            "sequence": _SEQUENCE,
        }
        figures = [*VARIES, *varies]
        patterns |= {f"figure{number}": pattern for number, pattern in enumerate(figures)}
        # A short id is longer than the dots at its end: the order decides.
        order = [
            "gap",
            "task",
            "short",
            "time",
            "sequence",
            *(f"figure{number}" for number in range(len(figures))),
            "any",
        ]
        scanner = re.compile("|".join(f"(?P<{name}>{patterns[name]})" for name in order), re.MULTILINE)
        examples: dict[str, str] = {}
        parts: list[tuple[str, int]] = []
        at = 0
        expected = expected.strip()
        for found in scanner.finditer(expected):
            parts += self._literals(expected, at, found.start())
            parts.append((self._pattern(found, figures, examples), found.start()))
            at = found.end()
        parts += self._literals(expected, at, len(expected))
        parts.append((r"\Z" if is_whole else "", len(expected)))
        printed = _dense(output.strip())
        matched = _match([regex for regex, _ in parts], printed)
        if matched is None:
            # The first part with which it no longer matches is where to look.
            wrong = next(
                at for end, (_, at) in enumerate(parts, 1) if not _match([part[0] for part in parts[:end]], printed)
            )
            return f"not as the page says from here on:\n{expected[wrong:]}\nprinted:\n{output}"
        for group, example in examples.items():
            known = self._sequences if example.isdigit() else self._tasks
            known[example] = matched[group]
        return None

    def _literals(self, expected: str, start: int, end: int) -> list[tuple[str, int]]:
        """The lines of a piece without examples, each with where it is."""
        lines = re.split(r"(?<=\n)(?=\S)", expected[start:end])
        starts = accumulate((len(line) for line in lines[:-1]), initial=start)
        return [(re.escape(_dense(self._in_output(line))), at) for line, at in zip(lines, starts, strict=True)]

    def _pattern(self, found: re.Match[str], figures: list[str], examples: dict[str, str]) -> str:
        """What the output has to have where the page has an example; `examples` has the group of each new one."""
        text = found[0]
        match found.lastgroup:
            case "gap":
                return ".*?"
            case "any":
                return rf"[^{_BLANK_LINE}]*?"
            case "short":
                return _ULID
            case "time":
                return r"\d{4}-[\dT:.Z-]*?"
            case "task" | "sequence" as kind:
                example = text.removeprefix("id: ")
                known = self._tasks if kind == "task" else {}
                prefix = "" if kind == "task" else "id:"
                if example in known:
                    return re.escape(known[example])
                group = next((name for name, each in examples.items() if each == example), None)
                if group is not None:
                    return f"{prefix}(?P={group})"
                group = f"example{len(examples)}"
                examples[group] = example
                return f"{prefix}(?P<{group}>{_ULID if kind == 'task' else '[0-9]+'})"
            case figure:
                assert figure is not None
                # Nothing is left of the white space around it.
                return re.sub(r" |\\b", "", figures[int(figure.removeprefix("figure"))])


def _match(parts: list[str], printed: str) -> re.Match[str] | None:
    return re.compile("".join(parts), re.DOTALL).match(printed)


def _dense(text: str) -> str:
    return re.sub(r"\s+", "", _BLANK_LINES.sub(_BLANK_LINE, text))


def check_fragment(block: Block) -> None:
    """A block of TOML or JSON is what the real code takes. Raises what that raises."""
    if block.language == "json":
        decode(block.text.encode(), object)
        return
    fields = tomllib.loads(block.text)
    if "on" in fields:
        check_rule(msgspec.convert({"tenant": "default", **fields}, TriggerRule))
        return
    assert fields.keys() <= _MESH_TOML, f"{block.page}:{block.line}: {sorted(fields.keys() - _MESH_TOML)}"
    parse_configuration(block.text.encode())


def check_unrun(command: Command) -> None:
    """A command that can't be run is at least one that a shell can read, of programs and flags that there are."""
    syntax = children.run_blocking(["sh", "-n", "-c", command.text])
    assert syntax.returncode == 0, f"{command.where}: {syntax.stderr}"
    for words in simple_commands(command.text):
        name, *arguments = words
        if name.rpartition("/")[2] == "meshctl":
            try:
                build_parser().parse_args(arguments)
            except SystemExit as ended:
                raise AssertionError(f"{command.where}: meshctl does not know this command line") from ended
        elif name == "make":
            assert targets() >= {word for word in arguments if "=" not in word}, f"{command.where}: no such target"
        else:
            assert name.rpartition("/")[2] in PROGRAMS, (
                f"{command.where}: {name} is not among the programs that a page may call"
            )


def simple_commands(text: str) -> list[list[str]]:
    """The words of each command of a line, without variables that stand before it."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("<>"):
            next(lexer)  # the file
        elif set(word) <= set("|&;"):
            commands.append([])
        elif commands[-1] or not re.fullmatch(r"\w+=.*", word, re.DOTALL):
            commands[-1].append(word)
    return [words for words in commands if words]


def targets() -> set[str]:
    """The targets of the Makefile that people call."""
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
