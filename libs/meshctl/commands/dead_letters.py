"""`meshctl dead-letters`: list, inspect, replay and give up what gave up."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from contracts.api.dead_letters import ListedDeadLetter, ReplayAccepted, ReplayRequest
from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.journal.parts import StepGen
from contracts.messages.control import REPLAYED_STEPS_MAX, Edits
from contracts.records.status import ENDED
from meshctl.client import Client
from meshctl.commands.tasks import client_of, text_of
from meshctl.display import dead_letter_text, output
from meshctl.display.tables import dead_letters_table
from meshctl.errors import MeshctlError

PAGE: Final = 100
RATE_DEFAULT: Final = 20.0
RATE_MAX: Final = 1_000.0
"""Replays a second: each of them is work at once."""
REPLAYS_AT_ONCE_MAX: Final = 8
"""Requests on their way: the ingress is asked no more at once, whatever the rate."""
MATCHED_MAX: Final = 100_000
"""Dead letters that one run takes up; the next run goes on with the rest."""
_FILTERS = ("tool", "code", "since", "until")


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register `dead-letters` and what it does."""
    text = (
        "What gave up waits in a dead letter until somebody repairs it: look at it, replay it with or without changes,"
        " or give its task up for good. `TASK` may be the number of a message that was no work, as the list shows it."
    )
    parser = commands.add_parser("dead-letters", help="what gave up: list, show, replay, drop", description=text)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    text = "Print dead letters, the newest first: those that are open, unless --all."
    listing = actions.add_parser("list", parents=[common], help="list them", description=text)
    _add_filters(listing)
    listing.add_argument("--all", action="store_true", help="also those that are not open any more")
    listing.add_argument("--limit", metavar="N", type=_positive, help="at most so many [all]")
    listing.set_defaults(run=_run_list)

    text = "Print everything that is known about the dead letters of a task: what failed, how, and with what."
    show = actions.add_parser("show", parents=[common], help="show those of a task", description=text)
    show.add_argument("task", metavar="TASK", help="id of the task, or number of a message")
    show.set_defaults(run=_run_show)

    _add_replay(actions, common)

    text = (
        "Put messages back that nobody understood, such as those of a later version that met older processes alone."
        " Each is published again as it was, and its dead letter is deleted."
    )
    requeue = actions.add_parser("requeue", parents=[common], help="put messages back", description=text)
    requeue.add_argument("message", metavar="NUMBER", nargs="+", type=_positive, help="number of a message")
    requeue.set_defaults(run=_run_requeue)

    text = (
        "Give tasks up for good: they end as cancelled, with the output so far. A message that was no work is deleted."
    )
    drop = actions.add_parser("drop", parents=[common], help="give tasks up", description=text)
    drop.add_argument("task", metavar="TASK", nargs="+", help="id of a task, or number of a message")
    drop.set_defaults(run=_run_drop)


def _add_replay(actions: Any, common: argparse.ArgumentParser) -> None:
    text = (
        "Go on with tasks whose steps gave up, with what they ask for changed or not. Each open dead letter is replayed"
        " once, however often this is run: after an interruption run it again. Ends with 0 if none was refused."
    )
    replay = actions.add_parser("replay", parents=[common], help="go on with tasks", description=text)
    replay.add_argument("task", metavar="TASK", nargs="*", help="id of a task")
    replay.add_argument("--all-matching", action="store_true", help="all that the filters let through")
    _add_filters(replay)
    replay.add_argument("--step", metavar="STEP", action="append", help="only this step, as 2 or 1-0; may be repeated")
    edits = replay.add_argument_group("edits")
    edits.add_argument("--instructions", metavar="TEXT", help="new instructions")
    edits.add_argument("--input", metavar="TEXT", help="a new input; - reads it from standard input")
    edits.add_argument("--model", help="another model")
    edits.add_argument("--pool", help="another pool")
    edits.add_argument("--arguments", metavar="JSON", help="new arguments of every call that is replayed")
    replay.add_argument("--reason", metavar="TEXT", help="why; it is in the journal")
    replay.add_argument("--dry-run", action="store_true", help="only print what would be done")
    replay.add_argument(
        "--rate", metavar="N", type=_rate, default=RATE_DEFAULT, help=f"at most so many a second [{RATE_DEFAULT:g}]"
    )
    replay.set_defaults(run=_run_replay)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    filters = parser.add_argument_group("filters")
    filters.add_argument("--tool", metavar="NAME", help="only calls of this tool")
    filters.add_argument("--code", help="only those whose last error has this code")
    filters.add_argument("--since", metavar="TIME", help="only those of this time or later: 2026-01-31T09:30:00Z")
    filters.add_argument("--until", metavar="TIME", help="only those before this time")


