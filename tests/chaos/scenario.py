"""The run that is disturbed: two parallel tools, an approval, a question and two sub-tasks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from tests.support.clients import Viewer

TOOLS = ("add", "charge", "spawn_task")
IDEMPOTENT = frozenset({"add"})
OUTPUT = "All is done.\n"
"""The output of every run, whatever was killed in it."""
CHILD_OUTPUTS = ("t0 t1 ", "t0 ")
ANSWER = "the third"
# The first child takes longer than a lease: what is delivered again then meets a task that goes on.
SCRIPT = """!hang 0.3
!rate 50
!say 2
!call add {"a": 1, "b": 2, "key": "KEY.0"}
!call add {"a": 3, "b": 4, "key": "KEY.1"}
!call charge {"cents": 5, "key": "KEY.2"}
!then
!ask Which quarter?
!then
!call spawn_task {"input": "!rate 50\\n!say 2\\n!hang 1.3"}
!call spawn_task {"input": "!say 1"}
!then
All is done.
"""
RESULTS: dict[str, tuple[str, Any]] = {
    "1-0": ("tool.completed", 3),
    "1-1": ("tool.completed", 7),
    "1-2": ("tool.completed", "charged 5"),
    "2-0": ("input.received", ANSWER),
    "3-0": ("subtask.completed", CHILD_OUTPUTS[0]),
    "3-1": ("subtask.completed", CHILD_OUTPUTS[1]),
}
"""Each call's result, by its type and what it holds. Only a call that must not run twice may end otherwise: unknown."""
RETRY_SECONDS = 0.05


def request_body(run: str) -> dict[str, Any]:
    """The body of the run's task."""
    return {"input": SCRIPT.replace("KEY", run), "tools": list(TOOLS)}


class Person(Viewer):
    """Follows the task, agrees to its call once the other calls of the turn are done, and answers its question."""

    def __init__(self, address: str, task: str, say: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(address, task)
        self._say = say
        self._seen: Counter[str] = Counter()

    def _record(self, event: str, identifier: str, data: str) -> None:
        super()._record(event, identifier, data)
        self._seen[event] += 1
        if event in ("approval.requested", "tool.completed"):
            if self._seen["approval.requested"] == 1 and self._seen["tool.completed"] == 2:
                self._say({"kind": "approval", "call": "1-2", "decision": "approved"})
        elif event == "input.requested":
            self._say({"kind": "message", "text": ANSWER})


async def post(client: httpx.AsyncClient, url: str, body: dict[str, Any], key: str) -> httpx.Response:
    """Post until there is an answer that is not for later, as a client does that wants its request carried out once."""
    while True:
        try:
            answer = await client.post(url, json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            pass
        else:
            if answer.status_code < 500:
                return answer
        await asyncio.sleep(RETRY_SECONDS)


class Voice:
    """A client that posts the task and what its person says, as often as it takes."""

    def __init__(self, client: httpx.AsyncClient, url: str, run: str) -> None:
        self._client = client
        self._url = url
        self._run = run
        self._task = ""
        self.saying: list[asyncio.Task[None]] = []

    async def submit(self) -> str:
        """Post the task; its id."""
        answer = await post(self._client, f"{self._url}/v1/tasks", request_body(self._run), self._run)
        if answer.status_code != 202:
            raise RuntimeError(f"not accepted: {answer.text}")
        self._task = str(msgspec.json.decode(answer.content)["id"])
        return self._task

    def say(self, body: dict[str, Any]) -> None:
        """Say it in the background."""
        self.saying.append(asyncio.create_task(self._post_input(body)))

    async def _post_input(self, body: dict[str, Any]) -> None:
        url = f"{self._url}/v1/tasks/{self._task}/inputs"
        answer = await post(self._client, url, body, f"{self._run}.{body['kind']}")
        # 409: said before, by a try whose answer was lost.
        if answer.status_code not in (200, 202, 409):
            raise RuntimeError(f"not heard: {answer.status_code} {answer.text}")
