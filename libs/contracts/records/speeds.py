"""What workers tell each other of model servers: how fast they answer. On core NATS, not stored."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.fields import Count, LaneName, Seconds

MODELS_TOLD_MAX = 256
"""Models in one report; of more, those that were called last."""

ModelName = Annotated[str, Meta(min_length=1, max_length=128)]


class ModelSums(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Calls of one model, added up, so that the sums of all workers may be added up again.

    `begun` were begun; `failures` of all have failed, by the provider's own fault or for want of its room, `broken` of
    those after their first token. `calls` gave a first token: of these are `first_token_seconds`, `input_tokens`,
    `input_squares` (of each call's input tokens, the square), `input_by_seconds` (input tokens by seconds to the first
    token) and `in_flight` (how many other calls of its worker were under way there as each began). Input that is told
    to be cached does not count. `output_tokens` came in `output_seconds`, from the first token to the end, in
    `answers`: whole ones, and those that their reader cut off.
    """

    provider: LaneName
    model: ModelName
    begun: Count = 0
    calls: Count = 0
    failures: Count = 0
    first_token_seconds: Seconds = 0.0
    input_tokens: Count = 0
    input_squares: Count = 0
    input_by_seconds: Annotated[float, Meta(ge=0)] = 0.0
    in_flight: Count = 0
    answers: Count = 0
    output_tokens: Count = 0
    output_seconds: Seconds = 0.0
    broken: Count = 0


class SpeedSample(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has seen since its last report, about a second ago: on `stats.providers`, not stored."""

    worker: str
    models: Annotated[list[ModelSums], Meta(max_length=MODELS_TOLD_MAX)]
