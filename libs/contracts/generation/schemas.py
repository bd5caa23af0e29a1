"""JSON Schemas (2020-12) of the wire types, each a document that needs no other."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from contracts import access, errors, links, tasks
from contracts.api import dead_letters, inputs
from contracts.api import valves as api_valves
from contracts.journal import edge_events, events
from contracts.messages import acts, control, notifications, reloading, work
from contracts.records import archive, backlog, budgets, orders, pace, providers, speeds, status, storage, tools, valves
from contracts.triggers import rules

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ID_PREFIX = "urn:taskmesh:schema:"

STREAMED_EVENT_TYPES: tuple[type[msgspec.Struct], ...] = (
    *events.EVENT_TYPES,
    edge_events.StreamGap,
    edge_events.Snapshot,
    edge_events.OutputPreview,
)
"""Whatever a client may receive: what is stored, and the three that only the stream edge sends."""

_RECORDS: dict[str, type[msgspec.Struct]] = {
    "work.turn": work.TurnWork,
    "work.tool": work.ToolWork,
    "control.cancel": control.CancelCommand,
    "control.input": control.InputCommand,
    "control.approval": control.ApprovalCommand,
    "control.child_done": control.ChildDoneCommand,
    "control.replay": control.ReplayCommand,
    "control.retry": control.RetryCommand,
    "control.deadline": control.DeadlineCommand,
    "control.room": control.RoomCommand,
    "hold": control.Hold,
    "tool_declaration": tools.ToolDeclaration,
    "trigger_rule": rules.TriggerRule,
    "dead_letter": work.DeadLetter,
    "dead_letter_list": dead_letters.DeadLetterList,
    "task_dead_letters": dead_letters.TaskDeadLetters,
    "replay_request": dead_letters.ReplayRequest,
    "replay_accepted": dead_letters.ReplayAccepted,
    "replay_plan": dead_letters.ReplayPlan,
    "task_request": tasks.TaskRequest,
    "task_input.message": inputs.MessageInput,
    "task_input.approval": inputs.ApprovalInput,
    "task_accepted": status.TaskAccepted,
    "task_record": status.TaskRecord,
    "task_list": status.TaskList,
    "task_counts": status.TaskCounts,
    "tool_list": tools.ToolList,
    "lane_statistics": status.LaneStatistics,
    "lane_sample": status.LaneSample,
    "backlog_record": backlog.BacklogRecord,
    "worker_record": status.WorkerRecord,
    "drain_order": orders.DrainOrder,
    "drain_answer": orders.DrainAnswer,
    "webhook": notifications.Notification,
    "packed_task": archive.PackedTask,
    "pack_directory": archive.PackDirectory,
    "store_room": storage.StoreRoom,
    "storage_samples": storage.StorageSamples,
    "reload_order": reloading.ReloadOrder,
    "reload_answer": reloading.ReloadAnswer,
    "operator_act": acts.OperatorAct,
    "key_record": access.KeyRecord,
    "link_keys": links.LinkKeys,
    "task_link": status.TaskLink,
    "provider_record": providers.ProviderRecord,
    "budget_account": budgets.BudgetAccount,
    "pace_record": pace.PaceRecord,
    "speed_sample": speeds.SpeedSample,
    "valve": valves.Valve,
    "tenant_limits": valves.TenantLimits,
    "pause_request": api_valves.PauseRequest,
    "limits_request": api_valves.LimitsRequest,
    "valve_list": api_valves.ValveList,
    "cancel_request": api_valves.CancelRequest,
    "cancel_answer": api_valves.CancelAnswer,
    "problem": errors.Problem,
    "health": status.Health,
}


def named_types() -> dict[str, type[msgspec.Struct]]:
    """Schema name → type: an event by its wire type, the rest by its noun."""
    by_wire_type = {str(kind.__struct_config__.tag): kind for kind in STREAMED_EVENT_TYPES}
    return by_wire_type | _RECORDS


def schemas() -> dict[str, dict[str, Any]]:
    """Every schema by name; `event` is any event that this version knows."""
    documents = {name: _document(name, kind) for name, kind in named_types().items()}
    return documents | {"event": _event_document()}


def components(kinds: list[type[msgspec.Struct]], ref_template: str) -> dict[str, dict[str, Any]]:
    """Schemas of these types and of all that they hold, by class name, sorted."""
    _, found = msgspec.json.schema_components(kinds, ref_template=ref_template)
    return {name: _portable(found[name]) for name in sorted(found)}


def exact_pattern(pattern: str) -> str:
    """A pattern that all of a string must match, as JSON Schema writes it."""
    return f"^{pattern}$"


def _document(name: str, kind: type[msgspec.Struct]) -> dict[str, Any]:
    definitions = components([kind], "#/$defs/{name}")
    document = {"$schema": DIALECT, "$id": ID_PREFIX + name, **definitions.pop(kind.__name__)}
    return {**document, "$defs": definitions} if definitions else document


def _event_document() -> dict[str, Any]:
    return {
        "$schema": DIALECT,
        "$id": ID_PREFIX + "event",
        "title": "Event",
        "description": (
            "Any event of this version, told apart by `type`; stream.gap, snapshot and output.preview are sent by the "
            "edge and never stored. Later versions add types: a reader skips those that it doesn't know."
        ),
        "oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in STREAMED_EVENT_TYPES],
        "$defs": components(list(STREAMED_EVENT_TYPES), "#/$defs/{name}"),
    }


def _portable(schema: Any) -> Any:
    """What msgspec says, in the words of other languages: "$" for Python's "\\Z", docstrings without their indent.

    An optional field may be null everywhere (PROTOCOL.md, section 5), whatever its type in Python.
    """
    if isinstance(schema, list):
        return [_portable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    portable: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "pattern" and isinstance(value, str):
            portable[key] = exact_pattern(value.removeprefix("^").removesuffix(r"\Z"))
        elif key == "description" and isinstance(value, str):
            portable[key] = inspect.cleandoc(value)
        elif key == "properties":
            required = schema.get("required", [])
            portable[key] = {
                name: _portable(of) if name in required else _nullable(_portable(of)) for name, of in value.items()
            }
        else:
            portable[key] = _portable(value)
    if all(isinstance(word, str) for word in portable.get("enum", [0])):
        # It goes without saying, and generators that are not told make it anything.
        portable.setdefault("type", "string")
    return portable


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that null fits, too."""
    null = {"type": "null"}
    either: list[Any] = schema.get("anyOf", [])
    if not schema or schema == null or null in either:
        return schema
    annotations = {key: value for key, value in schema.items() if key in ("default", "description", "title")}
    own = {key: value for key, value in schema.items() if key not in annotations}
    return {"anyOf": [*either, null] if own == {"anyOf": either} else [own, null], **annotations}
