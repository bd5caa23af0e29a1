"""`python -m tests.support.ledger`: the tool runner with a tool that is broken as long as a file is there.

`LEDGER_FOLDER` names the folder: while it has a file `broken` each call of `charge` fails; one that does not writes a
line into `executions` before it returns. So what is there has had its effect.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.serving.service import run
from tool_runner import serving
from tool_runner.__main__ import main
from tool_runner.tools.tool import Call, Tool, built_in

FOLDER_VARIABLE = "LEDGER_FOLDER"


class ChargeArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`key` names the call in the file."""

    key: str


async def charge(arguments: ChargeArguments, _: Call) -> str:
    """Not idempotent: at most once for each claim."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    if (folder / "broken").exists():
        raise RuntimeError("the ledger is closed")
    with (folder / "executions").open("a") as file:
        file.write(f"{arguments.key}\n")
    return f"charged {arguments.key}"


def tools(_settings: Settings, _requests: Requests) -> dict[str, Tool[Any]]:
    """The one tool."""
    tool = built_in("charge", "Charges.", ChargeArguments, charge)
    return {"charge": replace(tool, declaration=msgspec.structs.replace(tool.declaration, idempotent=False))}


if __name__ == "__main__":
    with mock.patch.object(serving, "built_in_tools", tools):
        run("tool_runner", main)
