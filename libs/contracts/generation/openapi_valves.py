"""The operations on valves, and the cancelling of many tasks, as the OpenAPI document has them."""

from __future__ import annotations

from typing import Any

from contracts import subjects
from contracts.api.valves import CANCELLED_AT_ONCE_MAX, SAMPLE_MAX
from contracts.generation.openapi_parts import JSON_TYPE, json_answer, parameter, problems, ref, string
from contracts.records.valves import WHY_CHARACTERS_MAX
from contracts.valve_keys import VALVE_KINDS

_WHOSE = "Credentials have to be for any tenant: what is paused is everybody's."
_PAST = "A time that has gone by is 400."


def _in_path(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _valve() -> list[dict[str, Any]]:
    names = "The pool, the tenant, the provider; a lane is `<pool>.<priority>`, as `default.low`."
    return [
        _in_path("kind", {"type": "string", "enum": list(VALVE_KINDS)}, "What is meant."),
        _in_path("name", {"type": "string", "maxLength": 64}, names),
    ]


def _tenant() -> list[dict[str, Any]]:
    return [_in_path("tenant", string(subjects.TENANT_PATTERN), "Whose limits these are.")]


def _why() -> dict[str, Any]:
    """Why something goes on."""
    schema = {"type": "string", "minLength": 1, "maxLength": WHY_CHARACTERS_MAX}
    return {"name": "reason", "in": "query", "description": "Why: it is in the audit log.", "schema": schema}


def _body(name: str, description: str, *, required: bool) -> dict[str, Any]:
    return {"required": required, "description": description, "content": {JSON_TYPE: {"schema": ref(name)}}}


def list_valves() -> dict[str, Any]:
    return {
        "operationId": "listValves",
        "tags": ["valves"],
        "summary": "List what is paused, and limits that hold for a while",
        "description": f"As this ingress knows it, a second old at most. {_WHOSE}",
        "responses": {"200": json_answer("What is paused.", "ValveList", headers=("NoStore",)), **problems("503")},
    }


def shut_valve() -> dict[str, Any]:
    return {
        "operationId": "shutValve",
        "tags": ["valves"],
        "summary": "Pause a pool, a lane, a tenant or a provider",
        "description": (
            "No turn is begun there any more; turns that are under way end. New tasks are accepted, and wait: their "
            "202 has `pause`. A turn whose provider is paused goes to another one of its pool, if there is one. What "
            f"is paused already stays so, with what is said now. {_PAST} A pool, or a provider, that the mesh does not "
            f"have is 404. {_WHOSE}"
        ),
        "parameters": _valve(),
        "requestBody": _body("PauseRequest", "Why, and for how long. Unknown fields are refused.", required=False),
        "responses": {
            "200": json_answer("It is paused.", "Valve"),
            **problems("400", "404", "409", "413", "415", "503"),
        },
    }


def open_valve() -> dict[str, Any]:
    return {
        "operationId": "openValve",
        "tags": ["valves"],
        "summary": "Let a pool, a lane, a tenant or a provider go on",
        "description": f"Turns are begun again within a second. 404 if it is not paused. {_WHOSE}",
        "parameters": [*_valve(), _why()],
        "responses": {"200": json_answer("It goes on; how it was paused.", "Valve"), **problems("400", "404", "503")},
    }


def limit_tenant() -> dict[str, Any]:
    return {
        "operationId": "limitTenant",
        "tags": ["valves"],
        "summary": "Give a tenant other limits for a while",
        "description": (
            "Any keys of a table `[tenants.<name>]` of mesh.toml, in place of what is said there; null takes a limit "
            f"away. They replace those that were set for a while before. {_PAST} {_WHOSE}"
        ),
        "parameters": _tenant(),
        "requestBody": _body("LimitsRequest", "The limits, and until when. Unknown fields are refused.", required=True),
        "responses": {
            "200": json_answer("They hold.", "TenantLimits"),
            **problems("400", "409", "413", "415", "503"),
        },
    }


def end_limits() -> dict[str, Any]:
    return {
        "operationId": "endLimits",
        "tags": ["valves"],
        "summary": "Give a tenant the limits of mesh.toml again",
        "description": f"404 if it has no others. {_WHOSE}",
        "parameters": [*_tenant(), _why()],
        "responses": {
            "200": json_answer("They hold no more; which they were.", "TenantLimits"),
            **problems("400", "404", "503"),
        },
    }


def cancel_tasks() -> dict[str, Any]:
    return {
        "operationId": "cancelTasks",
        "tags": ["tasks"],
        "summary": "Cancel many tasks of a tenant",
        "description": (
            "Those that fit the filter and have not ended. One request cancels "
            f"{CANCELLED_AT_ONCE_MAX} of them at most, at a bounded pace, and answers with a `cursor` to go on with; "
            "at null all have been met that there were. A task that changes meanwhile may be passed over: begin anew, "
            "without a cursor, until nothing is `asked` any more. Whatever is repeated does no harm. "
            f"With `dry_run` they are counted, {SAMPLE_MAX} are shown, and none is cancelled. 503 `queue-full`: too "
            "many commands wait for a steward; go on from the same cursor."
        ),
        "parameters": [parameter("Tenant")],
        "requestBody": _body("CancelRequest", "Which tasks. Unknown fields are refused.", required=True),
        "responses": {
            "200": json_answer("What became of them.", "CancelAnswer", headers=("NoStore",)),
            **problems("400", "413", "415", "503"),
        },
    }
