"""A provider's call as telemetry sees it: one CLIENT span, and the metrics that the conventions for generative AI name.

https://opentelemetry.io/docs/specs/semconv/gen-ai/ has the names. Neither the conversation nor the output is recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span, SpanKind

from contracts.journal.parts import FinishReason, Timings, Usage
from inference_worker.models.chunks import TurnInput
from mesh.telemetry import metrics, traces


class ObservedCall:
    """What is told of a call once its stream has ended."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.usage: Usage | None = None
        self.first_token_seconds: float | None = None

    def ended(self, finish_reason: FinishReason, usage: Usage, timings: Timings) -> None:
        """The stream ended, and did not fail."""
        if not traces.enabled():
            return
        self.usage = usage if usage != Usage() else None  # A provider that was stopped has told none.
        self.first_token_seconds = timings.first_token_seconds
        self._span.set_attribute("gen_ai.response.finish_reasons", [finish_reason])
        self._span.set_attribute("gen_ai.usage.input_tokens", usage.input_tokens)
        self._span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)


@contextmanager
def observed_call(provider: str, turn: TurnInput) -> Iterator[ObservedCall]:
    """Observe the call in the body. What the body raises counts as the call's failure."""
    if not traces.enabled():
        yield _UNOBSERVED
        return
    started_at = time.perf_counter()
    error: str | None = None
    with traces.span(f"chat {turn.model}", kind=SpanKind.CLIENT, attributes=_attributes(provider, turn)) as span:
        call = ObservedCall(span)
        try:
            yield call
        except Exception as failure:
            error = getattr(failure, "code", type(failure).__name__)
            raise
        except asyncio.CancelledError:
            error = "cancelled"  # The lease was lost, or the process drains.
            raise
        finally:
            metrics.model_called(
                provider,
                turn.model,
                time.perf_counter() - started_at,
                call.first_token_seconds,
                usage=call.usage,
                error=error,
                continued=bool(turn.prefix),
            )


def _attributes(provider: str, turn: TurnInput) -> dict[str, str | int | float]:
    attributes: dict[str, str | int | float] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": turn.model,
        "taskmesh.claims": turn.deliveries,
    }
    if turn.max_output_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = turn.max_output_tokens
    if turn.temperature is not None:
        attributes["gen_ai.request.temperature"] = turn.temperature
    return attributes


_UNOBSERVED = ObservedCall(traces.NO_SPAN)
