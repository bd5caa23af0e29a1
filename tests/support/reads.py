"""A tap on direct gets: who reads what of a stream, how much was asked for, and how much there was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import headers
from mesh.broker.connection import connect
from mesh.configuration.settings import Settings
from tests.support.waiting import until

API = "$JS.API.DIRECT.GET."
INBOXES = "*.*.*"
"""Where a process has its answers: `_INBOX_<role>.<its own name>.<number>`."""


@dataclass
class Answers:
    """What came on one inbox: so many messages, and whether their end."""

    messages: int = 0
    has_end: bool = False


@dataclass(frozen=True)
class Read:
    """A read by direct get, and what came of it so far."""

    stream: str
    body: dict[str, Any]
    answers: Answers

    @property
    def subject_filter(self) -> str:
        """What it reads."""
        return str(self.body.get("next_by_subj", ">"))

    @property
    def is_over(self) -> bool:
        """Whether all of the answer is there."""
        is_one = not {"batch", "multi_last"} & set(self.body)
        return self.answers.has_end or (is_one and self.answers.messages > 0)

    @property
    def searches(self) -> bool:
        """Whether the server looked for more than there is among messages that nobody asked for.

        It does not where it goes by a subject's own last message, by one subject, or reads the next message whatever
        it is. A batch of a whole stream makes it count all subjects, however many messages there are.
        """
        by_last = "multi_last" in self.body or "last_by_subj" in self.body
        is_subject = not {"*", ">"} & set(self.subject_filter.split("."))
        if by_last or is_subject:
            return False
        if self.subject_filter == ">":
            return "batch" in self.body
        return int(self.body.get("batch", 1)) > self.answers.messages


@dataclass
class Tap:
    """All reads so far, in the order in which they were asked."""

    client: Client
    reads: list[Read] = field(default_factory=list)
    subscriptions: list[Subscription] = field(default_factory=list)
    _answers: defaultdict[str, Answers] = field(default_factory=lambda: defaultdict(Answers))

    async def on_request(self, message: Msg) -> None:
        """Somebody reads."""
        body = msgspec.json.decode(message.data) if message.data else {"last_by_subj": message.subject}
        stream = message.subject.removeprefix(API).split(".")[0]
        self.reads.append(Read(stream, body, self._answers[message.reply]))

    async def on_answer(self, message: Msg) -> None:
        """A message of an answer, or its end. It may be heard before its request."""
        answers = self._answers[message.subject]
        if message.headers is not None and headers.STATUS in message.headers:
            answers.has_end = True
        else:
            answers.messages += 1

    async def searching(self) -> set[tuple[str, str]]:
        """Stream and filter of the reads that searched for what is not there, once all have been answered."""
        # What was asked before now is heard: the broker sends it before its answer to a ping.
        await self.client.flush()
        await until(lambda: not any(each.pending_msgs for each in self.subscriptions))
        some = [*self.reads]
        await until(lambda: all(read.is_over for read in some))
        return {(read.stream, read.subject_filter) for read in some if read.searches}


@asynccontextmanager
async def tapped(settings: Settings) -> AsyncIterator[Tap]:
    """Hear every read of every process of a broker, while the body runs."""
    async with connect(settings, "tap") as observer:
        tap = Tap(observer.client)
        tap.subscriptions.append(await observer.client.subscribe(INBOXES, cb=tap.on_answer))
        tap.subscriptions.append(await observer.client.subscribe(f"{API}>", cb=tap.on_request))
        await observer.client.flush()
        yield tap
        for each in reversed(tap.subscriptions):
            await each.unsubscribe()
