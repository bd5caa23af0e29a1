"""Estimates: about how many tokens the first turn of a task will cost, before anybody has counted. Pure, and cheap.

It orders tenants and lowers lanes, and is set right by what turns have used: half as many or twice as many do no harm.
So there is no tokenizer: four characters of ASCII are about a token (the providers' own rule of thumb for English), and
of any other script each character counts as one.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from contracts.journal.parts import Estimate
from contracts.tasks import Priority, TaskRequest
from mesh.configuration.mesh_toml import PoolConfiguration
from mesh.configuration.tenants_table import TenantConfiguration, lane_of

ASCII_PER_TOKEN: Final = 4
MESSAGE_TOKENS: Final = 4
"""What a message takes beside its text: its role, and what separates it."""
TOOL_TOKENS: Final = 120
"""About what the declaration of a tool takes: a name, a description, a schema of a few fields."""
OUTPUT_TOKENS: Final = 512
"""What a turn is thought to put out where nothing bounds it, and none of the pool has ended lately."""


_LOWERED: Final[dict[Priority, Priority]] = {"high": "normal", "normal": "low"}


def estimate(
    request: TaskRequest, pool: PoolConfiguration, median_output: int | None = None, history_tokens: int = 0
) -> Estimate:
    """What the first turn of a task is thought to cost.

    `median_output`: what the pool's turns have put out lately; `history_tokens`: of what the task continues.
    """
    texts = [request.input] if isinstance(request.input, str) else [message.content for message in request.input]
    if request.instructions is not None:
        texts.append(request.instructions)
    read = sum(text_tokens(text) + MESSAGE_TOKENS for text in texts) + TOOL_TOKENS * len(request.tools or ())
    limits = (request.max_output_tokens, pool.max_output_tokens, request.budget_tokens, pool.budget_tokens)
    limit = min((each for each in limits if each), default=None)
    if median_output is not None and (limit is None or median_output < limit):
        return Estimate(input_tokens=read + history_tokens, output_tokens=median_output, basis="median")
    if limit is not None:
        return Estimate(input_tokens=read + history_tokens, output_tokens=limit, basis="limit")
    return Estimate(input_tokens=read + history_tokens, output_tokens=OUTPUT_TOKENS, basis="default")


def text_tokens(text: str) -> int:
    """About how many tokens a text has."""
    if text.isascii():
        return -(-len(text) // ASCII_PER_TOKEN)
    ascii_characters = len(text.encode("ascii", "ignore"))
    return -(-ascii_characters // ASCII_PER_TOKEN) + len(text) - ascii_characters


def placed(asked: Priority, tenant: TenantConfiguration, cost: Estimate) -> tuple[Priority, Estimate]:
    """The lane of a task that asks for this one, and its estimate, which says why it is a less urgent one."""
    lane = lane_of(tenant, asked)
    if tenant.lower_above_tokens is not None and cost.tokens > tenant.lower_above_tokens:
        lowered = _LOWERED.get(lane)
        if lowered is not None:
            return lowered, replace(cost, lowered_from=asked, lowered_for="size")
    return lane, cost if lane == asked else replace(cost, lowered_from=asked, lowered_for="tier")
