"""A mesh in which runs follow one another: whoever dies in it is started again."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from contracts.errors import TaskmeshError
from mesh import faults
from mesh.background import background
from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from tests.chaos.points import SERVICES, Reached, read_reached
from tests.chaos.runner import EXECUTIONS_VARIABLE
from tests.chaos.scenario import LONG_SECONDS, Scenario
from tests.chaos.witness import Witness
from tests.support.http_client import PatientClient
from tests.support.patience import POLL_SECONDS, stretched
from tests.support.processes import ROOT, Mesh, Process, distant_mesh
from tests.support.waiting import QUEUES, until

ACK_WAIT_SECONDS = 1.0
TRACEBACK_CHARACTERS = 3_000
STARTS_MAX = 40
START_AGAIN_SECONDS = 0.25
EDGE = "stream_edge"
BESIDE = "+"
"""Behind a service's name: its second process."""
HEARD = ("TIMERS", "ADVISORIES", "SIGNALS")
"""Streams that the steward reads, and that keep what it has read."""
WITHIN_SECONDS = 30.0
"""How long whatever was killed may take to serve again."""


class Slot:
    """One mesh for the runs of one scenario, its processes, and what they came to."""

    def __init__(
        self, scenario: Scenario, mesh: Mesh, connection: Connection, client: httpx.AsyncClient, executions: Path
    ) -> None:
        self.scenario = scenario
        self.mesh = mesh
        self.connection = connection
        self.client = client
        self.processes: dict[str, Process] = {}
        self.runs = 0
        self.broker_started_at = 0.0
        """Unix time in seconds of its last start after a death."""
        self.deaths: list[str] = []
        """Who was found dead, in order."""
        self.disturbed = False
        """Whether a run in it went wrong: what it left behind would be held against the next."""
        self.witness = Witness(connection.requests) if scenario.archives else None
        """Where journals do not stay where they are."""
        self.staying = ""
        """A task that waits for as long as the mesh is there, where that matters."""
        self._executions = executions

    def folder(self, service: str) -> Path:
        """Where the processes of a service write down what they come to."""
        return self.mesh.folder / "points" / service

    async def start(self, service: str, **variables: str) -> Process:
        """Start a process of a service; the last one started under its name is the one that is kept."""
        name, service = service, service.removesuffix(BESIDE)
        folder = self.folder(service)
        folder.mkdir(parents=True, exist_ok=True)
        variables = {
            faults.POINTS_VARIABLE: str(folder),
            EXECUTIONS_VARIABLE: str(self._executions),
            **self.scenario.variables_of.get(service, {}),
            "PYTHONPATH": os.pathsep.join([*(str(ROOT / part) for part in ("libs", "services")), str(ROOT)]),
            **variables,
        }
        module = self.scenario.modules.get(service, SERVICES.get(service, service))
        self.processes[name] = await self.mesh.start(module, **variables)
        return self.processes[name]

    def executed(self) -> Counter[str]:
        """How often the tools were run, for each key."""
        return Counter(self._executions.read_text().splitlines()) if self._executions.exists() else Counter()

    def reached(self, service: str, after: int = 0) -> list[Reached]:
        """What a service came to."""
        return read_reached(self.folder(service), after)

    @property
    def long_seconds(self) -> float:
        """More than a lease, and than a process takes to start again, now."""
        return max(stretched(LONG_SECONDS), LONG_SECONDS * self.mesh.settings.ack_wait_seconds / ACK_WAIT_SECONDS)

    def tracebacks(self) -> list[str]:
        """The end of each log in which there is an exception that nobody handled, from its first one on."""
        logs = {process.log for process in self.mesh.processes}
        told = [(log.name, log.read_text().partition("Traceback")) for log in sorted(logs)]
        return [f"{name}: {found}{rest[:TRACEBACK_CHARACTERS]}" for name, (_, found, rest) in told if found]

    @property
    def is_whole(self) -> bool:
        """Whether everybody lives."""
        return (
            self.mesh.broker.process is not None
            and self.mesh.broker.process.poll() is None
            and (all(process.is_running for process in self.processes.values()))
        )

    async def keep(self) -> None:
        """Start again whoever is dead, until cancelled."""
        # Apart from each other: a service that begins while the broker is dead is only ready once that is back.
        witness = [self.witness.run()] if self.witness is not None else []
        async with background(self._keep_broker(), self._keep_services(), *witness):
            await asyncio.Event().wait()

    async def _keep_broker(self) -> None:
        broker = self.mesh.broker
        while True:
            if broker.process is not None and broker.process.poll() is not None:
                self.deaths.append("nats-server")
                await broker.start()
                self.broker_started_at = time.time()
            await asyncio.sleep(POLL_SECONDS)

    async def _keep_services(self) -> None:
        while True:
            for service, process in list(self.processes.items()):
                if not process.is_running:
                    self.deaths.append(service.removesuffix(BESIDE))
                    await start_again(process)
            await asyncio.sleep(POLL_SECONDS)

    async def replace(self, service: str) -> Process:
        """Start another process in the place of one that sleeps; the one that sleeps."""
        asleep = self.processes[service]
        await self.start(service)
        return asleep

    async def left(self) -> dict[str, int]:
        """How many messages lie in the queues, how much of what has fired is not carried out, and what is to fire."""
        requests = self.connection.requests
        counts = {stream: (await self._state(stream))["messages"] for stream in QUEUES}
        for stream in HEARD:
            consumers = (await requests.api(f"CONSUMER.LIST.{stream}"))["consumers"]
            counts[f"{stream}, to hear"] = sum(each["num_pending"] + each["num_ack_pending"] for each in consumers)
        if self.scenario.timers_fire:
            state = await self._state("TIMERS", {"subjects_filter": "timers.at.>"})
            counts["TIMERS, to fire"] = len(state.get("subjects") or ())
        return {what: int(count) for what, count in counts.items() if count}

    async def stored(self) -> dict[str, int]:
        """How many messages each queue has ever stored, and what else is read from there on."""
        return {stream: int((await self._state(stream))["last_seq"]) for stream in (*QUEUES, "DEAD_LETTERS", "EVENTS")}

    async def _state(self, stream: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        state: dict[str, Any] = (await self.connection.requests.api(f"STREAM.INFO.{stream}", body))["state"]
        return state

    async def are_packed(self) -> bool:
        """Whether EVENTS has nothing of tasks but of the one that stays."""
        try:
            state = await self._state("EVENTS", {"subjects_filter": "events.>"})
        except TaskmeshError:
            return False
        return all(self.staying in subject for subject in state.get("subjects") or ())

    async def until_idle(self, seconds: float) -> bool:
        """Wait until nothing is left; False if it is not so in time."""

        async def empty() -> bool:
            try:
                return self.is_whole and await self.left() == {}
            except TaskmeshError:
                return False

        try:
            await until(empty, seconds)
        except TimeoutError:
            return False
        return True


async def start_again(process: Process) -> None:
    """Start a process anew. While it was dead somebody's connection may have got its port, for a moment."""
    for _ in range(STARTS_MAX - 1):
        try:
            await process.start()
            return
        except RuntimeError:
            await asyncio.sleep(START_AGAIN_SECONDS)
    await process.start()


@asynccontextmanager
async def opened_slot(folder: Path, scenario: Scenario, **variables_of: dict[str, str]) -> AsyncIterator[Slot]:
    """A mesh with every service once. `variables_of`: service → more variables of the process that it begins with."""
    folder.mkdir(parents=True)
    # Who is told to stop waits for no step: each is handed over.
    variables = {
        "MESH_ACK_WAIT_SECONDS": str(ACK_WAIT_SECONDS),
        "MESH_DRAIN_SECONDS": "0",
        **scenario.variables,
    }
    async with (
        distant_mesh(folder, scenario.rtt_seconds, **variables) as mesh,
        connect(mesh.settings, "chaos") as connection,
        PatientClient(trust_env=False) as client,
    ):
        await apply(connection.requests, declared(mesh.settings, scenario.tools), update=False)
        slot = Slot(scenario, mesh, connection, client, folder / "executions")
        edge = mesh.start(EDGE, **scenario.variables_of.get(EDGE, {}))
        names = [*SERVICES, *(f"{service}{BESIDE}" for service in scenario.beside)]
        starting = [slot.start(name, **variables_of.get(name.removesuffix(BESIDE), {})) for name in names]
        await asyncio.gather(edge, *starting)
        async with background(slot.keep()):
            yield slot
