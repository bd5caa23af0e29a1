"""How long commands take against a task that is written to all the time: from the 202 to the effect in the journal.

Times are the broker's own, as it stored the effect, so that a busy test does not distort them; the 202 is the clock's
of this machine, which is the same one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import httpx
from nats.aio.msg import Msg

from contracts import subjects
from contracts.journal.events import TERMINAL_TYPES, decode_head
from mesh.broker.connection import Connection, connect
from mesh.journal.journal import Journal
from tests.support.checker import Recorded
from tests.support.http_client import PatientClient
from tests.support.patience import stretched, within
from tests.support.processes import Mesh, distant_mesh

SERVICES = ("ingress", "inference_worker", "tests.support.telling_runner", "steward")
TENANT = "default"
TOOLS = ["tell", "sign"]
STREAM_SECONDS = 10.0
"""How long each task is written to, if nothing ends it: what had no effect by then had none in time."""
EVENTS_BEFORE_MAX = 8
"""A command is sent after one to so many events: at any moment of its writer's round trip."""
LIMIT_SECONDS = 60.0
DEADLINE_SECONDS, DEADLINE_ROUND_TRIPS = 0.5, 10
"""A deadline that comes after the first token, at any distance."""

Kind = Literal["cancel", "redirect", "message", "approval", "deadline"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EFFECTS = {
    "cancel": ("task.cancelled",),
    "redirect": ("input.received",),
    "message": ("input.received",),
    "approval": ("approval.resolved",),
    "deadline": ("task.completed", "task.expired"),
}


class Milestone(NamedTuple):
    """An event of a task, and when the broker stored it, as Unix time in seconds."""

    type: str
    stored_at: float


class Milestones:
    """The milestones of a task, as the broker tells them."""

    def __init__(self) -> None:
        self._told: list[Milestone] = []
        self._news = asyncio.Event()

    async def on_message(self, message: Msg) -> None:
        """Take down one."""
        stored_at = datetime.fromisoformat((message.headers or {})["Nats-Time-Stamp"]).timestamp()
        self._told.append(Milestone(decode_head(message.data).type, stored_at))
        self._news.set()

    async def first(self, *types: str) -> Milestone:
        """The first one of these types, once it is there."""
        while True:
            for told in self._told:
                if told.type in types:
                    return told
            self._news.clear()
            await self._news.wait()


class Commander:
    """Sends commands to tasks that are written to, and looks when each takes effect."""

    def __init__(self, mesh: Mesh, connection: Connection, client: httpx.AsyncClient, seed: int = 0) -> None:
        self.mesh = mesh
        self.connection = connection
        self.client = client
        self.rtt_seconds = 0.0
        self.recorded = Recorded()
        """What was accepted."""
        self._random = random.Random(seed)
        self._milestones: defaultdict[str, Milestones] = defaultdict(Milestones)

    async def set_rtt(self, rtt_seconds: float) -> None:
        """Have the services be so far from the broker. Raises `ValueError` if there is no link between them."""
        if self.mesh.link is None:
            raise ValueError("the services are next to their broker")
        self.rtt_seconds = rtt_seconds
        await self.mesh.link.set_rtt(rtt_seconds)

    async def on_message(self, message: Msg) -> None:
        """Take down an event of any task."""
        await self._milestones[message.subject.split(".")[3]].on_message(message)

    async def measure(self, kind: Kind, per_second: float, effect_seconds: float = STREAM_SECONDS) -> float | None:
        """Seconds from the 202, or from the deadline, to the effect; None if the task's end came before.

        `per_second`: how often the task is written to, as far as the round trips of its writer allow it. `TimeoutError`
        after `effect_seconds`.
        """
        async with within(LIMIT_SECONDS):
            task, milestones = await self.begin(kind, per_second)
            since = await self._deadline(task) if kind == "deadline" else await self.send(kind, task)
            async with within(effect_seconds + max(0.0, since - time.time())):
                effect = await milestones.first(*EFFECTS[kind], *TERMINAL_TYPES)
            if effect.type not in EFFECTS[kind]:
                return None
            if effect.type not in TERMINAL_TYPES:
                await self.send("cancel", task)
                await milestones.first(*TERMINAL_TYPES)
            return max(0.0, effect.stored_at - since)

    async def measure_quiet_cancel(self) -> float:
        """The same of the cancel of a task that says nothing."""
        async with within(LIMIT_SECONDS):
            task, milestones = await self.begin_quiet()
            since = await self.send("cancel", task)
            return (await milestones.first("task.cancelled")).stored_at - since

    async def begin_quiet(self) -> tuple[str, Milestones]:
        """A task that runs, and says nothing."""
        task, milestones = await self.submit({"input": "!hang 600"})
        await milestones.first("step.claimed")
        return task, milestones

    async def send(self, kind: Kind, task: str) -> float:
        """Post a command; when its 202 came, as Unix time in seconds."""
        if kind == "cancel":
            answer = await self.client.post(f"/v1/tasks/{task}/cancel")
        elif kind == "approval":
            answer = await self.say(task, {"kind": "approval", "call": "1-1", "decision": "approved"})
        else:
            mode = "redirect" if kind == "redirect" else "append"
            answer = await self.say(task, {"kind": "message", "text": "!hang 600", "mode": mode})
        answered_at = time.time()
        assert answer.status_code in (200, 202), answer.text
        return answered_at

    async def say(self, task: str, body: dict[str, Any]) -> httpx.Response:
        """Post an input."""
        return await self.client.post(f"/v1/tasks/{task}/inputs", json=body)

    async def _deadline(self, task: str) -> float:
        journal = await Journal.load(self.connection.requests, TENANT, task)
        assert journal.state.queued is not None
        assert journal.state.queued.deadline is not None
        return journal.state.queued.deadline.timestamp()

    async def begin(self, kind: Kind, per_second: float, seconds: float = STREAM_SECONDS) -> tuple[str, Milestones]:
        """A task that has been written to for a moment."""
        body: dict[str, Any] = {"input": f"!rate {per_second:g}\n!say {per_second * seconds:.0f}"}
        if kind == "approval":
            telling = f'!call tell {{"per_second": {per_second:g}, "seconds": {seconds:g}}}'
            body = {"input": f"{telling}\n!call sign\n!then\ndone", "tools": TOOLS}
        if kind == "deadline":
            body["deadline_seconds"] = stretched(DEADLINE_SECONDS + DEADLINE_ROUND_TRIPS * self.rtt_seconds)
        task, milestones = await self.submit(body)
        if kind == "approval":
            await milestones.first("approval.requested", *TERMINAL_TYPES)
        if kind == "deadline":
            await milestones.first("task.queued")
        else:
            await self._until_written_to(task)
        return task, milestones

    async def submit(self, body: dict[str, Any]) -> tuple[str, Milestones]:
        """A task that was accepted."""
        answer = await self.client.post("/v1/tasks", json=body)
        assert answer.status_code == 202, answer.text
        task = str(answer.json()["id"])
        self.recorded.accepted.add(task)
        return task, self._milestones[task]

    async def _until_written_to(self, task: str) -> None:
        """Wait until the task has been written to so often, from now on."""
        often = self._random.randint(1, EVENTS_BEFORE_MAX)
        subscription = await self.connection.client.subscribe(f"live.{subjects.journal_delta(TENANT, task)}")
        await subscription.unsubscribe(often)
        for _ in range(often):
            await subscription.next_msg(LIMIT_SECONDS)


@asynccontextmanager
async def commanding(
    folder: Path, rtt_seconds: float | None, *, seed: int = 0, **variables: str
) -> AsyncIterator[Commander]:
    """A mesh whose services are so far from the broker; None is next to it."""
    async with (
        distant_mesh(folder, rtt_seconds, *SERVICES, **variables) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        commander = Commander(mesh, connection, client, seed)
        commander.rtt_seconds = rtt_seconds or 0.0
        await connection.client.subscribe(f"live.events.{TENANT}.*.log", cb=commander.on_message)
        yield commander
