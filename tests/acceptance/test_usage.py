"""The ledger adds up: what a provider on loopback has told, journals, counters, records and meshctl, after kills."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from contracts.records.usage import Counter, Place, day_of
from mesh.broker.connection import connect
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.ledger import counters
from mesh.ledger.counters import Totals
from tests.acceptance.test_own_model import journal_of, of_type
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, submit
from tests.support.commands import meshctl
from tests.support.degradation import silent
from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, chunk, model_server
from tests.support.patience import stretched
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

FILE = """
[providers.local]
kind = "openai"
base_url = "{url}"
[providers.local.prices."counted"]
input = 2.0
cached_input = 0.5
output = 8.0
[providers.other]
kind = "openai"
base_url = "{url}"
[pools.default]
provider = "local"
model = "counted"
[pools.hedging]
provider = "local"
model = "silent"
fallbacks = [{{ provider = "other", model = "counted" }}]
on_slow = "hedge"
slow_seconds = {slow}
"""


class CountingModel:
    """Keeps its own account. `told`: what it has told, by kind; `begun` and `ended`: its answers."""

    def __init__(self) -> None:
        self.told = {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0}
        self.begun = self.ended = 0
        self.hangs = False
        self.goes_on = asyncio.Event()
        """Whether answers go on behind their first word."""
        self.goes_on.set()
        self._random = Random(3)

    async def behave(self, exchange: Exchange) -> None:
        if exchange.body["model"] == "silent":
            self.begun += 1
            await silent(exchange)
            return
        await exchange.begin()
        await exchange.say(chunk({"role": "assistant", "content": "Hel"}))
        self.begun += 1
        if self.hangs:
            await exchange.gone.wait()
            return
        await self.goes_on.wait()
        read, put_out = self._random.randrange(50, 5_000), self._random.randrange(1, 900)
        cached = self._random.randrange(read)
        counts: dict[str, Any] = {"prompt_tokens": read, "completion_tokens": put_out}
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
        for name, count in (("prompt_tokens", read), ("completion_tokens", put_out), ("cached_tokens", cached)):
            self.told[name] += count
        self.ended += 1
        await exchange.say(chunk({"content": "lo"}, "stop"), chunk() | {"choices": [], "usage": counts})
        await exchange.send(DONE)
        await exchange.end()


async def run_all(mesh: Mesh, recorded: Recorded, count: int, **extra: object) -> list[str]:
    """Tasks at the same time, to their ends."""
    async with PatientClient() as client:
        tasks = [await submit(client, mesh.ingress_url, recorded, f"hello {at}", **extra) for at in range(count)]
    followed = (Viewer(str(mesh.settings.edge_address), task).follow() for task in tasks)
    recorded.histories += await asyncio.gather(*followed)
    return tasks


def yesterday() -> str:
    """When a test can have begun at the earliest: it may run at midnight."""
    return day_of(now() - timedelta(days=1))


async def used(requests: Requests) -> Totals:
    """All that the counters have."""
    totals = await counters.totals(requests, "default", [yesterday(), day_of(now())])
    return Totals(*(sum(each) for each in zip(*totals.values(), strict=True)))


async def until_counted(requests: Requests, turns: int) -> None:
    """Wait until so many turns are counted."""

    async def are_counted() -> bool:
        return (await used(requests)).turns == turns

    await until(are_counted)


async def price_of_output(mesh: Mesh, task: str) -> float:
    """By which its turn was priced."""
    (completed,) = of_type(await journal_of(mesh, task), "turn.completed")
    usage = completed["usage"]
    read, cached = usage["input_tokens"], usage.get("cached_tokens", 0)
    left = usage["cost_micros"] - (read - cached) * 2.0 - cached * 0.5
    return round(float(left / usage["output_tokens"]), 2)


async def told_over_http(mesh: Mesh, found: Totals, model: CountingModel) -> None:
    async with PatientClient() as client:
        answered = await client.get(f"{mesh.ingress_url}/v1/usage", params={"by": "model", "since": yesterday()})
        assert answered.status_code == 200, answered.text
        rows = {row["name"]: row for row in answered.json()["rows"]}
        assert set(rows) == {"local/counted", "local/silent", "other/counted"}
        assert rows["local/counted"]["cost_micros"] == found.cost_micros
        assert rows["other/counted"]["unpriced_tokens"] == found.unpriced_tokens > 0
        assert "cost_micros" not in rows["other/counted"]
        assert answered.json()["total"]["cached_tokens"] == model.told["cached_tokens"]
        wrong = await client.get(f"{mesh.ingress_url}/v1/usage", params={"by": "colour"})
        assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid-request")


async def told_by_meshctl(mesh: Mesh, requests: Requests, found: Totals) -> None:
    """What it prints; and a difference is found, and set right."""
    *lines, total = await meshctl(mesh, "usage", "--by", "tenant", "--since", yesterday())
    assert [(line["name"], line["turns"]) for line in lines] == [("default", found.turns)]
    assert (total["event"], total["cost_micros"]) == ("usage.total", found.cost_micros)

    planted = Counter(Place("default", day_of(now()), "local", "counted", "default"), "output")
    await counters.add(requests, {planted.subject: 1}, "planted")
    difference, verified = await meshctl(mesh, "usage", "--verify", status=1)
    assert (difference["counter"], difference["is"] - difference["should_be"]) == (planted.subject, 1)
    assert (verified["event"], verified["differences"], verified["turns"]) == ("usage.verified", 1, found.turns)
    _, verified = await meshctl(mesh, "usage", "--rebuild")
    assert verified["rebuilt"]
    assert await used(requests) == found


async def test_provider_journals_counters_and_records_agree_to_the_token_after_kills(tmp_path: Path) -> None:
    model, recorded, file = CountingModel(), Recorded(), tmp_path / "mesh.toml"
    async with model_server(model.behave) as server:
        file.write_text(FILE.format(url=server.base_url, slow=stretched(0.2)))
        variables = {"MESH_CONFIG": str(file), "MESH_ACK_WAIT_SECONDS": "2"}
        async with running_mesh(tmp_path, "ingress", "stream_edge", **variables) as mesh:
            workers = [await mesh.start("inference_worker") for _ in range(2)]
            steward = await mesh.start("steward")
            tasks = await run_all(mesh, recorded, 8)

            # Answers that break off in the middle: both workers die with them, and so does who counts.
            model.hangs = True
            begun = model.begun
            later = asyncio.create_task(run_all(mesh, recorded, 4))
            await until(lambda: model.begun == begun + 4)
            for process in (*workers, steward):
                await process.kill()
            model.hangs = False
            for service in ("inference_worker", "steward", "steward"):
                await mesh.start(service)
            tasks += await later
            hedged = await run_all(mesh, recorded, 2, pool="hedging")

            async with connect(mesh.settings, "test") as connection:
                await until_no_work_is_left(connection)
                stored = await read_stored(connection.requests)
                assert check(recorded, stored) == []
                requests = connection.requests
                await until_counted(requests, len(tasks) + len(hedged))
                found = await used(requests)
                assert (found.input_tokens, found.output_tokens) == (
                    model.told["prompt_tokens"],
                    model.told["completion_tokens"],
                )
                # What nobody was told is known as such: answers that died with their workers, and losers.
                assert found.untold_calls == model.begun - model.ended >= 4 + len(hedged)
                ended = [stored.records[task]["usage"] for task in (*tasks, *hedged)]
                assert sum(usage["input_tokens"] for usage in ended) == found.input_tokens
                assert sum(usage["output_tokens"] for usage in ended) == found.output_tokens
                assert sum(usage.get("untold_calls", 0) for usage in ended) == found.untold_calls
                assert sum(usage.get("cost_micros", 0) for usage in ended) == found.cost_micros > 0
                assert [stored.records[task]["usage"].get("cost_micros") for task in hedged] == [None] * len(hedged)

                (spent,) = of_type(await journal_of(mesh, hedged[0]), "model.spent")
                assert (spent["provider"], spent["reason"], spent["usage"]["untold_calls"]) == ("local", "hedge", 1)

                await told_over_http(mesh, found, model)
                await told_by_meshctl(mesh, requests, found)

                # Stewards go on to count. A price that changes in the middle of a turn is that of the next one.
                model.goes_on.clear()
                begun = model.begun
                later = asyncio.create_task(run_all(mesh, recorded, 1))
                await until(lambda: model.begun == begun + 1)
                taken = len(mesh.logs_of("configuration.taken"))
                file.write_text(file.read_text().replace("output = 8.0", "output = 800.0"))
                mesh.processes[-3].signal(signal.SIGHUP)
                await until(lambda: len(mesh.logs_of("configuration.taken")) > taken)
                model.goes_on.set()
                (before,), (after,) = await later, await run_all(mesh, recorded, 1)
                assert [await price_of_output(mesh, task) for task in (before, after)] == [8.0, 800.0]
                await until_counted(requests, found.turns + 2)
            assert mesh.tracebacks() == []
