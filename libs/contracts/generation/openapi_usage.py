"""The operation on usage, as the OpenAPI document has it."""

from __future__ import annotations

from typing import Any, get_args

from contracts.api.usage import UsageBy
from contracts.generation.openapi_parts import json_answer, parameter, problems


def read_usage() -> dict[str, Any]:
    return {
        "operationId": "getUsage",
        "tags": ["usage"],
        "summary": "Read what was used, and what it cost",
        "description": (
            "Tokens and turns of the tenant, and their cost by the prices of mesh.toml, as counters have them: what a "
            "turn has used is in there some seconds after its end. Days and months are by UTC. Counters of days are "
            "kept for a year."
        ),
        "parameters": [
            _in_query(
                "since", {"type": "string", "format": "date"}, "The first day. By default that of `until`'s month."
            ),
            _in_query("until", {"type": "string", "format": "date"}, "The last day, included. By default today."),
            _in_query(
                "by",
                {"type": "string", "enum": [*get_args(UsageBy)], "default": "day"},
                "What each row is of. `month` counts whole months, those of `since` and `until` included.",
            ),
            parameter("Tenant"),
        ],
        "responses": {
            "200": json_answer("What was used.", "UsageReport", headers=("NoStore",)),
            **problems("400", "503"),
        },
    }


def _in_query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}
