"""The generated files: committed as they are rendered, and any drift is found."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts import declarations, errors, headers, retries, streams
from contracts.api import sse
from contracts.generate import (
    ACCOUNTS,
    FOLDERS,
    OPENAPI,
    REPOSITORY,
    SCHEMAS,
    STREAM_CONFIGURATIONS,
    main,
    render,
)
from contracts.generation import accounts, schemas
from contracts.generation.files import Drift, compare
from contracts.generation.openapi import openapi
from contracts.generation.openapi_parts import LIST_DEFAULT, LIST_MAX
from contracts.journal.events import EVENT_TYPES, Event
from contracts.tasks import TaskRequest
from ingress import parsing

PROTOCOL = REPOSITORY / "libs" / "contracts" / "spec" / "PROTOCOL.md"
COMMON_FIELDS = set(Event.__struct_fields__)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of all generated files."""
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    for path in (OPENAPI, *(f"{ACCOUNTS}/{name}" for name in accounts.files())):
        (tmp_path / path).write_bytes((REPOSITORY / path).read_bytes())
    return tmp_path


def test_the_committed_files_are_what_is_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_rendering_twice_gives_the_same() -> None:
    assert render() == render()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_changed_file_is_found_and_written_again(folder: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = sorted((copy / folder).glob("*.json"))[0]
    text = changed.read_text(encoding="utf-8")
    changed.write_text(text.replace("{", "{ ", 1), encoding="utf-8")
    path = changed.relative_to(copy).as_posix()
    assert main(["--check"], copy) == 1
    assert capsys.readouterr().out == f"drifted: {path}\n"
    assert changed.read_text(encoding="utf-8") != text, "--check writes nothing"
    assert main([], copy) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert changed.read_text(encoding="utf-8") == text
    assert main(["--check"], copy) == 0


def test_a_missing_file_is_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / OPENAPI).unlink()
    (copy / SCHEMAS / "task.queued.json").unlink()
    assert main(["--check"], copy) == 1
    assert capsys.readouterr().out == f"missing: {OPENAPI}\nmissing: {SCHEMAS}/task.queued.json\n"
    assert main([], copy) == 0
    assert main(["--check"], copy) == 0


@pytest.mark.parametrize("name", accounts.files())
def test_a_list_of_rights_that_has_drifted_is_found(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also by hand: a right that somebody adds there would be one that no declaration asks for."""
    changed = copy / ACCOUNTS / name
    changed.write_text(changed.read_text(encoding="utf-8").replace("tasks.*.*.*", "tasks.>", 1), encoding="utf-8")
    assert main(["--check"], copy) == 1
    assert capsys.readouterr().out == f"drifted: {ACCOUNTS}/{name}\n"


def test_a_superfluous_file_is_found_and_deleted(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A type that was renamed leaves a file behind. What is no JSON is none of the generator's business."""
    extra = copy / STREAM_CONFIGURATIONS / "OLD.json"
    extra.write_text("{}\n", encoding="utf-8")
    notes = copy / STREAM_CONFIGURATIONS / "README.md"
    notes.write_text("mine\n", encoding="utf-8")
    assert main(["--check"], copy) == 1
    assert capsys.readouterr().out == f"superfluous: {STREAM_CONFIGURATIONS}/OLD.json\n"
    assert main([], copy) == 0
    assert not extra.exists()
    assert notes.exists()


def test_everything_is_written_into_an_empty_folder(tmp_path: Path) -> None:
    assert main(["--check"], tmp_path) == 1
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0


def test_line_ends_of_a_checkout_are_no_drift(copy: Path) -> None:
    path = copy / OPENAPI
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert main(["--check"], copy) == 0


def test_the_three_kinds_of_drift() -> None:
    assert compare({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == [
        Drift("a", "missing"),
        Drift("b", "drifted"),
        Drift("c", "superfluous"),
    ]


# The schemas


def documents() -> dict[str, dict[str, Any]]:
    """Every schema by name."""
    return schemas.schemas()


@pytest.mark.parametrize("name", documents())
def test_a_schema_needs_no_other(name: str) -> None:
    document = documents()[name]
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert document["$id"] == f"urn:taskmesh:schema:{name}"
    assert document["title"]
    assert document["description"]
    references = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)))
    assert references == {f"#/$defs/{definition}" for definition in document.get("$defs", {})}


