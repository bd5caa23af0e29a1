"""Triggers over real processes: from a signal to an order, agents that set one another off, a steward that dies."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts import subjects
from contracts.codec import decode, encode
from contracts.journal import events
from contracts.journal.events import TaskQueued, decode_event
from contracts.triggers import rules
from contracts.triggers.rules import TriggerRule
from mesh import faults
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import read_page
from mesh.rules import trigger_bucket as bucket
from tests.chaos.points import BEGUN, Point, give_order, order_is_open
from tests.support import children
from tests.support.agents import TENANT, Agents
from tests.support.processes import ROOT, Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

EXAMPLE = ROOT / "examples" / "triggers"
SERVICES = ("ingress", "inference_worker", "tool_runner")
SOLD_OUT = {"sku": "widget-7", "reorder_quantity": 20}


async def meshctl(mesh: Mesh, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run a command: its status, its lines, and what it said on standard error."""
    ended = await children.run([sys.executable, "-m", "meshctl", *arguments], mesh.environment, cwd=ROOT)
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


async def queued(connection: Connection) -> list[TaskQueued]:
    """The first event of every journal, in the order of the stream."""
    page = await read_page(connection.requests, "EVENTS", subjects.EVENTS_LOG, 0)
    decoded = [decode_event(message.payload) for message in page.messages]
    return [event for event in decoded if isinstance(event, TaskQueued)]


@asynccontextmanager
async def shop(tmp_path: Path) -> AsyncIterator[tuple[Mesh, Path]]:
    """The example's mesh, without a steward yet, and the file that its orders go to."""
    orders = tmp_path / "orders"
    orders.touch()
    configuration = tmp_path / "mesh.toml"
    text = (EXAMPLE / "mesh.toml").read_text().replace(".venv/bin/python", sys.executable)
    configuration.write_text(text.replace("examples/triggers", str(EXAMPLE)))
    variables = {"MESH_CONFIG": str(configuration), "ORDERS_FILE": str(orders), "MESH_ACK_WAIT_SECONDS": "1"}
    async with running_mesh(tmp_path, *SERVICES, **variables) as mesh:
        yield mesh, orders


async def test_a_signal_becomes_an_order_that_a_person_signs(tmp_path: Path) -> None:
    async with shop(tmp_path) as (mesh, orders), connect(mesh.settings, "test") as connection:
        await mesh.start("steward")
        file = str(EXAMPLE / "stock_level_zero.toml")
        status, [told], _ = await meshctl(mesh, "triggers", "test", file, "--payload", json.dumps(SOLD_OUT))
        assert (status, told["fires"]) == (0, True)
        assert '"quantity": 20' in told["request"]["input"]
        status, [told], _ = await meshctl(mesh, "triggers", "test", file, "--payload", '{"sku": "widget-7"}')
        assert (status, told["fires"], told["reason"]) == (0, False, "its conditions do not hold")
        assert await queued(connection) == [], "test starts nothing"

        status, [added], _ = await meshctl(mesh, "triggers", "add", file)
        assert (status, added["name"], added["tenant"]) == (0, "reorder", TENANT)
        status, _, said = await meshctl(mesh, "triggers", "add", file)
        assert (status, said.startswith("meshctl: conflict: ")) == (1, True)
        status, [listed], _ = await meshctl(mesh, "triggers", "list")
        assert listed == added

        subject = "signals.default.inventory.stock_level_zero"
        await connection.requests.publish(subject, b'{"reorder_quantity": 20}')
        sequence = (await connection.requests.publish(subject, encode(SOLD_OUT))).seq
        agents = Agents(connection)
        task = rules.task_id(msgspec.convert(added, TriggerRule), sequence)
        state = await agents.until_asked(task, "2-0")
        [asked] = state.open_approvals
        assert (asked.tool, asked.arguments["quantity"]) == ("purchasing_purchase_order", 20)
        assert orders.read_text() == "", "nothing is ordered before somebody agrees"
        status, _, _ = await meshctl(mesh, "approve", task)
        assert status == 0
        state = await agents.until_status(task, "completed")
        assert isinstance(state.terminal, events.TaskCompleted)
        assert state.terminal.output == "widget-7 is on its way.\n"
        assert orders.read_text().count("\n") == 1
        assert [each.task for each in await queued(connection)] == [task]

        status, _, _ = await meshctl(mesh, "triggers", "remove", "reorder")
        assert status == 0
        assert (await meshctl(mesh, "triggers", "list"))[1] == []
        await until_no_work_is_left(connection)
        assert mesh.tracebacks() == []


POINTS = (
    "before-publish:tasks.default",
    "after-publish:tasks.default",
    BEGUN,
    "after-admit:triggers",
    "before-ack:signals.default",
    "after-ack:signals.default",
)


