"""The operations on pools, as the OpenAPI document has it."""

from __future__ import annotations

from typing import Any

from contracts import subjects
from contracts.generation.openapi_parts import json_answer, parameter, problems, string


def list_pools() -> dict[str, Any]:
    return {
        "operationId": "listPools",
        "tags": ["pools"],
        "summary": "See how all pools stand",
        "description": (
            "Every pool that the caller may use, on one page: what waits in each lane, how long tasks waited there, "
            "how fast it goes and when a task that comes now would begin; workers and places; breakers of providers; "
            "and the tenants' parts of what began of late. It costs the mesh nothing: it is what this ingress knows, a "
            "few seconds old. Other tenants are shown to those alone who may operate and name any tenant."
        ),
        "parameters": [parameter("Tenant")],
        "responses": {
            "200": json_answer("The pools.", "PoolList", headers=("NoStore",)),
            **problems("400", "503"),
        },
    }


def read_pool_load() -> dict[str, Any]:
    pool = {
        "name": "pool",
        "in": "path",
        "required": True,
        "description": "A pool's name.",
        "schema": string(subjects.LANE_NAME_PATTERN) | {"maxLength": 48},
    }
    return {
        "operationId": "getPoolLoad",
        "tags": ["pools"],
        "summary": "Read the load of a pool",
        "description": (
            "For whoever starts and stops workers, such as KEDA: what waits and what runs in each lane, the workers "
            "that live, with the places that they have, and how many workers would have a place for each turn. It is "
            "the same for each tenant, and at most a second old. Workers are those that told of themselves in the last "
            "45 s."
        ),
        "parameters": [pool, parameter("Tenant")],
        "responses": {
            "200": json_answer("The load of the pool.", "PoolLoad", headers=("NoStore",)),
            **problems("400", "404", "503"),
        },
    }
