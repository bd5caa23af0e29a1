"""Webhooks against a real broker and a real endpoint: delivery, later tries, giving up, and what may not disturb."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts import retries, streams
from contracts.journal import parts
from contracts.messages.notifications import secret_key
from contracts.messages.work import DeadLetter
from contracts.streams import webhook_consumers
from mesh.broker.connection import Connection
from mesh.broker.direct_get import read_page
from mesh.broker.provisioning import Declared, apply, compare, declared
from mesh.configuration.settings import Settings
from mesh.configuration.webhook_tables import WebhookConfiguration
from mesh.errors import BrokerError
from mesh.serving import pinned_http
from steward import webhooks
from steward.webhooks import NOTIFICATIONS_AT_ONCE_MAX, WebhookLoop
from tests.support.certificates import make_certificate, server_context
from tests.support.patience import stretched
from tests.support.tasks import begin_journal, end_task, turn_work
from tests.support.waiting import until
from tests.support.webhook_receiver import SECRET, WebhookReceiver, webhook_receiver

pytestmark = pytest.mark.integration


@pytest.fixture
async def receiver() -> AsyncIterator[WebhookReceiver]:
    async with webhook_receiver() as running:
        yield running


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tries, shortly after one another."""
    policy = retries.RetryPolicy(tries_max=3, delay_seconds_first=0.05, delay_seconds_max=0.05)
    monkeypatch.setattr(webhooks, "WEBHOOK_POLICY", policy)


def configured(url: str, **values: Any) -> WebhookConfiguration:
    return WebhookConfiguration(**{"url": url, "secret_env": "S", "on": ["ended"], "allow_private": True, **values})


