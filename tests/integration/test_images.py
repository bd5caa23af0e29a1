"""Images that tools returned, from the object store to servers on loopback of either wire."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from structlog.testing import capture_logs

from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal.parts import ObjectReference, ToolCall
from contracts.records.tools import RESULTS_BUCKET
from contracts.result_objects import ResultName
from contracts.tasks import Message
from inference_worker.dialects import seeing
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.room import Room
from inference_worker.dialects.seeing import IMAGES_BYTES_MAX, IMAGES_MAX, SeeingSource
from inference_worker.models.candidates import Source
from inference_worker.models.chunks import Chunk, TextDelta, TurnInput
from inference_worker.providers import open_providers
from mesh.broker import object_store
from mesh.broker.connection import Connection
from mesh.broker.direct_get import subjects_of
from mesh.broker.object_store import CHUNK_BYTES
from mesh.broker.requests import Requests
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.settings import Settings
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer
from tests.support import anthropic_provider, messages_server, model_server, openai_provider
from tests.support.messages_server import ended, saying, started, text
from tests.support.model_server import Exchange
from tests.support.patience import within
from tool_runner.result_store import ResultStore

pytestmark = pytest.mark.integration

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HI = Message("user", "hi")


def block(data: bytes) -> dict[str, Any]:
    return {"type": "image", "data": base64.b64encode(data).decode(), "mimeType": "image/png"}


def picture(mark: int, size: int = 20) -> bytes:
    """One that differs from others."""
    return SIGNATURE + bytes([mark]) * (size - len(SIGNATURE))


def png(mark: int, size: int = 20) -> dict[str, Any]:
    return block(picture(mark, size))


async def stored(requests: Requests, *content: object) -> ObjectReference:
    """A result in the object store."""
    name = ResultName("default", new_id(), "1-0", new_id())
    return await ResultStore(requests, 1.0).store(name, encode(list(content)))


async def called(requests: Requests, turn: int, *content: object) -> list[ConversationItem]:
    """A turn that calls a tool, whose answer has that content."""
    kept = await stored(requests, *content)
    call = f"{turn}-0"
    return [AssistantTurn("", (ToolCall(call, "draw", {}),)), ToolAnswer(call, "draw", "A dot.", kept=kept)]


async def said_by(source: Source, *entries: ConversationItem) -> str:
    """What a model says to a conversation."""
    async with within(30), aclosing(source.stream(TurnInput(messages=entries, model="m"))) as chunks:
        return "".join([each.text async for each in chunks if isinstance(each, TextDelta)])


async def asked(requests: Requests, *entries: ConversationItem, **options: Any) -> list[dict[str, Any]]:
    """The messages that a server with chat completions is sent."""
    async with openai_provider.connected(model_server.openai, **options) as (provider, server):
        assert await said_by(SeeingSource(provider, requests, Room(seeing.HELD_BYTES_MAX)), *entries) == "Hello"
    assert len(server.exchanges) == 1
    messages: list[dict[str, Any]] = server.exchanges[0].body["messages"]
    return messages


def seen(messages: list[dict[str, Any]]) -> list[int]:
    """The marks of the pictures in a request, in their order."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.removeprefix("data:image/png;base64,"))[-1] for url in urls]


# What is sent


