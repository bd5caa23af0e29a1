"""All records of a small bucket, as any replica has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from contracts.codec import decode
from contracts.declarations import BucketDeclaration
from contracts.errors import InvalidPayload
from mesh.broker.requests import Requests
from mesh.broker.scanning import Scan

RECORDS_MAX: Final = 10_000
"""So many are read, and no more: each is about 400 bytes."""

Record = TypeVar("Record", bound=msgspec.Struct)


def _pass_over(_: str, __: InvalidPayload) -> None:
    """A record that another version has written says nothing here."""


async def read_records(
    requests: Requests,
    bucket: BucketDeclaration,
    kind: type[Record],
    unreadable: Callable[[str, InvalidPayload], None] = _pass_over,
) -> list[Record]:
    """Every record of a bucket, by direct get; `unreadable` is told the subject of one that is none.

    What lies beside them under keys that begin with `_` is of another kind, and is left out.

    Raises `BrokerUnavailable`.
    """
    records: list[Record] = []
    beside = f"$KV.{bucket.name}._"
    scan = Scan(requests, bucket.stream_name)
    after, more = 0, True
    while more and len(records) < RECORDS_MAX:
        messages, more = await scan.page(after)
        for message in messages:
            after = message.sequence
            if not message.payload or message.subject.startswith(beside):
                continue  # A deleted key leaves an empty marker.
            try:
                records.append(decode(message.payload, kind))
            except InvalidPayload as error:
                unreadable(message.subject, error)
    return records
