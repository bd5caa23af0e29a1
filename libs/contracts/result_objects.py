"""Results in the object store: their names, and the subjects on which their parts lie (NATS ADR-20).

An object is chunks, and one message that tells of it. Whoever stores it chooses the subject of its chunks, and tells it
in `nuid`. That of a result begins with its tenant, so that the broker counts what each has, and goes on with its name
and its size, so that nothing has to be read for that: `<tenant>.<task>.<call>.<claim>.<bytes>`.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

from contracts.subjects import CALL_PATTERN, TASK_PATTERN, TENANT_PATTERN, check_tenant

_NAME = re.compile(rf"({TENANT_PATTERN})\.({TASK_PATTERN})\.({CALL_PATTERN})\.({TASK_PATTERN})")
_CHUNKS_ID = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,15}")
_BYTES = re.compile(r"[0-9]{1,18}")


class ResultName(NamedTuple):
    """The name of a result: `<tenant>.<task>.<call>.<claim>`. Of one claim alone, and so used once."""

    tenant: str
    task: str
    call: str
    claim: str

    def __str__(self) -> str:
        return ".".join(self)


def parse_result_name(name: str) -> ResultName | None:
    """What an object's name says, if it can be that of a result."""
    found = _NAME.fullmatch(name)
    return ResultName(*found.group(1, 2, 3, 5)) if found is not None else None


def chunks_id(name: str, size_bytes: int) -> str:
    """The `nuid` of a result: what follows `$O.<bucket>.C.` in the subject of its chunks."""
    return f"{name}.{size_bytes}"


def is_chunks_id(value: str) -> bool:
    """Whether a `nuid` is one subject, with no wildcards in it."""
    return _CHUNKS_ID.fullmatch(value) is not None


def chunks_subject(bucket: str, nuid: str) -> str:
    """Where the chunks of an object lie: `$O.<bucket>.C.<nuid>`."""
    return f"$O.{bucket}.C.{nuid}"


def information_subject(bucket: str, name: str) -> str:
    """Where the message lies that tells of an object: `$O.<bucket>.M.<name in base64url>`."""
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def chunks_of_tenant(bucket: str, tenant: str) -> str:
    """The chunks of all results of a tenant, as a filter."""
    return f"$O.{bucket}.C.{check_tenant(tenant)}.>"


def chunks_of_result(bucket: str, name: ResultName) -> str:
    """The chunks of a result, whatever its size, as a filter."""
    return f"$O.{bucket}.C.{name}.*"


def parse_information(subject: str) -> str | None:
    """The name of the object that a message tells of, by its subject; None if it is none."""
    key = subject.rpartition(".M.")[2]
    try:
        return base64.urlsafe_b64decode(key).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None


def parse_chunks(subject: str) -> tuple[ResultName, int] | None:
    """The result that chunks belong to, by their subject, and its bytes; None if it is not one of these."""
    name, _, size = subject.partition(".C.")[2].rpartition(".")
    result = parse_result_name(name)
    return (result, int(size)) if result is not None and _BYTES.fullmatch(size) else None
