"""Tables for people: tasks, workers, lanes, and what the doctor says. Pure: from records to a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich.table import Table
from rich.text import Text

from contracts.api.dead_letters import ListedDeadLetter
from contracts.records.providers import ProviderRecord
from contracts.records.status import LaneStatistics, TaskCounts, TaskRecord, WorkerRecord
from contracts.records.tools import ToolDeclaration
from meshctl.diagnosis.check import Check
from meshctl.display.output import printable
from meshctl.display.rendering import first_words, time_text

_STATUS_STYLES: Final = {"failed": "red", "dead_lettered": "red", "waiting": "yellow", "completed": "green"}
_ABOUT_CHARACTERS_MAX: Final = 80
_BREAKER_STYLES: Final = {"open": "red", "half_open": "yellow", "closed": "green"}
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def plain_table(*heads: str) -> Table:
    """Columns with their heads and nothing around them: what `cut` and a narrow terminal can take."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=bool(heads))
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def cell(text: object, style: str = "") -> Text:
    """Text as it may be shown: no control characters, no markup."""
    return Text(printable(str(text)), style=style)


def checks_table(checks: Sequence[Check]) -> Table:
    """One line for each check, and under it what to do."""
    table = plain_table()
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(
            cell(check.status, _STYLES[check.status]), cell(check.check.replace("_", " ")), cell(check.detail)
        )
        if check.remedy:
            table.add_row("", "", cell(f"→ {check.remedy}", _STYLES[check.status]))
    return table


def tasks_table(tasks: Sequence[TaskRecord], *, with_head: bool = True) -> Table:
    """Tasks, one on each line. A page after the first has no head, and its columns stand where they stood."""
    heads = (("TASK", 26), ("STATUS", 13), ("LANE", 16), ("CHANGED", 20), ("ABOUT", None))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=with_head)
    for head, width in heads:
        table.add_column(head, min_width=width, no_wrap=True, overflow="ellipsis" if width is None else "ignore")
    for task in tasks:
        style = _STATUS_STYLES.get(task.status, "")
        table.add_row(
            cell(task.id),
            cell(task.status, style),
            cell(f"{task.pool}, {task.priority}"),
            cell(time_text(task.updated_at)),
            cell(first_words(task)),
        )
    return table


def counts_table(counts: TaskCounts) -> Table:
    """How many tasks there are of each status that has some, and of all."""
    table = plain_table("STATUS", "TASKS")
    for status, tasks in counts.counts.items():
        if tasks:
            table.add_row(cell(status, _STATUS_STYLES.get(status, "")), f"{tasks:,}")
    table.add_row("all", f"{sum(counts.counts.values()):,}")
    return table


def dead_letters_table(letters: Sequence[ListedDeadLetter], *, with_head: bool = True) -> Table:
    """Dead letters, one on each line. A message that was no work has its number in the place of a task."""
    heads = (("TASK", 26), ("STEP", 5), ("GEN", 3), ("TOOL", 12), ("CODE", 24), ("TIME", 20), ("ERROR", None))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=with_head)
    for head, width in heads:
        table.add_column(head, min_width=width, no_wrap=True, overflow="ellipsis" if width is None else "ignore")
    for letter in letters:
        style = "red" if letter.open else ""
        table.add_row(
            cell(letter.task or letter.record_sequence),
            cell(letter.step or "-"),
            cell("-" if letter.gen is None else letter.gen),
            cell(letter.tool or "-"),
            cell(letter.error.code, style),
            cell(time_text(letter.time)),
            cell(" ".join(letter.error.message.split())),
        )
    return table