@pytest.mark.parametrize("point", POINTS)
async def test_a_steward_that_dies_anywhere_starts_the_task_once(tmp_path: Path, point: str) -> None:
    folder = tmp_path / "points"
    folder.mkdir()
    async with (
        running_mesh(tmp_path, "inference_worker", MESH_ACK_WAIT_SECONDS="1", MESH_LOG_LEVEL="debug") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        source = rules.TriggerSource(signal="stock.*")
        rule = TriggerRule(name="low", tenant=TENANT, on=source, task={"input": "Buy {{payload.sku}}"})
        await bucket.add(connection.requests, rule, replace=False)
        give_order(folder, "die", Point("kill", "steward", point, 1), 0)
        doomed = await mesh.start("steward", **{faults.POINTS_VARIABLE: str(folder)})
        sequence = (await connection.requests.publish("signals.default.stock.zero", encode(SOLD_OUT))).seq
        # A worker may be faster to begin the journal, and then nobody comes to that point here.
        await until(lambda: not doomed.is_running or (point == BEGUN and bool(mesh.logs_of("trigger.started"))))
        assert point == BEGUN or not order_is_open(folder)
        await mesh.start("steward")
        agents = Agents(connection)
        task = rules.task_id(rule, sequence)
        await agents.until_status(task, "completed")

        async def the_signal_is_settled() -> bool:
            info = await connection.requests.api("CONSUMER.INFO.SIGNALS.steward")
            return int(info["num_pending"]) + int(info["num_ack_pending"]) == 0

        await until(the_signal_is_settled)
        await until_no_work_is_left(connection)
        assert [each.task for each in await queued(connection)] == [task]
        record = await key_value.get(connection.requests, bucket.BUCKET, subjects.trigger_pace_key(TENANT, "low"))
        assert record is not None
        assert record.value is not None
        assert len(decode(record.value, rules.TriggerPace).started) == 1


CONFIGURATION = """
[tools.send_signal]
subjects = ["steps.*"]
"""


async def test_agents_set_one_another_off_as_far_as_their_rules_let_them(tmp_path: Path) -> None:
    configuration = tmp_path / "mesh.toml"
    configuration.write_text(CONFIGURATION)
    async with (
        running_mesh(tmp_path, *SERVICES, "steward", MESH_CONFIG=str(configuration)) as mesh,
        connect(mesh.settings, "test") as connection,
    ):

        def rule(name: str, takes: str, sends: str) -> TriggerRule:
            script = f'!call send_signal {{"subject": "{sends}", "payload": {{"from": "{name}"}}}}'
            template = {"input": script, "tools": ["send_signal"]}
            return TriggerRule(
                name=name, tenant=TENANT, on=rules.TriggerSource(signal=takes), task=template, sends=["steps.*"]
            )

        first, second = rule("first", "begin", "steps.two"), rule("second", "elsewhere.>", "steps.three")
        await bucket.add(connection.requests, first, replace=False)
        await bucket.add(connection.requests, second, replace=False)
        status, _, said = await meshctl(
            *(mesh, "triggers", "add", "--name", "third", "--signal", "steps.*", "--sends", "begin"),
            *("--task", '{"input": "x", "tools": ["send_signal"]}'),
        )
        assert status == 1
        assert "trigger-cycle: rule third would set itself off: third may send begin, and first takes begin" in said
        # Past the check, as two who add at the same time may come: the chain ends it.
        looping = rule("loop", "steps.two", "steps.two")
        await connection.requests.publish(f"$KV.triggers.{subjects.trigger_key(TENANT, 'loop')}", encode(looping))
        await connection.requests.publish("signals.default.begin", b"{}")
        await until(lambda: bool(mesh.logs_of("trigger.refused")))
        await until_no_work_is_left(connection)
        chains = [each.trigger.chain for each in await queued(connection) if each.trigger]
        assert chains == [["first"], ["first", "loop"]]
        [refused] = mesh.logs_of("trigger.refused")
        assert (refused["code"], refused["rule"]) == ("trigger-loop", "loop")

        agents = Agents(connection)
        task = await agents.submit('!call send_signal {"subject": "orders.gone"}', tools=["send_signal"])
        state = await agents.until_status(task, "completed")
        [result] = state.call_results.values()
        assert isinstance(result, events.ToolFailed)
        assert (result.error.code, "allowed: steps.*" in result.error.message) == ("tool-refused", True)
        page = await read_page(connection.requests, "SIGNALS", ">", 0)
        assert [message.subject for message in page.messages] == [
            "signals.default.begin",
            "signals.default.steps.two",
            "signals.default.steps.two",
        ]
        assert mesh.tracebacks() == []