def url_of(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


@pytest.mark.parametrize("roles", ["free", "merged", "strict"])
async def test_chat_completions_have_images_in_a_message_of_the_user_behind_all_answers(
    connection: Connection, roles: str
) -> None:
    kept = await stored(connection.requests, {"type": "text", "text": "A dot."}, png(1), png(2))
    calls = (ToolCall("1-0", "draw", {}), ToolCall("1-1", "add", {}))
    answers = [ToolAnswer("1-0", "draw", "A dot.", kept=kept), ToolAnswer("1-1", "add", "2")]
    told = await asked(connection.requests, HI, AssistantTurn("", calls), *answers, Message("user", "bye"), roles=roles)
    assert told[2:4] == [
        {"role": "tool", "tool_call_id": "c00000100", "content": "A dot."},
        {"role": "tool", "tool_call_id": "c00000101", "content": "2"},
    ]
    said = {"type": "text", "text": "The images that draw returned, call c00000100:"}
    images = [said, url_of(picture(1)), url_of(picture(2))]
    assert (
        told[4:]
        == {
            "free": [{"role": "user", "content": images}, {"role": "user", "content": "bye"}],
            "merged": [{"role": "user", "content": [*images, {"type": "text", "text": "bye"}]}],
            "strict": [
                {"role": "assistant", "content": "Understood."},
                {"role": "user", "content": [*images, {"type": "text", "text": "bye"}]},
            ],
        }[roles]
    )


async def test_the_messages_api_has_images_in_the_result_of_their_call(connection: Connection) -> None:
    entries = await called(connection.requests, 1, png(1))
    silent = ToolAnswer("2-0", "draw", "", kept=await stored(connection.requests, png(2)))
    entries += [AssistantTurn("", (ToolCall("2-0", "draw", {}),)), silent]
    async with anthropic_provider.connected(messages_server.hello) as (provider, server):
        assert (
            await said_by(SeeingSource(provider, connection.requests, Room(seeing.HELD_BYTES_MAX)), HI, *entries)
            == "Hello"
        )
    first, second = server.exchanges[0].body["messages"][2::2]

    def source(mark: int) -> dict[str, Any]:
        return {"type": "base64", "media_type": "image/png", "data": base64.b64encode(picture(mark)).decode()}

    assert first["content"] == [
        {
            "type": "tool_result",
            "tool_use_id": "c00000100",
            "content": [{"type": "text", "text": "A dot."}, {"type": "image", "source": source(1)}],
        }
    ]
    assert second["content"][0]["content"] == [{"type": "image", "source": source(2)}]


async def test_a_request_behind_a_pause_has_the_images_again(connection: Connection) -> None:
    entries = await called(connection.requests, 1, png(1))
    async with anthropic_provider.connected(messages_server.hello) as (provider, server):

        async def pausing(exchange: Exchange) -> None:
            pauses = len(server.exchanges) <= 2
            events = (text(0, "One. "), ended("pause_turn", 3)) if pauses else (text(0, "Two."), ended("end_turn", 4))
            await saying(started(), *events)(exchange)

        server.behave = pausing
        source = SeeingSource(provider, connection.requests, Room(seeing.HELD_BYTES_MAX))
        assert await said_by(source, HI, *entries) == "One. One. Two."
    first, second, third = (exchange.body["messages"] for exchange in server.exchanges)
    assert second[:-1] == third[:-1] == first
    assert first[2]["content"][0]["content"][1]["type"] == "image"
    assert [len(each[-1]["content"]) for each in (second, third)] == [1, 2]


async def test_without_images_nothing_is_sent_otherwise(connection: Connection) -> None:
    kept = await stored(connection.requests, {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"})
    call = AssistantTurn("", (ToolCall("1-0", "draw", {}),))
    told = await asked(connection.requests, HI, call, ToolAnswer("1-0", "draw", "A.", kept=kept))
    assert told[-1] == {"role": "tool", "tool_call_id": "c00000100", "content": "A."}


# How many


async def test_the_newest_images_are_given_and_each_stays_in_its_place(connection: Connection) -> None:
    entries: list[ConversationItem] = [HI]
    for turn in range(1, IMAGES_MAX + 3):
        entries += await called(connection.requests, turn, png(turn))
    assert seen(await asked(connection.requests, *entries)) == list(range(3, IMAGES_MAX + 3))
    entries += await called(connection.requests, 90, *(png(mark) for mark in range(100, 100 + IMAGES_MAX + 5)))
    assert seen(await asked(connection.requests, *entries)) == list(range(100, 100 + IMAGES_MAX))


async def test_images_that_are_too_large_stay_text_and_smaller_ones_are_given(connection: Connection) -> None:
    requests = connection.requests
    entries: list[ConversationItem] = [HI, *await called(requests, 1, png(1))]
    entries += await called(requests, 2, png(2, IMAGES_BYTES_MAX + 1), png(3))
    audio = {"type": "audio", "data": "A" * (seeing.OBJECTS_BYTES_MAX // 2), "mimeType": "audio/wav"}
    entries += await called(requests, 3, audio, png(4))
    entries += await called(requests, 4, png(5, seeing.OBJECTS_BYTES_MAX))
    assert seen(await asked(requests, *entries)) == [1, 4], "of the second there is no room to read"
    assert seen(await asked(requests, *entries[:5])) == [1, 3]


# What goes wrong


async def test_what_is_gone_damaged_or_unreadable_stays_text(connection: Connection) -> None:
    requests = connection.requests
    gone, damaged, forged = [await stored(requests, png(mark)) for mark in (1, 2, 3)]
    await object_store.purge_objects(requests, RESULTS_BUCKET, [gone.name])
    subjects = await subjects_of(requests, f"OBJ_{RESULTS_BUCKET}", ">")
    await requests.purge(
        f"OBJ_{RESULTS_BUCKET}", next(subject for subject in subjects if f".C.{damaged.name}" in subject)
    )
    forged = ObjectReference(forged.bucket, forged.name, forged.size, "SHA-256=forged")
    rubbish = ResultName("default", new_id(), "1-0", new_id())
    unreadable = await ResultStore(requests, 1.0).store(rubbish, b"[{")
    elsewhere = ObjectReference("no-such-bucket", gone.name, 20, "SHA-256=x")
    entries: list[ConversationItem] = [HI, *await called(requests, 1, png(9))]
    for at, kept in enumerate((gone, damaged, forged, unreadable, elsewhere), 2):
        call = ToolCall(f"{at}-0", "draw", {})
        entries += [AssistantTurn("", (call,)), ToolAnswer(call.call, "draw", "A dot.", kept=kept)]
    assert seen(await asked(requests, *entries)) == [9]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "Invalid content type. image_url is only supported by certain models."}),
        (400, {"message": "maximum context length is 4096 tokens", "code": "context_length_exceeded"}),
        (413, {"message": "too large", "type": "request_too_large"}),
        (500, {"message": "image input is not supported - hint: you may need to provide the mmproj", "code": 500}),
        (404, {"message": "No endpoints found that support image input", "code": 404}),
    ],
)
async def test_a_server_that_refuses_images_is_asked_again_without(
    connection: Connection, status: int, error: dict[str, Any]
) -> None:
    async def refusing(exchange: Exchange) -> None:
        if seen(exchange.body["messages"]):
            await exchange.refuse(status, {"error": error})
        else:
            await model_server.openai(exchange)

    entries = await called(connection.requests, 1, png(1))
    async with openai_provider.connected(refusing) as (provider, server):
        with capture_logs() as logs:
            assert (
                await said_by(SeeingSource(provider, connection.requests, Room(seeing.HELD_BYTES_MAX)), HI, *entries)
                == "Hello"
            )
    assert len(server.exchanges) == 2
    assert [line["event"] for line in logs] == ["model.images_refused"]


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [(429, "too many images", "rate-limited"), (500, "no", "provider-error"), (401, "no", "provider-unauthorized")],
)
async def test_what_is_not_the_fault_of_images_fails_as_ever(
    connection: Connection, status: int, message: str, code: str
) -> None:
    async def failing(exchange: Exchange) -> None:
        await exchange.refuse(status, {"error": {"message": message}})

    entries = await called(connection.requests, 1, png(1))
    async with openai_provider.connected(failing) as (provider, server):
        with pytest.raises(ProviderFailed) as failed:
            await said_by(SeeingSource(provider, connection.requests, Room(seeing.HELD_BYTES_MAX)), HI, *entries)
    assert (failed.value.code, len(server.exchanges)) == (code, 1)


