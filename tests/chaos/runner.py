"""`python -m tests.chaos.runner`: the tool runner with tools that write down each time they are run.

`CHAOS_EXECUTIONS` names that file. A line is written before the tool returns: what is there has had its effect.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from mesh import faults
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.serving.service import run
from mesh.task.failures import StepFailed
from tests.chaos.clocks import short_waits
from tool_runner import serving
from tool_runner.__main__ import main
from tool_runner.tools.registry import built_in_tools
from tool_runner.tools.tool import Call, Tool, built_in

EXECUTIONS_VARIABLE = "CHAOS_EXECUTIONS"
REPEATS_VARIABLE = "CHAOS_REPEATS"
"""If set, `charge` says of itself that it may be run twice: a negative control."""


class AddArguments(msgspec.Struct, frozen=True):
    """Two numbers; `key` names the call in the file."""

    a: int
    b: int
    key: str


class ChargeArguments(msgspec.Struct, frozen=True):
    """An amount; `key` names the call in the file."""

    cents: int
    key: str


class MendArguments(msgspec.Struct, frozen=True):
    """Whether it can be mended; `key` names the call in the file."""

    good: bool
    key: str


class PatientArguments(msgspec.Struct, frozen=True):
    """How long it is to be left alone after the first try; `key` names the call in the file."""

    seconds: float
    key: str


class LargeArguments(msgspec.Struct, frozen=True):
    """`key` names the call in the file."""

    key: str


LARGE_RESULT_BYTES = 300 * 1024
"""More than fits an event."""


def large_text() -> str:
    """The same each time, and nothing that compresses well."""
    return random.Random(0).randbytes(LARGE_RESULT_BYTES // 2).hex()


def _write_down(tool: str, key: str) -> None:
    with Path(os.environ[EXECUTIONS_VARIABLE]).open("a") as file:
        file.write(f"{key}\n")
    faults.reach("ran", tool)


async def add(arguments: AddArguments, _: Call) -> int:
    """Idempotent: it may be run again."""
    _write_down("add", arguments.key)
    return arguments.a + arguments.b


async def charge(arguments: ChargeArguments, _: Call) -> str:
    """Not idempotent: at most once."""
    _write_down("charge", arguments.key)
    return f"charged {arguments.cents}"


async def large(arguments: LargeArguments, _: Call) -> str:
    """Idempotent. Its result lies in the object store."""
    _write_down("large", arguments.key)
    return large_text()


async def mend(arguments: MendArguments, _: Call) -> str:
    """Idempotent. What is not good is a dead letter at once."""
    if not arguments.good:
        raise StepFailed("not-mended", "it is not good", retryable=False)
    _write_down("mend", arguments.key)
    return "mended"


async def patient(arguments: PatientArguments, call: Call) -> str:
    """Idempotent. The first try fails, and asks for a pause."""
    work = call.step.work
    if (work.step, work.gen) not in call.step.state.tries:
        raise StepFailed("not-yet", "later", retryable=True, retry_after_seconds=arguments.seconds)
    _write_down("patient", arguments.key)
    return "in the end"


def tools(settings: Settings, requests: Requests) -> dict[str, Tool[Any]]:
    """The built-in tools, and those of this run."""
    charging = built_in("charge", "Charges an amount.", ChargeArguments, charge)
    repeats = bool(os.environ.get(REPEATS_VARIABLE))
    declared = msgspec.structs.replace(charging.declaration, idempotent=repeats, destructive=True, approval="always")
    return {
        **built_in_tools(settings, requests),
        "add": built_in("add", "Adds two numbers.", AddArguments, add),
        "charge": replace(charging, declaration=declared),
        "large": built_in("large", "Says much.", LargeArguments, large),
        "mend": built_in("mend", "Mends what is good.", MendArguments, mend),
        "patient": built_in("patient", "Wants to be left alone for a while.", PatientArguments, patient),
    }


if __name__ == "__main__":
    with short_waits(), mock.patch.object(serving, "built_in_tools", tools):
        run("tool_runner", main)
