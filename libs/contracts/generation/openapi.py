"""The HTTP API as an OpenAPI 3.1 document: operations by hand, over schemas that come from the wire types.

Two services share it. The ingress takes tasks and tells how they stand; the stream edge sends their events.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from contracts import VERSION, errors, headers, subjects, tasks
from contracts.api import dead_letters, inputs
from contracts.generation.schemas import components, exact_pattern
from contracts.records import status

LIST_DEFAULT = 50
LIST_MAX = 100
CURSOR_PATTERN = "[0-9]{1,18}"
IDEMPOTENCY_KEY_PATTERN = r"[\x20-\x7e]+"

INGRESS = {"url": "http://127.0.0.1:8080", "description": "Ingress (MESH_INGRESS_ADDRESS)"}
STREAM_EDGE = {"url": "http://127.0.0.1:8081", "description": "Stream edge (MESH_EDGE_ADDRESS)"}

_JSON = "application/json"
_REF = "#/components/schemas/{name}"
_DESCRIPTION = """\
Submit AI tasks, ask how they stand, and follow their events.

A task belongs to the tenant named by `Mesh-Tenant`. Tasks of other tenants, and ids that can't be one, look like
tasks that do not exist. Readers ignore fields that they don't know; answers only gain fields. Every error is a
problem document (RFC 9457) whose `code` is stable: match that, never the text.
"""


def openapi() -> dict[str, Any]:
    """The whole document. A new one at each call."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "taskmesh",
            "version": VERSION,
            "summary": "Durable AI tasks over NATS JetStream",
            "description": _DESCRIPTION,
        },
        "servers": [INGRESS],
        "tags": [
            {"name": "tasks", "description": "What was asked for, and how it stands."},
            {"name": "dead letters", "description": "Work that gave up: look at it, repair it, replay it."},
            {"name": "events", "description": "A task's journal as Server-Sent Events."},
            {"name": "health", "description": "For supervisors and load balancers."},
            {"name": "schema", "description": "This document."},
        ],
        "paths": {
            "/v1/tasks": {"post": _submit(), "get": _list()},
            "/v1/tasks/{id}": {"get": _read()},
            "/v1/tasks/{id}/cancel": {"post": _cancel()},
            "/v1/tasks/{id}/inputs": {"post": _send_input()},
            "/v1/tasks/{id}/events": {"servers": [STREAM_EDGE], "get": _follow()},
            "/v1/dead-letters": {"get": _list_dead_letters()},
            "/v1/dead-letters/{id}": {"get": _read_dead_letters(), "delete": _drop_dead_letters()},
            "/v1/dead-letters/{id}/replay": {"post": _replay()},
            "/v1/dead-letters/malformed/{record_sequence}": {"get": _read_malformed(), "delete": _drop_malformed()},
            "/health/live": {"servers": [INGRESS, STREAM_EDGE], "get": _live()},
            "/health/ready": {"servers": [INGRESS, STREAM_EDGE], "get": _ready()},
            "/schema": {"get": _schema()},
        },
        "components": {
            "parameters": _parameters(),
            "headers": _response_headers(),
            "responses": _problem_responses(),
            "schemas": _component_schemas(),
        },
    }


# Operations


def _submit() -> dict[str, Any]:
    return {
        "operationId": "submitTask",
        "tags": ["tasks"],
        "summary": "Submit a task",
        "description": (
            "Answers as soon as the task can't be lost. The same Idempotency-Key with the same request is the same "
            "task, and 202 again; with another request it is 422. Without an answer nobody knows whether the task "
            "exists: repeat the request with the same key. With `Prefer: wait=N` the task queues all the same, and "
            "the answer is 200 with its record if it ends within N seconds, else 202. `continues` names an ended task "
            "of the tenant, whose conversation goes on: 404 if there is none, 409 while it has not ended."
        ),
        "parameters": [_parameter(name) for name in ("Tenant", "IdempotencyKey", "Prefer", "Traceparent")],
        "requestBody": {
            "required": True,
            "description": f"At most {tasks.BODY_BYTES_MAX} bytes. Unknown fields are refused.",
            "content": {_JSON: {"schema": _ref("TaskRequest")}},
        },
        "responses": {
            "200": _json(
                "The task ended while the client waited.", "TaskRecord", headers=("Location", "PreferenceApplied")
            ),
            "202": _json("The task is accepted: it can't be lost any more.", "TaskAccepted", headers=("Location",)),
            **_problems("400", "404", "409", "413", "415", "422", "503"),
        },
    }


