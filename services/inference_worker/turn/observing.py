"""A provider's call as telemetry sees it: one CLIENT span, and the metrics that the conventions for generative AI name.

https://opentelemetry.io/docs/specs/semconv/gen-ai/ has the names. Neither the conversation nor the output is recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager

from opentelemetry.trace import Span, SpanKind

from contracts.journal.parts import FinishReason, Timings, Usage
from inference_worker.models import endpoints
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from mesh.telemetry import metrics, traces


class ObservedCall:
    """What is told of a call while it streams, and once its stream has ended."""

    def __init__(self, span: Span, point: Mapping[str, str | int] | None = None) -> None:
        """`point` has the attributes of its metrics; None while telemetry is off."""
        self._span = span
        self._point = point
        self.usage: Usage | None = None
        self.first_token_seconds: float | None = None

    def chunks(self, said: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
        """The same chunks, with the times between them measured."""
        return said if self._point is None else _timed(said, self._point)

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
    point = _point(provider, turn)
    attributes = _attributes(provider, turn) | point
    with (
        traces.span(f"chat {turn.model}", kind=SpanKind.CLIENT, attributes=attributes) as span,
        endpoints.listening() as response,
    ):
        call = ObservedCall(span, point)
        try:
            yield call
        except Exception as failure:
            error = getattr(failure, "code", type(failure).__name__)
            raise
        except asyncio.CancelledError:
            error = "cancelled"  # The lease was lost, or the process drains.
            raise
        finally:
            if response.id is not None:
                span.set_attribute("gen_ai.response.id", response.id)
            if response.model is not None:
                span.set_attribute("gen_ai.response.model", response.model)
            metrics.model_called(
                point,
                time.perf_counter() - started_at,
                call.first_token_seconds,
                usage=call.usage,
                error=error,
                continued=bool(turn.prefix),
            )


def _attributes(provider: str, turn: TurnInput) -> dict[str, str | int | float]:
    attributes: dict[str, str | int | float] = {
        "gen_ai.request.stream": True,
        "taskmesh.provider": provider,
        "taskmesh.claims": turn.deliveries,
    }
    if turn.max_output_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = turn.max_output_tokens
    if turn.temperature is not None:
        attributes["gen_ai.request.temperature"] = turn.temperature
    return attributes


def _point(provider: str, turn: TurnInput) -> dict[str, str | int]:
    """What span and metrics have in common."""
    at = endpoints.endpoint(provider)
    point: dict[str, str | int] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": at.provider_name,
        "gen_ai.request.model": turn.model,
    }
    if at.server_address is not None and at.server_port is not None:
        point |= {"server.address": at.server_address, "server.port": at.server_port}
    return point


async def _timed(said: AsyncGenerator[Chunk, None], point: Mapping[str, str | int]) -> AsyncGenerator[Chunk, None]:
    before: float | None = None
    async with aclosing(said) as chunks:
        async for chunk in chunks:
            if not isinstance(chunk, Finished):
                at = time.perf_counter()
                if before is not None:
                    metrics.chunk_came(point, at - before)
                before = at
            yield chunk


_UNOBSERVED = ObservedCall(traces.NO_SPAN)
