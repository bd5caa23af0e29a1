"""Least rights as the broker itself enforces them: what each identity must not do is refused there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from contracts import guests
from contracts.generation import accounts
from contracts.permission_lists import Permissions
from contracts.permissions import INBOXES, ROLES
from contracts.streams import BUCKETS, STREAMS
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from mesh.configuration.settings import Settings
from tests.support import enforced
from tests.support.broker import Broker, free_port
from tests.support.leaf import is_linked
from tests.support.patience import stretched
from tests.support.waiting import until

pytestmark = pytest.mark.integration

RUNNER: Final = "runner_charge"
SENDER: Final = "signals_acme"
IDENTITIES: Final = (*ROLES, RUNNER, SENDER)
WRONG_ACTS_MIN: Final = 40
ALL_STREAMS: Final = (*(each.name for each in STREAMS), *(each.stream_name for each in BUCKETS))
TASK: Final = "01j00000000000000000000000"
_DENIED: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)

WRITERS = {"ingress", "inference_worker", "tool_runner", "steward", "operator"}
STEPS = {"inference_worker", "tool_runner"}
CARETAKERS = {"steward", "operator", "supervisor"}
SERVICES = {"ingress", "stream_edge", "inference_worker", "tool_runner", "steward"}


class Act(NamedTuple):
    """Something that can be tried, and who may do it. Of whom is not named the broker refuses it."""

    verb: str
    subject: str
    may: frozenset[str] = frozenset()


def _publish(subject: str, *may: str) -> Act:
    return Act("publish", subject, frozenset(may))


def _call(subject: str, *may: str) -> Act:
    return _publish(f"$JS.API.{subject}", *may)


def _subscribe(subject: str, *may: str) -> Act:
    return Act("subscription", subject, frozenset(may))


ACTS: Final = [
    # Work, and what is written of it.
    _publish("tasks.default.normal.acme", *WRITERS),
    _publish("turns.default.normal.acme", *STEPS, "steward", "operator", RUNNER),
    _publish("tools.charge", *STEPS, "steward", "operator", RUNNER),
    _publish("tools.refund", *STEPS, "steward", "operator"),
    _publish(f"events.acme.{TASK}.log", *WRITERS, RUNNER),
    _publish(f"events.acme.{TASK}.delta", *STEPS, RUNNER),
    _publish(f"events.acme.{TASK}.other"),
    _publish(f"live.events.acme.{TASK}.log"),
    _publish(f"live.events.acme.{TASK}.preview", "inference_worker"),
    _publish(f"dead.acme.{TASK}", *WRITERS, RUNNER),
    _publish("archive.1", "steward", "operator"),
    # Commands.
    _publish("control.approval.acme", "ingress", "operator"),
    _publish("control.input.acme", "ingress", "operator"),
    _publish("control.replay.acme", "ingress", "tool_runner", "operator"),
    _publish("control.cancel.acme", *WRITERS),
    _publish("control.child_done.acme", *STEPS, "steward", "operator"),
    _publish("control.other.acme"),
    # What is due later.
    _publish(f"timers.at.approval.acme.{TASK}.1-0", *STEPS, "steward", "operator"),
    _publish(f"timers.at.retry.acme.{TASK}.1-0-g0-t1", *STEPS, "steward", "operator", RUNNER),
    _publish(f"timers.at.deadline.acme.{TASK}.task", *WRITERS),
    _publish("timers.at.cron.acme.nightly", "steward", "operator"),
    _publish(f"timers.fired.approval.acme.{TASK}.1-0"),
    _publish("timers.fired.cron.acme.nightly"),
    # Signals, orders, word to each other.
    _publish("signals.acme.stock", "tool_runner", "operator", SENDER),
    _publish("signals.globex.stock", "tool_runner", "operator"),
    _publish("process.worker.drain", "operator", "supervisor"),
    _publish("configuration.reload", "operator", "supervisor"),
    _publish(f"hold.acme.{TASK}", "steward"),
    _publish("lanes.waiting.tasks.default-normal", "steward"),
    _publish("providers.changed.openai", "inference_worker"),
    _publish("stats.lanes.default.normal", "inference_worker"),
    _publish("stats.providers", "inference_worker"),
    _publish("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.TASKS.default-normal"),
    # Buckets.
    _publish(f"$KV.tasks.acme.{TASK}", *WRITERS),
    _publish("$KV.workers.somebody", *SERVICES),
    _publish("$KV.providers.openai", "inference_worker"),
    _publish("$KV.lanes.default.normal", "steward"),
    _publish("$KV.tools.charge", "tool_runner", RUNNER),
    _publish("$KV.tools.refund", "tool_runner"),
    _publish("$KV.triggers.acme.reorder", "operator"),
    _publish("$KV.keys.0123456789abcdef", "operator", "supervisor"),
    _publish("$KV.keys._links", "ingress", "operator", "supervisor"),
    _publish("$KV.walks.packing", "steward"),
    _publish("$KV.valves.pool.default", "ingress", "operator"),
    _publish("valves.changed", "ingress", "operator"),
    _call("STREAM.PURGE.KV_valves", "steward"),
    _publish("$KV.archive.abcd", "steward", "operator"),
    _publish("$KV.storage.samples", "steward"),
    _publish("$O.results.C.acme.x", "tool_runner"),
    _publish("$O.results.M.x", "tool_runner"),
    # Work of others.
    *(
        _call(f"CONSUMER.MSG.NEXT.{stream}.{consumer}", *may)
        for stream, consumer, *may in (
            ("TASKS", "default-normal", "inference_worker"),
            ("TURNS", "default-high", "inference_worker"),
            ("TOOLS", "tool-charge", "tool_runner", RUNNER),
            ("TOOLS", "tool-refund", "tool_runner"),
            ("CONTROL", "steward", "steward"),
            ("TIMERS", "steward", "steward"),
            ("TIMERS", "cron", "steward"),
            ("SIGNALS", "steward", "steward"),
            ("ADVISORIES", "steward", "steward"),
            ("DEAD_LETTERS", "critic", "steward"),
            ("EVENTS", "webhook-shop", "steward"),
            ("ARCHIVE", "mine"),
            ("KV_keys", "mine"),
        )
    ),
    *(
        _publish(f"$JS.ACK.{stream}.{consumer}.1.2.3.4.5", *may)
        for stream, consumer, *may in (
            ("TASKS", "default-normal", "inference_worker"),
            ("TOOLS", "tool-charge", "tool_runner", RUNNER),
            ("TOOLS", "tool-refund", "tool_runner"),
            ("CONTROL", "steward", "steward"),
        )
    ),
    _publish("$JS.ACK.hub.AAAA.CONTROL.steward.1.2.3.4.5.abcd", "steward"),
    _publish("$JS.ACK.hub.AAAA.TOOLS.tool-refund.1.2.3.4.5.abcd", "tool_runner"),
    # Reading.
    _call("DIRECT.GET.EVENTS", *SERVICES, "operator", "supervisor", RUNNER),
    _call("DIRECT.GET.CONTROL", "ingress", "steward", "operator"),
    _call("DIRECT.GET.DEAD_LETTERS", "ingress", "steward", "operator"),
    _call("DIRECT.GET.TOOLS", "ingress", "steward", "operator"),
    _call("DIRECT.GET.KV_keys", "operator"),
    _call("DIRECT.GET.KV_triggers", "steward", "operator"),
    _call("DIRECT.GET.SIGNALS", "steward", "operator"),
    _call("STREAM.MSG.GET.KV_keys", "ingress", "stream_edge", "operator"),
    _call("STREAM.MSG.GET.TOOLS", "ingress", "steward", "operator"),
    # What changes the broker.
    *(_call(f"STREAM.CREATE.{each}", *CARETAKERS) for each in ("EVENTS", "KV_keys")),
    *(_call(f"STREAM.UPDATE.{each}", *CARETAKERS) for each in ("EVENTS", "KV_keys")),
    *(_call(f"STREAM.DELETE.{each}") for each in ALL_STREAMS),
    _call("STREAM.CREATE.MINE"),
    _call("STREAM.PURGE.EVENTS", "steward", "operator"),
    _call("STREAM.PURGE.KV_keys"),
    _call("STREAM.PURGE.ARCHIVE"),
    _call("STREAM.MSG.DELETE.EVENTS"),
    _call("STREAM.MSG.DELETE.DEAD_LETTERS", "ingress", "operator"),
    _call("STREAM.SNAPSHOT.EVENTS"),
    _call("STREAM.RESTORE.EVENTS"),
    _call("CONSUMER.CREATE.EVENTS"),
    _call("CONSUMER.CREATE.KV_keys"),
    _call("CONSUMER.CREATE.TOOLS.tool-charge.tools.charge", RUNNER),
    _call("CONSUMER.CREATE.TOOLS.tool-charge.tools.refund"),
    _call("CONSUMER.DURABLE.CREATE.EVENTS.webhook-mine", *CARETAKERS),
    _call("CONSUMER.DURABLE.CREATE.TOOLS.tool-charge", "tool_runner", *CARETAKERS),
    _call("CONSUMER.DELETE.TASKS.default-normal", *CARETAKERS),
    _call("CONSUMER.DELETE.EVENTS.webhook-shop"),
    _call("META.LEADER.STEPDOWN"),
    _call("ACCOUNT.PURGE.TASKMESH"),
    _publish("$SYS.REQ.SERVER.PING"),
    _publish("anything.else"),
    # Listening.
    *(
        _subscribe(subject, *may)
        for subject, *may in (
            (">",),
            ("tasks.>",),
            ("control.>",),
            ("events.>",),
            ("signals.>",),
            ("$KV.>",),
            ("$KV.keys.>", "ingress", "stream_edge"),
            ("$JS.>",),
            ("$O.>",),
            ("live.events.>",),
            ("live.events.*.*.*", "ingress", "stream_edge"),
            ("live.events.*.*.log", "ingress", "stream_edge", *STEPS),
            ("hold.*.*", *STEPS),
            ("storage.room", "supervisor"),
            ("process.somebody.drain", *SERVICES),
            ("configuration.reload", *SERVICES, "supervisor"),
            ("stats.lanes.*.*", "steward"),
            ("stats.providers", "inference_worker"),
            ("_INBOX.>", RUNNER, SENDER),
            *(
                (f"_INBOX_{inbox}.>", *(role for role in ROLES if INBOXES[role] == inbox))
                for inbox in set(INBOXES.values())
            ),
        )
    ),
]


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker that enforces the lists, also of a runner of one tool, and of who sends a tenant's signals."""
    asked = [guests.runner(["charge"]), guests.signals("acme")]
    async with Broker(tmp_path / "broker", enforces=True, guests=asked, may_refuse=True) as running:
        yield running


