"""A model server that keeps its own account, and journals held against it: to the token, call by call.

Each call has a number, which it tells as its prompt's tokens: so any usage in a journal says which call it is of. What
the server has generated and told nobody, or told somebody who died with it, no journal can know. Then its task must say
that there is such a call, and never nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from tests.support.model_server import DONE, Exchange, chunk

SPAWN = "!spawn"
"""In a task's text: its model asks for a sub-task."""
FIRST_CALL = 1_000
WORDS_MAX = 12
TOKENS_A_WORD = 7
PAUSE_SECONDS = 0.03
"""Between two words: long enough that some die in the middle."""
SLOW_SECONDS = 1.5
HOW = {
    "answers": 56,
    "refuses": 8,
    "fails": 4,
    "tells nothing": 10,
    "breaks off": 6,
    "tells and breaks off": 6,
    "is slow": 10,
}
"""What a call comes to, and how often among a hundred."""


class Told(NamedTuple):
    """A usage as it was told: prompt, of which cached, and completion."""

    prompt: int
    cached: int
    completion: int


@dataclass
class Call:
    """A call of the model, as the server knows it. `text` is what its task asked for at first."""

    number: int
    text: str
    model: str
    how: str
    generated: int = 0
    """Tokens that it has put out, whoever has heard of them."""
    told: list[Told] = field(default_factory=list)
    """Its usage, as often as it was told; the last one is all of it if `is_whole`."""
    is_whole: bool = False
    is_refused: bool = False


class AccountedModel:
    """Answers, fails, breaks off and is silent about what it uses, by chance. `calls`: its account."""

    def __init__(self, seed: int) -> None:
        self.calls: list[Call] = []
        self._random = Random(seed)

    async def behave(self, exchange: Exchange) -> None:
        """One call."""
        users = [each for each in exchange.body["messages"] if each["role"] == "user"]
        how = self._random.choices([*HOW], [*HOW.values()])[0]
        # What the user has said since then may be in the same message.
        text = text_of(users[0]).partition("\n")[0]
        call = Call(FIRST_CALL + len(self.calls), text, exchange.body["model"], how)
        self.calls.append(call)
        cached = self._random.randrange(call.number)
        words = self._random.randrange(1, WORDS_MAX)
        if how in ("refuses", "fails"):
            call.is_refused = True
            await exchange.refuse(429 if how == "refuses" else 503, {"error": {"message": "not now"}})
            return
        await exchange.begin()
        if how == "is slow":
            await asyncio.sleep(SLOW_SECONDS)
        asks = SPAWN in call.text and not any(each["role"] == "tool" for each in exchange.body["messages"])
        for word in range(words):
            if exchange.gone.is_set():
                return
            call.generated += TOKENS_A_WORD
            await exchange.say(chunk({"content": f"w{word} "}, **self._so_far(call, cached)))
            await asyncio.sleep(PAUSE_SECONDS)
            if how.endswith("breaks off") and word >= words // 2:
                exchange.drop()
                return
        if asks:
            arguments = json.dumps({"input": f"child of {call.text.replace(SPAWN, '')}"})
            function = {"name": "spawn_task", "arguments": arguments}
            await exchange.say(chunk({"tool_calls": [{"index": 0, "id": "c", "function": function}]}))
        await exchange.say(chunk(finish_reason="tool_calls" if asks else "stop"))
        if how != "tells nothing":
            call.told.append(Told(call.number, cached, call.generated))
            call.is_whole = True
            await exchange.say({**chunk(), "choices": [], "usage": _usage(call.told[-1])})
        await exchange.send(DONE)
        await exchange.end()

    def _so_far(self, call: Call, cached: int) -> dict[str, Any]:
        if call.how != "tells and breaks off":
            return {}
        call.told.append(Told(call.number, cached, call.generated))
        return {"usage": _usage(call.told[-1])}


def _usage(told: Told) -> dict[str, Any]:
    return {
        "prompt_tokens": told.prompt,
        "completion_tokens": told.completion,
        "total_tokens": told.prompt + told.completion,
        "prompt_tokens_details": {"cached_tokens": told.cached},
    }


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, in whatever form."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


# Judgement: pure


@dataclass
class Books:
    """What a comparison of the server's account with the journals came to, in calls and tokens."""

    calls: int = 0
    """That were not refused."""
    known: int = 0
    """Of these, such whose usage is in a journal."""
    known_tokens: int = 0
    lost: int = 0
    """Such that are in no journal by their tokens, and that their tasks tell as untold."""
    lost_tokens: int = 0
    """What the server has generated for those, and read."""
    phantoms: int = 0
    """Untold calls of which the server knows nothing: their worker died before it asked."""
    problems: list[str] = field(default_factory=list)


class _Entry(NamedTuple):
    """A usage in a journal."""

    task: str
    type: str
    usage: Mapping[str, int]


def compare(calls: Sequence[Call], journals: Mapping[str, Sequence[Mapping[str, Any]]]) -> Books:
    """Hold all calls against all journals, by task: each usage is of one call, and no call is nowhere."""
    books = Books()
    by_number = {call.number: call for call in calls}
    tasks = {text_of_task(journal): task for task, journal in journals.items()}
    seen: Counter[int] = Counter()
    untold: Counter[str] = Counter()
    for entry in _entries(journals, untold):
        call = by_number.get(entry.usage["input_tokens"])
        if call is None or tasks.get(call.text) != entry.task:
            books.problems.append(f"task {entry.task} tells a usage that no call of it has had: {dict(entry.usage)}")
            continue
        seen[call.number] += 1
        books.known += 1
        books.known_tokens += entry.usage["input_tokens"] + entry.usage["output_tokens"]
        books.problems += [f"{problem}: {call} ({entry})" for problem in _wrong(call, entry)]
    books.problems += [f"call {number} counts {count} times" for number, count in seen.items() if count > 1]
    unknown: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        books.calls += not call.is_refused
        if not call.is_refused and not seen[call.number]:
            unknown[tasks.get(call.text, "")].append(call)
    for task, nowhere in unknown.items():
        books.lost += len(nowhere)
        books.lost_tokens += sum(call.number + call.generated for call in nowhere)
        if len(nowhere) > untold[task]:
            books.problems.append(f"task {task!r} tells {untold[task]} untold calls, and has had {nowhere}")
    books.phantoms = sum(untold.values()) - books.lost
    return books


def text_of_task(journal: Sequence[Mapping[str, Any]]) -> str:
    """What a task asked for at first."""
    return str(journal[0]["request"]["input"])


def _entries(journals: Mapping[str, Sequence[Mapping[str, Any]]], untold: Counter[str]) -> Iterator[_Entry]:
    """The usages that tell tokens. Those that do not, and lost calls, are counted as untold ones of their task."""
    for task, journal in journals.items():
        for event in journal:
            untold[task] += len(event.get("lost") or ())
            if event["type"] not in ("turn.completed", "model.spent"):
                continue
            usage = event["usage"]
            if usage["input_tokens"]:
                yield _Entry(task, event["type"], usage)
            else:
                untold[task] += usage.get("untold_calls", 0)


def _wrong(call: Call, entry: _Entry) -> Iterator[str]:
    usage = entry.usage
    if call.is_refused:
        yield "a call that was refused counts"
    is_of_all = not usage.get("untold_calls")
    told = Told(usage["input_tokens"], usage.get("cached_tokens", 0), usage["output_tokens"])
    if is_of_all and not (call.is_whole and told == call.told[-1]):
        yield "it is not what the server has told at the end"
    if not is_of_all and told not in call.told:
        yield "it is nothing that the server has told"
