"""`python -m tests.support.telling_runner`: the tool runner with a tool that tells its progress as fast as is wanted.

And with one that a person has to agree to, so that an approval meets a journal that is written to all the time.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import msgspec

from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.serving.service import run
from tool_runner import handler, serving
from tool_runner.__main__ import main
from tool_runner.progress import Progress
from tool_runner.tools.registry import built_in_tools
from tool_runner.tools.tool import Call, Tool, built_in


class TellArguments(msgspec.Struct, frozen=True):
    """So many times a second, for so many seconds."""

    per_second: float
    seconds: float


class SignArguments(msgspec.Struct, frozen=True):
    """Nothing."""


async def tell(arguments: TellArguments, call: Call) -> int:
    """Tells how far it is; returns how often."""
    loop = asyncio.get_running_loop()
    began_at, told = loop.time(), 0
    while (passed := loop.time() - began_at) < arguments.seconds:
        told += 1
        call.report(told)
        await asyncio.sleep(max(0.0, told / arguments.per_second - passed))
    return told


async def sign(_: SignArguments, __: Call) -> str:
    """Signs."""
    return "signed"


def tools(settings: Settings, requests: Requests) -> dict[str, Tool[Any]]:
    """The built-in tools, and these two."""
    signing = built_in("sign", "Signs.", SignArguments, sign)
    declared = msgspec.structs.replace(signing.declaration, approval="always")
    return {
        **built_in_tools(settings, requests),
        "tell": built_in("tell", "Tells how far it is.", TellArguments, tell),
        "sign": replace(signing, declaration=declared),
    }


if __name__ == "__main__":
    with (
        mock.patch.object(serving, "built_in_tools", tools),
        mock.patch.object(handler, "Progress", partial(Progress, seconds_min=0.0)),
    ):
        run("tool_runner", main)