class Counting:
    """A guard that counts how streams end."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self.outcomes: list[str] = []
        self._source = source

    def continues(self, text: str) -> bool:
        return self._source.continues(text)

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        try:
            async with aclosing(self._source.stream(turn)) as chunks:
                async for each in chunks:
                    yield each
        except ProviderFailed as error:
            self.outcomes.append(error.code)
            raise
        self.outcomes.append("ok")


@pytest.mark.parametrize(("images", "requests"), [("true", 2), ("false", 1)])
async def test_a_refusal_of_images_is_no_fault_of_the_providers(
    connection: Connection, images: str, requests: int
) -> None:
    async def refusing(exchange: Exchange) -> None:
        if seen(exchange.body["messages"]):
            await exchange.refuse(500, {"error": {"message": "image input is not supported"}})
        else:
            await model_server.openai(exchange)

    entries = await called(connection.requests, 1, png(1))
    guards: list[Counting] = []

    def guard(source: Source) -> Source:
        guards.append(Counting(source))
        return guards[-1]

    async with model_server.model_server(refusing) as server:
        provider = f"providers.a = {{ kind = 'openai', base_url = '{server.base_url}', images = {images} }}"
        configuration = parse_configuration(f"{provider}\npools.default = {{ provider = 'a', model = 'm' }}".encode())
        settings = Settings(configuration=configuration)
        async with open_providers(settings, guard=guard, requests=connection.requests) as pools:
            assert await said_by(pools["default"].all[0].source, HI, *entries) == "Hello"
    assert ([guard.outcomes for guard in guards], len(server.exchanges)) == ([["ok"]], requests)


# The object store


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 1])
async def test_an_object_is_read_as_it_was_put(connection: Connection, size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    name = ResultName("default", new_id(), "1-0", new_id())
    reference = await ResultStore(connection.requests, 1.0).store(name, payload[:size])
    assert await object_store.get(connection.requests, reference) == payload[:size]


async def test_an_object_of_another_client_is_read(connection: Connection) -> None:
    bucket = await connection.client.jetstream().object_store(RESULTS_BUCKET)
    put = await bucket.put("theirs", b"x" * 1_000_000)
    assert put.digest is not None
    reference = ObjectReference(RESULTS_BUCKET, "theirs", 1_000_000, put.digest)
    assert await object_store.get(connection.requests, reference) == b"x" * 1_000_000
