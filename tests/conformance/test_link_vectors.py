"""The vectors of links, run against this implementation."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from contracts import links
from contracts.codec import decode
from contracts.errors import TaskmeshError
from tests.conformance.test_vectors import cases, vectors

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("case", cases("links"))
def test_links(case: dict[str, Any]) -> None:
    keys = decode(json.dumps(vectors("links")["keys"]).encode(), links.LinkKeys).keys
    at = datetime.fromisoformat(case["now"])
    if case["result"] != "valid":
        with pytest.raises(TaskmeshError) as refused:
            links.verify(keys, case["token"], case["task"], at)
        assert refused.value.code == case["result"]
        return
    link = links.verify(keys, case["token"], case["task"], at)
    assert link == (case["tenant"], case["task"], datetime.fromisoformat(case["expires_at"]))