def _list() -> dict[str, Any]:
    limit = {"type": "integer", "minimum": 1, "maximum": LIST_MAX, "default": LIST_DEFAULT}
    return {
        "operationId": "listTasks",
        "tags": ["tasks"],
        "summary": "List tasks",
        "description": (
            "The most recently changed first. A page may hold fewer tasks than `limit`, or none, and still have a "
            "`cursor`: the last page is the one whose cursor is null. A task that changes meanwhile moves to the front."
        ),
        "parameters": [
            _parameter("Tenant"),
            _query("status", {"enum": list(status.STATUSES)}, "Only tasks of this status."),
            _query("limit", limit, "Most tasks on a page."),
            _query("cursor", _string(CURSOR_PATTERN), "The `cursor` of the page before."),
        ],
        "responses": {"200": _json("A page of tasks.", "TaskList", headers=("NoStore",)), **_problems("400", "503")},
    }


def _read() -> dict[str, Any]:
    return {
        "operationId": "getTask",
        "tags": ["tasks"],
        "summary": "Read how a task stands",
        "description": "Folded from the journal: never behind what has happened.",
        "parameters": [_parameter("TaskId"), _parameter("Tenant")],
        "responses": {
            "200": _json("The status record.", "TaskRecord", headers=("NoStore",)),
            **_problems("400", "404", "503"),
        },
    }


def _cancel() -> dict[str, Any]:
    return {
        "operationId": "cancelTask",
        "tags": ["tasks"],
        "summary": "Stop a task",
        "description": (
            "The task ends with `task.cancelled`, which carries the output so far, and soon after the answer: follow "
            "its events to see it. It may complete before that; then it stays completed. Twice is the same as once."
        ),
        "parameters": [_parameter("TaskId"), _parameter("Tenant")],
        "responses": {
            "200": _json("The task is over already: this is its record.", "TaskRecord", headers=("NoStore",)),
            "202": _json("It will be stopped. The record as it stands.", "TaskRecord", headers=("NoStore",)),
            **_problems("400", "404", "503"),
        },
    }


def _send_input() -> dict[str, Any]:
    return {
        "operationId": "sendInput",
        "tags": ["tasks"],
        "summary": "Say something to a task: a message, an answer, or a decision on a call",
        "description": (
            "202 means that it can't be lost; the journal decides what comes of it, soon after the answer: follow the "
            "task's events to see it. Between the answer and that the task may end, or somebody else may decide on "
            "the call: the first one counts. A message is one for each request, unless the same Idempotency-Key makes "
            "two of them one. A decision is one for each call, with a key or without."
        ),
        "parameters": [_parameter(name) for name in ("TaskId", "Tenant", "InputIdempotencyKey", "Traceparent")],
        "requestBody": {
            "required": True,
            "description": f"At most {tasks.BODY_BYTES_MAX} bytes. Unknown fields are refused.",
            "content": {_JSON: {"schema": _ref("TaskInput")}},
        },
        "responses": {
            "202": _json("It will be carried out. The record as it stands.", "TaskRecord", headers=("NoStore",)),
            **_problems("400", "404", "409", "413", "415", "422", "503"),
        },
    }