async def _refused(broker: Broker, identity: str, acts: list[Act]) -> set[tuple[str, str]]:
    """What the broker refuses of these, by its own word."""
    refused: set[tuple[str, str]] = set()

    async def on_error(error: Exception) -> None:
        found = _DENIED.search(str(error))
        if found is not None:
            refused.add((found[1].lower(), found[2].lower()))

    client = Client()
    inbox = f"_INBOX_{INBOXES[identity]}" if identity in ROLES else "_INBOX"
    await client.connect(broker.url_of(identity), error_cb=on_error, inbox_prefix=inbox.encode())
    try:
        for act in acts:
            if act.verb == "publish":
                await client.publish(act.subject, b"{}")
            else:
                await client.subscribe(act.subject)
        await client.flush()
        await client.flush()
    finally:
        await client.close()
    return refused


def _seen_by(identity: str, act: Act) -> Act:
    """The act as it is called in the identity's account: a guest has calls of JetStream under a domain's name."""
    if identity in ROLES:
        return act
    return act._replace(subject=act.subject.replace("$JS.API.", f"$JS.{guests.DOMAIN}.API."))


@pytest.mark.parametrize("identity", IDENTITIES)
async def test_the_broker_itself_refuses_what_an_identity_must_not_do_and_nothing_else(
    broker: Broker, identity: str
) -> None:
    wrong = [_seen_by(identity, act) for act in ACTS if identity not in act.may]
    assert len(wrong) >= WRONG_ACTS_MIN
    right = [_seen_by(identity, act) for act in ACTS if identity in act.may]
    refused = await _refused(broker, identity, [*wrong, *right])
    assert refused == {(act.verb, act.subject.lower()) for act in wrong}


