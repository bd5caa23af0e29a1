"""The tools that the runner brings along, and the rules behind them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from contracts import subjects
from contracts.codec import decode, encode
from contracts.journal.events import SubtaskStarted, TaskQueued, ToolFailed, TurnCompleted
from contracts.journal.parts import Parent, Timings, ToolCall, Usage
from contracts.records.tools import DEPTH_MAX, SpawnArguments, ToolDeclaration
from contracts.streams import BUILT_IN_TOOLS
from contracts.tasks import TaskRequest
from mesh.configuration.addresses import is_allowed, is_public
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.settings import Settings
from mesh.task.subtasks import child_id, child_work
from tests.unit.journals import START, FoldedStep, HandMadeJournal, tool_work
from tool_runner.handler import CallHandler
from tool_runner.tools.arithmetic import ADD, AddArguments, CalculatorArguments, add, calculate, evaluate
from tool_runner.tools.current_time import CurrentTimeArguments, current_time
from tool_runner.tools.registry import built_in_tools
from tool_runner.tools.spawn_task import check
from tool_runner.tools.tool import ArgumentsInvalid, ToolRefused, reader_of

UNUSED: Any = None
TOOLS = built_in_tools(Settings(), UNUSED)

# The registry


def test_what_is_declared_to_come_along_is_what_the_registry_holds() -> None:
    assert set(TOOLS) == set(BUILT_IN_TOOLS)


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_is_declared_with_a_name_that_fits_a_subject_and_a_schema(name: str) -> None:
    declared = TOOLS[name].declaration
    assert declared.name == name
    assert subjects.tools(name) == f"tools.{name}"
    assert declared.parameters["type"] == "object"
    assert decode(encode(declared), ToolDeclaration) == declared
    reader_of(declared.parameters)


def test_the_operators_settings_are_in_the_declaration() -> None:
    configuration = parse_configuration(b"[tools.add]\napproval = 'always'\nidempotent = false\ntimeout_seconds = 7")
    declared = built_in_tools(Settings(configuration=configuration), UNUSED)["add"].declaration
    assert (declared.approval, declared.idempotent, declared.timeout_seconds) == ("always", False, 7)


def test_the_schema_is_one_document() -> None:
    assert ADD.declaration.parameters == {
        "title": "AddArguments",
        "description": "Two numbers.",
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
            "b": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    }


# Arguments by JSON Schema


def test_arguments_are_held_against_a_schema_and_the_error_says_where() -> None:
    read = reader_of({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}})
    assert read({"a": [1]}) == {"a": [1]}
    with pytest.raises(ArgumentsInvalid, match=r"\"x\" is not of type \"integer\" - at `\$\['a'\]\[1\]`"):
        read({"a": [1, "x"]})


@pytest.mark.parametrize("schema", [{"type": "nope"}, {"$ref": "http://127.0.0.1:9/x"}, {"pattern": "("}])
def test_what_is_no_schema_or_lies_elsewhere_is_refused_at_once(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        reader_of(schema)


def test_a_pattern_that_backtracks_does_not_hang() -> None:
    read = reader_of({"properties": {"a": {"type": "string", "pattern": r"^(a|aa)+(?=b)$"}}})
    with pytest.raises(ArgumentsInvalid):
        read({"a": "a" * 5000})


# Arithmetic


@pytest.mark.parametrize(
    ("a", "b", "total"),
    [(1, 2, 3), (1.5, 2, 3.5), (-1, 1, 0), (2**70, 1, 2**70 + 1), (0.1, 0.2, 0.1 + 0.2)],
)
async def test_add(a: float, b: float, total: float) -> None:
    result = await add(AddArguments(a, b), UNUSED)
    assert result == total
    assert type(result) is type(total)


@pytest.mark.parametrize(("a", "b"), [(1e308, 1e308), (-1e308, -1e308), (10**400, 0.5)])
async def test_add_refuses_what_is_no_number(a: float, b: float) -> None:
    with pytest.raises(ToolRefused):
        await add(AddArguments(a, b), UNUSED)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7),
        (" (1 + 2) * 3 ", 9),
        ("-2 ** 2", -4),
        ("7 // 2 + 7 % 4", 6),
        ("10 / 4", 2.5),
        ("2 ** -1", 0.5),
        ("sqrt(16) + abs(-2) + max(1, 2, 3)", 9),
        ("round(pi, 2)", 3.14),
        ("log(8, 2)", 3),
        ("1e3 + 0x10", 1016),
        ("2 ** 64", 2**64),
    ],
)
def test_expressions(expression: str, value: float) -> None:
    assert evaluate(expression) == pytest.approx(value)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "1 +",
        "x",
        "__import__('os')",
        "(1).real",
        "[1][0]",
        "'a' * 3",
        "True + 1",
        "1 if 1 else 2",
        "lambda: 1",
        "1 << 9",
        "abs(x=1)",
        "sqrt(1, 2)",
        "1j",
        "1 / 0",
        "0 ** -1",
        "sqrt(-1)",
        "(-8) ** 0.5",
        "1e308 * 10",
        "9 ** 9 ** 9",
        "(2 ** 4000) ** 4000",
        "2 ** 4000 * 2 ** 4000",
        "10 ** 400 / 3.0",
        "exp(1000)",
        "round(1, 99999999999)",
        "(" * 300 + "1" + ")" * 300,
        "-" * 900 + "1",
        "~" * 500 + "1",
        "not " * 200 + "1",
        "1" + "+1" * 400,
        "[" * 150 + "]" * 150,
        "\0",
        "1\n2",
    ],
)
def test_what_is_no_arithmetic_or_too_large_is_refused(expression: str) -> None:
    with pytest.raises(ToolRefused):
        evaluate(expression)


async def test_a_whole_number_that_readers_would_round_is_given_as_text() -> None:
    assert await calculate(CalculatorArguments("2 ** 53"), UNUSED) == 2**53
    assert await calculate(CalculatorArguments("2 ** 53 + 1"), UNUSED) == "9007199254740993"


# Time


@pytest.mark.parametrize(("zone", "hours"), [("UTC", [0]), ("Europe/Berlin", [1, 2]), ("Asia/Tokyo", [9])])
async def test_the_current_time_has_the_zones_offset(zone: str, hours: list[int]) -> None:
    told = await current_time(CurrentTimeArguments(zone), UNUSED)
    assert told.zone == zone
    assert told.time.utcoffset() in [timedelta(hours=each) for each in hours]


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "/etc/passwd", "Europe", "a\0b"])
async def test_what_is_no_zone_is_refused(zone: str) -> None:
    with pytest.raises(ToolRefused):
        await current_time(CurrentTimeArguments(zone), UNUSED)


# Hosts and addresses


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("api.example.com", 443, True),
        ("api.example.com", 80, True),
        ("api.example.com", 8080, False),
        ("example.com", 443, False),
        ("xapi.example.com", 443, False),
        ("a.b.example.org", 443, True),
        ("example.org", 443, False),
        ("badexample.org", 443, False),
        ("intranet", 8080, True),
        ("intranet", 80, False),
        ("::1", 9000, True),
    ],
)
def test_hosts_on_the_operators_list(host: str, port: int, *, allowed: bool) -> None:
    patterns = ["api.example.com", "*.example.org", "intranet:8080", "[::1]:9000"]
    assert is_allowed(host, port, patterns) is allowed


def test_no_host_is_allowed_by_default() -> None:
    assert not is_allowed("example.com", 443, Settings().configuration.tools.http_get.allowed_hosts)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "::ffff:93.184.216.34"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.0.192",
        "198.18.0.1",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fec0::1",
        "feff::1",
        "::7f00:1",
        "64:ff9b:1::1",
        "3fff::1",
        "5f00::1",
        "100:0:0:1::1",
        "192.88.99.1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2002:0a00:1::",
        "no address",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


# Sub-tasks


def parent(
    arguments: SpawnArguments,
    request: TaskRequest | None = None,
    depth: int | None = None,
    budget: int | None = None,
    *,
    pool_bound: bool = False,
) -> HandMadeJournal:
    """A task, itself a child at this depth, that asks for `spawn_task` with these arguments."""
    request = request or TaskRequest(input="p", tools=["add", "spawn_task"])
    journal = HandMadeJournal()
    journal.add(
        TaskQueued,
        request=request,
        pool=request.pool,
        priority=request.priority,
        fingerprint="",
        accepted_at=START,
        parent=Parent("0" * 26, "1-0", depth) if depth else None,
        budget_tokens=budget,
        pool_bound=pool_bound,
    )
    journal.claimed()
    journal.add(
        TurnCompleted,
        turn=1,
        text="",
        calls=[ToolCall("1-0", "spawn_task", msgspec.to_builtins(arguments))],
        finish_reason="tool_calls",
        usage=Usage(),
        timings=Timings(),
    )
    return journal


def checked(depth: int | None = None, **fields: Any) -> None:
    arguments = SpawnArguments(input="x", **fields)
    check(parent(arguments, depth=depth).state, "1-0", arguments, ("default", "small"))


async def test_a_call_becomes_a_task_and_leaves_its_result_to_that_tasks_end() -> None:
    journal = parent(SpawnArguments(input="x", tools=["add"]))
    step = FoldedStep(journal, tool_work(tool="spawn_task"), journal.claimed("1-0"))
    await CallHandler(TOOLS, UNUSED).perform(step)
    started = journal.events[-1]
    assert isinstance(started, SubtaskStarted)
    assert started.child == child_id(journal.state.task, "1-0", 0)
    assert not journal.state.has_result("1-0")


def test_a_sub_task_of_a_task_that_is_bound_to_its_pool_stays_there() -> None:
    """Whoever has a key for one pool must not get into another by asking a model to ask for it."""
    arguments = SpawnArguments(input="x", pool="small", model="m")
    call = ToolCall("1-0", "spawn_task", msgspec.to_builtins(arguments))
    for is_bound, pool in ((False, "small"), (True, "default")):
        journal = parent(arguments, pool_bound=is_bound)
        child = child_work(journal.state, call, journal.child_started())
        assert (child.pool, child.pool_bound) == (pool, is_bound)
        assert child.request is not None
        assert (child.request.pool, child.request.model) == (pool, "m")
    bound = parent(arguments, pool_bound=True).state
    with pytest.raises(ToolRefused, match="no pool but 'default'"):
        check(bound, "1-0", arguments, ("default", "small"))
    check(bound, "1-0", SpawnArguments(input="x", pool="default"), ("default", "small"))


async def test_a_sub_task_gets_its_share_of_what_is_left_when_it_starts() -> None:
    journal = parent(SpawnArguments(input="x"), budget=100)
    step = FoldedStep(journal, tool_work(tool="spawn_task"), journal.claimed("1-0"))
    await CallHandler(TOOLS, UNUSED).perform(step)
    started = journal.events[-1]
    assert isinstance(started, SubtaskStarted)
    assert started.budget_tokens == 50


async def test_with_nothing_left_of_the_budget_a_call_is_refused() -> None:
    journal = parent(SpawnArguments(input="x"), budget=1)
    step = FoldedStep(journal, tool_work(tool="spawn_task"), journal.claimed("1-0"))
    await CallHandler(TOOLS, UNUSED).perform(step)
    failed = journal.events[-1]
    assert isinstance(failed, ToolFailed)
    assert (failed.error.code, "budget" in failed.error.message) == ("tool-refused", True)


@pytest.mark.parametrize("fields", [{}, {"pool": "small"}, {"tools": ["add", "spawn_task"]}, {"depth": DEPTH_MAX - 1}])
def test_what_may_be_spawned(fields: dict[str, Any]) -> None:
    checked(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"pool": "nowhere"}, {"tools": ["add", "http_get"]}, {"instructions": "x" * 600_000}, {"depth": DEPTH_MAX}],
    ids=["pool", "tool", "size", "depth"],
)
def test_a_child_that_could_never_run_or_may_more_than_its_parent_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ToolRefused):
        checked(**fields)
