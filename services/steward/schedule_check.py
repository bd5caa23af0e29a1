"""Keeps the broker's schedules those of the rules: what meshctl could not finish is finished here."""

from __future__ import annotations

import structlog

from contracts.triggers.rules import RuleInvalid
from mesh.background import repeatedly
from mesh.broker.requests import Requests
from mesh.loop_health import LoopHealth
from mesh.rules.broker_schedules import (
    PutSchedule,
    RemoveSchedule,
    decide_schedules,
    put_schedule,
    read_schedules,
    remove_schedule,
)
from mesh.rules.trigger_bucket import RuleBook

log = structlog.get_logger("steward.schedule_check")

ROUND_SECONDS = 2.0


class Schedules:
    """Any number of stewards may do this: a schedule is written only over the one that was seen."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._book = RuleBook(requests)
        self._refused: set[tuple[str, str, str | None]] = set()

    async def run(self) -> None:
        """Keep them until cancelled."""
        await repeatedly(self.round, ROUND_SECONDS, LoopHealth(log, "schedules.unavailable"))

    async def round(self) -> None:
        """Look at all of them once. Raises `TaskmeshError`."""
        # The rules last: a schedule that lies there before its rule does is taken away no more than once.
        stored = await read_schedules(self._requests)
        await self._book.refresh()
        for step in decide_schedules(self._book.rules, stored):
            match step:
                case PutSchedule(rule, revision):
                    await self._put(PutSchedule(rule, revision))
                case RemoveSchedule(tenant, rule_name, revision):
                    await remove_schedule(self._requests, tenant, rule_name, revision)
                    log.info("schedule.removed", tenant=tenant, rule=rule_name)

    async def _put(self, step: PutSchedule) -> None:
        rule = step.rule
        try:
            await put_schedule(self._requests, rule, step.revision)
            log.info("schedule.put", tenant=rule.tenant, rule=rule.name)
        except RuleInvalid as error:
            # Written past meshctl. It must not keep the others, and is said once.
            key = (rule.tenant, rule.name, rule.on.schedule)
            if key not in self._refused:
                log.error("schedule.refused", tenant=rule.tenant, rule=rule.name, error=str(error))
            self._refused.add(key)
