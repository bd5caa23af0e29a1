"""Not now: how the message of a step waits, and why so. Pure.

| what is missing | how its message waits | why |
|---|---|---|
| a journal that fits it | in its queue for 0.2 s, then as the leader says | a replica is behind, or a writer died |
| a process that understands it | in its queue for 1 to 10 s (`giving_up`) | it is of another version |
| a permit, before the claim | in hand (`Hold`) | a delivery is one of few, and brings no news |
| its pool or lane, which is paused | in its queue, which nobody pulls | nobody knows for how long |
| its tenant, which is paused | in BACKLOG, before the claim: a steward brings it back | others share its lane |
| its tenant's budget | the same | it may be a month |
| the same, after one, or without room there | nowhere: acked, and a timer brings another | it is bound to it |
| its provider, after a try | in hand | that try counts for nothing, so must its delivery |
| either, while eight are in hand | in its queue | what is in hand costs memory and a lease |
| time, up to 10 s | in its queue for so long | it needs no timer and no second message |
| time, more than that | nowhere: acked, and a timer brings another | it may be hours: a queue is no place for that |
| room for what is due | nowhere: acked, and a timer brings it | it is another's lane, and must hold nothing here |
| room for its dead letter | in its queue for 30 s | the journal has it; the steward's sweep writes what is left |
| room in EVENTS, `tasks` or TIMERS | in hand | without these nobody can go on |
| the broker | in hand, while its lease is heard | no answer would be heard (`while_leased`) |

Only two loops lie between a delivery and its answer. `Consumption` brings a delivery to its handler again, under the
clock of its lease, while there is no permit or no broker. `Journal` decides again after each conflict of an append,
and gives up after `APPEND_SECONDS_MAX`.
"""

from __future__ import annotations

from mesh.broker.answers import Ack, Hold, Nak
from mesh.task.failures import Retry, StepFailed

NOT_VISIBLE_DELIVERIES_MAX = 8
"""From this delivery on the stream's leader is asked about a journal that is still missing."""


def may_be_visible_soon(deliveries: int) -> bool:
    """Whether a message rests whose journal can't be seen, or does not fit it, yet."""
    return deliveries < NOT_VISIBLE_DELIVERIES_MAX


def until_next_try(retry: Retry, error: StepFailed, *, has_permit: bool) -> Ack | Nak | Hold:
    """The answer to a message whose step has failed, and is to be tried again."""
    if retry.by_timer:
        return Ack()
    if not error.counts and not has_permit:
        return Hold(retry.delay_seconds)  # The next try is a probe, or after it.
    return Nak(retry.delay_seconds)
