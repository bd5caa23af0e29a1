"""Whether a broker that somebody else has set up will do: room in a message, subjects that are free, and rights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import structlog

from contracts.declarations import MESSAGE_BYTES_MAX, StreamDeclaration
from contracts.errors import TaskmeshError
from contracts.permission_lists import Permissions
from contracts.permissions import essentials_of
from contracts.streams import ADVISORIES, BUCKETS, STREAMS
from mesh.broker.connection import Connection
from mesh.broker.requests import Requests
from mesh.broker.rights import Granted, Missing
from mesh.errors import BrokerError, BrokerUnavailable, NotAllowed, SettingsError

log = structlog.get_logger("mesh.broker.suitability")

PAYLOAD_BYTES_LEAST: Final = 64 * 1024
"""With less a message has no room for what is around a request, a record of a worker, or a tool's schema."""
STREAM_PAGES_MAX: Final = 16
"""Pages of 256 streams each: an account with more is looked at no further."""
_WRONG_STREAM: Final = {"Nats-Expected-Stream": "taskmesh-doctor"}
"""No stream has this name: whichever takes the subject refuses the message, and stores nothing."""


class Foreign(NamedTuple):
    """A stream of somebody else where one of ours is to be."""

    stream: str
    ours: str
    detail: str


def check_payload(payload_bytes_max: int) -> str | None:
    """What is wrong with the broker's `max_payload`; None if a message has all the room that one may need."""
    if payload_bytes_max >= MESSAGE_BYTES_MAX:
        return None
    if payload_bytes_max < PAYLOAD_BYTES_LEAST:
        return f"max_payload is {payload_bytes_max:,} bytes: at least {PAYLOAD_BYTES_LEAST:,} are needed"
    share = payload_bytes_max / MESSAGE_BYTES_MAX
    return (
        f"max_payload is {payload_bytes_max:,} bytes, and not {MESSAGE_BYTES_MAX:,}: requests, outputs and results may"
        f" have {share:.0%} of their usual size"
    )


def foreign_streams(existing: Mapping[str, Sequence[str]]) -> list[Foreign]:
    """Streams of others that take our subjects, or have our names. `existing`: the subjects of each stream. Pure."""
    declared = _declared()
    names = {stream.name for stream in declared}
    found: list[Foreign] = []
    for ours in declared:
        subjects = ours.subjects
        named = existing.get(ours.name)
        if named is not None and not any(overlap(theirs, subject) for theirs in named for subject in subjects):
            detail = (
                f"stream {ours.name} is somebody else's: it takes {', '.join(named)}, and not {', '.join(subjects)}"
            )
            found.append(Foreign(ours.name, ours.name, detail))
        for stream, theirs_all in existing.items():
            taken = [one for one in theirs_all if stream not in names and any(overlap(one, each) for each in subjects)]
            if taken:
                detail = f"stream {stream} of somebody else takes {taken[0]}, which {ours.name} needs"
                found.append(Foreign(stream, ours.name, detail))
    return found


def _declared() -> list[StreamDeclaration]:
    return [*STREAMS, *(bucket.as_stream() for bucket in BUCKETS)]


def overlap(one: str, other: str) -> bool:
    """Whether a message can be on both of two subjects with wildcards."""
    ones, others = one.split("."), other.split(".")
    for left, right in zip(ones, others, strict=False):
        if ">" in (left, right):
            return True
        if "*" not in (left, right) and left != right:
            return False
    return len(ones) == len(others)


async def streams_of(requests: Requests) -> dict[str, list[str]]:
    """Each stream of the account with its subjects. Raises `BrokerError`, `BrokerUnavailable`."""
    found: dict[str, list[str]] = {}
    for _ in range(STREAM_PAGES_MAX):
        page: dict[str, Any] = await requests.api("STREAM.LIST", {"offset": len(found)})
        streams = page.get("streams") or []
        found |= {each["config"]["name"]: list(each["config"].get("subjects") or []) for each in streams}
        if not streams or len(found) >= int(page.get("total", 0)):
            break
    return found


async def missing_rights(requests: Requests, granted: Granted | None = None) -> list[Missing]:
    """What the broker's user may not do. Nothing is stored.

    By the lists that the broker tells: one that has a list of what it may is an operator's, any other is everybody's.
    Of a broker that tells none each subject of ours is tried.
    """
    ours = [subject for stream in _declared() for subject in stream.subjects if stream is not ADVISORIES]
    if granted is not None:
        is_listed = granted.publish.allow is not None
        needed = essentials_of("operator", requests.domain_in_rights) if is_listed else Permissions(tuple(ours), ())
        return granted.lacks(needed)
    missing: list[Missing] = []
    for subject in ours:
        try:
            await requests.publish(subject.replace("*", "doctor").replace(">", "doctor"), b"", dict(_WRONG_STREAM))
        except NotAllowed:
            missing.append(Missing("publish", subject))
        except (BrokerError, BrokerUnavailable):
            pass  # It is the wrong stream, as was asked for; or none takes the subject, which others say.
    return missing


async def check_start(connection: Connection) -> None:
    """Raise `SettingsError` if nothing could work on this broker; say in the log what will work in part only."""
    bytes_max = connection.requests.payload_bytes_max
    problem = check_payload(bytes_max)
    if problem is not None:
        if bytes_max < PAYLOAD_BYTES_LEAST:
            raise SettingsError(f"the broker's {problem}")
        log.warning("broker.small_payload", problem=problem, remedy="set max_payload: 1MB in its configuration")
    try:
        foreign = foreign_streams(await streams_of(connection.requests))
    except TaskmeshError:
        return  # It can't be found out now: who needs a stream will say so.
    if foreign:
        raise SettingsError(
            f"{foreign[0].detail}: rename or delete it, or give the mesh an account of its own (MESH_NATS_URL)"
        )
