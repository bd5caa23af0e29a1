"""Making streams, consumers and buckets exist as they are declared. Never deletes anything."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from contracts.streams import BUCKETS, BUILT_IN_TOOLS, STREAMS, ConsumerDeclaration, StreamDeclaration, consumers
from mesh.errors import BrokerError
from mesh.requests import Requests
from mesh.settings import Settings

_STREAM_NOT_FOUND = 10059
_CONSUMER_NOT_FOUND = 10014


class Difference(NamedTuple):
    """What is declared and not so. `fields`: names and (declared, existing) values where it exists."""

    kind: Literal["stream", "consumer"]
    name: str
    missing: bool
    fields: dict[str, tuple[Any, Any]]

    def __str__(self) -> str:
        if self.missing:
            return f"{self.kind} {self.name}: missing"
        changes = ", ".join(f"{key} is {existing!r}, declared {new!r}" for key, (new, existing) in self.fields.items())
        return f"{self.kind} {self.name}: {changes}"


class Declared(NamedTuple):
    """All that a mesh needs of its broker."""

    streams: list[StreamDeclaration]
    consumers: list[ConsumerDeclaration]


def declared(settings: Settings, tools: tuple[str, ...] = BUILT_IN_TOOLS) -> Declared:
    """The declarations for these settings and tools."""
    return Declared(
        streams=[*STREAMS, *(bucket.as_stream() for bucket in BUCKETS)],
        consumers=consumers(settings.pools, tools, settings.ack_wait_seconds, settings.max_deliver),
    )


async def compare(requests: Requests, wanted: Declared) -> list[Difference]:
    """What differs from the declarations. Raises `BrokerUnavailable`."""
    differences: list[Difference] = []
    for stream in wanted.streams:
        existing = await _info(requests, f"STREAM.INFO.{stream.name}", _STREAM_NOT_FOUND)
        replicas = existing["num_replicas"] if existing else 1
        difference = _difference("stream", stream.name, stream.as_config(replicas), existing)
        if difference is not None:
            differences.append(difference)
    for consumer in wanted.consumers:
        existing = await _info(requests, f"CONSUMER.INFO.{consumer.stream}.{consumer.name}", _CONSUMER_NOT_FOUND)
        name = f"{consumer.stream}/{consumer.name}"
        difference = _difference("consumer", name, consumer.as_config(), existing)
        if difference is not None:
            differences.append(difference)
    return differences


async def apply(requests: Requests, wanted: Declared, *, update: bool) -> list[Difference]:
    """Create what is missing and, with `update`, change what differs; returns what was done.

    Raises `BrokerError` where the server refuses, e.g. for a change that a stream can't take.
    """
    differences = await compare(requests, wanted)
    streams = {stream.name: stream for stream in wanted.streams}
    consumer_by_name = {f"{consumer.stream}/{consumer.name}": consumer for consumer in wanted.consumers}
    done: list[Difference] = []
    for difference in differences:
        if not difference.missing and not update:
            continue
        if difference.kind == "stream":
            replicas = 1
            if not difference.missing:
                info = await requests.api(f"STREAM.INFO.{difference.name}")
                replicas = info["config"]["num_replicas"]
            verb = "CREATE" if difference.missing else "UPDATE"
            await requests.api(f"STREAM.{verb}.{difference.name}", streams[difference.name].as_config(replicas))
        else:
            consumer = consumer_by_name[difference.name]
            await requests.api(
                f"CONSUMER.DURABLE.CREATE.{consumer.stream}.{consumer.name}",
                {"stream_name": consumer.stream, "config": consumer.as_config(), "action": ""},
            )
        done.append(difference)
    return done


async def _info(requests: Requests, subject: str, not_found: int) -> dict[str, Any] | None:
    try:
        info = await requests.api(subject)
    except BrokerError as error:
        # A consumer's stream may be missing too.
        if error.number in (not_found, _STREAM_NOT_FOUND):
            return None
        raise
    config: dict[str, Any] = info["config"]
    return config


def _difference(
    kind: Literal["stream", "consumer"], name: str, config: dict[str, Any], existing: dict[str, Any] | None
) -> Difference | None:
    if existing is None:
        return Difference(kind, name, missing=True, fields={})
    # The server leaves out what is false, 0 or empty.
    fields = {
        key: (value, existing.get(key))
        for key, value in config.items()
        if existing.get(key) != value and not (not value and not existing.get(key))
    }
    return Difference(kind, name, missing=False, fields=fields) if fields else None
