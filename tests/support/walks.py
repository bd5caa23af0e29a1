"""Walking through a page: each of its commands in a real shell, in the page's order, against a mesh of `meshctl up`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from contracts.subjects import TASK_PATTERN
from tests.support import children
from tests.support.pages import (
    PROGRAMS,
    ROOT,
    Block,
    Command,
    Examples,
    Page,
    check_fragment,
    check_unrun,
    simple_commands,
)
from tests.support.patience import POLL_SECONDS, Bound
from tests.support.terminal import Terminal
from tests.support.toolchains import demand

READY_SECONDS = 60
STOP_SECONDS = 20
STEP_SECONDS = 60
"""How long a command may take, and how long one that only reads is tried again until it shows what it should."""
FREE_PORTS = ("--nats-port", "0", "--ingress-address", "127.0.0.1:0", "--edge-address", "127.0.0.1:0")
READS = frozenset({"get", "list", "show", "workers", "lanes", "providers", "doctor"})
"""Commands of meshctl that change nothing."""
READERS_FOLDER = "/home/you/taskmesh"
"""Where a reader's checkout is, on pages."""
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\].*?(?:\x1b\\|\x07)")
_ADDRESS = r"^  {name} +(\S+)$"


@dataclass
class PageMesh:
    """A running `meshctl up`. `printed` is what it has shown on its terminal."""

    home: Path
    variables: dict[str, str] = field(repr=False)
    printed: str = ""

    def address(self, name: str) -> str:
        """Where a service is, by what was printed."""
        found = re.search(_ADDRESS.format(name=name), self.printed, re.MULTILINE)
        assert found is not None, self.printed
        return found[1]

    @property
    def environment(self) -> dict[str, str]:
        """What a reader's second terminal has, and where this mesh is."""
        return {
            **self.variables,
            "MESH_HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MESH_NATS_URL": self.address("broker"),
            "MESH_INGRESS_URL": self.address("ingress"),
            "MESH_EDGE_URL": self.address("stream edge"),
            "NO_COLOR": "1",
        }

    def examples(self) -> Examples:
        """With this mesh's addresses, and its folder, for the ones that pages name."""
        real = {
            READERS_FOLDER: str(self.home.parent),
            "localhost:8080": self.address("ingress").removeprefix("http://"),
            "localhost:8081": self.address("stream edge").removeprefix("http://"),
            "127.0.0.1:8080": self.address("ingress").removeprefix("http://"),
            "127.0.0.1:8081": self.address("stream edge").removeprefix("http://"),
            "127.0.0.1:4222": self.address("broker").removeprefix("nats://"),
            "localhost:4222": self.address("broker").removeprefix("nats://"),
        }
        return Examples(real)


