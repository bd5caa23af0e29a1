"""Making streams, consumers and buckets exist as they are declared. Never deletes anything, nor lets a limit do so."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import msgspec
import structlog

from contracts.declarations import ConsumerDeclaration, StreamDeclaration
from contracts.sizes import text
from contracts.streams import (
    BUCKETS,
    BUILT_IN_TOOLS,
    EVENTS,
    STREAMS,
    WEBHOOK_CONSUMER_PREFIX,
    consumers,
    critic_consumer,
    webhook_consumers,
)
from mesh.broker.config_changes import COULD_LOSE, is_widened, obstacles
from mesh.broker.consumer_lists import all_consumer_names, all_consumers
from mesh.broker.levels import STREAM_NOT_FOUND, stream_info
from mesh.broker.mesh_identity import with_new_id
from mesh.broker.replication import Replication, find_replicas, placed
from mesh.broker.requests import Requests
from mesh.broker.sizing import Sizes, account_limit_bytes, find_sizes, sizes_by_default
from mesh.configuration.settings import Settings
from mesh.errors import BrokerError, SettingsError

log = structlog.get_logger("mesh.broker.provisioning")

PER_SUBJECT: Final = "max_msgs_per_subject"
SUBJECTS_MAX: Final = 10_000
"""With more subjects than these nobody counts what each holds."""
_STORAGE_EXCEEDED = 10047
"""The server has less storage to reserve than a stream's `max_bytes`."""

WEBHOOK_LEFT = "delete it with `nats consumer rm`: a webhook of that name would be told of all since it was taken away"


class Difference(NamedTuple):
    """What is declared and not so. `fields`: names and (declared, existing) values where it exists.

    `obstacles`: for those of the fields that `apply` leaves as they are, why.
    """

    kind: Literal["stream", "consumer"]
    name: str
    missing: bool
    fields: dict[str, tuple[Any, Any]]
    obstacles: dict[str, str]

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """The fields that `apply` can change."""
        return {name: values for name, values in self.fields.items() if name not in self.obstacles}

    def __str__(self) -> str:
        if self.missing:
            return f"{self.kind} {self.name}: missing"
        changes = ", ".join(f"{key} is {existing!r}, declared {new!r}" for key, (new, existing) in self.fields.items())
        return f"{self.kind} {self.name}: {changes}"


class Declared(NamedTuple):
    """All that a mesh needs of its broker. `sized` are the streams whose size the operator has asked for."""

    streams: list[StreamDeclaration]
    consumers: list[ConsumerDeclaration]
    sized: frozenset[str] = frozenset()
    replication: Replication = Replication()


async def find_declared(requests: Requests, settings: Settings) -> Declared:
    """The declarations for these settings on this broker: its sizes, and its copies on a cluster.

    Raises `BrokerUnavailable`, `BrokerError`, and `SettingsError` if mesh.toml asks for what the broker can't have.
    """
    replication = find_replicas(requests, settings.configuration)
    sizes = await find_sizes(requests, settings.configuration, replication.replicas)
    return declared(settings, sizes=sizes)._replace(replication=replication)


def declared(settings: Settings, tools: tuple[str, ...] = BUILT_IN_TOOLS, sizes: Sizes | None = None) -> Declared:
    """The declarations for these settings, tools and sizes (`mesh.broker.sizing.find_sizes`), with one copy."""
    sizes = sizes or sizes_by_default()
    wanted = [
        *consumers(settings.pools, tools, settings.ack_wait_seconds, settings.max_deliver),
        *webhook_consumers(tuple(settings.configuration.webhooks), settings.ack_wait_seconds),
    ]
    if settings.configuration.critic is not None:
        wanted.append(critic_consumer(settings.ack_wait_seconds, settings.max_deliver))
    streams = [
        msgspec.structs.replace(stream, max_bytes=sizes.by_stream[stream.name])
        for stream in (*STREAMS, *(bucket.as_stream() for bucket in BUCKETS))
    ]
    return Declared(streams, wanted, sizes.asked_for)


