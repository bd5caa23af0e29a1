"""Models that take no tools, and say so. Pure.

Each turn offers `ask_user`, and a model without tools has to answer plain tasks all the same: such a turn is asked
again without it. A task that names tools of its own needs them, and its error stands.
"""

from __future__ import annotations

import re

from contracts.records.tools import ASK_USER
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.models.chunks import TurnInput

_TEXT = re.compile(
    r"(?:not|n't|no endpoints found that) support(?:ed)?\b[^.]{0,60}\btool|\btool[^.]{0,60}\b(?:not|n't) support"
    r"|\btool[^.]{0,60}\bunsupported|unsupported[^.]{0,60}\btool"
    r"|\btool[^.]{0,60}\brequires? --|requires? --enable-auto-tool-choice"
)
"""How Ollama, OpenRouter, LiteLLM and Groq say it, and, of a server's own options, llama.cpp and vLLM."""


def only_asks(turn: TurnInput) -> bool:
    """Whether a turn offers nothing but questions to the user."""
    return bool(turn.tools) and all(tool.name == ASK_USER for tool in turn.tools)


def refuses_tools(error: ProviderFailed) -> bool:
    """Whether a server refuses a request for the sake of its tools, whatever they are."""
    return _TEXT.search((error.detail or "").lower()) is not None
