"""The clients of a run: they submit its tasks, follow each, say what it needs, and replay what gave up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import httpx
import msgspec

from contracts import headers, subjects
from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.journal.parts import StepGen
from contracts.messages.control import Edits, ReplayCommand, replay_message_id
from contracts.triggers.rules import TriggerRule, TriggerSource
from mesh.broker.direct_get import read_page
from mesh.broker.requests import Requests
from mesh.rules import trigger_bucket
from tests.chaos.scenario import Asked, in_run
from tests.support.clients import Viewer
from tests.support.patience import stretched

TENANT = "default"
BY = "chaos"
RETRY_SECONDS = 0.05
SCHEDULE_SECONDS = 4.0
"""From now to the one firing of a run's schedule; it has to be written by then."""
SCHEDULES_MAX = 5

Answered = TypeVar("Answered")


async def post(client: httpx.AsyncClient, url: str, body: dict[str, object], key: str) -> httpx.Response:
    """Post until there is an answer that is not for later, as a client does that wants its request carried out once."""
    return await answered(lambda: client.post(url, json=body, headers={"Idempotency-Key": key}))


async def answered(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Ask until there is an answer that is not for later."""
    while True:
        try:
            answer = await ask()
        except httpx.TransportError:
            pass
        else:
            if answer.status_code < 500:
                return answer
        await asyncio.sleep(RETRY_SECONDS)


class Voice:
    """A client that has a task begin, and posts what its person says, as often as it takes.

    `after` is a sequence of EVENTS: the task's journal begins behind it.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        requests: Requests,
        asked: Asked,
        run: str,
        after: int,
        long_seconds: float,
    ) -> None:
        self._client = client
        self._url = url
        self._requests = requests
        self.asked = asked
        self._run = run
        self._after = after
        self._long_seconds = long_seconds
        self._task = ""
        self._rule = ""
        self.saying: list[asyncio.Task[None]] = []

    async def submit(self) -> str:
        """Post the task, or add the rule that begins it, and set that off; its id."""
        if self.asked.begun_by == "request":
            self._task = await self._post_task()
        else:
            await (self._send_signal() if self.asked.begun_by == "signal" else self._schedule())
            (self._task, *_) = await sooner_or_later(lambda: tasks_of(self._requests, self._rule, self._after))
        return self._task

    @property
    def rule(self) -> str:
        """The rule that begins the task; empty for a request."""
        return self._rule

    async def tidy_up(self) -> None:
        """Take the rule away."""
        if self._rule:
            await sooner_or_later(self._remove_rule)

    async def _post_task(self) -> str:
        body = in_run(self.asked.body, self._run, self._long_seconds)
        answer = await post(self._client, f"{self._url}/v1/tasks", body, f"{self._run}.{self.asked.name}")
        if answer.status_code != 202:
            raise RuntimeError(f"not accepted: {answer.text}")
        return str(msgspec.json.decode(answer.content)["id"])

    async def _send_signal(self) -> None:
        signal = f"chaos.{self._rule_name()}"
        await self._add_rule(TriggerSource(signal=signal))

        async def send() -> bool:
            message_headers = {headers.MESSAGE_ID: signal}
            await self._requests.publish(subjects.signal(TENANT, signal), b"{}", message_headers)
            return True

        await sooner_or_later(send)

    async def _schedule(self) -> None:
        """Once: in a few seconds, and then not for a year."""
        for number in range(SCHEDULES_MAX):
            at = datetime.now(UTC) + timedelta(seconds=stretched(SCHEDULE_SECONDS))
            schedule = f"{at.second} {at.minute} {at.hour} {at.day} {at.month} *"
            self._rule = self._rule_name(number)
            await self._add_rule(TriggerSource(schedule=schedule))
            if datetime.now(UTC) < at.replace(microsecond=0):
                return
            # It may have been written too late to fire this year.
            await self.tidy_up()
        raise RuntimeError(f"no schedule was written before its time, {SCHEDULES_MAX} times")

    def _rule_name(self, number: int = 0) -> str:
        return f"{self.asked.name}-{self._run.replace('.', '-')}-{number}"

    async def _add_rule(self, source: TriggerSource) -> None:
        self._rule = self._rule or self._rule_name()
        body = in_run(self.asked.body, self._run, self._long_seconds)
        rule = TriggerRule(name=self._rule, tenant=TENANT, on=source, task=body)
        await sooner_or_later(lambda: trigger_bucket.add(self._requests, rule, replace=True))

    async def _remove_rule(self) -> bool:
        with suppress(trigger_bucket.RuleUnknown):
            await trigger_bucket.remove(self._requests, TENANT, self._rule)
        return True

    def say(self, number: int) -> None:
        """Say the answer of that number, in the background."""
        self.saying.append(asyncio.create_task(self._post_input(number)))

    def replay(self, step: str, gen: int) -> None:
        """Replay a dead letter, in the background."""
        self.saying.append(asyncio.create_task(self._replay(StepGen(step, gen))))

    async def fall_silent(self) -> None:
        """Leave unsaid what nobody has heard yet."""
        for task in self.saying:
            task.cancel()
        await asyncio.gather(*self.saying, return_exceptions=True)

    async def _post_input(self, number: int) -> None:
        url = f"{self._url}/v1/tasks/{self._task}/inputs"
        key = f"{self._run}.{self.asked.name}.{number}"
        answer = await post(self._client, url, self.asked.answers[number].body, key)
        # 409: said before, by a try whose answer was lost.
        if answer.status_code not in (200, 202, 409):
            raise RuntimeError(f"not heard: {answer.status_code} {answer.text}")

    async def _replay(self, repaired: StepGen) -> None:
        """Twice: the second command comes without its message id, as if it were delivered after the window."""
        given = in_run(self.asked.repairs[repaired.step, repaired.gen], self._run)
        edits = msgspec.convert(given, Edits)
        command = ReplayCommand(task=self._task, tenant=TENANT, by=BY, steps=[repaired], edits=edits)
        message_id = replay_message_id(self._task, [repaired])
        if self.asked.repaired_from_record:
            await sooner_or_later(lambda: self._read_record(repaired))
        for message_headers in ({headers.MESSAGE_ID: message_id}, None):
            await sooner_or_later(lambda: self._publish(command, message_headers))  # noqa: B023 - awaited at once

    async def _read_record(self, repaired: StepGen) -> bool:
        page, _ = await read_page(self._requests, "DEAD_LETTERS", subjects.dead_letter(TENANT, self._task), 0)
        letters = [msgspec.json.decode(stored.payload) for stored in page]
        return any((letter["step"], letter.get("gen", 0)) == (repaired.step, repaired.gen) for letter in letters)

    async def _publish(self, command: ReplayCommand, message_headers: dict[str, str] | None) -> bool:
        await self._requests.publish(subjects.control("replay", TENANT), encode(command), message_headers)
        return True