async def compare(requests: Requests, wanted: Declared) -> list[Difference]:
    """What differs from the declarations. Raises `BrokerUnavailable`."""
    differences: list[Difference] = []
    for stream in wanted.streams:
        info = await stream_info(requests, stream.name)
        existing = info["config"] if info else None
        replicas = wanted.replication.of_existing(existing["num_replicas"] if existing else 1)
        messages = int(info["state"]["messages"]) if info else 0
        config = stream.as_config(replicas)
        if existing and stream.name not in wanted.sized:
            # Nobody has asked for this size: one that is larger, from an earlier version or by hand, is as good.
            config["max_bytes"] = max(config["max_bytes"], existing["max_bytes"])
        difference = _difference("stream", stream.name, config, existing, messages)
        if difference is not None:
            differences.append(await _refined(requests, difference, info))
    by_stream = {stream: await _consumers(requests, stream) for stream in {each.stream for each in wanted.consumers}}
    for consumer in wanted.consumers:
        name = f"{consumer.stream}/{consumer.name}"
        existing = by_stream[consumer.stream].get(consumer.name)
        difference = _difference("consumer", name, consumer.as_config(), existing)
        if difference is not None:
            differences.append(difference)
    if EVENTS in wanted.streams:
        differences += await _left_webhooks(requests, {consumer.name for consumer in wanted.consumers})
    return differences


async def _refined(requests: Requests, difference: Difference, info: dict[str, Any] | None) -> Difference:
    """The difference without an obstacle that is none: a limit for each subject that no subject comes to."""
    if info is None or difference.obstacles.get(PER_SUBJECT) != COULD_LOSE:
        return difference
    if int(info["state"].get("num_subjects", 0)) > SUBJECTS_MAX:
        return difference
    counted = await requests.api(f"STREAM.INFO.{difference.name}", {"subjects_filter": ">"})
    most = max((counted["state"].get("subjects") or {}).values(), default=0)
    if most > difference.fields[PER_SUBJECT][0]:
        return difference
    return difference._replace(obstacles={k: why for k, why in difference.obstacles.items() if k != PER_SUBJECT})


async def _consumers(requests: Requests, stream: str) -> dict[str, dict[str, Any]]:
    """The configurations of a stream's consumers, by name; none if there is no stream."""
    try:
        return {each["name"]: each["config"] for each in await all_consumers(requests, stream)}
    except BrokerError as error:
        if error.number == STREAM_NOT_FOUND:
            return {}
        raise


async def _left_webhooks(requests: Requests, wanted: set[str]) -> list[Difference]:
    """Consumers of webhooks that are configured no more: they hold nothing, but a place in time to go on from."""
    try:
        names = await all_consumer_names(requests, EVENTS.name)
    except BrokerError as error:
        if error.number == STREAM_NOT_FOUND:
            return []
        raise
    return [
        Difference(
            "consumer",
            f"{EVENTS.name}/{name}",
            missing=False,
            fields={"webhook": (None, name.removeprefix(WEBHOOK_CONSUMER_PREFIX))},
            obstacles={"webhook": WEBHOOK_LEFT},
        )
        for name in sorted(names)
        if name.startswith(WEBHOOK_CONSUMER_PREFIX) and name not in wanted
    ]


async def apply(
    requests: Requests,
    wanted: Declared,
    *,
    update: bool,
    widen: bool = False,
    shrink: bool = True,
) -> list[Difference]:
    """Create what is missing and, with `update`, change what differs. Returns what was done.

    Without `shrink` no stream gets a smaller size, though it is empty and could lose nothing: what fits it may come.
    With `widen` streams get what gives more and takes nothing (`is_widened`), and nothing else is changed.

    What can't be changed, or not without losing what is stored, stays, and is still in what `compare` returns.
    Raises `BrokerError` where the server refuses one of them, once all the others are done, and `SettingsError` before
    anything is done if the account has no room for the sizes.
    """
    replicas = wanted.replication.replicas
    configs = {stream.name: stream.as_config(replicas) for stream in wanted.streams} | {
        f"{consumer.stream}/{consumer.name}": consumer.as_config() for consumer in wanted.consumers
    }
    done: list[Difference] = []
    refused: list[BrokerError] = []
    due = [_due(difference, update, widen, shrink) for difference in await compare(requests, wanted)]
    differences = [difference for difference in due if difference is not None]
    await _check_account(requests, differences, configs, replicas)
    for difference in differences:
        try:
            await placed(requests, replicas, partial(_apply, requests, difference, configs[difference.name]))
        except BrokerError as error:
            log.error("provisioning.refused", kind=difference.kind, name=difference.name, error=str(error))
            refused.append(error)
            continue
        done.append(difference._replace(fields=difference.changes, obstacles={}))
    full = next((error for error in refused if error.number == _STORAGE_EXCEEDED), None)
    if full is not None:
        raise SettingsError(
            f"storage: {full}: the broker's max_file_store is less than the streams are to have, and its account has no"
            " limit that says so: give the account a limit (streams then share 90 % of it), or set storage.total in"
            " mesh.toml"
        )
    if refused:
        raise refused[0]
    return done


