"""What each failure of a model's server means, and how long it asks to wait."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from inference_worker.dialects.errors import (
    DETAIL_CHARACTERS_MAX,
    RETRY_AFTER_SECONDS_MAX,
    ProviderFailed,
    ServerError,
    failure_in_stream,
    failure_of_status,
    parse_duration,
    parse_error,
    parse_error_body,
    retry_after_seconds,
)

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
RETRYABLE, TERMINAL, NEITHER = (True, False), (False, True), (False, False)


def of_status(status: int, body: object = None, headers: dict[str, str] | None = None) -> ProviderFailed:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return failure_of_status(status, headers or {}, content, NOW)


def said(failed: ProviderFailed) -> tuple[str, tuple[bool, bool]]:
    return failed.code, (failed.retryable, failed.terminal)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (301, "provider-error", NEITHER),
        (400, "provider-bad-request", TERMINAL),
        (401, "provider-unauthorized", NEITHER),
        (402, "quota-exhausted", NEITHER),
        (403, "provider-unauthorized", NEITHER),
        (404, "provider-bad-request", TERMINAL),
        (408, "provider-error", RETRYABLE),
        (409, "provider-error", RETRYABLE),
        (413, "provider-bad-request", TERMINAL),
        (422, "provider-bad-request", TERMINAL),
        (429, "rate-limited", RETRYABLE),
        (500, "provider-error", RETRYABLE),
        (501, "provider-bad-request", TERMINAL),
        (502, "provider-error", RETRYABLE),
        (503, "provider-overloaded", RETRYABLE),
        (504, "provider-error", RETRYABLE),
        (529, "provider-overloaded", RETRYABLE),
    ],
)
def test_a_status_alone_has_its_class(status: int, code: str, kind: tuple[bool, bool]) -> None:
    assert said(of_status(status, b"")) == (code, kind)


@pytest.mark.parametrize(
    ("status", "body", "code", "kind"),
    [
        # OpenAI
        (429, {"error": {"type": "insufficient_quota", "code": "insufficient_quota"}}, "quota-exhausted", NEITHER),
        (429, {"error": {"code": "credit_balance_exhausted"}}, "quota-exhausted", NEITHER),
        (429, {"error": {"type": "tokens", "code": "rate_limit_exceeded"}}, "rate-limited", RETRYABLE),
        (400, {"error": {"code": "context_length_exceeded"}}, "context-too-long", TERMINAL),
        (400, {"error": {"code": "unsupported_parameter", "param": "max_tokens"}}, "provider-bad-request", TERMINAL),
        (404, {"error": {"code": "model_not_found"}}, "provider-bad-request", TERMINAL),
        # vLLM, newer and older
        (
            400,
            {"error": {"message": "This model's maximum context length is 4096 tokens. However, …", "code": 400}},
            "context-too-long",
            TERMINAL,
        ),
        (
            400,
            {"object": "error", "message": "The prompt is longer than the maximum model length of 4096.", "code": 400},
            "context-too-long",
            TERMINAL,
        ),
        (404, {"object": "error", "type": "NotFoundError", "code": 404}, "provider-bad-request", TERMINAL),
        # llama.cpp; older ones answer 500
        (
            400,
            {"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 4}},
            "context-too-long",
            TERMINAL,
        ),
        (
            500,
            {"error": {"message": "the request exceeds the available context size", "type": "server_error"}},
            "context-too-long",
            TERMINAL,
        ),
        (503, {"error": {"message": "Loading model", "type": "unavailable_error"}}, "provider-overloaded", RETRYABLE),
        # Ollama
        (503, {"error": {"message": "server busy, please try again"}}, "provider-overloaded", RETRYABLE),
        (400, {"error": "the input length exceeds the context length"}, "context-too-long", TERMINAL),
        # Anthropic
        (
            400,
            {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}},
            "quota-exhausted",
            NEITHER,
        ),
        (
            400,
            {"error": {"message": "You have reached your specified API usage limits. You will regain access on …"}},
            "quota-exhausted",
            NEITHER,
        ),
        (402, {"type": "error", "error": {"type": "billing_error"}}, "quota-exhausted", NEITHER),
        (429, {"type": "error", "error": {"type": "rate_limit_error"}}, "rate-limited", RETRYABLE),
        (
            400,
            {
                "error": {
                    "type": "invalid_request_error",
                    "message": "prompt is too long: 201000 tokens > 200000 maximum",
                }
            },
            "context-too-long",
            TERMINAL,
        ),
        (
            400,
            {"error": {"message": "input length and `max_tokens` exceed context limit: 198000 + 8000 > 200000"}},
            "context-too-long",
            TERMINAL,
        ),
        (413, {"error": {"type": "request_too_large"}}, "provider-bad-request", TERMINAL),
        (529, {"type": "error", "error": {"type": "overloaded_error"}}, "provider-overloaded", RETRYABLE),
        # Rubbish says no more than its status
        (400, b"\xff\xfe", "provider-bad-request", TERMINAL),
        (500, b"[" * 100_000, "provider-error", RETRYABLE),
        (500, ["error"], "provider-error", RETRYABLE),
    ],
)
def test_what_a_server_says_outranks_its_status(status: int, body: object, code: str, kind: tuple[bool, bool]) -> None:
    assert said(of_status(status, body)) == (code, kind)


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (
            {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}},
            "provider-error",
            RETRYABLE,
        ),
        ({"error": {"message": "x", "code": "400"}}, "provider-bad-request", TERMINAL),
        ({"error": {"message": "x", "type": "BadRequestError"}}, "provider-bad-request", TERMINAL),
        ({"error": {"message": "x", "type": "invalid_request_error"}}, "provider-bad-request", TERMINAL),
        ({"error": {"type": "overloaded_error"}}, "provider-overloaded", RETRYABLE),
        ({"type": "error", "error": {"type": "api_error", "message": "x"}}, "provider-error", RETRYABLE),
        ({"type": "error", "error": {"type": "timeout_error"}}, "provider-error", RETRYABLE),
        ({"type": "error", "error": {"type": "billing_error"}}, "quota-exhausted", NEITHER),
        ({"type": "error", "error": {"type": "request_too_large"}}, "provider-bad-request", TERMINAL),
        ({"error": {"code": "rate_limit_exceeded"}}, "rate-limited", RETRYABLE),
        ({"error": {"code": "insufficient_quota"}}, "quota-exhausted", NEITHER),
        ({"error": {"type": "authentication_error"}}, "provider-unauthorized", NEITHER),
        ({"error": {"code": "context_length_exceeded"}}, "context-too-long", TERMINAL),
        ({"error": {"code": 502, "message": "upstream"}}, "provider-error", RETRYABLE),
        ({"error": {"code": 200}}, "provider-error", RETRYABLE),
        ({"error": "something"}, "provider-error", RETRYABLE),
        ({"error": {}}, "provider-error", RETRYABLE),
        ({"object": "error", "message": "x", "type": "BadRequestError", "code": 400}, "provider-bad-request", TERMINAL),
        (None, "provider-error", RETRYABLE),
    ],
)
def test_an_error_in_mid_stream_has_its_class(error: object, code: str, kind: tuple[bool, bool]) -> None:
    assert said(failure_in_stream(error)) == (code, kind)


def test_what_the_server_said_is_stored_and_not_in_the_message() -> None:
    failed = of_status(400, {"error": {"message": "your prompt was: xyz", "type": "invalid_request_error"}})
    assert str(failed) == "HTTP 400 (invalid_request_error)"
    assert failed.info().detail == "your prompt was: xyz"
    assert len(of_status(400, b"x" * 100_000).info().detail or "") == DETAIL_CHARACTERS_MAX
    assert of_status(400, b"").info().detail is None


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"error": {"message": "m", "type": "T", "code": "C"}}, ServerError("m", ("t", "c"))),
        ({"error": {"message": "m", "type": None, "code": 503}}, ServerError("m", (), 503)),
        ({"error": {"message": 1, "type": ["x"], "code": True}}, ServerError()),
        ({"error": {"type": "with a space", "code": "x" * 65}}, ServerError()),
        ({"error": "text"}, ServerError("text")),
        ({"detail": "Not Found"}, ServerError("Not Found")),
        ({"detail": [{"loc": ["body"]}]}, ServerError()),
        (7, ServerError()),
    ],
)
def test_errors_are_read_in_every_form(value: Any, error: ServerError) -> None:
    assert parse_error(value) == error
    assert parse_error_body(json.dumps(value).encode()) == error


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {}, None),
        (429, {"retry-after": "20"}, 20.0),
        (503, {"retry-after": "1.5"}, 1.5),
        (429, {"retry-after-ms": "250", "retry-after": "20"}, 0.25),
        (429, {"retry-after": "Thu, 01 Jan 2026 12:00:30 GMT"}, 30.0),
        (429, {"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, None),
        (429, {"retry-after": "0"}, None),
        (429, {"retry-after": "-5"}, None),
        (429, {"retry-after": "soon"}, None),
        (429, {"retry-after": "nan"}, None),
        (429, {"retry-after": "9999999"}, RETRY_AFTER_SECONDS_MAX),
        (429, {"x-ratelimit-reset-requests": "12ms"}, 0.012),
        (429, {"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        (
            429,
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "100",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            1.0,
        ),
        (429, {"retry-after": "2", "x-ratelimit-reset-tokens": "6m0s"}, 2.0),
        (500, {"x-ratelimit-reset-tokens": "6m0s"}, None),
        (429, {"anthropic-ratelimit-requests-reset": "2026-01-01T12:00:30Z"}, 30.0),
        (
            429,
            {
                "anthropic-ratelimit-requests-remaining": "7",
                "anthropic-ratelimit-requests-reset": "2026-01-01T13:00:00Z",
                "anthropic-ratelimit-output-tokens-remaining": "0",
                "anthropic-ratelimit-output-tokens-reset": "2026-01-01T12:00:10+00:00",
            },
            10.0,
        ),
        (429, {"anthropic-ratelimit-tokens-reset": "soon"}, None),
        (429, {"anthropic-ratelimit-tokens-reset": "2025-12-31T12:00:00Z"}, None),
        (529, {"anthropic-ratelimit-tokens-reset": "2026-01-01T12:00:30Z"}, None),
    ],
)
def test_a_server_says_when_to_come_back(status: int, headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(status, headers, NOW) == (pytest.approx(seconds) if seconds is not None else None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1.5s", 1.5),
        ("6m0s", 360.0),
        ("1h30m", 5400.0),
        ("1d", 86400.0),
        ("1m250ms", 60.25),
        ("0s", 0.0),
        ("7", 7.0),
        ("", None),
        ("s", None),
        ("1x", None),
        ("-1s", None),
        ("2026-01-01T00:00:00Z", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == (pytest.approx(seconds) if seconds is not None else None)
