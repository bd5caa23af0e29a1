"""The operation that makes links, as the OpenAPI document has it."""

from __future__ import annotations

from typing import Any

from contracts.generation.openapi_parts import JSON_TYPE, json_answer, parameter, problems, ref
from contracts.links import LINK_SECONDS_DEFAULT, LINK_SECONDS_MAX


def make_link() -> dict[str, Any]:
    return {
        "operationId": "createLink",
        "tags": ["events"],
        "summary": "Get a link to a task's events that needs no header",
        "description": (
            "For a browser's EventSource, which can send none. Whoever has the URL reads the events of this one task "
            "at the stream edge, and does nothing else, until `expires_at`: treat it like a password. A stream that is "
            "open then ends, and who comes again gets 401 `link-expired`. No body asks for a link of "
            f"{LINK_SECONDS_DEFAULT} s."
        ),
        "parameters": [parameter("TaskId"), parameter("Tenant")],
        "requestBody": {
            "required": False,
            "description": f"How long it is to hold: 1 to {LINK_SECONDS_MAX} s. Unknown fields are refused.",
            "content": {JSON_TYPE: {"schema": ref("LinkRequest")}},
        },
        "responses": {
            "200": json_answer("The link.", "TaskLink", headers=("NoStore",)),
            **problems("400", "404", "413", "415", "503"),
        },
    }
