"""How many tokens a turn has at a provider: what is thought before it begins, from those that have ended. No I/O."""

from __future__ import annotations

import math

from contracts.journal.parts import Usage
from contracts.records.pace import PaceRecord
from mesh.configuration.pace_table import PaceSettings
from mesh.pacing.rules import tokens_of

TURNS_OF_MEAN = 20
"""About how many turns an average goes back."""
TOKENS_PER_BYTE = 0.25
"""Of a conversation, until its provider has told how many they were."""
TOKENS_PER_BYTE_MIN, TOKENS_PER_BYTE_MAX = 0.02, 2.0


class TurnSize:
    """As one worker has seen it."""

    def __init__(self) -> None:
        self.mean: tuple[float, float] | None = None
        """Tokens read and put out by a turn, on average; None before the first."""
        self._seen = 0
        self._tokens_per_byte = TOKENS_PER_BYTE

    def mean_or(self, record: PaceRecord | None) -> tuple[float, float]:
        """The average, or else that of the record."""
        return self.mean or tokens_of(record)

    def of(self, read_bytes: int, output_tokens_max: int | None, record: PaceRecord | None) -> tuple[float, float]:
        """The tokens of a turn that has so much to read, before it begins."""
        put_out = self.mean_or(record)[1]
        return read_bytes * self._tokens_per_byte, put_out if output_tokens_max is None else min(
            put_out, output_tokens_max
        )

    def learn(self, read_bytes: int, usage: Usage, settings: PaceSettings, record: PaceRecord | None) -> None:
        """A turn was so long."""
        self._seen = min(self._seen + 1, TURNS_OF_MEAN)
        share = 1 / self._seen if record is None or record.input_tokens is None else 1 / TURNS_OF_MEAN
        before = self.mean_or(record)
        read, put_out = _believed(usage, settings)
        self.mean = (before[0] + (read - before[0]) * share, before[1] + (put_out - before[1]) * share)
        if read_bytes and read:
            per_byte = min(max(read / read_bytes, TOKENS_PER_BYTE_MIN), TOKENS_PER_BYTE_MAX)
            self._tokens_per_byte += (per_byte - self._tokens_per_byte) * share


def _believed(usage: Usage, settings: PaceSettings) -> tuple[float, float]:
    """What a turn was, within what a minute allows: no turn has more."""
    most = settings.by_minute
    together = most.get("tokens", math.inf)
    return (
        min(usage.input_tokens, together, most.get("input_tokens", math.inf)),
        min(usage.output_tokens, together, most.get("output_tokens", math.inf)),
    )