async def test_who_is_nobody_is_not_let_in(broker: Broker) -> None:
    client = Client()
    try:
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            await client.connect(f"nats://127.0.0.1:{broker.port}", allow_reconnect=False)
    finally:
        await client.close()


async def _stored(connection: Connection, stream: str) -> int:
    return int((await connection.requests.api(f"STREAM.INFO.{stream}"))["state"]["messages"])


@pytest.fixture
async def connection(broker: Broker) -> AsyncIterator[Connection]:
    """The test's own, who may do everything, to a broker with all streams."""
    settings = Settings(nats_url=broker.url)
    async with connect(settings, "test") as opened:
        await apply(opened.requests, declared(settings), update=False)
        yield opened


async def test_a_tenant_s_signals_are_taken_from_its_own_account_and_acknowledged(
    broker: Broker, connection: Connection
) -> None:
    client = await nats.connect(broker.url_of(SENDER))
    heard: list[str] = []

    async def on_message(message: Msg) -> None:
        heard.append(message.subject)

    try:
        ack = json.loads((await client.request("signals.acme.stock", b"{}", timeout=stretched(5))).data)
        assert (ack["stream"], ack["seq"]) == ("SIGNALS", 1)
        # Nothing of the mesh is heard in an account of its own.
        await client.subscribe("_INBOX.>", cb=on_message)
        await connection.requests.publish("signals.acme.stock", b"{}")
        await client.publish("signals.globex.stock", b"{}")
        await client.flush()
    finally:
        await client.close()
    assert await _stored(connection, "SIGNALS") == 2
    assert heard == []


