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
    failure_in_stream,
    failure_of_status,
    parse_duration,
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
        (404, "provider-error", NEITHER),
        (405, "provider-error", NEITHER),
        (407, "provider-error", NEITHER),
        (408, "provider-error", RETRYABLE),
        (409, "provider-error", RETRYABLE),
        (410, "provider-error", NEITHER),
        (413, "context-too-long", TERMINAL),
        (415, "provider-error", NEITHER),
        (421, "provider-error", RETRYABLE),
        (422, "provider-bad-request", TERMINAL),
        (423, "provider-error", RETRYABLE),
        (424, "provider-error", RETRYABLE),
        (425, "provider-error", RETRYABLE),
        (429, "rate-limited", RETRYABLE),
        (498, "provider-overloaded", RETRYABLE),
        (499, "provider-error", RETRYABLE),
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
        (404, {"error": {"code": "model_not_found"}}, "model-not-found", NEITHER),
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
        (404, {"object": "error", "type": "NotFoundError", "code": 404}, "model-not-found", NEITHER),
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
        (503, {"error": {"message": "Loading model", "type": "unavailable_error"}}, "provider-loading", RETRYABLE),
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
        (413, {"error": {"type": "request_too_large"}}, "context-too-long", TERMINAL),
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
        ({"type": "error", "error": {"type": "request_too_large"}}, "context-too-long", TERMINAL),
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


@pytest.mark.parametrize("status", [400, 403, 404, 422, 500])
@pytest.mark.parametrize(
    "body",
    [
        # Gemini, which has a list; xAI; DeepSeek; LiteLLM; Cohere; Anthropic's wire
        [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "X"}}],
        [{"error": {"code": 400, "details": [{"reason": "API_KEY_INVALID"}]}}],
        {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***. You can obtain"},
        {"error": {"message": "Authentication Fails, Your api key: ****1234 is invalid", "type": "whatever"}},
        {"error": {"message": "litellm.AuthenticationError: Invalid API Key", "type": None, "code": "400"}},
        {"message": "invalid api token: no api key supplied"},
        {"error": {"type": "authentication_error", "message": "invalid x-api-key"}},
        {"error": {"message": "Missing API key"}},
        {"error": {"code": "invalid_api_key"}},
    ],
)
def test_a_wrong_key_is_the_operators_matter_whatever_the_status_says(status: int, body: object) -> None:
    assert said(of_status(status, body)) == ("provider-unauthorized", NEITHER)