def _list_dead_letters() -> dict[str, Any]:
    limit = {"type": "integer", "minimum": 1, "maximum": LIST_MAX, "default": LIST_DEFAULT}
    time = {"type": "string", "format": "date-time"}
    return {
        "operationId": "listDeadLetters",
        "tags": ["dead letters"],
        "summary": "List dead letters",
        "description": (
            "The newest first; those that are open, unless `all` is true. A page may hold fewer than `limit`, or none, "
            "and still have a `cursor`: the last page is the one whose cursor is null. One without `task` is a message "
            "that was no work, or fitted no journal. A dead letter that was replayed a moment ago may still be listed."
        ),
        "parameters": [
            _parameter("Tenant"),
            _query("tool", _string(subjects.LANE_NAME_PATTERN), "Only calls of this tool."),
            _query("code", _string(r"[\x21-\x7e]{1,128}"), "Only those whose last error has this code."),
            _query("since", time, "Only those of this time or later."),
            _query("until", time, "Only those before this time."),
            _query("all", {"type": "boolean", "default": False}, "Also those that are not open any more."),
            _query("limit", limit, "Most dead letters on a page."),
            _query("cursor", _string(CURSOR_PATTERN), "The `cursor` of the page before."),
        ],
        "responses": {
            "200": _json("A page of dead letters.", "DeadLetterList", headers=("NoStore",)),
            **_problems("400", "503"),
        },
    }


def _read_dead_letters() -> dict[str, Any]:
    return {
        "operationId": "getDeadLetters",
        "tags": ["dead letters"],
        "summary": "Read the dead letters of a task",
        "description": (
            f"What is open is folded from the journal. The records are in full: the newest "
            f"{dead_letters.RECORDS_SHOWN_MAX} of them, and no more than fit into "
            f"{dead_letters.RECORDS_SHOWN_BYTES_MAX // 1024 // 1024} MiB."
        ),
        "parameters": [_parameter("TaskId"), _parameter("Tenant")],
        "responses": {
            "200": _json("What is open, and the records.", "TaskDeadLetters", headers=("NoStore",)),
            **_problems("400", "404", "503"),
        },
    }


def _replay() -> dict[str, Any]:
    return {
        "operationId": "replayDeadLetters",
        "tags": ["dead letters"],
        "summary": "Go on with a task whose steps gave up",
        "description": (
            "The task goes on in the same journal, soon after the answer: who follows its events sees it. Without a "
            "body all that is open is replayed as it was. Edits are checked first, the arguments of a call against "
            "what its tool declares: what does not fit is 400, and nothing has changed. Twice is the same as once, if "
            "`steps` names the dead letters; with other edits it is 409. With `dry_run` the answer is 200 with what "
            "would be done, and nothing is."
        ),
        "parameters": [_parameter(name) for name in ("TaskId", "Tenant", "Traceparent")],
        "requestBody": {
            "required": False,
            "description": f"At most {tasks.BODY_BYTES_MAX} bytes. Unknown fields are refused.",
            "content": {_JSON: {"schema": _ref("ReplayRequest")}},
        },
        "responses": {
            "200": _json("What it would do.", "ReplayPlan", headers=("NoStore",)),
            "202": _json(
                "It will be carried out: these steps go on, with these gens.", "ReplayAccepted", headers=("NoStore",)
            ),
            **_problems("400", "404", "409", "413", "415", "503"),
        },
    }


def _drop_dead_letters() -> dict[str, Any]:
    return {
        "operationId": "dropDeadLetters",
        "tags": ["dead letters"],
        "summary": "Give up a task whose steps gave up",
        "description": (
            "The task ends with `task.cancelled`, which carries the output so far. The records stay as long as the "
            "task is kept, and are not open any more. Twice is the same as once."
        ),
        "parameters": [_parameter("TaskId"), _parameter("Tenant")],
        "responses": {
            "200": _json("The task is over already: this is its record.", "TaskRecord", headers=("NoStore",)),
            "202": _json("It will be given up. The record as it stands.", "TaskRecord", headers=("NoStore",)),
            **_problems("400", "404", "409", "503"),
        },
    }


