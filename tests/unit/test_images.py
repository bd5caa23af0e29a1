"""Which images a result has, as its event tells them and as the object store has them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.journal.events import Stamp, ToolCompleted
from contracts.journal.parts import ObjectReference, Timings, ToolCall
from inference_worker.dialects.seeing import takes_images
from mesh.configuration.provider_tables import (
    AnthropicProviderConfiguration,
    OpenAIProviderConfiguration,
    ProviderConfiguration,
    ScriptedProviderConfiguration,
)
from mesh.task.conversation import tool_answer
from mesh.task.images import Image, are_told, images_in

TASK = "01m7wq3t5n8e2c4h6k9r1x7z0a"
STAMP = Stamp("0" * 26, TASK, "acme", 0, datetime(2026, 11, 27, tzinfo=UTC))
TOLD: list[Any] = [{"type": "text", "text": "A dot."}, {"type": "image", "mimeType": "image/png", "bytes": 8}]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image", "data": encoded(data), "mimeType": media_type}


PNG, JPEG, GIF, WEBP = b"\x89PNG\r\n\x1a\n..", b"\xff\xd8\xff..", b"GIF89a..", b"RIFF\0\0\0\0WEBPVP8 "


@pytest.mark.parametrize(
    ("data", "media_type"), [(PNG, "image/png"), (JPEG, "image/jpeg"), (GIF, "image/gif"), (WEBP, "image/webp")]
)
def test_an_image_is_of_the_type_that_its_bytes_say(data: bytes, media_type: str) -> None:
    blob = {"type": "resource", "resource": {"uri": "file:///a", "mimeType": "image/png", "blob": encoded(data)}}
    given = Image(media_type, encoded(data))
    assert [*images_in([{"type": "text", "text": "a"}, image(data), blob])] == [given, given]
    assert given.size_bytes == len(data)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "text",
        {"type": "image", "data": encoded(PNG)},
        [None, 1, "a", [], {}, {"type": "image"}, {"type": "image", "data": 7}, {"resource": 1}, {"resource": {}}],
        [{"type": "image", "data": "not base64!", "mimeType": "image/png"}],
        [{"type": "image", "data": encoded(PNG) + "é"}],
        [image(b""), image(b"<svg/>", "image/svg+xml"), image(b"RIFF\0\0\0\0WAVE")],
        [{"type": "audio", "data": encoded(PNG), "mimeType": "audio/wav"}],
    ],
)
def test_what_is_no_image_that_models_take_is_left_out(content: Any) -> None:
    assert [*images_in(content)] == []


def completed(told: Any, name: str, bucket: str = "results") -> ToolCompleted:
    reference = ObjectReference(bucket, name, 100, "SHA-256=x")
    timings = Timings(total_seconds=1.0)
    return ToolCompleted(*STAMP, turn=1, call="1-0", tool="draw", result=told, object=reference, timings=timings)


def test_an_answer_says_where_its_images_lie() -> None:
    name = f"{STAMP.tenant}.{TASK}.1-0.{TASK}"
    asked = ToolCall("1-0", "draw", {})
    answer = tool_answer(asked, completed(TOLD, name))
    assert answer.kept == ObjectReference("results", name, 100, "SHA-256=x")
    assert answer.images == ()
    resource = [{"type": "resource", "resource": {"uri": "file:///a", "mimeType": "image/gif", "bytes": 8}}]
    assert tool_answer(asked, completed(resource, name)).kept is not None
    for told, where, bucket in [
        ("[{", name, "results"),
        ([{"type": "audio", "mimeType": "audio/wav", "bytes": 8}], name, "results"),
        (TOLD, f"other.{TASK}.1-0.{TASK}", "results"),
        (TOLD, "made-up", "results"),
        (TOLD, name, "others"),
    ]:
        assert tool_answer(asked, completed(told, where, bucket)).kept is None


def test_rubbish_tells_of_no_images() -> None:
    results: list[Any] = [None, 1, "image", {"type": "image"}, [None, 1, [], {"resource": {"mimeType": 1}}]]
    assert not any(are_told(told) for told in results)


@pytest.mark.parametrize(
    ("configuration", "takes"),
    [
        (OpenAIProviderConfiguration(base_url="https://api.openai.com/v1"), True),
        (OpenAIProviderConfiguration(base_url="https://api.openai.com/v1", images=False), False),
        (OpenAIProviderConfiguration(base_url="http://127.0.0.1:8080/v1"), False),
        (OpenAIProviderConfiguration(base_url="http://127.0.0.1:8080/v1", images=True), True),
        (AnthropicProviderConfiguration(), True),
        (AnthropicProviderConfiguration(base_url="http://127.0.0.1:8080"), False),
        (ScriptedProviderConfiguration(), False),
    ],
)
def test_images_are_for_models_that_take_them(configuration: ProviderConfiguration, *, takes: bool) -> None:
    assert takes_images(configuration) is takes
