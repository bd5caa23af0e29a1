"""Ten thousand tasks in one burst: each ends once, or was refused; there is nothing else."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from contracts.streams import LANE_BACKLOG_MAX
from mesh.broker.connection import connect
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import PostingConnection
from tests.support.processes import running_mesh
from tests.support.waiting import until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

TASKS = 10_000
CONNECTIONS = 64
DRAIN_SECONDS_MAX = 240


async def test_each_of_ten_thousand_tasks_ends_once_or_was_refused(tmp_path: Path) -> None:
    recorded = Recorded()
    statuses: Counter[int] = Counter()
    numbers = iter(range(TASKS))
    async with running_mesh(
        tmp_path, "ingress", "inference_worker", "inference_worker", "steward", MESH_LOG_LEVEL="warning"
    ) as mesh:

        async def post_many() -> None:
            connection = PostingConnection(str(mesh.settings.ingress_address))
            for number in numbers:
                body = json.dumps({"input": f"task {number}"}).encode()
                status, headers, payload = await connection.post(body)
                statuses[status] += 1
                if status == 202:
                    recorded.accepted.add(json.loads(payload)["id"])
                else:
                    assert (status, json.loads(payload)["code"]) == (503, "queue-full")
                    assert int(headers["retry-after"]) >= 1
                    recorded.refused += 1
            connection.close()

        await asyncio.gather(*(post_many() for _ in range(CONNECTIONS)))
        assert statuses.keys() <= {202, 503}
        assert len(recorded.accepted) + recorded.refused == TASKS
        assert len(recorded.accepted) >= LANE_BACKLOG_MAX

        async with connect(mesh.settings, "test") as connection:
            await until_no_work_is_left(connection, DRAIN_SECONDS_MAX)
            stored = await read_stored(connection.requests)
        assert check(recorded, stored) == []
        assert stored.journals.keys() == recorded.accepted
        workers = {
            event.event["worker"]
            for journal in stored.journals.values()
            for event in journal
            if event.event["type"] == "step.claimed"
        }
        assert len(workers) == 2
        assert mesh.tracebacks() == []
