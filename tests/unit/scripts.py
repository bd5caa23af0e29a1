"""A script of several turns, and what the scripted model is asked with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from contracts.tasks import Message
from inference_worker.dialects.scripted.script import Failure, Script, Text
from inference_worker.models.chunks import RequestedCall, TurnInput
from mesh.task.conversation import ConversationItem


def turn_input(script: str, since: Iterable[ConversationItem] = (), **fields: Any) -> TurnInput:
    return TurnInput(messages=[Message("user", script), *since], model="scripted", **fields)


SCRIPT = """Two sums.
!fail overloaded
!call add {"a":1,"b":2}
!call add {"a":3,"b":4}
!then
!exit 1
!ask Which quarter?
!then
All done.
"""
ADD_1 = RequestedCall("add", {"a": 1, "b": 2})
ADD_2 = RequestedCall("add", {"a": 3, "b": 4})
PARTS = (
    Script((Text("Two sums.\n"),), (Failure("overloaded", 1),), calls=(ADD_1, ADD_2)),
    Script(exits=1, calls=(RequestedCall("ask_user", {"question": "Which quarter?"}),)),
    Script((Text("All done.\n"),)),
)