def _due(difference: Difference, update: bool, widen: bool, shrink: bool) -> Difference | None:
    """What of a difference is to be done; None if nothing is."""
    if difference.missing:
        return difference
    fields = lacking(difference) if widen else {}
    if update:
        fields = {
            name: values
            for name, values in difference.changes.items()
            if shrink or name != "max_bytes" or values[0] > values[1]
        }
    return difference._replace(fields=fields, obstacles={}) if fields else None


def lacking(difference: Difference) -> dict[str, tuple[Any, Any]]:
    """What a stream that is there lacks of what is declared: subjects, features, room under a limit; never its size."""
    if difference.kind != "stream":
        return {}
    return {
        name: values for name, values in difference.changes.items() if name != "max_bytes" and is_widened(name, *values)
    }


async def renew_consumers(requests: Requests, differences: Sequence[Difference]) -> list[Difference]:
    """Make consumers of work queues anew that can't be changed, where nobody pulls them. Returns those that were.

    What waits stays in the stream, and is delivered as if for the first time. Whoever dies in between leaves one that
    is missing. Raises `BrokerError`, `BrokerUnavailable`.
    """
    done: list[Difference] = []
    queues = {stream.name: stream for stream in STREAMS if stream.retention == "workqueue"}
    for difference in differences:
        stream, _, name = difference.name.partition("/")
        if difference.kind != "consumer" or "max_waiting" not in difference.obstacles or stream not in queues:
            continue
        info = await requests.api(f"CONSUMER.INFO.{stream}.{name}")
        if info["num_waiting"]:
            continue
        await requests.api(f"CONSUMER.DELETE.{stream}.{name}")
        config = {key: value for key, value in info["config"].items() if key != "metadata"}
        config |= {key: new for key, (new, _) in difference.fields.items()}
        body = {"stream_name": stream, "config": config, "action": ""}
        await requests.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body)
        done.append(difference._replace(obstacles={}))
    return done


async def _check_account(
    requests: Requests, due: list[Difference], configs: dict[str, dict[str, Any]], replicas: int
) -> None:
    """Raise `SettingsError` if the account's limit leaves no room for what new, grown and copied streams reserve.

    Each copy counts against the limit; what the account says of itself leaves copies out (tried with 2.15.1).
    """
    more, copies_now = 0, replicas
    for difference in due:
        if difference.kind == "stream":
            size = configs[difference.name]["max_bytes"]
            new, existing = difference.changes.get("max_bytes", (size, size))
            copies, copies_before = difference.changes.get("num_replicas", (replicas, replicas))
            more += copies * size if difference.missing else copies * new - copies_before * existing
            copies_now = min(copies_now, copies_before)
    limit = await account_limit_bytes(requests) if more > 0 else None
    if limit is None:
        return
    reserved = copies_now * int((await requests.api("INFO")).get("reserved_storage", 0))
    if reserved + more > limit:
        of = f", {replicas} copies of each," if replicas > 1 else ""
        raise SettingsError(
            f"storage: the account has a limit of {text(limit)}, of which streams have {text(reserved)}, and"
            f" {text(more)} more are wanted{of}: raise the limit, or lower storage.total in mesh.toml"
        )


async def _apply(requests: Requests, difference: Difference, config: dict[str, Any]) -> None:
    if difference.kind == "stream":
        verb = "CREATE" if difference.missing else "UPDATE"
        if not difference.missing:
            config = await _changed(requests, f"STREAM.INFO.{difference.name}", difference)
        elif difference.name == EVENTS.name:
            config = with_new_id(config)
        await requests.api(f"STREAM.{verb}.{difference.name}", config)
        return
    stream, name = difference.name.split("/")
    if not difference.missing:
        config = await _changed(requests, f"CONSUMER.INFO.{stream}.{name}", difference)
    body = {"stream_name": stream, "config": config, "action": ""}
    await requests.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body)


async def _changed(requests: Requests, subject: str, difference: Difference) -> dict[str, Any]:
    """The existing configuration with what may be changed changed, and what nobody declared left alone."""
    config: dict[str, Any] = (await requests.api(subject))["config"]
    return config | {name: new for name, (new, _) in difference.changes.items()}


def _difference(
    kind: Literal["stream", "consumer"],
    name: str,
    config: dict[str, Any],
    existing: dict[str, Any] | None,
    messages: int = 0,
) -> Difference | None:
    if existing is None:
        return Difference(kind, name, missing=True, fields={}, obstacles={})
    # The server leaves out what is false, 0 or empty.
    fields = {
        key: (value, existing.get(key))
        for key, value in config.items()
        if existing.get(key) != value and not (not value and not existing.get(key))
    }
    if not fields:
        return None
    return Difference(kind, name, missing=False, fields=fields, obstacles=obstacles(kind, fields, messages))