async def sooner_or_later(ask: Callable[[], Awaitable[Answered]]) -> Answered:
    """Ask until there is an answer that is something, also over a broker that dies."""
    while True:
        try:
            answer = await ask()
        except TaskmeshError:
            answer = None
        if answer:
            return answer
        await asyncio.sleep(RETRY_SECONDS)


async def tasks_of(requests: Requests, rule: str, after: int) -> list[str]:
    """The tasks that a rule has started, by their journals behind that sequence of EVENTS."""
    tasks: list[str] = []
    more = True
    while more:
        page, more = await read_page(requests, "EVENTS", f"events.{TENANT}.*.log", after)
        for stored in page:
            after = stored.sequence
            event = msgspec.json.decode(stored.payload)
            if event["type"] == "task.queued" and (event.get("trigger") or {}).get("rule") == rule:
                tasks.append(event["task"])
    return tasks


class Person(Viewer):
    """Follows a task, and has its voice answer and repair."""

    def __init__(self, address: str, task: str, voice: Voice) -> None:
        super().__init__(address, task)
        self._asked = voice.asked
        self._voice = voice
        self._seen: Counter[str] = Counter()
        self._said: set[int] = set()

    def _record(self, event: str, identifier: str, data: str) -> None:
        super()._record(event, identifier, data)
        self._seen[event] += 1
        for number, answer in enumerate(self._asked.answers):
            if number not in self._said and all(self._seen[kind] >= often for kind, often in answer.after.items()):
                self._said.add(number)
                self._voice.say(number)
        if event == "task.dead_lettered":
            dead = msgspec.json.decode(data)
            if (dead["step"], dead["gen"]) in self._asked.repairs:
                self._voice.replay(dead["step"], dead["gen"])