@contextmanager
def page_mesh(folder: Path, *arguments: str, **variables: str) -> Iterator[PageMesh]:
    """`meshctl up` on free ports and on a terminal, from this folder; stopped at the end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    # Where it runs is not said: `.mesh` in its folder, as for a reader. Commands from elsewhere have to be told.
    mesh = PageMesh(folder / ".mesh", {"MESH_CONFIG": os.devnull, **kept, **variables})
    ours, theirs = pty.openpty()
    with (folder / "up.log").open("wb") as log:
        process = children.start(
            [sys.executable, "-m", "meshctl", "up", *FREE_PORTS, *arguments],
            {**mesh.variables, "NO_COLOR": "1"},
            stdout=theirs,
            stderr=log,
            cwd=folder,
        )
    os.close(theirs)
    reader = threading.Thread(target=_drain, args=(ours, mesh))
    reader.start()
    try:
        bound = Bound(READY_SECONDS)
        while "meshctl submit --watch" not in mesh.printed:
            assert process.poll() is None, f"{mesh.printed}\n{(folder / 'up.log').read_text()}"
            assert bound.left, f"not ready: {mesh.printed}\n{(folder / 'up.log').read_text()}"
            reader.join(POLL_SECONDS)
        yield mesh
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            bound = Bound(STOP_SECONDS)
            while process.poll() is None and bound.left:
                reader.join(POLL_SECONDS)
            process.kill()
            process.wait()
        reader.join()
        os.close(ours)


def _drain(descriptor: int, mesh: PageMesh) -> None:
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while chunk := os.read(descriptor, 65536):
            mesh.printed += chunk.decode("utf-8", "replace").replace("\r\n", "\n")


Before = Callable[["Walk"], Awaitable[None]]


@dataclass
class Walk:
    """A reader of a page, who types what it says. Commands are keys as the page prints them."""

    mesh: PageMesh
    shows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What a command of a block `sh` prints, besides ending well. Each has to be here, if only with an empty list."""
    statuses: Mapping[str, int] = field(default_factory=dict)
    """The exit status of a command that does not end with 0."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Command → the name of the test that runs it."""
    before: Mapping[str, Before] = field(default_factory=dict)
    """What has to be so, or to happen, before a command."""
    varies: tuple[str, ...] = ()
    """Patterns of figures in transcripts that are others each time; a blank in them is any whitespace."""
    folder: Path = ROOT
    """Where the reader is."""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables that the reader has set, besides those of the mesh."""

    def __post_init__(self) -> None:
        self.examples = self.mesh.examples()
        self.environment = {**self.mesh.environment, **self.environment}

    async def through(self, page: Page) -> None:
        """All of a page, or of a section: run its commands, load its fragments."""
        commands = {command.text for command in page.commands}
        for name, table in {"shows": self.shows, "statuses": self.statuses, "before": self.before}.items():
            strangers = [text for text in table if text not in commands]
            assert not strangers, f"{name} speaks of what {page.path} does not have: {strangers}"
        for command in self.runs(page):
            for program in PROGRAMS:
                if re.search(rf"(?<![\w./-]){program} ", command.text):
                    demand(program, str(page.path))
        for block in page.blocks:
            check_block(block)
            for command in block.commands():
                await self.step(command)

    def runs(self, page: Page) -> list[Command]:
        """The commands of a page that this walk runs."""
        return [command for command in page.commands if command.needs is None and command.text not in self.elsewhere]

    async def step(self, command: Command) -> None:
        """One command: run, or, where it can't be, checked as far as possible."""
        if command.text in self.elsewhere:
            check_test_exists(self.elsewhere[command.text])
        if command.text in self.elsewhere or command.needs is not None:
            check_unrun(command)
            return
        if command.output is None:
            assert command.text in self.shows, f"{command.where}: nothing is said of what it shows"
        if command.text in self.before:
            await self.before[command.text](self)
        bound = Bound(STEP_SECONDS)
        while (complaint := await self._tried(command)) is not None:
            again = reads(command.text) and not follows(command.text) and bool(bound.left)
            assert again, f"{command.where}\n{complaint}"
            await asyncio.sleep(POLL_SECONDS)

    async def _tried(self, command: Command) -> str | None:
        """Run a command; why it was not as the page says."""
        line = self.examples.filled(command.text)
        expected = (command.output or "").rstrip().removesuffix("^C")
        interrupted = command.is_interrupted

        def shown(output: str) -> bool:
            return self.examples.missed(expected, plain(output), self.varies, is_whole=False) is None

        line = f"exec {line}" if interrupted else line  # the signal goes to the command, not to its shell
        terminal = Terminal(["sh", "-c", line], self.environment, self.folder)
        status = await terminal.run(shown if interrupted else None, STEP_SECONDS)
        output = plain(terminal.output)
        if not interrupted and status != self.statuses.get(command.text, 0):
            return f"ended with {status}:\n{output}"
        for text in self.shows.get(command.text, ()):
            if self.examples.filled(text) not in output:
                return f"does not show {self.examples.filled(text)}:\n{output}"
        if command.output is not None:
            missed = self.examples.missed(expected, output, self.varies, is_whole=not interrupted)
            if missed is not None:
                return missed
        if submits(command.text) and (task := re.search(rf"\b{TASK_PATTERN}\b", output)):
            self.examples.put("TASK", task[0])
        return None


def plain(output: str) -> str:
    """What a terminal shows, without the styles that NO_COLOR does not keep away (curl's headers, its links)."""
    return _STYLES.sub("", output).replace("\r\n", "\n")


def check_block(block: Block) -> None:
    """What a block holds besides commands is what the real code takes."""
    if block.language in ("toml", "json"):
        check_fragment(block)


def check_test_exists(name: str) -> None:
    """There is an acceptance test of this name, with or without its file before `::`."""
    found = re.compile(rf"^(?:async )?def {name.rpartition('::')[2]}\(", re.MULTILINE)
    assert any(found.search(path.read_text()) for path in (ROOT / "tests" / "acceptance").glob("*.py")), (
        f"no test {name}"
    )


def reads(text: str) -> bool:
    """Whether a command changes nothing: a reader who is too early looks again."""
    for name, *words in simple_commands(text):
        if name == "meshctl":
            if not READS & set(words[:2]):
                return False
        elif name == "curl":
            if any(re.match(r"-[a-zA-Z]*[dX]|--(?:data|json|request)", word) for word in words):
                return False
        else:
            return False
    return True


def follows(text: str) -> bool:
    """Whether a command prints all that there is by itself, however early it comes."""
    return "/events" in text


def submits(text: str) -> bool:
    """Whether a command submits a task, whose id TASK stands for from there on."""
    return "meshctl submit" in text or bool(re.search(r"/v1/tasks'? .*(-d|--json) ", text, re.DOTALL))
