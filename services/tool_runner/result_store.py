"""Where large results lie: in the object store bucket `results`, of which each tenant may have a share.

What a tenant has the broker counts, by the subjects of its chunks. Between two looks a runner adds what it has stored
itself; what others store meanwhile it sees at the next one. So several runners may together go beyond the share by
what they store in a moment: the bound keeps tenants apart, and counts no bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from contracts import result_objects
from contracts.errors import TaskmeshError
from contracts.journal.parts import ObjectReference
from contracts.records.tools import RESULTS_BUCKET
from contracts.streams import RESULTS
from mesh.broker import object_store
from mesh.broker.direct_get import subjects_of
from mesh.broker.requests import Requests

log = structlog.get_logger("tool_runner.result_store")

LOOK_SECONDS = 3.0
"""How long a look at a tenant's use is good for."""
SHARE_MAX = 8
"""Of the room that a look has shown a runner uses up this part before it looks again."""
TENANTS_MAX = 1_024
"""Whose use is remembered; the one asked about longest ago is looked up again."""


class OverQuota(TaskmeshError):
    """A tenant's results take what they may: there is room again once tasks of it are gone."""

    code = "result-quota"


@dataclass(slots=True)
class _Use:
    """What a tenant has, and may have; a limit of 0 is none."""

    used_bytes: int
    limit_bytes: int
    looked_at: float
    left_bytes: float
    """What may be stored before the next look."""

    def takes(self, wanted_bytes: int) -> bool:
        """Whether a result still fits."""
        return not self.limit_bytes or self.used_bytes + wanted_bytes <= self.limit_bytes

    def is_good(self, wanted_bytes: int) -> bool:
        """Whether it need not be looked up again. What was full a moment ago still is: a storm of calls asks once."""
        recent = asyncio.get_running_loop().time() - self.looked_at < LOOK_SECONDS
        return recent and (self.left_bytes >= wanted_bytes or not self.takes(wanted_bytes))


class ResultStore:
    """Stores results of one runner. `tenant_share`: the part of the bucket that one tenant may have."""

    def __init__(self, requests: Requests, tenant_share: float) -> None:
        self._requests = requests
        self._tenant_share = tenant_share
        self._uses: OrderedDict[str, _Use] = OrderedDict()
        self._looking = asyncio.Lock()

    def configure(self, tenant_share: float) -> None:
        """Give tenants another share."""
        self._tenant_share = tenant_share
        self._uses.clear()

    async def store(self, name: result_objects.ResultName, payload: bytes) -> ObjectReference:
        """Put a result under its name. Raises `OverQuota`, `BrokerError`, `BrokerUnavailable`."""
        async with self._looking:
            use = await self._use(name.tenant, len(payload))
            if use.takes(len(payload)):
                # Before it is stored: who stores meanwhile must know.
                use.used_bytes += len(payload)
                use.left_bytes -= len(payload)
            else:
                raise self._refused(name.tenant, use, len(payload))
        try:
            chunks_id = result_objects.chunks_id(str(name), len(payload))
            return await object_store.put(self._requests, RESULTS_BUCKET, str(name), payload, chunks_id)
        except BaseException:
            self._uses.pop(name.tenant, None)  # How much of it is there only a look tells.
            raise

    def _refused(self, tenant: str, use: _Use, result_bytes: int) -> OverQuota:
        log.error(
            "result.over_quota",
            tenant=tenant,
            used_bytes=use.used_bytes,
            limit_bytes=use.limit_bytes,
            result_bytes=result_bytes,
        )
        return OverQuota(
            f"{result_bytes} bytes: the results of tenant {tenant} take {use.used_bytes} of the {use.limit_bytes} "
            f"bytes that they may (results.tenant_share = {self._tenant_share:g}). Let the tool return less, wait "
            "until tasks with large results are gone, or raise the share"
        )

    async def _use(self, tenant: str, wanted_bytes: int) -> _Use:
        use = self._uses.pop(tenant, None)
        if use is None or not use.is_good(wanted_bytes):
            use = await self._look(tenant)
        self._uses[tenant] = use
        if len(self._uses) > TENANTS_MAX:
            self._uses.popitem(last=False)
        return use

    async def _look(self, tenant: str) -> _Use:
        looked_at = asyncio.get_running_loop().time()
        bucket_bytes = int((await self._requests.api(f"STREAM.INFO.{RESULTS.name}"))["config"]["max_bytes"])
        limit_bytes = int(bucket_bytes * self._tenant_share) if bucket_bytes > 0 else 0
        chunks = await subjects_of(
            self._requests, RESULTS.name, result_objects.chunks_of_tenant(RESULTS_BUCKET, tenant)
        )
        used_bytes = sum(used_by(subject, count) for subject, count in chunks.items())
        left_bytes = (limit_bytes - used_bytes) / SHARE_MAX if limit_bytes else float("inf")
        return _Use(used_bytes, limit_bytes, looked_at, left_bytes)


def used_by(subject: str, chunks: int) -> int:
    """The bytes of an object, by the subject of its chunks; of another runner's, what they take at most."""
    parsed = result_objects.parse_chunks(subject)
    return parsed[1] if parsed is not None else chunks * object_store.CHUNK_BYTES