APPROVAL = b'{"kind":"approval","task":"x","tenant":"acme","by":"me","call":"1-0","decision":"approved"}'


async def _ask_with_reply(client: Client, api: str, reply: str) -> None:
    """Store what looks like a command where one may write, and have the broker answer with it on another subject."""
    await client.request(f"events.acme.{TASK}.log", APPROVAL, timeout=stretched(5))
    await client.publish(f"{api}DIRECT.GET.EVENTS", b'{"seq":1}', reply=reply)
    # An answer that comes is here before this one, to the same request.
    await client.request(f"{api}DIRECT.GET.EVENTS", b'{"seq":1}', timeout=stretched(5))


async def test_a_runner_in_its_own_account_can_t_have_an_answer_sent_into_the_mesh(
    broker: Broker, connection: Connection
) -> None:
    client = await nats.connect(broker.url_of(RUNNER))
    try:
        await _ask_with_reply(client, f"$JS.{guests.DOMAIN}.API.", "control.approval.acme")
    finally:
        await client.close()
    assert await _stored(connection, "EVENTS") == 1
    assert await _stored(connection, "CONTROL") == 0


async def test_a_service_in_the_mesh_s_account_could_so_that_it_is_trusted(
    broker: Broker, connection: Connection
) -> None:
    """The limit of lists (ADR-27): once this fails, the server asks who names an answer's subject."""
    client = await nats.connect(broker.url_of("tool_runner"), inbox_prefix=b"_INBOX_tool_runner")
    try:
        await _ask_with_reply(client, "$JS.API.", "control.approval.acme")
    finally:
        await client.close()
    assert await _stored(connection, "CONTROL") == 1


