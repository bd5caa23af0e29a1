"""Parts of the OpenAPI document that its operations share: parameters, headers, responses, schemas."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from contracts import errors, headers, subjects, tasks
from contracts.access import Scope
from contracts.api import dead_letters, inputs, links, pools, usage, valves
from contracts.generation.schemas import components, exact_pattern
from contracts.records import status, tools

LIST_DEFAULT = 50
LIST_MAX = 100
METADATA_FILTERS_MAX = 8
CURSOR_PATTERN = "[0-9]{1,18}"
LIST_CURSOR_PATTERN = "[0-9a-z.]{1,64}"
"""What a list's cursor says is for the service alone."""
IDEMPOTENCY_KEY_PATTERN = r"[\x20-\x7e]+"
JSON_TYPE = "application/json"
_BEARER = "bearer"
_REF = "#/components/schemas/{name}"


def parameters() -> dict[str, Any]:
    wait = (
        f"`wait=N` (RFC 7240): wait up to N seconds for the end; more than {tasks.WAIT_SECONDS_MAX} count as that. "
        "`link`, or `link=N`: a 202 has a `link` to the events, which holds for N seconds, if the caller may read."
    )
    tenant = {**string(subjects.TENANT_PATTERN), "default": "default"}
    key = {**string(IDEMPOTENCY_KEY_PATTERN), "maxLength": tasks.IDEMPOTENCY_KEY_CHARACTERS_MAX}
    return {
        "TaskId": {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "A task's id. What can't be one is answered as what does not exist.",
            "schema": string(subjects.TASK_PATTERN),
        },
        "RecordSequence": {
            "name": "record_sequence",
            "in": "path",
            "required": True,
            "description": "The stream sequence of the record in DEAD_LETTERS, as the list says.",
            "schema": string("[1-9][0-9]{0,17}"),
        },
        "Tenant": in_header(
            headers.HTTP_TENANT, tenant, "Whose tasks these are. Credentials have a tenant: of another it is 403."
        ),
        "IdempotencyKey": in_header(
            headers.HTTP_IDEMPOTENCY_KEY, key, "Makes repeating the request safe: one key is one task of the tenant."
        ),
        "InputIdempotencyKey": in_header(
            headers.HTTP_IDEMPOTENCY_KEY, key, "Makes repeating a message safe: one key is one message to the task."
        ),
        "Prefer": in_header(headers.HTTP_PREFER, {"type": "string", "examples": ["wait=30"]}, wait),
        "Traceparent": in_header(
            headers.TRACEPARENT, {"type": "string"}, "W3C trace context, carried into every step of the task."
        ),
        "LastEventId": in_header(
            headers.HTTP_LAST_EVENT_ID,
            string(CURSOR_PATTERN),
            "Sequence to go on after: the id of the last frame received. A browser sends it by itself.",
        ),
    }


def response_headers() -> dict[str, Any]:
    return {
        "Location": {"description": "Path of the task.", "schema": {"type": "string"}},
        "PreferenceApplied": {"description": "The wait, or the link, that was granted.", "schema": {"type": "string"}},
        "RetryAfter": {
            "description": "Whole seconds after which another try has a fair chance.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "RateLimitPolicy": {
            "description": (
                "The quotas that hold for the caller (draft-ietf-httpapi-ratelimit-headers-11): `q` in a window of `w` "
                "seconds; `qu` is the unit, requests where it is absent. Absent without any."
            ),
            "schema": {"type": "string", "examples": ['"tokens-per-day";q=2000000;w=86400;qu="tokens"']},
        },
        "RateLimit": {
            "description": "What is left of each of them (`r`), and in how many seconds there is more (`t`).",
            "schema": {"type": "string", "examples": ['"tokens-per-day";r=1200;t=3600']},
        },
        "Challenge": {
            "description": "How to show credentials (RFC 6750).",
            "schema": {"type": "string"},
        },
        "NoStore": {
            "description": "Answers of a moment are not cached.",
            "schema": {"type": "string", "const": "no-store"},
        },
        "NoBuffering": {
            "description": "Tells proxies not to gather frames.",
            "schema": {"type": "string", "const": "no"},
        },
    }


def problem_responses() -> dict[str, Any]:
    codes_by_status: dict[int, list[str]] = {}
    for code, number in errors.HTTP_STATUS_BY_CODE.items():
        codes_by_status.setdefault(number, []).append(code)
    responses = {}
    for number, codes in sorted(codes_by_status.items()):
        text = "; ".join(f"`{code}`: {errors.TITLE_BY_CODE[code]}" for code in codes)
        response = _problem_response(f"{text}.")
        if number in (429, 503):
            response["headers"] = {"Retry-After": header("RetryAfter")}
        if number == errors.HTTP_STATUS_BY_CODE["rate-limited"]:
            response["headers"] |= {"RateLimit-Policy": header("RateLimitPolicy"), "RateLimit": header("RateLimit")}
        if number == errors.HTTP_STATUS_BY_CODE["unauthorized"]:
            response["headers"] = {"WWW-Authenticate": header("Challenge")}
        responses[f"Problem{number}"] = response
    return {**responses, "Problem": _problem_response("Any other error.")}


