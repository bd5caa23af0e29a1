"""The audit log: what a request asks for, by its path alone, and that what the API has is named."""

from __future__ import annotations

import pytest

from contracts.generation.openapi import openapi
from mesh.access.audit import UNKNOWN, asked

TASK = "01jh2v0000000000000000000a"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (method.upper(), path)
        for path, operations in openapi()["paths"].items()
        if path.startswith("/v1/")
        for method in operations
        if method != "servers"
    ],
)
def test_each_operation_of_the_api_has_a_name(method: str, path: str) -> None:
    """One that is added and has none would be refused, and the log would not say what."""
    told = asked(method, path.replace("{id}", TASK).replace("{pool}", "default").replace("{record_sequence}", "7"))
    assert told != UNKNOWN
    assert told.task == (TASK if "{id}" in path else None)


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1/tasks/tm_secret", f"/v1/tasks/{TASK}/x", f"/v1/tasks/{TASK}\n", "/v1/tasks/../x/cancel"]
)
def test_of_another_path_nothing_is_told(path: str) -> None:
    """It may hold anything, a key that somebody has pasted into the wrong place too."""
    assert asked("GET", path) == UNKNOWN
    assert asked("POST", path) == UNKNOWN
