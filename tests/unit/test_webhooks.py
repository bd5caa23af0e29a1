"""Webhooks: their settings, what they are told of, what an answer means and what follows from it."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from contracts.codec import encode
from contracts.journal.events import EVENT_TYPES, TERMINAL_TYPES
from contracts.journal.heads import EventHead
from contracts.messages.notifications import EVENT_BYTES_MAX, MILESTONES, event_types, notification
from contracts.records.status import links_of
from contracts.retries import WEBHOOK_POLICY
from contracts.streams import EVENTS, WEBHOOK_CONSUMER_PREFIX, webhook_consumers
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.secret_sources import read_secrets, signing_keys
from mesh.configuration.webhook_tables import WEBHOOKS_MAX, WebhookConfiguration, parse_webhooks
from mesh.errors import SettingsError
from mesh.retry_after import parse_retry_after
from steward.endpoints import Failure, failure_of
from steward.webhooks import Again, GiveUp, decide_failure, wish_of
from tests.support.webhook_receiver import SECRET
from tests.unit.journals import START

TASK = "01jz8q2v7k3m5n9p0r1s2t4v6w"
HOOK = "[webhooks.ops]\nurl = 'https://hooks.example/a?b=c'\nsecret_env = 'HOOK_SECRET'\non = ['approval']\n"


def webhook(text: str) -> WebhookConfiguration:
    return parse_configuration(text.encode()).webhooks["ops"]


def head(event_type: str, tenant: str = "acme") -> EventHead:
    return EventHead(event_type, TASK, TASK, tenant, 3)


# Settings


def test_webhooks_are_read() -> None:
    assert webhook(HOOK) == WebhookConfiguration(
        url="https://hooks.example/a?b=c", secret_env="HOOK_SECRET", on=["approval"]
    )
    assert parse_configuration(b"").webhooks == {}


def hook(**changes: str) -> str:
    """A table with some of its lines changed."""
    values = {"url": "'https://hooks.example/'", "secret_env": "'S'", "on": "['ended']", **changes}
    return "[webhooks.ops]\n" + "\n".join(f"{name} = {value}" for name, value in values.items() if value)


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("webhooks = 1", "webhooks", "must be tables"),
        ("[webhooks.'a.b']", "webhooks.'a.b'", "matching regex"),
        (hook(url=""), "webhooks.ops", "`url`"),
        (hook(on=""), "webhooks.ops", "`on`"),
        (hook(on="[]"), "webhooks.ops.on", "length >= 1"),
        (hook(on="['task.done']"), "webhooks.ops.on", "'task.done' is neither a group (approval, question"),
        (hook(on="['output.delta']"), "webhooks.ops.on", "'output.delta'"),
        (hook(secret_env=f"'{SECRET} '"), "webhooks.ops.secret_env", "matching regex"),
        (hook(secret_env=""), "webhooks.ops", "`secret_env`, or `secret_file`"),
        (hook(secret_file="'a'"), "webhooks.ops.secret_file", "only one of the two"),
        (hook(tenants="['A']"), "webhooks.ops.tenants[0]", "matching regex"),
        (hook(tenants="[]"), "webhooks.ops.tenants", "length >= 1"),
        (hook(timeout_seconds="0"), "webhooks.ops.timeout_seconds", "> 0"),
        (hook(timeout_seconds="61"), "webhooks.ops.timeout_seconds", "<= 60"),
        (hook(secret="'x'"), "webhooks.ops", "`secret`"),
        (hook(url="'ftp://a'"), "webhooks.ops.url", "must be https"),
        (hook(url="'https://'"), "webhooks.ops.url", "must be https"),
        (hook(url="'https://a:99999'"), "webhooks.ops.url", "must be https"),
        (hook(url="'https://a b/'"), "webhooks.ops.url", "must be https"),
        (hook(url="'https://u:p@a/'"), "webhooks.ops.url", "takes no user"),
        (hook(url="'http://hooks.example/'"), "webhooks.ops.url", "must be https; http is for an intranet"),
        (hook(url="'https://127.0.0.1/'"), "webhooks.ops.url", "127.0.0.1 is not a public address"),
        (hook(url="'https://[::1]/'"), "webhooks.ops.url", "::1 is not a public address"),
    ],
)
def test_a_wrong_key_is_named_in_one_line(text: str, key: str, reason: str) -> None:
    with pytest.raises(SettingsError) as failed:
        parse_configuration(text.encode())
    said = str(failed.value)
    assert said.startswith(f"mesh.toml: {key}: ")
    assert reason in said
    assert "\n" not in said


def test_an_intranet_is_for_who_says_so() -> None:
    for url in ("http://127.0.0.1:9000/a", "http://[::1]/", "http://intranet/"):
        assert webhook(hook(url=f"'{url}'", allow_private="true")).url == url


def test_there_is_a_bound_on_webhooks() -> None:
    table = {"url": "https://a.example", "secret_env": "S", "on": ["ended"]}
    tables = {f"w{number}": table for number in range(WEBHOOKS_MAX)}
    assert len(parse_webhooks({"webhooks": tables}, "mesh.toml")) == WEBHOOKS_MAX
    with pytest.raises(SettingsError, match=r"^mesh.toml: webhooks: more than 16$"):
        parse_webhooks({"webhooks": {**tables, "one-more": table}}, "mesh.toml")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "the variable HOOK_SECRET is not set"),
        (" ", "the variable HOOK_SECRET is not set"),
        ("hunter2hunter2", "must be whsec_<base64"),
        (f"{SECRET} whsec_c2hvcnQ=", "must be whsec_<base64"),
        (" ".join([SECRET] * 5), "more than 4 secrets"),
    ],
)
def test_a_secret_that_is_missing_or_none_is_named_by_its_variable_and_never_shown(
    value: str | None, reason: str
) -> None:
    with pytest.raises(SettingsError) as failed:
        read_secrets(parse_configuration(HOOK.encode()), {} if value is None else {"HOOK_SECRET": value})
    said = str(failed.value)
    assert said.startswith("mesh.toml: webhooks.ops.secret_env: the variable HOOK_SECRET")
    assert reason in said
    for part in (value or "").split():
        assert part not in said


def test_a_secret_may_take_anothers_place_little_by_little() -> None:
    configuration = parse_configuration(HOOK.encode())
    other = "whsec_" + "A" * 32
    secrets = read_secrets(configuration, {"HOOK_SECRET": f"{SECRET}  {other}\n"})
    keys = signing_keys(configuration, secrets)["ops"]
    assert [len(key) for key in keys] == [24, 24]
    assert keys[0] != keys[1]


# What it is told of


def test_groups_and_types_stand_for_milestones() -> None:
    assert event_types(["ended", "dead_letter"]) == TERMINAL_TYPES | {"task.dead_lettered"}
    assert event_types(["approval", "question"]) == {"approval.requested", "input.requested"}
    assert event_types(["turn.completed"]) == {"turn.completed"}
    assert len(MILESTONES) == len(EVENT_TYPES) - 3


@pytest.mark.parametrize(
    ("event_type", "tenant", "taken"),
    [
        ("approval.requested", "acme", True),
        ("task.retrying", "other", True),
        ("approval.requested", "nobody", False),
        ("approval.resolved", "acme", False),
        ("task.paused", "acme", False),
    ],
)
def test_a_webhook_is_told_of_its_events_and_tenants_alone(event_type: str, tenant: str, *, taken: bool) -> None:
    wish = wish_of(webhook(hook(on="['approval', 'task.retrying']", tenants="['acme', 'other']")))
    assert wish.takes(head(event_type, tenant)) is taken


def test_without_tenants_it_is_told_of_everybodys() -> None:
    assert wish_of(webhook(HOOK)).takes(head("approval.requested", "anybody"))


@pytest.mark.parametrize("fields", [1, 3, 5000])
def test_an_event_however_it_is_large_is_cut_to_the_bound(fields: int) -> None:
    """Of a later version too, whose fields nobody knows."""
    event = {"type": "task.later", "id": TASK, "task": TASK, "tenant": "acme", "n": 1, "time": "2026-03-01T12:00:00Z"}
    event |= {f"field_{number}": "\u0001" * (1_000_000 // fields) for number in range(fields)}
    told = notification(encode(event), 9, links_of(TASK, "http://edge")).data
    assert len(encode(told.event)) <= EVENT_BYTES_MAX
    assert told.cut
    assert {name: told.event[name] for name in ("type", "id", "task", "tenant", "n", "time")} == {
        name: event[name] for name in ("type", "id", "task", "tenant", "n", "time")
    }


def test_each_webhook_has_a_consumer_of_its_own() -> None:
    ops, billing = webhook_consumers(("ops", "billing"), 2.0)
    assert (ops.stream, ops.name) == (EVENTS.name, f"{WEBHOOK_CONSUMER_PREFIX}ops")
    assert billing.name == "webhook-billing"
    config = ops.as_config()
    assert config["filter_subject"] == "events.*.*.log"
    assert (config["deliver_policy"], config["max_deliver"], config["max_ack_pending"]) == ("new", -1, 10_000)


# What an answer means


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (301, "webhook-refused", False),
        (307, "webhook-refused", False),
        (400, "webhook-refused", False),
        (401, "webhook-refused", False),
        (404, "webhook-refused", False),
        (410, "webhook-refused", False),
        (499, "webhook-refused", False),
        (408, "webhook-failed", True),
        (425, "webhook-failed", True),
        (429, "webhook-failed", True),
        (500, "webhook-failed", True),
        (503, "webhook-failed", True),
        (599, "webhook-failed", True),
    ],
)
def test_what_an_answer_means(status: int, code: str, *, retryable: bool) -> None:
    failure = failure_of(status, {}, START)
    assert failure is not None
    assert (failure.code, failure.retryable, failure.message) == (code, retryable, f"HTTP {status}")


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_any_2xx_has_taken_it(status: int) -> None:
    assert failure_of(status, {}, START) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, seconds: float | None) -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert parse_retry_after(text, at) == seconds
    failure = failure_of(503, {} if text is None else {"retry-after": text}, at)
    assert failure is not None
    assert failure.retry_after_seconds == seconds


FAILED = Failure("webhook-failed", "HTTP 500", retryable=True)


@pytest.mark.parametrize(
    ("failure", "tries", "fraction", "expected"),
    [
        (FAILED, 1, 0.5, Again(2.5)),
        (FAILED, 3, 0.5, Again(10.0)),
        (FAILED, 15, 0.5, Again(3 * 3600.0)),
        (FAILED, WEBHOOK_POLICY.tries_max, 0.5, GiveUp()),
        (FAILED._replace(retryable=False), 1, 0.5, GiveUp()),
        (FAILED._replace(retry_after_seconds=120.0), 1, 0.5, Again(120.0)),
        (FAILED._replace(retry_after_seconds=0.0), 3, 0.5, Again(10.0)),
        (FAILED._replace(retry_after_seconds=1e9), 1, 0.5, Again(3600.0)),
    ],
)
def test_what_follows_a_failed_try(failure: Failure, tries: int, fraction: float, expected: Again | GiveUp) -> None:
    assert decide_failure(failure, tries, fraction) == expected


def test_tries_end_within_a_day() -> None:
    longest = sum(WEBHOOK_POLICY.delay_seconds(tries, 1.0) for tries in range(1, WEBHOOK_POLICY.tries_max))
    assert 12 * 3600 < longest <= 24 * 3600


def test_the_body_is_the_same_at_each_try() -> None:
    event = {"type": "task.failed", "id": TASK, "task": TASK, "tenant": "acme", "n": 1, "time": "2026-03-01T12:00:00Z"}
    payload = encode({**event, "error": {"code": "c", "message": "m"}})
    links = links_of(TASK, "http://edge")
    assert encode(notification(payload, 9, links)) == encode(notification(payload, 9, links))
    told = msgspec.json.decode(encode(notification(payload, 9, links)))
    assert told["data"]["event"] == msgspec.json.decode(payload)
    assert "cut" not in told["data"]
