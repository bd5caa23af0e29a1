"""The tools that this runner brings along: one explicit registry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from tool_runner.tools.arithmetic import ADD, CALCULATOR
from tool_runner.tools.current_time import CURRENT_TIME
from tool_runner.tools.http_get import http_get
from tool_runner.tools.propose_replay import propose_replay
from tool_runner.tools.send_signal import send_signal
from tool_runner.tools.spawn_task import spawn_task
from tool_runner.tools.tool import Tool


def built_in_tools(settings: Settings, requests: Requests) -> dict[str, Tool[Any]]:
    """Tool name → tool, with the operator's settings applied. A name is part of a subject: `tools.<name>`."""
    configuration = settings.configuration.tools
    tools: tuple[Tool[Any], ...] = (
        ADD,
        CALCULATOR,
        CURRENT_TIME,
        http_get(configuration.http_get),
        propose_replay(settings.pools, requests),
        send_signal(configuration.send_signal.subjects),
        spawn_task(settings.pools),
    )
    return {
        tool.declaration.name: replace(
            tool, declaration=configuration.of(tool.declaration.name).applied_to(tool.declaration)
        )
        for tool in tools
    }