@asynccontextmanager
async def notifying(
    connection: Connection, settings: Settings, hooks: dict[str, WebhookConfiguration]
) -> AsyncIterator[None]:
    """The loops of these webhooks, whose consumers are there."""
    wanted = Declared([], webhook_consumers(tuple(hooks), settings.ack_wait_seconds))
    await apply(connection.requests, wanted, update=False)
    keys = (secret_key(SECRET),)
    running = [
        asyncio.create_task(WebhookLoop(connection, settings, name, hook, keys, "steward").run())
        for name, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def ended_task(
    connection: Connection, tenant: str = "default", incomplete: parts.Incomplete | None = None
) -> str:
    journal = await begin_journal(connection.requests, turn_work(tenant=tenant))
    await end_task(journal, incomplete)
    return journal.state.task


async def left(connection: Connection, name: str = "ops") -> int:
    """How many milestones a webhook has yet to answer."""
    info = await connection.requests.api(f"CONSUMER.INFO.EVENTS.webhook-{name}")
    return int(info["num_pending"]) + int(info["num_ack_pending"])


async def until_none_is_left(connection: Connection, name: str = "ops") -> None:
    async def none() -> bool:
        return await left(connection, name) == 0

    await until(none)


async def dead_letters(connection: Connection) -> list[DeadLetter]:
    page = await read_page(connection.requests, "DEAD_LETTERS", ">", 0, 100)
    return [msgspec.json.decode(stored.payload, type=DeadLetter) for stored in page.messages]


async def test_what_is_wanted_arrives_once_signed_and_nothing_else_does(
    connection: Connection, settings: Settings, receiver: WebhookReceiver
) -> None:
    before = await ended_task(connection)
    async with notifying(connection, settings, {"ops": configured(receiver.url, tenants=["acme"])}):
        await ended_task(connection, "other")
        task = await ended_task(connection, "acme")
        await until_none_is_left(connection)
    [received] = receiver.received
    assert received.valid
    assert received.head == "POST /hook?key=v HTTP/1.1"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["content-type"] == "application/json"
    data = received.body["data"]
    assert (received.type, data["task"], data["tenant"]) == ("task.completed", task, "acme")
    assert received.id == data["event"]["id"]
    assert received.body["timestamp"] == data["event"]["time"]
    at_ingress = f"http://127.0.0.1:8080/v1/tasks/{task}"
    assert data["links"] == {
        "self": at_ingress,
        "events": f"http://127.0.0.1:8081/v1/tasks/{task}/events",
        "cancel": f"{at_ingress}/cancel",
        "inputs": f"{at_ingress}/inputs",
    }, "whoever is told is no client of the ingress, so paths would lead nowhere"
    assert before != task, "what was there before the webhook is not told"
    assert await dead_letters(connection) == []


async def test_an_end_by_a_filter_says_so(
    connection: Connection, settings: Settings, receiver: WebhookReceiver
) -> None:
    async with notifying(connection, settings, {"ops": configured(receiver.url)}):
        await ended_task(connection)
        await ended_task(connection, incomplete="content_filter")
        await until_none_is_left(connection)
    told = {each.body["data"]["event"].get("incomplete") for each in receiver.received}
    assert told == {None, "content_filter"}


async def test_a_failed_try_is_made_again_under_the_same_id(
    connection: Connection, settings: Settings, receiver: WebhookReceiver
) -> None:
    receiver.answers = ["500 Oops", "429 Too Many Requests"]
    async with notifying(connection, settings, {"ops": configured(receiver.url)}):
        await ended_task(connection)
        await until(lambda: len(receiver.received) == 3)
        await until_none_is_left(connection)
    assert len({each.id for each in receiver.received}) == 1
    assert len({json.dumps(each.body) for each in receiver.received}) == 1
    assert all(each.valid for each in receiver.received)
    assert await dead_letters(connection) == []


@pytest.mark.parametrize(("answer", "tries"), [("410 Gone", 1), ("302 Found\r\nlocation: /other", 1), ("503 No", 3)])
async def test_what_is_given_up_is_written_down(
    connection: Connection, settings: Settings, receiver: WebhookReceiver, answer: str, tries: int
) -> None:
    receiver.answers = [answer] * 9
    async with notifying(connection, settings, {"ops": configured(receiver.url), "two": configured(receiver.url)}):
        task = await ended_task(connection)
        await until_none_is_left(connection)
        await until_none_is_left(connection, "two")
    assert len(receiver.received) == 2 * tries
    letters = await dead_letters(connection)
    assert [(letter.stream, letter.tenant, letter.task, letter.tries) for letter in letters] == [
        ("EVENTS", "default", task, tries)
    ] * 2
    assert sorted(letter.errors[0].message for letter in letters) == [
        f"webhook {name}: HTTP {answer[:3]}" for name in ("ops", "two")
    ]
    assert json.loads(letters[0].message)["id"] == receiver.received[0].id


async def test_an_endpoint_that_hangs_is_left_after_its_time_and_holds_up_no_other(
    connection: Connection, settings: Settings, receiver: WebhookReceiver
) -> None:
    async with webhook_receiver() as other:
        receiver.held = True
        hooks = {"slow": configured(receiver.url, timeout_seconds=stretched(0.3)), "quick": configured(other.url)}
        async with notifying(connection, settings, hooks):
            tasks = [await ended_task(connection) for _ in range(NOTIFICATIONS_AT_ONCE_MAX + 5)]
            await until_none_is_left(connection, "quick")
            assert len(other.received) == len(tasks)
            receiver.held = False
            await until_none_is_left(connection, "slow")
        assert receiver.open_max <= NOTIFICATIONS_AT_ONCE_MAX
        told = {each.body["data"]["task"] for each in receiver.received}
        assert told == set(tasks)


async def test_a_name_with_a_private_address_is_not_connected_to(
    connection: Connection, settings: Settings, receiver: WebhookReceiver
) -> None:
    url = receiver.url.replace("127.0.0.1", "localhost")
    async with notifying(connection, settings, {"ops": configured(url, allow_private=False)}):
        await ended_task(connection)
        await until_none_is_left(connection)
    assert receiver.open_max == 0
    [letter] = await dead_letters(connection)
    assert letter.errors[0].code == "webhook-forbidden"


@pytest.mark.parametrize(("name", "taken"), [("localhost", True), ("other.example", False)])
async def test_a_certificate_is_held_against_the_name_though_the_address_is_connected_to(
    connection: Connection,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *,
    taken: bool,
) -> None:
    file = make_certificate(tmp_path, name)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    pinned_http._trusted.cache_clear()
    async with webhook_receiver(server_context(file)) as secure:
        url = f"https://localhost:{secure.port}/hook"
        async with notifying(connection, settings, {"ops": configured(url)}):
            await ended_task(connection)
            await until_none_is_left(connection)
        assert [each.headers["host"] for each in secure.received] == ([f"localhost:{secure.port}"] if taken else [])
    pinned_http._trusted.cache_clear()
    assert [letter.errors[0].code for letter in await dead_letters(connection)] == (
        [] if taken else ["webhook-unreachable"]
    )


async def test_nobody_there_is_a_failed_try(connection: Connection, settings: Settings) -> None:
    async with webhook_receiver() as gone:
        url = gone.url
    async with notifying(connection, settings, {"ops": configured(url)}):
        await ended_task(connection)
        await until_none_is_left(connection)
    [letter] = await dead_letters(connection)
    assert letter.errors[0].code == "webhook-unreachable"


async def test_an_answer_without_an_end_holds_nothing_up(
    connection: Connection, settings: Settings, receiver: WebhookReceiver
) -> None:
    receiver.answers = ["200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked"]
    async with notifying(connection, settings, {"ops": configured(receiver.url)}):
        await ended_task(connection)
        await until_none_is_left(connection)
    assert len(receiver.received) == 1


async def test_two_stewards_tell_each_event_once(
    connection: Connection, settings: Settings, receiver: WebhookReceiver
) -> None:
    hooks = {"ops": configured(receiver.url)}
    async with notifying(connection, settings, hooks), notifying(connection, settings, hooks):
        tasks = [await ended_task(connection) for _ in range(40)]
        await until_none_is_left(connection)
    assert sorted(each.body["data"]["task"] for each in receiver.received) == sorted(tasks)


async def test_what_can_not_be_written_down_stays(
    connection: Connection, settings: Settings, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DEAD_LETTERS is full: the notification is kept until there is room."""
    monkeypatch.setattr(webhooks, "FULL_SECONDS", 0.05)
    receiver.answers = ["410 Gone"] * 1000
    config = next(each for each in streams.STREAMS if each.name == "DEAD_LETTERS").as_config()
    await connection.requests.api("STREAM.UPDATE.DEAD_LETTERS", {**config, "max_bytes": 64})
    async with notifying(connection, settings, {"ops": configured(receiver.url)}):
        await ended_task(connection)
        await until(lambda: len(receiver.received) > 1)
        assert await left(connection) > 0
        await connection.requests.api("STREAM.UPDATE.DEAD_LETTERS", config)
        await until_none_is_left(connection)
    assert len(await dead_letters(connection)) == 1


async def test_the_consumer_of_a_webhook_that_was_taken_away_is_said_and_left(
    connection: Connection, settings: Settings
) -> None:
    configuration = msgspec.structs.replace(settings.configuration, webhooks={"ops": configured("https://a.example")})
    wanted = declared(replace(settings, configuration=configuration))
    [missing] = await compare(connection.requests, wanted)
    assert (missing.name, missing.missing) == ("EVENTS/webhook-ops", True)
    await apply(connection.requests, wanted, update=True)
    assert await compare(connection.requests, wanted) == []

    [stays] = await compare(connection.requests, declared(settings))
    assert stays.name == "EVENTS/webhook-ops"
    assert "nats consumer rm" in stays.obstacles["webhook"]
    assert await apply(connection.requests, declared(settings), update=True) == []
    try:
        await connection.requests.api("CONSUMER.INFO.EVENTS.webhook-ops")
    except BrokerError as error:
        pytest.fail(f"it is gone: {error}")
