"""The HTTP API as an OpenAPI 3.1 document: operations by hand, over schemas that come from the wire types.

Two services share it. The ingress takes tasks and tells how they stand; the stream edge sends their events.
"""

from __future__ import annotations

from typing import Any

from contracts import VERSION
from contracts.generation.openapi_dead_letters import (
    drop_dead_letters,
    drop_malformed,
    list_dead_letters,
    read_dead_letters,
    read_malformed,
    replay_task,
    requeue_malformed,
)
from contracts.generation.openapi_links import make_link
from contracts.generation.openapi_parts import (
    asking,
    component_schemas,
    json_answer,
    parameters,
    problem_responses,
    problems,
    response_headers,
    security_schemes,
)
from contracts.generation.openapi_pools import list_pools, read_pool_load
from contracts.generation.openapi_tasks import (
    cancel_task,
    count_tasks,
    follow_task,
    list_tasks,
    list_tools,
    read_task,
    send_input,
    submit_task,
)
from contracts.generation.openapi_usage import read_usage
from contracts.generation.openapi_valves import (
    cancel_tasks,
    end_limits,
    limit_tenant,
    list_valves,
    open_valve,
    shut_valve,
)

INGRESS = {"url": "http://127.0.0.1:8080", "description": "Ingress (MESH_INGRESS_ADDRESS)"}
STREAM_EDGE = {"url": "http://127.0.0.1:8081", "description": "Stream edge (MESH_EDGE_ADDRESS)"}

_DESCRIPTION = """\
Submit AI tasks, ask how they stand, and follow their events.

Callers show an API key, or a token of the mesh's issuer, as `Authorization: Bearer`, where the mesh asks for one; each
operation says which scope it takes (`x-taskmesh-scope`). A task belongs to the tenant of whoever submits it: that of
the credentials, else the one named by `Mesh-Tenant`. Tasks of other tenants, and ids that can't be one, look like
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
        "security": [],
        "tags": [
            {"name": "tasks", "description": "What was asked for, and how it stands."},
            {"name": "tools", "description": "What models may call."},
            {"name": "pools", "description": "What takes tasks, and how loaded it is."},
            {"name": "valves", "description": "What operators pause, limit for a while, and let go on."},
            {"name": "usage", "description": "What was used, and what it cost."},
            {"name": "dead letters", "description": "Work that gave up: look at it, repair it, replay it."},
            {"name": "events", "description": "A task's journal as Server-Sent Events."},
            {"name": "health", "description": "For supervisors and load balancers."},
            {"name": "schema", "description": "This document."},
        ],
        "paths": {
            "/v1/tasks": {"post": asking("submit", submit_task()), "get": asking("read", list_tasks())},
            "/v1/tasks/counts": {"get": asking("read", count_tasks())},
            "/v1/tasks/cancel": {"post": asking("operate", cancel_tasks())},
            "/v1/tasks/{id}": {"get": asking("read", read_task())},
            "/v1/tasks/{id}/cancel": {"post": asking("submit", cancel_task())},
            "/v1/tasks/{id}/inputs": {"post": asking("answer", send_input())},
            "/v1/tasks/{id}/links": {"post": asking("read", make_link())},
            "/v1/tasks/{id}/events": {"servers": [STREAM_EDGE], "get": asking("read", follow_task())},
            "/v1/tools": {"get": asking("read", list_tools())},
            "/v1/pools": {"get": asking("read", list_pools())},
            "/v1/pools/{pool}/load": {"get": asking("operate", read_pool_load())},
            "/v1/valves": {"get": asking("operate", list_valves())},
            "/v1/valves/limits/{tenant}": {
                "put": asking("operate", limit_tenant()),
                "delete": asking("operate", end_limits()),
            },
            "/v1/valves/{kind}/{name}": {
                "put": asking("operate", shut_valve()),
                "delete": asking("operate", open_valve()),
            },
            "/v1/usage": {"get": asking("read", read_usage())},
            "/v1/dead-letters": {"get": asking("read", list_dead_letters())},
            "/v1/dead-letters/{id}": {
                "get": asking("read", read_dead_letters()),
                "delete": asking("operate", drop_dead_letters()),
            },
            "/v1/dead-letters/{id}/replay": {"post": asking("operate", replay_task())},
            "/v1/dead-letters/malformed/{record_sequence}": {
                "get": asking("read", read_malformed()),
                "delete": asking("operate", drop_malformed()),
            },
            "/v1/dead-letters/malformed/{record_sequence}/requeue": {"post": asking("operate", requeue_malformed())},
            "/health/live": {"servers": [INGRESS, STREAM_EDGE], "get": _live()},
            "/health/ready": {"servers": [INGRESS, STREAM_EDGE], "get": _ready()},
            "/schema": {"get": _schema()},
        },
        "components": {
            "parameters": parameters(),
            "headers": response_headers(),
            "responses": problem_responses(),
            "schemas": component_schemas(),
            "securitySchemes": security_schemes(),
        },
    }


# Operations


def _live() -> dict[str, Any]:
    return {
        "operationId": "checkLive",
        "tags": ["health"],
        "summary": "Whether the process answers",
        "responses": {"200": json_answer("It does.", "Health"), **problems()},
    }


def _ready() -> dict[str, Any]:
    return {
        "operationId": "checkReady",
        "tags": ["health"],
        "summary": "Whether the process can do its work",
        "responses": {
            "200": json_answer("Everything that it needs is well.", "Health"),
            "503": json_answer("Something is not: `checks` says what.", "Health"),
            **problems(),
        },
    }


def _schema() -> dict[str, Any]:
    content = {"application/vnd.oai.openapi+json": {"schema": {"type": "object"}}}
    return {
        "operationId": "getSchema",
        "tags": ["schema"],
        "summary": "This document",
        "responses": {"200": {"description": "OpenAPI 3.1.", "content": content}, **problems()},
    }
