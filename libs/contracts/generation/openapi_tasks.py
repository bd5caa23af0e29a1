"""The operations on tasks, and following one, as the OpenAPI document has them."""

from __future__ import annotations

from typing import Any

from contracts import subjects, tasks
from contracts.generation.openapi_parts import (
    JSON_TYPE,
    LIST_CURSOR_PATTERN,
    LIST_DEFAULT,
    LIST_MAX,
    METADATA_FILTERS_MAX,
    header,
    json_answer,
    parameter,
    problems,
    query,
    ref,
    string,
)
from contracts.records import status


def submit_task() -> dict[str, Any]:
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
        "parameters": [parameter(name) for name in ("Tenant", "IdempotencyKey", "Prefer", "Traceparent")],
        "requestBody": {
            "required": True,
            "description": f"At most {tasks.BODY_BYTES_MAX} bytes. Unknown fields are refused.",
            "content": {JSON_TYPE: {"schema": ref("TaskRequest")}},
        },
        "responses": {
            "200": json_answer(
                "The task ended while the client waited.", "TaskRecord", headers=("Location", "PreferenceApplied")
            ),
            "202": json_answer(
                "The task is accepted: it can't be lost any more.",
                "TaskAccepted",
                headers=("Location", "PreferenceApplied", "RateLimitPolicy", "RateLimit"),
            ),
            **problems("400", "404", "409", "413", "415", "422", "503"),
        },
    }


def list_tasks() -> dict[str, Any]:
    limit = {"type": "integer", "minimum": 1, "maximum": LIST_MAX, "default": LIST_DEFAULT}
    time = {"type": "string", "format": "date-time"}
    metadata = (
        "Only tasks whose metadata has this value under this key, as `metadata.order=42`. Several of these have all to "
        f"fit; {METADATA_FILTERS_MAX} at most. A text is compared as it is, a number or a truth value by its JSON: "
        '`42` finds 42 and "42".'
    )
    return {
        "operationId": "listTasks",
        "tags": ["tasks"],
        "summary": "List tasks",
        "description": (
            "The most recently changed first, by `updated_at`. A page may hold fewer tasks than `limit`, or none, and "
            "still have a `cursor`: the last page is the one whose cursor is null. A task that changes meanwhile moves "
            "to the front. Outputs are left out, and so is what waits for people where it is long: read the task for "
            "these. 503 `list-unavailable`: the index of the lists is still being built, or has no room; tasks are "
            "accepted all the same."
        ),
        "parameters": [
            parameter("Tenant"),
            query("status", {"type": "string", "enum": list(status.STATUSES)}, "Only tasks of this status."),
            query("since", time, "Only those that changed last at this time or later."),
            query("until", time, "Only those that changed last before this time."),
            query("metadata.<key>", {"type": "string"}, metadata),
            query("limit", limit, "Most tasks on a page."),
            query("cursor", string(LIST_CURSOR_PATTERN), "The `cursor` of the page before."),
        ],
        "responses": {
            "200": json_answer("A page of tasks.", "TaskList", headers=("NoStore",)),
            **problems("400", "503"),
        },
    }


def count_tasks() -> dict[str, Any]:
    return {
        "operationId": "countTasks",
        "tags": ["tasks"],
        "summary": "Count the tasks of each status",
        "description": "All of the tenant's, packed ones too. It costs the same however many there are.",
        "parameters": [parameter("Tenant")],
        "responses": {
            "200": json_answer("Each status, with the number of its tasks.", "TaskCounts", headers=("NoStore",)),
            **problems("400", "503"),
        },
    }


def list_tools() -> dict[str, Any]:
    limit = {"type": "integer", "minimum": 1, "maximum": LIST_MAX, "default": LIST_DEFAULT}
    name = string(subjects.LANE_NAME_PATTERN) | {"maxLength": 48}
    return {
        "operationId": "listTools",
        "tags": ["tools"],
        "summary": "List the tools that tasks may name",
        "description": (
            "Those that are served at present, by name: the mesh's own, and those of runners and MCP servers. "
            "`approval`, `idempotent` and `timeout_seconds` are as the operator's settings have them. They are the "
            "same for each tenant. A tool is missing from it ten minutes after its last runner has gone."
        ),
        "parameters": [
            parameter("Tenant"),
            query("limit", limit, "Most tools on a page. A page may have fewer, if they are large."),
            query("cursor", name, "The `cursor` of the page before."),
        ],
        "responses": {
            "200": json_answer("A page of tools.", "ToolList", headers=("NoStore",)),
            **problems("400", "503"),
        },
    }


def read_task() -> dict[str, Any]:
    return {
        "operationId": "getTask",
        "tags": ["tasks"],
        "summary": "Read how a task stands",
        "description": "Folded from the journal: never behind what has happened.",
        "parameters": [parameter("TaskId"), parameter("Tenant")],
        "responses": {
            "200": json_answer("The status record.", "TaskRecord", headers=("NoStore",)),
            **problems("400", "404", "503"),
        },
    }


def cancel_task() -> dict[str, Any]:
    return {
        "operationId": "cancelTask",
        "tags": ["tasks"],
        "summary": "Stop a task",
        "description": (
            "The task ends with `task.cancelled`, which carries the output so far, and soon after the answer: follow "
            "its events to see it. It may complete before that; then it stays completed. Twice is the same as once."
        ),
        "parameters": [parameter("TaskId"), parameter("Tenant")],
        "responses": {
            "200": json_answer("The task is over already: this is its record.", "TaskRecord", headers=("NoStore",)),
            "202": json_answer("It will be stopped. The record as it stands.", "TaskRecord", headers=("NoStore",)),
            **problems("400", "404", "503"),
        },
    }


def send_input() -> dict[str, Any]:
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
        "parameters": [parameter(name) for name in ("TaskId", "Tenant", "InputIdempotencyKey", "Traceparent")],
        "requestBody": {
            "required": True,
            "description": f"At most {tasks.BODY_BYTES_MAX} bytes. Unknown fields are refused.",
            "content": {JSON_TYPE: {"schema": ref("TaskInput")}},
        },
        "responses": {
            "202": json_answer("It will be carried out. The record as it stands.", "TaskRecord", headers=("NoStore",)),
            **problems("400", "404", "409", "413", "415", "422", "503"),
        },
    }


def follow_task() -> dict[str, Any]:
    after = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1, "default": 0}
    previews = "Also `output.preview`, without an id: what a model says while nothing can be stored."
    link = (
        "The token of a link (`POST /v1/tasks/{id}/links`): in place of all credentials, and for this task alone. 401 "
        "`link-expired` says that another one has to be asked for."
    )
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
            parameter("TaskId"),
            parameter("Tenant"),
            query("tenant", string(subjects.TENANT_PATTERN), tenant),
            query("after", after, "Sequence to go on after; 0 is the beginning. Last-Event-ID outranks it."),
            query("link", {"type": "string"}, link),
            query("previews", {"type": "boolean", "default": False}, previews),
            parameter("LastEventId"),
        ],
        "responses": {
            "200": {
                "description": "Frames, until the task has ended.",
                "headers": {"Cache-Control": header("NoStore"), "X-Accel-Buffering": header("NoBuffering")},
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            "204": {
                "description": "The cursor is at the task's end, or after it: nothing follows. Don't reconnect.",
                "headers": {"Cache-Control": header("NoStore")},
            },
            "307": {
                "description": "From the ingress: `Location` is the same at the stream edge.",
                "headers": {"Location": header("Location"), "Cache-Control": header("NoStore")},
            },
            **problems("400", "404", "503"),
        },
    }
