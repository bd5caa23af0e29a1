"""docs/operating.md and docs/processes.md: each command as printed, against a mesh of `meshctl up`, and against a
broker of the reader's own.

Of docs/guarantees.md and docs/performance.md the commands take minutes: they are only parsed here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import children
from tests.support.broker import Broker
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.pages import read_page
from tests.support.terminal import Terminal
from tests.support.waiting import until
from tests.support.walks import PageMesh, Walk, page_mesh

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

PAGE = read_page("docs/operating.md")
PROCESSES = read_page("docs/processes.md")
SLOW = (read_page("docs/guarantees.md"), read_page("docs/performance.md"))
CONFIGURATION = read_page("docs/configuration.md")
UPGRADING = read_page("docs/upgrading.md")
WALKS = (PAGE, PROCESSES, CONFIGURATION, UPGRADING, *SLOW)
VARIES = (
    r"\d+[smhd] ago",
    r"\d+[smhd]\s*\d+[smhd] ago",
    r"all of build [0-9a-f]{12}, with configuration [0-9a-f]{12}",
    r"within \d+\.\d\d s",
    r"at most \d+ s old",
    # What a disk gives, and how many files a process may open, is this machine's affair.
    r"(?:ok|warn)\s*disk\s*[\d,]+ fsyncs a second: at most about [\d,]+ tasks of one turn a second \(10 fsyncs each\)"
    r"(?:\s*→.*?)?",
    r"(?:ok|warn)\s*open files\s*up to [\d,]+ in a process(?:\s*→.*?)?",
)
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
GET = "GET /v1/tasks/{task}/events"
HERE = "tests/acceptance/test_pages_operating.py"
EXAMPLE_BROKER = "nats://nats.example.com:4222"


@dataclass
class House:
    """A mesh that exports to a collector."""

    mesh: PageMesh
    receiver: OtlpReceiver

    def walk(self, **tables: Any) -> Walk:
        """A reader of the page."""
        return Walk(self.mesh, varies=VARIES, **tables)

    @property
    def tasks(self) -> str:
        """Where tasks are posted."""
        return f"{self.mesh.address('ingress')}/v1/tasks"


def run_task(url: str, *arguments: str, script: str = "!say 3") -> dict[str, Any]:
    """Post a task by the real curl, and wait for its end."""
    command = ["curl", "-s", "-H", "Content-Type: application/json", "-H", "Prefer: wait=20", *arguments]
    body = json.dumps({"input": script})
    posted = children.run_blocking([*command, "-d", body, url])
    assert posted.returncode == 0, posted.stderr
    record: dict[str, Any] = json.loads(posted.stdout)
    assert record["status"] == "completed", record
    return record


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("operating")
    receiver = await OtlpReceiver(folder).start()
    try:
        with page_mesh(folder, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **QUICK) as mesh:
            yield House(mesh, receiver)
    finally:
        await receiver.stop()


@pytest.mark.parametrize("title", ["Is it well?", "Workers, lanes and providers", "Pause, limit, cancel", "Sizes"])
async def test_what_a_mesh_says_of_itself_is_as_printed(house: House, title: str) -> None:
    await house.walk().through(PAGE.section(title))


async def test_what_was_used_is_told_as_printed(house: House) -> None:
    run_task(house.tasks)

    def is_counted() -> bool:
        answered = children.run_blocking(["curl", "-s", f"{house.mesh.address('ingress')}/v1/usage"])
        return bool(json.loads(answered.stdout)["rows"])

    await until(is_counted)
    await house.walk().through(PAGE.section("What was used, and what it cost"))


async def test_a_configuration_is_checked_shown_and_reloaded_as_printed(house: House) -> None:
    for title in ("Is it right?", "Reload"):
        await house.walk().through(CONFIGURATION.section(title))
    await house.walk().through(UPGRADING.section("On one machine"))


async def test_streams_are_compared_and_applied_as_printed(house: House) -> None:
    section = PAGE.section("Streams, and changes of them")
    [_, other, applies] = [command.text for command in section.commands]
    await house.walk(shows={applies: ["everything is as declared"]}, statuses={other: 3}).through(section)


async def test_the_logs_tell_of_a_try_that_failed(house: House) -> None:
    section = PAGE.section("Logs")
    task = run_task(house.tasks, script="!fail overloaded 1\nHello")["id"]
    walk = house.walk()
    walk.examples.put(".mesh", str(house.mesh.home))
    await walk.through(section)
    lines = [line for path in (house.mesh.home / "logs").glob("*.log*") for line in path.read_text().splitlines()]
    assert any(task in line and '"event":"step.retrying"' in line for line in lines)


async def test_a_task_is_the_trace_that_the_page_shows(house: House) -> None:
    section = PAGE.section("Traces and metrics")
    [command] = section.commands
    elsewhere = {command.text: f"{HERE}::test_a_task_is_the_trace_that_the_page_shows"}
    await house.walk(elsewhere=elsewhere).through(section)

    [text] = [block.text for block in section.blocks if block.language == "text"]
    record = run_task(house.tasks, "-H", f"traceparent: 00-{TRACE}-b7ad6b7169203331-01")
    events = f"{house.mesh.address('stream edge')}/v1/tasks/{record['id']}/events"
    assert (await children.run(["curl", "-sN", events])).returncode == 0

    def edges() -> set[tuple[str, str]]:
        spans = house.receiver.spans(TRACE)
        names = {span["span"]: span["name"] for span in spans}
        # A worker that was faster than the ingress has begun the journal, and then the edge's span is under its claim.
        began = {("claim turn", GET): ("POST /v1/tasks", GET)}
        found = {(names.get(span["parent"], ""), span["name"]) for span in spans}
        return {began.get(edge, edge) for edge in found}

    printed = set(printed_edges(text))
    assert GET in {child for _, child in printed}
    await until(lambda: edges() == printed)
    await until(lambda: house.receiver.metrics("taskmesh.task.duration") != [])


def printed_edges(tree: str) -> Iterator[tuple[str, str]]:
    """Parent and child of each span in the page's picture."""
    above: list[str] = []
    for line in tree.splitlines():
        found = re.match(r"((?:  )*)(\S.*?)(?:  |$)", line)
        assert found is not None, line
        depth = len(found[1]) // 2
        del above[depth:]
        yield (above[-1] if above else "", found[2])
        above.append(found[2])