def workers_table(workers: Sequence[WorkerRecord], at: datetime) -> Table:
    """One line for each process. Times are told as they are at `at`."""
    states = [_state_of(worker) for worker in workers]
    # Rarely is there anything to say: the column is there when there is.
    bears = [_bears(worker) for worker in workers]
    more = [*(["SERVERS BEAR"] * any(bears)), *(["STATE"] * any(states))]
    table = plain_table("WORKER", "VERSION", "BUILD", "SERVES", "STEPS", "UP", "SEEN", *more)
    for worker, bear, state in zip(workers, bears, states, strict=True):
        table.add_row(
            cell(worker.worker),
            cell(worker.version),
            cell(worker.build or ""),
            cell(", ".join([*worker.pools, *worker.tools]) or worker.http or ""),
            f"{worker.running}/{worker.concurrency}" if worker.concurrency else "",
            _duration((at - worker.started_at).total_seconds()),
            f"{_duration((at - worker.time).total_seconds())} ago",
            *([cell(bear)] * any(bears)),
            *([cell(state)] * any(states)),
        )
    return table


def _bears(worker: WorkerRecord) -> str:
    """How many turns at once the servers of its pools bear of it, and of all workers, and why."""
    told = [
        f"{pool} {capacity.limit} of {capacity.of_all} ({capacity.why})" for pool, capacity in worker.capacity.items()
    ]
    return shortened("; ".join(told))


def _state_of(worker: WorkerRecord) -> str:
    """Whether it drains, and what is not well with it."""
    unwell = [f"{check.name}: {check.detail}" if check.detail else check.name for check in worker.checks]
    return shortened("; ".join([*(["draining"] if worker.draining else []), *unwell]))


def tools_table(tools: Sequence[ToolDeclaration]) -> Table:
    """One line for each tool."""
    table = plain_table("TOOL", "APPROVAL", "AGAIN", "TIMEOUT", "ABOUT")
    for tool in tools:
        asks = "never" if tool.approval == "destructive" and not tool.destructive else tool.approval
        table.add_row(
            cell(tool.name),
            cell(asks),
            cell("yes" if tool.idempotent else "no"),
            f"{tool.timeout_seconds:g} s",
            cell(shortened(tool.description)),
        )
    return table


def shortened(text: str) -> str:
    """A text on one line, and cut."""
    line = " ".join(text.split())
    return line if len(line) <= _ABOUT_CHARACTERS_MAX else f"{line[: _ABOUT_CHARACTERS_MAX - 1]}…"


def lanes_table(lanes: Sequence[LaneStatistics], at: datetime) -> Table:
    """One line for each lane."""
    table = plain_table("LANE", "WAITING", "RUNNING", "TURNS/S", "WAIT P50", "WAIT P95", "AS OF")
    for lane in lanes:
        table.add_row(
            cell(f"{lane.pool}, {lane.priority}"),
            str(lane.depth),
            str(lane.running),
            "-" if lane.drain_per_second is None else f"{lane.drain_per_second:.1f}",
            _seconds(lane.wait_seconds_p50),
            _seconds(lane.wait_seconds_p95),
            f"{_duration((at - lane.time).total_seconds())} ago",
        )
    return table


def providers_table(providers: Sequence[ProviderRecord], at: datetime) -> Table:
    """One line for each provider's breaker."""
    table = plain_table("PROVIDER", "BREAKER", "SINCE", "REASON", "FAILED", "NEXT PROBE")
    for provider in providers:
        table.add_row(
            cell(provider.provider),
            cell(provider.state.replace("_", "-"), _BREAKER_STYLES[provider.state]),
            f"{_duration((at - provider.since).total_seconds())} ago",
            cell(provider.reason or "-"),
            f"{provider.failures}/{provider.samples}" if provider.samples else "-",
            cell(_next_probe(provider, at)),
        )
    return table


def _next_probe(provider: ProviderRecord, at: datetime) -> str:
    if provider.probe is not None:
        return f"now, by {provider.probe.worker}"
    if provider.retry_at is None:
        return "-"
    seconds = (provider.retry_at - at).total_seconds()
    return f"in {seconds:.1f} s" if seconds > 0 else "with the next step"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _duration(seconds: float) -> str:
    """`12s`, `3m`, `5h`, `2d`: the largest unit that fits, and no more."""
    whole = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"
