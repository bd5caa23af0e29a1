"""Pages of model servers that are broken, huge, slow, behind a door, elsewhere, or another server's by now."""

from __future__ import annotations

import asyncio
import gzip

import httpx
import pytest

from inference_worker.capacity import capacities, reading
from inference_worker.capacity.reading import PAGE_BYTES_MAX, LoadReader
from inference_worker.capacity.signals import NotTold, ServerLoad
from mesh.background import background
from mesh.broker.connection import Connection
from mesh.configuration.capacity_table import CapacitySettings
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.provider_tables import OpenAIProviderConfiguration
from mesh.configuration.settings import Settings
from tests.support.model_server import Exchange, model_server
from tests.support.waiting import until
from tests.unit.test_capacity_signals import LLAMA_CPP, OLDER_VLLM, SGLANG, TGI, VLLM

pytestmark = pytest.mark.integration

SECRET = "sk-made-up"


class Pages:
    """Answers GETs with what is there; `key`: only whoever has it."""

    has_pages = True

    def __init__(self, **pages: bytes) -> None:
        self.pages = {f"/{name}": page for name, page in pages.items()}
        self.key: str | None = None
        self.asked: list[str] = []

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(exchange.path)
        if self.key is not None and exchange.headers.get("authorization") != f"Bearer {self.key}":
            await exchange.refuse(401, {"error": "who are you?"})
        elif exchange.path in self.pages:
            await exchange.page(self.pages[exchange.path])
        else:
            await exchange.refuse(404, {"error": "no such page"})


def reader(base_url: str, signals: str = "auto", key: str | None = None) -> LoadReader:
    return LoadReader(OpenAIProviderConfiguration(base_url=base_url), CapacitySettings(signals=signals), key)  # type: ignore[arg-type]  # one of them


@pytest.mark.parametrize("page", [VLLM, OLDER_VLLM, SGLANG, TGI, LLAMA_CPP])
async def test_each_engine_is_found_by_its_page_and_asked_for_no_other_from_then_on(page: str) -> None:
    pages = Pages(metrics=page.encode())
    async with model_server(pages) as server, httpx.AsyncClient() as client:
        asks = reader(server.base_url)
        found = await asks.read(client)
        before = len(pages.asked)
        assert await asks.read(client) == found
        assert pages.asked[before:] == ["/metrics"]


async def test_another_engine_at_the_same_address_is_found_once_the_first_is_forgotten() -> None:
    pages = Pages(slots=b'[{"id": 0, "is_processing": true}]')
    async with model_server(pages) as server, httpx.AsyncClient() as client:
        asks, told = reader(server.base_url), reader(server.base_url, "llama_cpp")
        assert await asks.read(client) == await told.read(client) == ServerLoad(running=1, slots=1)
        pages.pages = {"/metrics": TGI.encode()}
        for each in (asks, told):
            with pytest.raises(NotTold):
                await each.read(client)
            each.forget()
        assert await asks.read(client) == ServerLoad(running=9, waiting=5)
        assert (asks.kind, told.kind) == ("tgi", "llama_cpp")  # Who has set a kind knows better.


async def test_behind_a_door_the_providers_key_opens_and_without_it_nothing_is_told() -> None:
    pages = Pages(metrics=VLLM.encode())
    pages.key = SECRET
    async with model_server(pages) as server, httpx.AsyncClient() as client:
        with pytest.raises(NotTold, match="tells nothing") as error:
            await reader(server.base_url).read(client)
        assert SECRET not in str(error.value)
        assert (await reader(server.base_url, key=SECRET).read(client)).running == 15


async def test_a_key_follows_no_redirect() -> None:
    thief = Pages(metrics=VLLM.encode())

    async def redirects(exchange: Exchange) -> None:
        await exchange.refuse(307, b"", Location=f"{elsewhere.base_url.removesuffix('/v1')}/metrics")

    redirects.has_pages = True  # type: ignore[attr-defined]  # as `Pages` has it
    async with model_server(thief) as elsewhere, model_server(redirects) as server, httpx.AsyncClient() as client:
        with pytest.raises(NotTold, match="answers 307"):
            await reader(server.base_url, "vllm", SECRET).read(client)
        assert thief.asked == []


@pytest.mark.parametrize("way", ["huge", "packed", "endless"])
async def test_no_page_takes_more_than_its_bytes_and_its_time(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READ_SECONDS", 60.0 if way == "huge" else 0.3)
    sent = 0

    async def answers(exchange: Exchange) -> None:
        nonlocal sent
        if way == "packed":
            content = gzip.compress(VLLM.encode() + b"#" * 8 * PAGE_BYTES_MAX)
            await exchange.head(200, {"Content-Encoding": "gzip", "Content-Length": str(len(content))})
            exchange._writer.write(content)
            return
        await exchange.begin("text/plain")
        while not exchange.gone.is_set() and sent < 4 * PAGE_BYTES_MAX:
            # Each piece comes in time, and no end.
            piece = b"# TYPE x gauge\n" * (8_000 if way == "huge" else 1)
            sent += len(piece)
            await exchange.send(piece)
            await asyncio.sleep(0 if way == "huge" else 0.05)

    answers.has_pages = True  # type: ignore[attr-defined]  # as `Pages` has it
    async with model_server(answers) as server, httpx.AsyncClient() as client:
        with pytest.raises(NotTold):
            await reader(server.base_url, "vllm").read(client)
    assert sent < 3 * PAGE_BYTES_MAX


async def test_a_server_near_by_that_tells_nothing_is_asked_more_and_more_seldom_and_found_once_it_tells(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacities, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(capacities, "ASK_SECONDS_IDLE", 0.01)
    pages = Pages()
    async with model_server(pages) as server:
        text = f"""
        [providers.near]
        kind = "openai"
        base_url = "{server.base_url}"
        [pools.default]
        provider = "near"
        model = "m"
        """
        settings = Settings(configuration=parse_configuration(text.encode()))
        followed = capacities.Capacities(connection.requests, settings, "w")
        async with background(followed.run()):
            await until(lambda: pages.asked.count("/api/ps") >= 6)
            assert followed.servers == {}
            pages.pages["/slots"] = b'[{"id": 0, "is_processing": false}]'
            await until(lambda: "near" in followed.servers)
            assert (followed.servers["near"].limit, followed.servers["near"].of_all) == (1, 1)
            # It doubles each time: the twelfth pause is of 40 s.
            assert pages.asked.count("/api/ps") <= 12