class Alone:
    """A service that somebody has started in a shell of its own."""

    def __init__(self, line: str, environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self.process = children.start(["sh", "-c", line], environment, stderr=out, cwd=log.parent)

    @property
    def address(self) -> str | None:
        """Where it listens, empty for one that does not; None before it serves."""
        assert self.process.poll() is None, self._log.read_text()
        lines = [json.loads(line) for line in self._log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        ready = [line["address"] or "" for line in lines if line["event"] == "service.ready"]
        return ready[0] if ready else None

    def kill(self) -> None:
        """However it stands."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


async def test_services_run_alone_on_a_nats_of_ones_own(tmp_path: Path) -> None:
    section = PAGE.section("A NATS of your own")
    broker = Broker(tmp_path / "broker")
    await broker.start()
    commands = [command.text.replace(EXAMPLE_BROKER, broker.url) for command in section.commands]
    exports = "; ".join(command for command in commands if command.startswith("export "))
    alone = [command for command in commands if command.startswith("python -m ")]
    [applies, looks] = [command for command in commands if command.startswith("meshctl ")]
    assert broker.url in exports
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MESH_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MESH_HOME": str(tmp_path / "home"),
        "MESH_CONFIG": os.devnull,
        "MESH_INGRESS_ADDRESS": "127.0.0.1:0",
        "MESH_EDGE_ADDRESS": "127.0.0.1:0",
        "NO_COLOR": "1",
    }

    async def printed(command: str, status: int = 0) -> str:
        terminal = Terminal(["sh", "-c", f"{exports}; {command}"], environment, tmp_path)
        assert await terminal.run() == status, terminal.output
        return " ".join(terminal.output.split())

    services: dict[str, Alone] = {}
    try:
        assert (await printed(applies)).endswith("everything is as declared now")
        # Nothing runs yet, which the doctor does not call well.
        assert f"answers at {broker.url}" in await printed(looks, status=1)
        for command in alone:
            log = tmp_path / f"{command.rpartition(' ')[2]}.log"
            services[command] = Alone(f"{exports}; exec {command}", environment, log)
        await until(lambda: all(each.address is not None for each in services.values()))
        assert "1 ingress, 1 stream_edge, 1 inference_worker, 1 tool_runner, 1 steward" in await printed(looks)
        run_task(f"http://{services['python -m ingress'].address}/v1/tasks")
        for each in services.values():
            each.process.send_signal(signal.SIGTERM)
        ended = [await asyncio.to_thread(each.process.wait, 20) for each in services.values()]
        assert ended == [0] * len(alone)
    finally:
        for each in services.values():
            each.kill()
        await broker.stop()
    assert not (tmp_path / "home").exists(), "none of them keeps anything on its disk"


async def test_processes_are_replaced_as_the_page_says(house: House) -> None:
    await house.walk(shows={"meshctl restart --rolling": ["serves", "has left after"]}).through(PROCESSES)


async def test_what_takes_minutes_is_a_command_that_there_is(house: House) -> None:
    for page in SLOW:
        await house.walk().through(page)
