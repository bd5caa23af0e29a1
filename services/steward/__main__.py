"""`python -m steward`"""

from __future__ import annotations

from datetime import datetime, timedelta

from contracts.streams import BACKLOG
from mesh.background import background
from mesh.configuration.settings import Settings
from mesh.serving.heartbeats import heartbeats
from mesh.serving.service import Service, run
from steward.admission.mover import Mover
from steward.advisories import Advisories
from steward.budgets import BudgetCondition
from steward.control_loop import ControlLoop
from steward.critic import Critics
from steward.figures.rounds import figure_rounds
from steward.lane_statistics import LaneKeeper
from steward.operator_acts import OperatorActs
from steward.provisioning_check import Provisioning
from steward.reconciling import Reconciling
from steward.result_sweep import ResultSweep
from steward.retention import Retention
from steward.schedule_check import Schedules
from steward.storage_samples import StorageSampling
from steward.stranded import Stranded
from steward.sweeping import Sweeps
from steward.trigger_firing import Triggers
from steward.unbegun import Unbegun
from steward.usage_counting import UsageCounting
from steward.valve_records import ValveRecords
from steward.waking import Waking
from steward.webhooks import Webhooks


async def main(service: Service) -> None:
    """Carry out commands, purge what is due, keep lanes and provisioning, until told to stop."""
    settings, valves = service.settings, service.valves
    mover = Mover(service.connection, valves.limits_of, service.worker)
    budgets = BudgetCondition(service.requests, valves.limits_of)
    mover.add_condition(budgets.may_go_on)
    mover.add_condition(lambda tenant, _pool, _priority: not valves.is_paused(tenant=tenant))
    valves.on_changed(mover.wake)

    def is_paused(pool: str, priority: str) -> bool:
        configured = service.settings.configuration
        providers = configured.providers_of(pool) if pool in configured.pools else ()
        return valves.holding(pool, priority, None, providers) is not None

    lanes = LaneKeeper(service.connection, settings.pools, mover.crowd, is_paused)
    control = ControlLoop(service.connection, settings, service.worker)
    timers = ControlLoop(service.connection, settings, service.worker, "TIMERS")
    retention = Retention(service.requests, settings, service.worker)
    stranded = Stranded(service.requests, service.worker)
    advisories = Advisories(service.connection, settings, stranded, service.worker)
    webhooks = Webhooks(service)
    critic = Critics(service.connection, settings, valves.limits_of)
    reconciling = Reconciling(service.requests, settings)
    provisioning = Provisioning(service.requests, lambda: service.settings)
    service.wellness.add_remark(provisioning.check)
    triggers = Triggers(service.connection, settings, service.worker, valves.limits_of)
    schedules = Schedules(service.requests)
    counting = UsageCounting(service.requests, service.worker)
    sweeps = Sweeps(service.requests, settings, service.worker)
    await valves.open()

    async def take(settings: Settings) -> None:
        triggers.configure(settings.configuration)
        await sweeps.take(settings)
        # A webhook, or the critic, that is new has a consumer of its own, which is made there.
        await webhooks.take(settings)
        control.take(settings)
        mover.wake()
        critic.take(settings)

    async def lags_of_walks(at: datetime) -> dict[str, timedelta]:
        return {**await retention.lags(at), "counting": await counting.lag(at)}

    service.reloading.add(lambda _: None, take)
    jobs = background(
        control.run(),
        timers.run(),
        triggers.run(),
        OperatorActs(service.connection).run(),
        schedules.run(),
        advisories.run(),
        stranded.run(),
        Unbegun(service.requests).run(),
        Unbegun(service.requests, stream=BACKLOG.name).run(),
        retention.run(),
        sweeps.run(),
        ResultSweep(service.requests).run(),
        reconciling.run(),
        lanes.run(),
        mover.run(),
        budgets.run(),
        Waking(service.requests).run(),
        StorageSampling(service.requests).run(),
        counting.run(),
        webhooks.run(),
        provisioning.run(),
        critic.run(),
        valves.run(),
        ValveRecords(service.requests).run(),
        *figure_rounds(service.connection, settings, lags_of_walks, valves),
    )
    # The record stays until what is in hand has ended.
    async with heartbeats(service), jobs:
        await service.ready()
        await service.stopping.wait()


if __name__ == "__main__":
    run("steward", main)
