"""The operations on dead letters, as the OpenAPI document has them."""

from __future__ import annotations

from typing import Any

from contracts import subjects, tasks
from contracts.api import dead_letters
from contracts.generation.openapi_parts import (
    JSON_TYPE,
    LIST_CURSOR_PATTERN,
    LIST_DEFAULT,
    LIST_MAX,
    json_answer,
    parameter,
    problems,
    query,
    ref,
    string,
)


def list_dead_letters() -> dict[str, Any]:
    limit = {"type": "integer", "minimum": 1, "maximum": LIST_MAX, "default": LIST_DEFAULT}
    time = {"type": "string", "format": "date-time"}
    return {
        "operationId": "listDeadLetters",
        "tags": ["dead letters"],
        "summary": "List dead letters",
        "description": (
            "The newest first; those that are open, unless `all` is true. A page may hold fewer than `limit`, or none, "
            "and still have a `cursor`: the last page is the one whose cursor is null. One without `task` is a message "
            "that was no work, or fitted no journal. A dead letter that was replayed a moment ago may still be listed. "
            "503 `list-unavailable`: the index of the lists is still being built, or has no room."
        ),
        "parameters": [
            parameter("Tenant"),
            query("tool", string(subjects.LANE_NAME_PATTERN), "Only calls of this tool."),
            query("code", string(r"[\x21-\x7e]{1,128}"), "Only those whose last error has this code."),
            query("since", time, "Only those of this time or later."),
            query("until", time, "Only those before this time."),
            query("all", {"type": "boolean", "default": False}, "Also those that are not open any more."),
            query("limit", limit, "Most dead letters on a page."),
            query("cursor", string(LIST_CURSOR_PATTERN), "The `cursor` of the page before."),
        ],
        "responses": {
            "200": json_answer("A page of dead letters.", "DeadLetterList", headers=("NoStore",)),
            **problems("400", "503"),
        },
    }


def read_dead_letters() -> dict[str, Any]:
    return {
        "operationId": "getDeadLetters",
        "tags": ["dead letters"],
        "summary": "Read the dead letters of a task",
        "description": (
            f"What is open is folded from the journal. The records are in full: the newest "
            f"{dead_letters.RECORDS_SHOWN_MAX} of them, and no more than fit into "
            f"{dead_letters.RECORDS_SHOWN_BYTES_MAX // 1024 // 1024} MiB."
        ),
        "parameters": [parameter("TaskId"), parameter("Tenant")],
        "responses": {
            "200": json_answer("What is open, and the records.", "TaskDeadLetters", headers=("NoStore",)),
            **problems("400", "404", "503"),
        },
    }


def replay_task() -> dict[str, Any]:
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
        "parameters": [parameter(name) for name in ("TaskId", "Tenant", "Traceparent")],
        "requestBody": {
            "required": False,
            "description": f"At most {tasks.BODY_BYTES_MAX} bytes. Unknown fields are refused.",
            "content": {JSON_TYPE: {"schema": ref("ReplayRequest")}},
        },
        "responses": {
            "200": json_answer("What it would do.", "ReplayPlan", headers=("NoStore",)),
            "202": json_answer(
                "It will be carried out: these steps go on, with these gens.", "ReplayAccepted", headers=("NoStore",)
            ),
            **problems("400", "404", "409", "413", "415", "503"),
        },
    }


def drop_dead_letters() -> dict[str, Any]:
    return {
        "operationId": "dropDeadLetters",
        "tags": ["dead letters"],
        "summary": "Give up a task whose steps gave up",
        "description": (
            "The task ends with `task.cancelled`, which carries the output so far. The records stay as long as the "
            "task is kept, and are not open any more. Twice is the same as once."
        ),
        "parameters": [parameter("TaskId"), parameter("Tenant")],
        "responses": {
            "200": json_answer("The task is over already: this is its record.", "TaskRecord", headers=("NoStore",)),
            "202": json_answer("It will be given up. The record as it stands.", "TaskRecord", headers=("NoStore",)),
            **problems("400", "404", "409", "503"),
        },
    }


def read_malformed() -> dict[str, Any]:
    return {
        "operationId": "getMalformedDeadLetter",
        "tags": ["dead letters"],
        "summary": "Read the dead letter of a message that was no work",
        "parameters": [parameter("RecordSequence"), parameter("Tenant")],
        "responses": {
            "200": json_answer("The record in full.", "ShownDeadLetter", headers=("NoStore",)),
            **problems("400", "404", "503"),
        },
    }


def requeue_malformed() -> dict[str, Any]:
    return {
        "operationId": "requeueMalformedDeadLetter",
        "tags": ["dead letters"],
        "summary": "Put the message of a dead letter back",
        "description": (
            "For a message that nobody understood, once a process is there that does, such as one of a later version. "
            "It is published again on its own subject, and its record is deleted. A second time it is 404."
        ),
        "parameters": [parameter("RecordSequence"), parameter("Tenant")],
        "responses": {
            "200": json_answer("The record as it was.", "ShownDeadLetter", headers=("NoStore",)),
            **problems("400", "404", "409", "503"),
        },
    }


def drop_malformed() -> dict[str, Any]:
    return {
        "operationId": "dropMalformedDeadLetter",
        "tags": ["dead letters"],
        "summary": "Delete the dead letter of a message that was no work",
        "description": "It belongs to no task, so nothing else deletes it. A second time it is 404.",
        "parameters": [parameter("RecordSequence"), parameter("Tenant")],
        "responses": {
            "200": json_answer("The record as it was.", "ShownDeadLetter", headers=("NoStore",)),
            **problems("400", "404", "503"),
        },
    }