def _problem_response(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/problem+json": {"schema": ref("Problem")}}}


def component_schemas() -> dict[str, Any]:
    kinds: list[type[Struct]] = [
        tasks.TaskRequest,
        inputs.MessageInput,
        inputs.ApprovalInput,
        links.LinkRequest,
        status.TaskLink,
        status.TaskAccepted,
        status.TaskRecord,
        status.TaskList,
        status.TaskCounts,
        tools.ToolList,
        pools.PoolLoad,
        pools.PoolList,
        usage.UsageReport,
        valves.PauseRequest,
        valves.LimitsRequest,
        valves.ValveList,
        valves.CancelRequest,
        valves.CancelAnswer,
        dead_letters.DeadLetterList,
        dead_letters.TaskDeadLetters,
        dead_letters.ReplayRequest,
        dead_letters.ReplayAccepted,
        dead_letters.ReplayPlan,
        status.Health,
        errors.Problem,
    ]
    found = components(kinds, _REF)
    found["TaskInput"] = {
        "title": "TaskInput",
        "description": "What a client says to a task that goes on, told apart by `kind`.",
        "oneOf": [ref(kind.__name__) for kind in (inputs.MessageInput, inputs.ApprovalInput)],
        "discriminator": {
            "propertyName": "kind",
            "mapping": {"message": ref("MessageInput")["$ref"], "approval": ref("ApprovalInput")["$ref"]},
        },
    }
    found["Problem"]["properties"]["code"]["enum"] = list(errors.HTTP_STATUS_BY_CODE)
    for schema in found.values():
        _tell_defaults(schema)
    # An older ingress leaves these out, which is nothing for whoever asks this one.
    accepted = found["TaskAccepted"]
    accepted["required"] = [name for name in accepted["properties"] if name not in ("link", "pause")]
    for name in ("tenant", "updated_at", "sequence"):
        accepted["properties"][name] = found["TaskRecord"]["properties"][name]
    return found


def _tell_defaults(schema: dict[str, Any]) -> None:
    """Say in words what an absent field means: generators take one with a `default` for one that is always there."""
    for field in schema.get("properties", {}).values():
        default = field.pop("default", None)
        if default is not None:
            text = default if isinstance(default, str) else json.dumps(default)
            field["description"] = f"{field.get('description', '')} Absent, it is `{text}`.".strip()


def security_schemes() -> dict[str, Any]:
    return {
        _BEARER: {
            "type": "http",
            "scheme": "bearer",
            "description": (
                "An API key, `tm_<id>_<secret>`, or a token (JWT) of the issuer that the mesh trusts. In mode `open`, "
                "on loopback addresses alone, nobody is asked for one."
            ),
        }
    }


def asking(scope: Scope, operation: dict[str, Any]) -> dict[str, Any]:
    """An operation that only callers with a scope may ask for."""
    responses = operation["responses"]
    refusals = {"401": "Problem401", "403": "Problem403", "429": "Problem429"}
    responses |= {number: {"$ref": f"#/components/responses/{name}"} for number, name in refusals.items()}
    return {
        **operation,
        "responses": dict(sorted(responses.items())),
        # Or nothing, in mode `open`.
        "security": [{_BEARER: [scope]}, {}],
        "x-taskmesh-scope": scope,
    }


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def parameter(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/parameters/{name}"}


def header(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/headers/{name}"}


def string(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": exact_pattern(pattern)}


def query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def in_header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema}


_HEADER_NAMES = {
    "Location": "Location",
    "PreferenceApplied": "Preference-Applied",
    "RateLimitPolicy": "RateLimit-Policy",
    "RateLimit": "RateLimit",
    "NoStore": "Cache-Control",
}


def json_answer(description: str, schema: str, headers: tuple[str, ...] = ()) -> dict[str, Any]:
    response: dict[str, Any] = {"description": description, "content": {JSON_TYPE: {"schema": ref(schema)}}}
    if headers:
        response["headers"] = {_HEADER_NAMES[name]: header(name) for name in headers}
    return response


def problems(*numbers: str) -> dict[str, Any]:
    """Problem documents for these statuses, and one for whatever else may go wrong."""
    found = {number: {"$ref": f"#/components/responses/Problem{number}"} for number in numbers}
    return {**found, "default": {"$ref": "#/components/responses/Problem"}}