@pytest.mark.parametrize(
    "message",
    [
        # OpenAI, OpenRouter, vLLM in its versions
        "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.",
        "This endpoint's maximum context length is 128000 tokens. However, you requested about 140000 tokens",
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.",
        "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 35000.",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "You passed 4097 input tokens and requested 1 output tokens. However, the model's context length is only 4096",
        # SGLang
        "The input (5001 tokens) is longer than the model's context length (4096 tokens).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
        # llama.cpp, llama-cpp-python, Ollama, LM Studio
        "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
        "Requested tokens (5000) exceed context window of 4096",
        "prompt too long; exceeded max context length by 904 tokens",
        "Trying to keep the first 9000 tokens when context the overflows. However, the model is loaded with context "
        "length of only 4096 tokens, which is not enough.",
        "The number of tokens to keep from the initial prompt is greater than the context length.",
        "Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)",
        "Reached context length of 4096 tokens with model (arch: qwen2) that does not currently support it",
        # Gemini, xAI, Mistral, Moonshot, MiniMax, GitHub
        "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        "Invalid request: Your request exceeded model token limit: 8192 (requested: 9000)",
        "invalid params, context window exceeds limit (2013)",
        "prompt token count of 70000 exceeds the limit of 64000",
        # Groq, Cerebras; TGI; Cohere; DashScope; Bedrock; Together
        "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192",
        "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000",
        "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000",
        "InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]",
        "Input is too long for requested model.",
        "The prompt length exceeds the maximum allowed input length of 32768 tokens",
    ],
)
def test_every_server_has_words_of_its_own_for_a_context_that_is_too_long(message: str) -> None:
    for status in (400, 422, 500):
        assert said(of_status(status, {"error": {"message": message}})) == ("context-too-long", TERMINAL)
    assert said(of_status(400, [{"error": message}])) == ("context-too-long", TERMINAL)


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (429, "Rate limit reached: too many tokens per minute, please try again in 6m0s", "rate-limited"),
        (429, "Rate limit reached for api key sk-…, it is not valid before 12:00", "rate-limited"),
        (
            400,
            "max_tokens is too large: 9000. This model supports at most 4096 completion tokens",
            "provider-bad-request",
        ),
        (400, "messages.0: field required", "provider-bad-request"),
    ],
)
def test_what_sounds_like_it_is_neither_a_wrong_key_nor_a_long_context(status: int, message: str, code: str) -> None:
    assert of_status(status, {"error": {"message": message}}).code == code


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"error": {"message": 'model "llama3.1:70b" not found, try pulling it first', "type": "api_error"}}),
        (404, {"error": {"message": "The model `qwen` does not exist.", "type": "NotFoundError"}}),
        (404, [{"error": {"code": 404, "message": "models/gemini-0 is not found for API version v1beta"}}]),
        (404, {"type": "error", "error": {"type": "not_found_error", "message": "model: claude-x"}}),
        (400, {"error": {"message": "Model Not Exist", "type": "invalid_request_error"}}),
        (400, {"object": "error", "message": "Invalid model: mistral-huge", "type": "invalid_model", "code": "1500"}),
        (400, {"error": "No models loaded. Please load a model in the developer page."}),
        (422, {"detail": "Unknown model x"}),
    ],
)
def test_a_model_that_is_not_there_is_the_operators_to_mend(status: int, body: object) -> None:
    assert said(of_status(status, body)) == ("model-not-found", NEITHER)


def test_another_404_is_the_operators_too_and_asks_for_the_address() -> None:
    for body in ({"detail": "Not Found"}, b"<html>404</html>", b"404 page not found"):
        assert said(of_status(404, body)) == ("provider-error", NEITHER)
        assert "base_url" in str(of_status(404, body))


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, "provider-loading"),
        (503, {"error": "Model org/name is currently loading", "estimated_time": 20.0}, "provider-loading"),
        (503, {"error": {"message": "The model is not ready"}}, "provider-loading"),
        (502, b"connect() failed (111: Connection refused)", "provider-unreachable"),
        (500, {"error": {"message": "connect ECONNREFUSED 127.0.0.1:8000"}}, "provider-unreachable"),
        # Traefik; Envoy. A bad gateway alone says nothing: the request itself may have brought the server down.
        (503, b"no available server", "provider-unreachable"),
        (503, b"no healthy upstream", "provider-unreachable"),
        (502, b"<html><h1>502 Bad Gateway</h1></html>", "provider-error"),
        (503, {"error": {"message": "server busy, please try again"}}, "provider-overloaded"),
    ],
)
def test_a_server_that_is_being_started_is_told_from_one_that_is_busy(status: int, body: object, code: str) -> None:
    assert said(of_status(status, body)) == (code, RETRYABLE)


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
    ("delay", "headers", "seconds"),
    [
        ("34s", {}, 34.0),
        ("34.074824224s", {}, 34.074824224),
        ("34s", {"retry-after": "2"}, 2.0),
        ("9999999s", {}, RETRY_AFTER_SECONDS_MAX),
        ("0s", {}, None),
        ("soon", {}, None),
        (34, {}, None),
    ],
)
def test_gemini_says_in_the_body_when_to_come_back(delay: Any, headers: dict[str, str], seconds: float | None) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.Help"}, {"retryDelay": delay}]
    body = [{"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED", "details": details}}]
    failed = of_status(429, body, headers)
    assert (failed.code, failed.retry_after_seconds) == ("rate-limited", seconds)


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
