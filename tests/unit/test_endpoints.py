"""What telemetry says of a provider: its name by the conventions, where it is, and what its answer is called."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_worker.models.endpoints import ID_CHARACTERS_MAX, Endpoint, Response, endpoint_of, heard, listening
from mesh.configuration.provider_tables import ProviderConfiguration


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"kind": "scripted"}, Endpoint("scripted")),
        ({"kind": "anthropic"}, Endpoint("anthropic", "api.anthropic.com", 443)),
        ({"kind": "anthropic", "base_url": "http://LocalHost:9000/x"}, Endpoint("anthropic", "localhost", 9000)),
        ({"kind": "openai", "base_url": "http://127.0.0.1:8000/v1"}, Endpoint("openai", "127.0.0.1", 8000)),
        ({"kind": "openai", "base_url": "http://[::1]/v1"}, Endpoint("openai", "::1", 80)),
        ({"kind": "openai", "base_url": "https://api.mistral.ai/v1"}, Endpoint("mistral_ai", "api.mistral.ai", 443)),
        ({"kind": "openai", "base_url": "https://api.x.ai/v1"}, Endpoint("x_ai", "api.x.ai", 443)),
        (
            {"kind": "openai", "base_url": "https://mine.openai.azure.com/v1"},
            Endpoint("azure.ai.openai", "mine.openai.azure.com", 443),
        ),
    ],
)
def test_a_provider_goes_by_its_kind_or_its_vendor(table: dict[str, str], told: Endpoint) -> None:
    assert endpoint_of(msgspec.convert(table, ProviderConfiguration)) == told


@pytest.mark.parametrize(
    ("payloads", "told"),
    [
        ([b'{"id": "c1", "model": "small-0711", "choices": []}', b'{"id": "c2", "model": "x"}'], ("c1", "small-0711")),
        ([b'{"type": "message_start", "message": {"id": "m1", "model": "large"}}'], ("m1", "large")),
        ([b'{"type": "ping"}', b'{"id": "c1"}', b'{"model": "late"}'], ("c1", None)),
        ([b"[DONE]", b'{"id": 7, "model": null}', b'{"message": "an error"}'], (None, None)),
        ([b'{"id": "' + b"x" * 1000 + b'"}'], ("x" * ID_CHARACTERS_MAX, None)),
    ],
)
def test_an_answer_says_what_it_is_called(payloads: list[bytes], told: tuple[str | None, str | None]) -> None:
    with listening() as response:
        for payload in payloads:
            heard(payload)
    heard(b'{"id": "of another"}')  # Nobody listens.
    assert (response.id, response.model) == told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "model", "message"]), inner, max_size=3)
    ),
)


@given(st.binary() | JSON.map(msgspec.json.encode))
def test_no_event_of_a_stranger_is_an_exception(payload: bytes) -> None:
    Response().read(payload)