def _run_list(arguments: argparse.Namespace) -> int:
    return asyncio.run(_list(arguments))


def _run_show(arguments: argparse.Namespace) -> int:
    return asyncio.run(_show(arguments))


def _run_replay(arguments: argparse.Namespace) -> int:
    return asyncio.run(_replay(arguments))


def _run_drop(arguments: argparse.Namespace) -> int:
    return asyncio.run(_drop(arguments))


def _run_requeue(arguments: argparse.Namespace) -> int:
    return asyncio.run(_requeue(arguments))


async def _list(arguments: argparse.Namespace) -> int:
    left: int | None = arguments.limit
    shown = 0
    query = _query(arguments) | ({"all": "true"} if arguments.all else {})
    async with client_of(arguments) as client:
        async for page in _pages(client, query, PAGE if left is None else min(left, PAGE)):
            some = page[:left]
            if output.for_people():
                # The head stands once, above the first page.
                output.show(dead_letters_table(some, with_head=shown == 0))
            else:
                for letter in some:
                    output.json_line(letter)
            shown += len(some)
            left = None if left is None else left - len(some)
            if left == 0:
                break
    return 0


async def _show(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        if arguments.task.isdigit():
            letter = await client.malformed(int(arguments.task))
            text, raw = dead_letter_text.record_text(letter.value), letter.raw
        else:
            shown = await client.dead_letters_of(arguments.task)
            text, raw = dead_letter_text.task_text(shown.value), shown.raw
    if output.for_people():
        print(text)
    else:
        output.raw_line(raw)
    return 0


async def _drop(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        for task in arguments.task:
            if task.isdigit():
                raw = (await client.drop_malformed(int(task))).raw
                text = f"message {task} is deleted"
            else:
                answer = await client.drop(task)
                status = answer.value.status
                text = f"{task} is {status} already" if status in ENDED else f"{task} will be given up"
                raw = answer.raw
            if output.for_people():
                print(text)
            else:
                output.raw_line(raw)
    return 0


async def _requeue(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        for message in arguments.message:
            answer = await client.requeue_malformed(message)
            if output.for_people():
                print(f"message {message} is back on {answer.value.subject}")
            else:
                output.raw_line(answer.raw)
    return 0


# Replaying


@dataclass
class Count:
    """What has become of a run's replays. `refused` counts by code."""

    replayed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    left: int = 0
    """Tasks that it did not come to."""

    def text(self, *, dry_run: bool) -> str:
        """One line for people."""
        codes = ", ".join(f"{count} {code}" for code, count in sorted(self.refused.items()))
        done = f"{'would replay' if dry_run else 'replayed'} {self.replayed}"
        refused = f", refused {self.refused.total()}" + (f" ({codes})" if codes else "")
        return done + refused + (f", not tried {self.left}" if self.left else "")

    def line(self, *, dry_run: bool) -> dict[str, Any]:
        """One line for programs."""
        return {
            "event": "dead_letters.replayed",
            "dry_run": dry_run,
            "replayed": self.replayed,
            "refused": self.refused.total(),
            "codes": dict(self.refused),
            "not_tried": self.left,
        }


def by_task(found: Iterable[ListedDeadLetter], only: Iterable[str] | None) -> dict[str, list[StepGen]]:
    """The open dead letters by task, each once, however many pages it was on. Those that have no task are left out."""
    steps: dict[str, dict[StepGen, None]] = {}
    for letter in found:
        if letter.task is None or letter.step is None or letter.gen is None or not letter.open:
            continue
        if only is None or letter.step in only:
            steps.setdefault(letter.task, {})[StepGen(letter.step, letter.gen)] = None
    return {task: list(named)[:REPLAYED_STEPS_MAX] for task, named in steps.items()}


def edits_for(edits: Edits, call_arguments: dict[str, Any] | None, steps: Iterable[StepGen]) -> Edits | None:
    """The edits of one task's replay: new arguments are those of each of its calls. None if nothing is changed."""
    calls = [each.step for each in steps if "-" in each.step]
    if call_arguments is not None and calls:
        edits = msgspec.structs.replace(edits, arguments=dict.fromkeys(calls, call_arguments))
    return edits if edits != Edits() else None


async def _replay(arguments: argparse.Namespace) -> int:
    filtered = [f"--{name}" for name in _FILTERS if getattr(arguments, name) is not None]
    if arguments.all_matching == bool(arguments.task):
        raise MeshctlError("name tasks, or say --all-matching", code="invalid-request")
    if filtered and not arguments.all_matching:
        raise MeshctlError(f"{', '.join(filtered)} wants --all-matching", code="invalid-request")
    call_arguments = _arguments_of(arguments.arguments)
    edits = Edits(
        instructions=arguments.instructions,
        input=text_of(arguments.input) if arguments.input is not None else None,
        model=arguments.model,
        pool=arguments.pool,
    )
    async with client_of(arguments) as client:
        tasks = await _matching(client, arguments) if arguments.all_matching else dict.fromkeys(arguments.task)
        wanted = {task: _Wanted(client, task, steps, edits, call_arguments, arguments) for task, steps in tasks.items()}
        count = Count(left=len(wanted))
        try:
            await _paced(wanted.values(), count, arguments.rate)
        finally:
            # Also where it was interrupted: what is done is done.
            if output.for_people():
                print(count.text(dry_run=arguments.dry_run), flush=True)
            else:
                output.json_line(count.line(dry_run=arguments.dry_run))
    return 1 if count.refused or count.left else 0


@dataclass(frozen=True)
class _Wanted:
    """One task's replay."""

    client: Client
    task: str
    steps: list[StepGen] | None
    """None: whatever is open of the task."""
    edits: Edits
    call_arguments: dict[str, Any] | None
    arguments: argparse.Namespace

    async def ask(self) -> None:
        """Have it done, and print what it comes to. Raises `ApiError`, `Unreachable`."""
        steps = self.steps if self.steps is not None else await self._open()
        request = ReplayRequest(
            edits=edits_for(self.edits, self.call_arguments, steps),
            steps=steps or None,
            reason=self.arguments.reason,
            dry_run=self.arguments.dry_run,
        )
        answer = await self.client.replay(self.task, request)
        if not output.for_people():
            output.raw_line(answer.raw)
        elif isinstance(answer.value, ReplayAccepted):
            print(dead_letter_text.accepted_text(answer.value), flush=True)
        else:
            print(dead_letter_text.plan_text(answer.value), flush=True)

    async def _open(self) -> list[StepGen]:
        only = self.arguments.step
        found = (await self.client.dead_letters_of(self.task)).value.open
        steps = [StepGen(each.step, each.gen) for each in found if only is None or each.step in only]
        if only is not None and not steps:
            raise MeshctlError(f"task {self.task} has no open dead letter of step {', '.join(only)}", code="conflict")
        return steps[:REPLAYED_STEPS_MAX]


async def _paced(wanted: Iterable[_Wanted], count: Count, rate: float) -> None:
    """Ask for each at its time, and for a few at once. Raises `Unreachable` when nobody answers any more."""
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(REPLAYS_AT_ONCE_MAX)

    async def one(each: _Wanted) -> None:
        try:
            await each.ask()
        except MeshctlError as error:
            if error.retryable:
                raise
            count.refused[error.code] += 1
            print(f"meshctl: {each.task}: {error.code}: {output.printable(str(error))}", file=sys.stderr, flush=True)
        else:
            count.replayed += 1
        finally:
            room.release()
        count.left -= 1

    due_at = loop.time()
    try:
        async with asyncio.TaskGroup() as group:
            for each in wanted:
                # Whoever was late does not make up for it: the rate is a bound on every second.
                await asyncio.sleep(due_at - loop.time())
                await room.acquire()
                due_at = max(due_at, loop.time()) + 1 / rate
                group.create_task(one(each))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _matching(client: Client, arguments: argparse.Namespace) -> dict[str, list[StepGen]]:
    """All that is open now and that the filters let through. It is read before the first replay changes any of it."""
    found: list[ListedDeadLetter] = []
    async for page in _pages(client, _query(arguments), PAGE):
        found += page
        if len(found) >= MATCHED_MAX:
            print(f"meshctl: there are more than {MATCHED_MAX}: run it again for the rest", file=sys.stderr)
            break
    return by_task(found, arguments.step)


async def _pages(client: Client, query: dict[str, str], limit: int) -> AsyncIterator[list[ListedDeadLetter]]:
    cursor: str | None = None
    while True:
        more = {"cursor": cursor} if cursor is not None else {}
        page = (await client.dead_letters({**query, "limit": str(limit), **more})).value
        yield page.dead_letters
        cursor = page.cursor
        if cursor is None:
            return


def _query(arguments: argparse.Namespace) -> dict[str, str]:
    values = {name: getattr(arguments, name) for name in _FILTERS}
    return {name: str(value) for name, value in values.items() if value is not None}


def _arguments_of(raw: str | None) -> dict[str, Any] | None:
    if raw is None:
        return None
    try:
        return decode(raw.encode("utf-8", "surrogatepass"), dict[str, Any])
    except InvalidPayload as error:
        raise InvalidPayload(f"--arguments: {error}") from None


def _positive(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit()) or int(raw) == 0:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return int(raw)


def _rate(raw: str) -> float:
    try:
        rate = float(raw)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= RATE_MAX:
        raise argparse.ArgumentTypeError(f"must be above 0, and at most {RATE_MAX:g}")
    return rate