def test_every_type_of_the_wire_has_a_schema_of_its_name() -> None:
    names = set(documents())
    assert {str(kind.__struct_config__.tag) for kind in EVENT_TYPES} < names
    assert names > {
        "stream.gap",
        "snapshot",
        "output.preview",
        "event",
        "work.turn",
        "work.tool",
        "dead_letter",
        "task_request",
    }
    assert len(documents()["event"]["oneOf"]) == len(EVENT_TYPES) + 3


def test_only_requests_refuse_unknown_fields() -> None:
    for document in documents().values():
        definitions = {document["title"]: document, **document.get("$defs", {})}
        closed = {name for name, definition in definitions.items() if definition.get("additionalProperties") is False}
        requests_and_rules = {
            "ApprovalInput",
            "CancelRequest",
            "Condition",
            "Edits",
            "LimitsRequest",
            "Message",
            "MessageInput",
            "PauseRequest",
            "ReplayRequest",
            "TaskRequest",
            "TriggerRule",
            "TriggerSource",
        }
        assert closed == requests_and_rules & set(definitions)


def test_patterns_are_written_for_every_language() -> None:
    patterns = re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', "".join(render().values()))
    assert patterns
    for pattern in patterns:
        assert pattern.startswith("^")
        assert pattern.endswith("$")
        assert r"\Z" not in pattern


# The HTTP API


def test_the_api_is_what_this_version_serves() -> None:
    operations = {
        f"{method} {path}" for path, item in openapi()["paths"].items() for method in item if method != "servers"
    }
    assert operations == {
        "post /v1/tasks",
        "get /v1/tasks",
        "get /v1/tasks/counts",
        "get /v1/tools",
        "get /v1/pools",
        "get /v1/pools/{pool}/load",
        "get /v1/usage",
        "get /v1/tasks/{id}",
        "post /v1/tasks/{id}/cancel",
        "post /v1/tasks/{id}/inputs",
        "post /v1/tasks/{id}/links",
        "get /v1/tasks/{id}/events",
        "get /v1/dead-letters",
        "get /v1/dead-letters/{id}",
        "delete /v1/dead-letters/{id}",
        "post /v1/dead-letters/{id}/replay",
        "get /v1/dead-letters/malformed/{record_sequence}",
        "delete /v1/dead-letters/malformed/{record_sequence}",
        "post /v1/dead-letters/malformed/{record_sequence}/requeue",
        "get /v1/valves",
        "put /v1/valves/limits/{tenant}",
        "delete /v1/valves/limits/{tenant}",
        "put /v1/valves/{kind}/{name}",
        "delete /v1/valves/{kind}/{name}",
        "post /v1/tasks/cancel",
        "get /health/live",
        "get /health/ready",
        "get /schema",
    }


def test_references_of_the_api_lead_somewhere() -> None:
    document = openapi()
    for reference in set(re.findall(r'"\$ref": "#/([^"]*)"', json.dumps(document))):
        target: Any = document
        for key in reference.split("/"):
            target = target[key]
        assert target


def test_the_api_says_every_field_of_a_request() -> None:
    properties = openapi()["components"]["schemas"]["TaskRequest"]["properties"]
    assert set(properties) == {field.encode_name for field in msgspec.structs.fields(TaskRequest)}


def test_the_api_says_what_the_services_do() -> None:
    assert parsing.parse_limit(None) == LIST_DEFAULT
    assert parsing.parse_limit(str(LIST_MAX)) == LIST_MAX
    with pytest.raises(errors.InvalidPayload, match="limit"):
        parsing.parse_limit(str(LIST_MAX + 1))


