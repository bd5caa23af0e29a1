"""What is recorded: one task each, some with sub-tasks; some end, and some are left where they wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.degradation import conversation

TWO_CALLS = '!call add {"a": 1, "b": 2}\n!call add {"a": 3, "b": 4}'
SPAWNS = '!call spawn_task {"input": "!say 2"}\n!call spawn_task {"input": "!say 1"}'
TOOLS = ["add", "spawn_task"]


@dataclass(frozen=True)
class Part:
    """What a person does. `once` is a count of events by type, or a status, that is waited for before."""

    once: dict[str, int] | str
    path: str = "inputs"
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """A task, what is done to it, and the status that it is left in."""

    name: str
    script: str
    status: str = "completed"
    request: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    kill_at: dict[str, int] = field(default_factory=dict)
    """The worker is killed with `kill -9` once the journal has so many events of a type; another takes its place."""
    signal: dict[str, Any] | None = None
    """The payload of the signal that starts it."""
    without: tuple[str, ...] = ()
    """Services that are stopped before, for good."""


def _say(text: str, mode: str = "append") -> dict[str, Any]:
    return {"kind": "message", "text": text, "mode": mode}


def _decide(call: str, decision: str) -> dict[str, Any]:
    return {"kind": "approval", "call": call, "decision": decision}


RECORDINGS = (
    Recording("plain", "!say 3", request={"metadata": {"order": 7}}),
    Recording(
        "agent",
        f"{TWO_CALLS}\n!call no_such_tool {{}}\n!then\n!ask Which quarter?\n!then\n{SPAWNS}\n!then\nAll is done.",
        request={"tools": TOOLS, "instructions": "Be brief.", "budget_tokens": 100_000, "deadline_seconds": 600},
        parts=(Part("waiting", body=_say("the third")),),
    ),
    Recording(
        "approvals",
        TWO_CALLS,
        request={"tools": ["add"], "approval": "always"},
        parts=(
            Part({"approval.requested": 2}, body=_decide("1-0", "approved")),
            Part({"tool.completed": 1}, body=_decide("1-1", "denied")),
        ),
    ),
    Recording("retries_by_nak", "!fail overloaded 1\n!fail disconnect 1\n!say 2"),
    Recording("retries_by_timer", "!fail rate_limit 1 10.5\n!say 1"),
    Recording("failed", "!fail bad_request 1", "failed"),
    Recording(
        "replayed",
        "!fail server_error 9",
        parts=(
            Part(
                "dead_lettered",
                "replay",
                {"edits": {"input": f"{TWO_CALLS}\n!then\nrepaired"}, "reason": "it was wrong"},
            ),
        ),
        request={"tools": ["add"]},
    ),
    Recording("taken_over", "!rate 20\n!say 12", kill_at={"output.delta": 4}),
    Recording("taken_over_restarted", "hello", request={"pool": "strict"}, kill_at={"output.delta": 1}),
    Recording("switched", "hello", request={"pool": "small"}),
    Recording("hedged", "hello", request={"pool": "slow"}),
    Recording("compacted", "", request={"pool": "compacting", "input": conversation(7, 100)}),
    Recording("cancelled", "!rate 20\n!say 900", "cancelled", parts=(Part({"output.delta": 2}, "cancel"),)),
    Recording(
        "redirected",
        '!call add {"a": 1, "b": 2}\n!ask First?\n!ask Second?',
        request={"tools": ["add"], "approval": "always"},
        parts=(Part({"approval.requested": 1, "input.requested": 2}, body=_say("forget it", "redirect")),),
    ),
    Recording(
        "redirected_in_mid_turn",
        "!rate 20\n!say 900",
        parts=(Part({"output.delta": 2}, body=_say("!say 2", "redirect")),),
    ),
    Recording("told_in_mid_turn", "!rate 20\n!say 20", parts=(Part({"output.delta": 2}, body=_say("and then?")),)),
    Recording("ended_by_deadline_in_silence", "!hang 100", request={"deadline_seconds": 2}),
    Recording("ended_by_deadline", "!rate 5\n!say 900", request={"deadline_seconds": 2}),
    Recording("triggered", "", signal={"sku": "widget-7"}),
    Recording("long", "!rate 250\n!say 330"),
    Recording(
        "waits_for_a_person",
        '!call add {"a": 1, "b": 2}\n!ask Which quarter?',
        "waiting",
        request={"tools": ["add"], "approval": "always"},
        parts=(Part({"approval.requested": 1, "input.requested": 1}, ""),),
    ),
    Recording(
        "waits_for_its_child",
        '!call spawn_task {"input": "!ask How much?"}',
        "waiting",
        request={"tools": ["spawn_task"]},
        parts=(Part({"subtask.started": 1}, ""),),
    ),
    Recording("waits_for_its_next_try", "!fail rate_limit 1 3600", "running", parts=(Part({"task.retrying": 1}, ""),)),
    Recording("dead_lettered", "hello", "dead_lettered", request={"pool": "strict", "model": "no_key"}),
    Recording(
        "waits_for_its_tool",
        TWO_CALLS,
        "running",
        request={"tools": ["add"]},
        parts=(Part({"turn.completed": 1}, ""),),
        without=("tool_runner",),
    ),
    Recording("expired", "hello", "expired", request={"deadline_seconds": 2}, without=("inference_worker",)),
    Recording("queued", "!say 1", "queued", request={"deadline_seconds": 86_400}, without=("inference_worker",)),
)
