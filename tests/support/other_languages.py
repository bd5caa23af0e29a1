"""Runners of tools in other languages, those of examples/, as processes beside that of the mesh."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs

from contracts import guests
from contracts.identifiers import new_id
from contracts.messages.work import TurnWork
from contracts.streams import TOOLS_BUCKET
from contracts.tasks import TaskRequest
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.journal.journal import Journal
from mesh.task.state import TaskState
from tests.support import children
from tests.support.checker import Recorded, Stored, read_stored
from tests.support.patience import ended
from tests.support.processes import Mesh
from tests.support.tasks import publish_work
from tests.support.toolchains import REPOSITORY, go_tools, typescript_tools
from tests.support.waiting import until

SCHEMAS = REPOSITORY / "libs" / "contracts" / "spec" / "schemas"
COMMANDS: dict[str, Callable[[], list[str]]] = {"go": go_tools, "typescript": typescript_tools}
TOOLS = {"go": "word_count", "typescript": "longest_line"}
ANSWERS: dict[str, Any] = {
    "go": {"lines": 2, "words": 5},
    "typescript": {"number": 2, "line": "and three more"},
}
TEXT = "two words\nand three more\n"
GUESTS = {"go": guests.runner(["word_count", "append_line"]), "typescript": guests.runner(["longest_line"])}
"""Who they are at a broker that enforces least rights: each in an account of its own."""
LEASE_SECONDS = 1.0
STOP_SECONDS = 30.0


class Foreign:
    """A process of another language's runner."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    @property
    def pid(self) -> int:
        """Of the running process: its claims name it."""
        return self._popen.pid

    async def kill(self) -> None:
        """`kill -9`, and wait for the end."""
        self._popen.kill()
        await self._ended()

    async def stop(self) -> int:
        """SIGTERM, and wait for the end; its exit status."""
        self._popen.terminate()
        return await self._ended()

    async def _ended(self) -> int:
        status = await ended(self._popen, STOP_SECONDS)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        return status


@dataclass
class Tools:
    """A mesh, a folder that its foreign tools work in, and what was asked of it."""

    mesh: Mesh
    connection: Connection
    folder: Path
    recorded: Recorded
    foreign: dict[str, Foreign]

    async def start(self, language: str) -> Foreign:
        """Start one more runner of a language, and wait until it takes calls."""
        with (self.mesh.folder / f"{language}.log").open("ab") as log:
            popen = children.start(
                COMMANDS[language](),
                self._environment(language) | {"EXAMPLE_FOLDER": str(self.folder), "EXAMPLE_SCHEMAS": str(SCHEMAS)},
                stdout=children.PIPE,
                stderr=log,
            )
        self.foreign[language] = Foreign(popen)
        assert popen.stdout is not None
        line = await asyncio.to_thread(popen.stdout.readline)
        assert line == b"ready\n", (self.mesh.folder / f"{language}.log").read_text()
        return self.foreign[language]

    def _environment(self, language: str) -> dict[str, str]:
        broker = self.mesh.broker
        if not broker.enforces:
            return self.mesh.environment
        own = {"MESH_NATS_URL": broker.url_of(GUESTS[language].user), "MESH_NATS_DOMAIN": guests.DOMAIN}
        return self.mesh.environment | own

    async def add_is_declared(self) -> bool:
        """Whether the Python runner serves its tool."""
        return await key_value.get(self.connection.requests, TOOLS_BUCKET.name, "add") is not None

    async def submit(self, script: str, *tools: str) -> str:
        """Submit a task that may use these tools; its id."""
        work = TurnWork(
            task=new_id(),
            tenant="default",
            turn=1,
            pool="default",
            priority="normal",
            request=TaskRequest(input=script, tools=list(tools)),
            accepted_at=datetime.now(UTC),
        )
        await publish_work(self.connection.requests, work)
        self.recorded.accepted.add(work.task)
        return work.task

    async def state(self, task: str) -> TaskState:
        """What the task's journal says now."""
        return (await Journal.load(self.connection.requests, "default", task)).state

    async def until(self, task: str, condition: Callable[[TaskState], bool]) -> TaskState:
        """Wait until a journal says so."""

        async def holds() -> bool:
            return condition(await self.state(task))

        await until(holds)
        return await self.state(task)

    async def until_ended(self, task: str) -> TaskState:
        """Wait until the task has ended, and nothing of it is left in a queue."""
        state = await self.until(task, lambda state: state.terminal is not None)

        async def quiet() -> bool:
            stored = await read_stored(self.connection.requests)
            return not stored.work and not stored.ack_pending

        await until(quiet)
        return state


def broken_schemas(stored: Stored) -> list[str]:
    """Events and dead letters that are not what their JSON Schemas say."""
    validators = {
        path.stem: jsonschema_rs.validator_for(json.loads(path.read_text()), validate_formats=True)
        for path in SCHEMAS.glob("*.json")
    }
    found = [(event.event["type"], event.event) for journal in stored.journals.values() for event in journal]
    found += [("dead_letter", letter) for letter in stored.dead_letters]
    return [f"{name}: {error}" for name, value in found for error in validators[name].iter_errors(value)]
