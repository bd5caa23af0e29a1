"""What comes after the end of a run's tasks: they are packed, and in some runs dropped, while clients come to them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from contracts import subjects
from contracts.errors import TaskmeshError
from contracts.journal.events import DELTA_TYPES
from tests.chaos.archive import CONTINUED
from tests.chaos.clients import TENANT, post
from tests.chaos.judging import end_of
from tests.chaos.latecomers import deliver_late, leave_behind
from tests.chaos.scenario import Asked, in_run
from tests.chaos.slot import Slot
from tests.chaos.visitors import Visitor, visiting
from tests.support.archive import Archive, check_archive, read_archive
from tests.support.checker import StoredEvent, check_journal, children_of, packed_events
from tests.support.clients import Viewer
from tests.support.waiting import until

STAYING_BODY: dict[str, object] = {"input": "!say 3\n!ask Who goes there?\n"}
CONTINUED_SECONDS = 30.0


async def stay(slot: Slot) -> None:
    """See to it that the mesh has a task that waits for a person, and outstays all others."""
    if not slot.staying:
        answer = await post(slot.client, f"{slot.mesh.ingress_url}/v1/tasks", STAYING_BODY, "staying")
        slot.staying = str(answer.json()["id"])
        await until(lambda: _waits(slot))


async def _waits(slot: Slot) -> bool:
    answer = await slot.client.get(f"{slot.mesh.ingress_url}/v1/tasks/{slot.staying}")
    return answer.status_code == 200 and answer.json()["status"] == "waiting"


class Aftermath:
    """Of a run, whose tasks have ended: task → what was asked for."""

    def __init__(self, slot: Slot, run: str, ended: Mapping[str, Asked]) -> None:
        assert slot.witness is not None
        self._slot = slot
        self._run = run
        self._ended = dict(ended)
        self._witness = slot.witness
        self._journals: dict[str, list[StoredEvent]] = {}
        """All of them, children and those that continue them, as they were when they ended."""
        self._visitors: list[Visitor] = []

    @asynccontextmanager
    async def visited(self) -> AsyncIterator[None]:
        """A block in which clients come to all that have ended. One more has gone on with the last of these before."""
        for task in [*self._ended]:
            await self._add(task)
        visitors = [*self._visitors]
        # The one that has ended last: it is about to be packed.
        last = max(self._ended, key=lambda task: self._journals[task][-1].sequence)
        async with visiting(visitors):
            await asyncio.gather(self._continue(last), self._come_late(last))
            async with visiting(self._visitors[len(visitors) :]):
                yield

    async def until_settled(self, seconds: float) -> bool:
        """Wait until each is where it should be in the end, and nothing of it elsewhere; False if that takes longer."""

        async def nothing_left() -> bool:
            try:
                return self._slot.is_whole and not await self._left(await _Found.read(self._slot))
            except TaskmeshError:
                return False

        try:
            await until(nothing_left, seconds)
        except TimeoutError:
            return False
        return True

    async def judge(self) -> list[str]:
        """What is wrong once nobody packs any more. Each answer that a client got is among it."""
        found = await _Found.read(self._slot)
        problems = [f"I10: {each}" for each in (await self._left(found))[:10]]
        problems += check_archive(found.archive, found.journals - {self._name(self._slot.staying)}, found.records)
        await self._witness.caught_up()
        for task, journal in self._journals.items():
            problems += [f"{problem} ({task})" for problem in self._of_task(task, journal, found)]
        for visitor in self._visitors:
            if self._slot.scenario.kept_seconds is not None:
                await visitor.farewell()
            elif not visitor.visits:
                problems.append(f"I3: nobody came to {visitor.task}")
            problems += [f"{problem} ({visitor.task})" for problem in visitor.problems]
        return problems + await self._of_staying(found)

    async def _come_late(self, task: str) -> None:
        requests = self._slot.connection.requests
        if self._slot.scenario.kept_seconds is None:
            await deliver_late(requests, task)
        else:
            (visitor,) = [each for each in self._visitors if each.task == task]
            await leave_behind(requests, task, lambda: visitor.is_late)

    async def _continue(self, task: str) -> None:
        """Submit a task that goes on with one that has ended, follow it to its end, and come to it, too."""
        body = {**CONTINUED.body, "continues": task}
        key = f"{self._run}.{CONTINUED.name}"
        answer = await post(self._slot.client, f"{self._slot.mesh.ingress_url}/v1/tasks", body, key)
        (visitor,) = [each for each in self._visitors if each.task == task]
        if answer.status_code == 404 and visitor.is_late:
            return
        if answer.status_code != 202:
            raise RuntimeError(f"task {task} can't be continued: {answer.text}")
        continued = str(answer.json()["id"])
        await Viewer(str(self._slot.mesh.settings.edge_address), continued).follow(seconds=CONTINUED_SECONDS)
        self._ended[continued] = Asked(CONTINUED.name, body, CONTINUED.ends)
        await self._add(continued)

    async def _add(self, task: str) -> None:
        """Have somebody come to a task that has ended, and to its children."""
        if task in self._journals:
            return
        journal = [*await self._witness.journal(task)]
        self._journals[task] = journal
        asked = self._ended.get(task)
        submitted = None
        if asked is not None:
            body = in_run(asked.body, self._run, self._slot.long_seconds)
            submitted = f"{self._run}.{asked.name}", body
        mesh, kept_seconds = self._slot.mesh, self._slot.scenario.kept_seconds
        address = str(mesh.settings.edge_address)
        self._visitors.append(Visitor(self._slot.client, mesh.ingress_url, address, journal, submitted, kept_seconds))
        for child in children_of(journal).values():
            await self._add(child)

    async def _left(self, found: _Found) -> list[str]:
        """What is not yet, or no more, where it should be in the end."""
        staying = self._name(self._slot.staying)
        left = [f"task {name} is in EVENTS" for name in found.journals - {staying}]
        left += [f"the record of task {name} is left" for name in found.records - {staying}]
        left += [f"a timer is left: {subject}" for subject in found.timers if self._slot.staying not in subject]
        mine = [self._name(task) for task in self._journals]
        if self._slot.scenario.kept_seconds is None:
            return left + [f"task {name} is not packed" for name in mine if name not in found.archive.tasks]
        left += [f"{found.archive_messages} messages are left in ARCHIVE"] if found.archive_messages else []
        left += [f"dead letters are left: {subject}" for subject in found.dead_letters]
        return left + [f"a result is left: {name}" for name in found.objects]

    def _of_task(self, task: str, journal: list[StoredEvent], found: _Found) -> list[str]:
        problems = check_journal(journal, milestones_only=task in self._witness.partial)
        asked = self._ended.get(task)
        if asked is not None and end_of(journal) not in asked.ends:
            problems.append(f"I9: {asked.name} ended with {end_of(journal)}")
        later = [each.event["type"] for each in self._witness.journals[task][len(journal) :]]
        if later:
            problems.append(f"I2: once it had ended there came {later}")
        name = self._name(task)
        if name not in found.archive.tasks:
            return problems
        milestones = [each for each in journal if each.event["type"] not in DELTA_TYPES]
        if packed_events(found.archive, name) != milestones:
            problems.append("I4: its milestones are packed otherwise than they were stored")
        place = found.archive.places[name]
        entries = found.archive.directories[place.sequence].tasks
        (entry,) = [each for each in entries if each.record.id == task]
        objects = [each.event["object"]["name"] for each in milestones if each.event.get("object")]
        if entry.objects != objects:
            problems.append(f"I10: its pack knows of the results {entry.objects}, and it has {objects}")
        problems += [f"I1: its result {each} is gone" for each in objects if each not in found.objects]
        dead = any(each.event["type"] == "task.dead_lettered" for each in milestones)
        if entry.dead_letters is not dead or dead != (subjects.dead_letter(TENANT, task) in found.dead_letters):
            problems.append(f"I10: its pack says {entry.dead_letters} of dead letters, its journal {dead}")
        return problems

    async def _of_staying(self, found: _Found) -> list[str]:
        """What has not ended stays."""
        name = self._name(self._slot.staying)
        stays = name in found.journals and name in found.records and name not in found.archive.packed
        return [] if stays and await _waits(self._slot) else [f"I1: the task that waits is not as it was ({name})"]

    @staticmethod
    def _name(task: str) -> str:
        return subjects.task_key(TENANT, task)


class _Found:
    """What the broker holds of tasks, by their names."""

    archive: Archive
    archive_messages: int
    journals: set[str]
    records: set[str]
    timers: set[str]
    dead_letters: set[str]
    objects: set[str]

    @classmethod
    async def read(cls, slot: Slot) -> _Found:
        """Raises `BrokerUnavailable`."""
        found = cls()
        found.journals = {".".join(each.split(".")[1:3]) for each in await _subjects(slot, "EVENTS", "events.>")}
        found.records = {each.removeprefix("$KV.tasks.") for each in await _subjects(slot, "KV_tasks", "$KV.tasks.>")}
        found.timers = await _subjects(slot, "TIMERS", "timers.at.>")
        found.dead_letters = await _subjects(slot, "DEAD_LETTERS", "dead.>")
        keys = [each.rpartition(".")[2] for each in await _subjects(slot, "OBJ_results", "$O.results.M.>")]
        found.objects = {base64.urlsafe_b64decode(key).decode() for key in keys}
        found.archive = await read_archive(slot.connection.requests)
        found.archive_messages = int((await slot.connection.requests.api("STREAM.INFO.ARCHIVE"))["state"]["messages"])
        return found


async def _subjects(slot: Slot, stream: str, subject_filter: str) -> set[str]:
    info: dict[str, Any] = await slot.connection.requests.api(
        f"STREAM.INFO.{stream}", {"subjects_filter": subject_filter}
    )
    return set(info["state"].get("subjects") or ())
