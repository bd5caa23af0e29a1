"""What the bodies of errors say, in every form that is about."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_worker.dialects.error_bodies import (
    MESSAGE_CHARACTERS_MAX,
    TEXTS_MAX,
    ServerError,
    parse_error,
    parse_error_body,
)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"error": {"message": "m", "type": "T", "code": "C"}}, ServerError("m", ("t", "c"))),
        ({"error": {"message": "m", "type": None, "code": 503}}, ServerError("m", (), 503)),
        ({"error": {"message": "m", "type": ["x"], "code": True}}, ServerError("m")),
        ({"error": {"message": "m", "type": "with a space", "code": "x" * 65}}, ServerError("m")),
        ({"error": "text"}, ServerError("text")),
        ({"detail": "Not Found"}, ServerError("Not Found")),
        (
            {"detail": [{"loc": ["body", "messages", 0], "msg": "field required", "type": "missing"}]},
            ServerError("body.messages.0: field required", ("missing",)),
        ),
        # Mistral
        (
            {"object": "error", "message": {"detail": [{"loc": ["body"], "msg": "extra"}]}, "code": None},
            ServerError("body: extra"),
        ),
        # Gemini
        (
            [{"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT", "details": [{"reason": "R"}]}}],
            ServerError("m", ("r", "invalid_argument"), 400),
        ),
        ({"errors": [{"code": 7003, "message": "a"}, {"message": "b"}], "success": False}, ServerError("a; b")),
        ({"error": {"error": "inner"}}, ServerError("inner")),
        ({"error": {"error": {"message": "m", "type": "T"}}}, ServerError("m", ("t",))),
        ({"error": {"message": "m", "metadata": {"raw": "upstream said no"}}}, ServerError("m; upstream said no")),
        (["a", "b"], ServerError("a; b")),
        # Whatever else there is, is kept as it stands.
        ({"reason_of_it": 7}, ServerError('{"reason_of_it":7}')),
        (7, ServerError("7")),
        (None, ServerError()),
        ({}, ServerError()),
    ],
)
def test_errors_are_read_in_every_form(value: Any, error: ServerError) -> None:
    assert parse_error(value) == error
    assert parse_error_body(json.dumps(value).encode()) == error


def test_what_is_kept_of_an_error_has_a_bound() -> None:
    deep: Any = "deep"
    for _ in range(50):
        deep = {"error": deep}
    assert len(parse_error(deep).message) <= MESSAGE_CHARACTERS_MAX
    many = [{"message": f"{number} " * 2000, "code": f"c{number}"} for number in range(1000)]
    assert len(parse_error(many).message) == MESSAGE_CHARACTERS_MAX
    assert len(parse_error(many).words) <= TEXTS_MAX