async def test_a_runner_creates_the_consumer_of_its_own_tool_alone_and_gets_its_work_alone(
    broker: Broker, connection: Connection
) -> None:
    for tool in ("charge", "refund"):
        await connection.requests.publish(f"tools.{tool}", tool.encode())
    client = await nats.connect(broker.url_of(RUNNER))
    api = f"$JS.{guests.DOMAIN}.API."
    create = f"{api}CONSUMER.CREATE.TOOLS.tool-charge.tools.charge"

    async def ask(subject: str, body: object) -> dict[str, Any]:
        return json.loads((await client.request(subject, json.dumps(body).encode(), timeout=stretched(5))).data)  # type: ignore[no-any-return]

    try:
        config = {"durable_name": "tool-charge", "ack_policy": "explicit", "filter_subject": "tools.refund"}
        refused = await ask(create, {"stream_name": "TOOLS", "config": config})
        assert refused["error"]["code"] == 400, refused
        refused = await ask(create, {"stream_name": "TOOLS", "config": {**config, "filter_subject": "tools.*"}})
        assert refused["error"]["code"] == 400, refused
        made = await ask(create, {"stream_name": "TOOLS", "config": {**config, "filter_subject": "tools.charge"}})
        assert made["config"]["filter_subject"] == "tools.charge"
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        await client.publish(f"{api}CONSUMER.MSG.NEXT.TOOLS.tool-charge", b'{"batch":1}', reply=inbox)
        message = await subscription.next_msg(timeout=stretched(5))
        assert message.data == b"charge"
        await client.request(message.reply, b"+ACK", timeout=stretched(5))
    finally:
        await client.close()
    assert await _stored(connection, "TOOLS") == 1


async def test_at_a_leaf_whose_jetstream_is_the_hub_s_the_lists_of_the_domain_are_enough(tmp_path: Path) -> None:
    port = free_port()
    link = (
        f"leafnodes {{ listen: 127.0.0.1:{port}, authorization {{ user: edge, password: e1, account: TASKMESH }} }}\n"
    )
    mesh = "accounts { TASKMESH: { jetstream: enabled, users: [ { user: root, password: pw-root } ] } }"
    hub = Broker(tmp_path / "hub", extra=link + mesh, domain="hub", enforces=False)
    users = [*accounts.role_users(domain="hub"), accounts.User(enforced.ROOT, Permissions((">",), (">",)))]
    remote = f'leafnodes {{ remotes: [ {{ url: "nats-leaf://edge:e1@127.0.0.1:{port}", account: TASKMESH }} ] }}\n'
    leaf = Broker(tmp_path / "leaf", extra=remote + accounts.accounts_conf(users), domain="leaf", enforces=False)
    leaf.environment = {**os.environ, **enforced.passwords()}
    async with hub, leaf:
        await until(lambda: is_linked(leaf))

        def at_leaf(user: str) -> Settings:
            url = enforced.with_login(f"nats://127.0.0.1:{leaf.port}", user)
            return Settings(nats_url=url, nats_domain="hub")

        async with connect(at_leaf(enforced.ROOT), "test") as opened:
            await apply(opened.requests, declared(at_leaf(enforced.ROOT)), update=False)
        for service in sorted(SERVICES):
            async with connect(at_leaf(service), service) as opened:
                assert opened.rights.granted is not None
                assert opened.rights.missing == []
                assert (await opened.requests.api("STREAM.INFO.EVENTS"))["state"]["messages"] == 0
                await key_value.put(opened.requests, "workers", service, b"{}")
        assert enforced.violations(leaf.log) == []