def _read_malformed() -> dict[str, Any]:
    return {
        "operationId": "getMalformedDeadLetter",
        "tags": ["dead letters"],
        "summary": "Read the dead letter of a message that was no work",
        "parameters": [_parameter("RecordSequence"), _parameter("Tenant")],
        "responses": {
            "200": _json("The record in full.", "ShownDeadLetter", headers=("NoStore",)),
            **_problems("400", "404", "503"),
        },
    }


def _drop_malformed() -> dict[str, Any]:
    return {
        "operationId": "dropMalformedDeadLetter",
        "tags": ["dead letters"],
        "summary": "Delete the dead letter of a message that was no work",
        "description": "It belongs to no task, so nothing else deletes it. A second time it is 404.",
        "parameters": [_parameter("RecordSequence"), _parameter("Tenant")],
        "responses": {
            "200": _json("The record as it was.", "ShownDeadLetter", headers=("NoStore",)),
            **_problems("400", "404", "503"),
        },
    }


def _follow() -> dict[str, Any]:
    after = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1, "default": 0}
    tenant = "As the header Mesh-Tenant, for clients that can't set one; the header outranks it."
    return {
        "operationId": "followTask",
        "tags": ["events"],
        "summary": "Follow a task's events",
        "description": (
            "The journal from its beginning, or from after a cursor, and then each event as it is stored. A frame's "
            "`id` is the event's stream sequence and the cursor after it, `event` its type, `data` the event as JSON "
            "(spec/schemas/event.json). The stream ends after the task's terminal event. Where events can't be "
            "delivered any more there is `stream.gap`, without an id, and then `snapshot`. Comments keep an idle "
            "connection open. A client that reconnects with `Last-Event-ID` misses nothing and gets nothing twice."
        ),
        "parameters": [
            _parameter("TaskId"),
            _parameter("Tenant"),
            _query("tenant", _string(subjects.TENANT_PATTERN), tenant),
            _query("after", after, "Sequence to go on after; 0 is the beginning. Last-Event-ID outranks it."),
            _parameter("LastEventId"),
        ],
        "responses": {
            "200": {
                "description": "Frames, until the task has ended.",
                "headers": {"Cache-Control": _header("NoStore"), "X-Accel-Buffering": _header("NoBuffering")},
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            "204": {
                "description": "The cursor is at the task's end, or after it: nothing follows. Don't reconnect.",
                "headers": {"Cache-Control": _header("NoStore")},
            },
            **_problems("400", "404", "429", "503"),
        },
    }


def _live() -> dict[str, Any]:
    return {
        "operationId": "checkLive",
        "tags": ["health"],
        "summary": "Whether the process answers",
        "responses": {"200": _json("It does.", "Health"), **_problems()},
    }


def _ready() -> dict[str, Any]:
    return {
        "operationId": "checkReady",
        "tags": ["health"],
        "summary": "Whether the process can do its work",
        "responses": {
            "200": _json("Everything that it needs is well.", "Health"),
            "503": _json("Something is not: `checks` says what.", "Health"),
            **_problems(),
        },
    }


def _schema() -> dict[str, Any]:
    content = {"application/vnd.oai.openapi+json": {"schema": {"type": "object"}}}
    return {
        "operationId": "getSchema",
        "tags": ["schema"],
        "summary": "This document",
        "responses": {"200": {"description": "OpenAPI 3.1.", "content": content}, **_problems()},
    }


# Components


def _parameters() -> dict[str, Any]:
    wait = f"`wait=N` (RFC 7240): wait up to N seconds for the end; more than {tasks.WAIT_SECONDS_MAX} count as that."
    tenant = {**_string(subjects.TENANT_PATTERN), "default": "default"}
    key = {**_string(IDEMPOTENCY_KEY_PATTERN), "maxLength": tasks.IDEMPOTENCY_KEY_CHARACTERS_MAX}
    return {
        "TaskId": {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "A task's id. What can't be one is answered as what does not exist.",
            "schema": _string(subjects.TASK_PATTERN),
        },
        "RecordSequence": {
            "name": "record_sequence",
            "in": "path",
            "required": True,
            "description": "The stream sequence of the record in DEAD_LETTERS, as the list says.",
            "schema": _string("[1-9][0-9]{0,17}"),
        },
        "Tenant": _in_header(headers.HTTP_TENANT, tenant, "Whose tasks these are."),
        "IdempotencyKey": _in_header(
            headers.HTTP_IDEMPOTENCY_KEY, key, "Makes repeating the request safe: one key is one task of the tenant."
        ),
        "InputIdempotencyKey": _in_header(
            headers.HTTP_IDEMPOTENCY_KEY, key, "Makes repeating a message safe: one key is one message to the task."
        ),
        "Prefer": _in_header(headers.HTTP_PREFER, {"type": "string", "examples": ["wait=30"]}, wait),
        "Traceparent": _in_header(
            headers.TRACEPARENT, {"type": "string"}, "W3C trace context, carried into every step of the task."
        ),
        "LastEventId": _in_header(
            headers.HTTP_LAST_EVENT_ID,
            _string(CURSOR_PATTERN),
            "Sequence to go on after: the id of the last frame received. A browser sends it by itself.",
        ),
    }


def _response_headers() -> dict[str, Any]:
    return {
        "Location": {"description": "Path of the task.", "schema": {"type": "string"}},
        "PreferenceApplied": {"description": "The wait that was granted.", "schema": {"type": "string"}},
        "RetryAfter": {
            "description": "Whole seconds after which another try has a fair chance.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "NoStore": {"description": "Answers of a moment are not cached.", "schema": {"const": "no-store"}},
        "NoBuffering": {"description": "Tells proxies not to gather frames.", "schema": {"const": "no"}},
    }


def _problem_responses() -> dict[str, Any]:
    codes_by_status: dict[int, list[str]] = {}
    for code, number in errors.HTTP_STATUS_BY_CODE.items():
        codes_by_status.setdefault(number, []).append(code)
    responses = {}
    for number, codes in sorted(codes_by_status.items()):
        text = "; ".join(f"`{code}`: {errors.TITLE_BY_CODE[code]}" for code in codes)
        response = _problem_response(f"{text}.")
        if number in (429, 503):
            response["headers"] = {"Retry-After": _header("RetryAfter")}
        responses[f"Problem{number}"] = response
    return {**responses, "Problem": _problem_response("Any other error.")}


def _problem_response(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/problem+json": {"schema": _ref("Problem")}}}


def _component_schemas() -> dict[str, Any]:
    kinds: list[type[Struct]] = [
        tasks.TaskRequest,
        inputs.MessageInput,
        inputs.ApprovalInput,
        status.TaskAccepted,
        status.TaskRecord,
        status.TaskList,
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
        "oneOf": [_ref(kind.__name__) for kind in (inputs.MessageInput, inputs.ApprovalInput)],
        "discriminator": {
            "propertyName": "kind",
            "mapping": {"message": _ref("MessageInput")["$ref"], "approval": _ref("ApprovalInput")["$ref"]},
        },
    }
    found["Problem"]["properties"]["code"]["enum"] = list(errors.HTTP_STATUS_BY_CODE)
    return found


# Parts


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/parameters/{name}"}


def _header(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/headers/{name}"}


def _string(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": exact_pattern(pattern)}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _in_header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema}


_HEADER_NAMES = {
    "Location": "Location",
    "PreferenceApplied": "Preference-Applied",
    "NoStore": "Cache-Control",
}


def _json(description: str, schema: str, headers: tuple[str, ...] = ()) -> dict[str, Any]:
    response: dict[str, Any] = {"description": description, "content": {_JSON: {"schema": _ref(schema)}}}
    if headers:
        response["headers"] = {_HEADER_NAMES[name]: _header(name) for name in headers}
    return response


def _problems(*numbers: str) -> dict[str, Any]:
    """Problem documents for these statuses, and one for whatever else may go wrong."""
    found = {number: {"$ref": f"#/components/responses/Problem{number}"} for number in numbers}
    return {**found, "default": {"$ref": "#/components/responses/Problem"}}