def test_every_document_of_the_api_is_a_new_one() -> None:
    document = openapi()
    document["paths"].clear()
    document["components"]["schemas"].clear()
    assert openapi()["paths"]
    assert openapi()["components"]["schemas"]


# The prose


def protocol() -> str:
    """The normative text."""
    return PROTOCOL.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", schemas.STREAMED_EVENT_TYPES, ids=lambda kind: str(kind.__struct_config__.tag))
def test_the_protocol_names_every_event_and_all_of_its_fields(kind: type[msgspec.Struct]) -> None:
    tag = str(kind.__struct_config__.tag)
    (row,) = re.findall(rf"^\| `{re.escape(tag)}`.*$", protocol(), re.MULTILINE)
    own = [field for field in msgspec.structs.fields(kind) if field.encode_name not in COMMON_FIELDS]
    for field in own:
        name = f"`{field.encode_name}`" if field.required else f"`{field.encode_name}?`"
        assert name in row, f"{tag}: {name}"


@pytest.mark.parametrize(
    "name",
    [
        "work.turn",
        "work.tool",
        "trigger_rule",
        "dead_letter",
        "task_record",
        "lane_statistics",
        "lane_sample",
        "worker_record",
        "webhook",
    ],
)
def test_the_protocol_names_every_field_of_a_record(name: str) -> None:
    text = protocol()
    for field in msgspec.structs.fields(schemas.named_types()[name]):
        assert f"`{field.encode_name}`" in text or f"`{field.encode_name}?`" in text, f"{name}: {field.encode_name}"


def test_the_protocol_names_every_stream_bucket_header_and_code() -> None:
    text = protocol()
    names = [stream.name for stream in streams.STREAMS] + [bucket.name for bucket in streams.BUCKETS]
    names += list(errors.HTTP_STATUS_BY_CODE)
    names += [headers.SCHEDULE_TIME_ZONE, headers.TRIGGER_CHAIN]
    names += [
        headers.MESSAGE_ID,
        headers.EXPECTED_LAST_SUBJECT_SEQUENCE,
        headers.EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT,
        headers.TRACEPARENT,
        headers.SEQUENCE,
        headers.NUM_PENDING,
        headers.HTTP_TENANT,
        headers.HTTP_IDEMPOTENCY_KEY,
        headers.HTTP_LAST_EVENT_ID,
    ]
    for name in names:
        assert f"`{name}`" in text, name
    for stream in streams.STREAMS:
        for subject in stream.subjects:
            assert f"`{subject}`" in text, subject


def test_the_protocol_says_the_numbers_that_are_declared() -> None:
    text = protocol()
    for number in (
        f"{declarations.ACK_WAIT_SECONDS:g} s",
        f"{declarations.MAX_DELIVER} deliveries",
        f"{retries.STEP_POLICY.tries_max} tries",
        f"{retries.STEP_POLICY.delay_seconds_first:g} s",
        f"{retries.STEP_POLICY.delay_seconds_max:g} s",
        f"{streams.LANE_BACKLOG_MAX:,}",
        f"{streams.TASKS_MAX:,}",
        f"retry: {sse.RETRY_MILLISECONDS}",
    ):
        assert number in " ".join(text.split()), number
    for code, status in errors.HTTP_STATUS_BY_CODE.items():
        assert re.search(rf"^\| `{code}` \| {status} \|", text, re.MULTILINE), code


def test_a_client_may_leave_out_what_the_document_does_not_require() -> None:
    """Generators make a field with a `default` one that is always there, and an enum without a type anything."""
    found = openapi()["components"]["schemas"]
    for name, schema in found.items():
        assert [field for field, of in schema.get("properties", {}).items() if "default" in of] == [], name
    assert set(found["TaskRecord"]["required"]) <= set(found["TaskAccepted"]["required"])
    assert openapi()["security"] == []
    nullable = {field for field, of in found["TaskRequest"]["properties"].items() if {"type": "null"} in of["anyOf"]}
    assert nullable == found["TaskRequest"]["properties"].keys() - {"input"}
