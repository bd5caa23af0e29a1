"""The agent's run once more, with every service 20 ms from the broker."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos.agent import AGENT
from tests.chaos.points import Point
from tests.chaos.scenario import no_drains

RTT_SECONDS = 0.02


def _is_chosen(point: Point) -> bool:
    # Between an event and its ack lie the same round trips as in the agent's run, where each is a point.
    return not point.held and no_drains(point) and point.what.startswith("append:")


DISTANT = replace(AGENT, name="distant", rtt_seconds=RTT_SECONDS, chosen=_is_chosen)
