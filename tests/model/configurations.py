"""The bounded configurations: small tasks, each with a few misfortunes, so that every interleaving can be visited."""

from __future__ import annotations

from tests.model.checker import Searchable
from tests.model.followers import FOLLOWED
from tests.model.holds import STREAMS
from tests.model.journal import Task
from tests.model.packing import PACKED
from tests.model.rules import Off
from tests.model.state import Bounds
from tests.model.steps import Configuration

ONE_TURN = Task(((),))
ONE_CALL = Task((("1-0",), ()))
TWO_CALLS = Task((("1-0", "1-1"), ()))
APPROVED_CALL = Task((("1-0",), ()), frozenset({"1-0"}))
CALL_AND_APPROVED_CALL = Task((("1-0", "1-1"), ()), frozenset({"1-1"}))

SPOKEN_TURN = Task(((),), tokens=frozenset({"1"}))
SPOKEN_CALL = Task((("1-0",), ()), tokens=frozenset({"1", "2"}))

CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration("a turn, crashes", ONE_TURN, Bounds(crashes=2, lost_answers=1), deliveries_max=4),
    Configuration("a turn, zombies", ONE_TURN, Bounds(crashes=1, stalls=2, lost_answers=1)),
    Configuration("a turn, a cancel", ONE_TURN, Bounds(crashes=1, stalls=1, lost_answers=1, cancels=1)),
    Configuration("a submission", ONE_TURN, Bounds(crashes=1, stalls=1, lost_answers=1, stale_reads=1), begun=False),
    Configuration("a turn, given up", ONE_TURN, Bounds(crashes=1, stalls=1, failures=1, replays=1), deliveries_max=2),
    Configuration("a turn, stranded", ONE_TURN, Bounds(crashes=2, stalls=1, replays=1), deliveries_max=1),
    Configuration("a turn, a retry", ONE_TURN, Bounds(crashes=2, lost_answers=1, retries=1)),
    Configuration("a turn, a retry, a short window", ONE_TURN, Bounds(crashes=1, windows=1, retries=2)),
    Configuration("a turn, a retry, zombies", ONE_TURN, Bounds(crashes=1, stalls=1, retries=1)),
    Configuration("a turn, a retry, stale reads", ONE_TURN, Bounds(crashes=1, stale_reads=2, retries=1)),
    Configuration("a turn, a retry, stranded", ONE_TURN, Bounds(crashes=1, retries=1, replays=1), deliveries_max=2),
    Configuration("a turn, replayed, a retry", ONE_TURN, Bounds(crashes=1, failures=1, retries=1, replays=1)),
    Configuration("a turn, replayed by two", ONE_TURN, Bounds(crashes=1, failures=1, replays=2), stewards=2),
    Configuration("a call", ONE_CALL, Bounds(crashes=1, stalls=1, lost_answers=1)),
    Configuration("a call, a short window", ONE_CALL, Bounds(crashes=1, stalls=1, windows=1)),
    Configuration("a call, stale reads", ONE_CALL, Bounds(crashes=1, stale_reads=2)),
    Configuration("a call, a retry", ONE_CALL, Bounds(crashes=1, retries=1)),
    Configuration("a call, a cancel", ONE_CALL, Bounds(crashes=1, cancels=1)),
    Configuration("a call, stranded", ONE_CALL, Bounds(crashes=1, stalls=1, replays=1), deliveries_max=1),
    Configuration("a call, replayed twice", ONE_CALL, Bounds(crashes=1, failures=1, replays=2), deliveries_max=2),
    Configuration("two calls", TWO_CALLS, Bounds(crashes=1, stalls=1)),
    Configuration("two calls, a short window", TWO_CALLS, Bounds(crashes=1, windows=1)),
    Configuration("two calls, a cancel", TWO_CALLS, Bounds(cancels=1)),
    Configuration("two calls, one given up", TWO_CALLS, Bounds(failures=1, replays=1)),
    Configuration("two calls, stranded", TWO_CALLS, Bounds(stalls=1, replays=1), deliveries_max=1),
    Configuration("an approval", APPROVED_CALL, Bounds(crashes=1, approvals=2)),
    Configuration("an approval, zombies", APPROVED_CALL, Bounds(stalls=1, approvals=2), stewards=2),
    Configuration("an approval, a cancel", APPROVED_CALL, Bounds(crashes=1, approvals=1, cancels=1)),
    Configuration("an approval, a short window", APPROVED_CALL, Bounds(crashes=1, windows=1, approvals=1)),
    Configuration("an approval beside a call", CALL_AND_APPROVED_CALL, Bounds(crashes=1, approvals=1)),
    Configuration("a turn, a drain", ONE_TURN, Bounds(crashes=1, lost_answers=1, releases=1)),
    Configuration("a turn, a drain, zombies", ONE_TURN, Bounds(crashes=1, stalls=1, releases=1)),
    Configuration("a turn, drains, stale reads", ONE_TURN, Bounds(stale_reads=2, releases=2)),
    Configuration("a turn, a retry, a drain", ONE_TURN, Bounds(crashes=1, retries=1, releases=1)),
    Configuration("a call, a drain", ONE_CALL, Bounds(crashes=1, releases=1)),
    Configuration("a turn, a drain, a cancel", ONE_TURN, Bounds(stalls=1, cancels=1, releases=1)),
    Configuration("a turn, a drain, given up", ONE_TURN, Bounds(crashes=1, failures=1, replays=1, releases=1)),
    Configuration("a turn, drains, a short window", ONE_TURN, Bounds(crashes=1, windows=1, releases=2)),
    Configuration("a call, a drain, zombies", ONE_CALL, Bounds(stalls=1, releases=1)),
    Configuration("an approval, a drain", APPROVED_CALL, Bounds(crashes=1, approvals=1, releases=1)),
    Configuration("two calls, a drain", TWO_CALLS, Bounds(releases=1)),
    Configuration("a turn, a drain, stranded", ONE_TURN, Bounds(crashes=1, replays=1, releases=1), deliveries_max=1),
    Configuration("a turn, a loss", ONE_TURN, Bounds(crashes=1, stalls=1, losses=1, looks=2)),
    Configuration("a turn, a loss, haste", ONE_TURN, Bounds(crashes=1, losses=1, looks=2, hasty_looks=1)),
    Configuration("a turn, a loss, a drain", ONE_TURN, Bounds(crashes=1, releases=1, losses=1, looks=2)),
    Configuration("a call, a loss", ONE_CALL, Bounds(crashes=1, losses=1, looks=2)),
    Configuration("a call, haste", ONE_CALL, Bounds(stalls=1, hasty_looks=1)),
    Configuration("two calls, a loss", TWO_CALLS, Bounds(losses=1, looks=3)),
    Configuration("a turn, a loss, given up", ONE_TURN, Bounds(failures=1, replays=1, losses=1, looks=1)),
    Configuration("a turn, a loss, a retry", ONE_TURN, Bounds(crashes=1, retries=1, losses=1, looks=2)),
    Configuration("an input, a loss", SPOKEN_TURN, Bounds(losses=1, inputs=1, looks=2)),
    Configuration("an input", SPOKEN_TURN, Bounds(crashes=1, lost_answers=1, inputs=1)),
    Configuration("an input, a long turn", SPOKEN_TURN, Bounds(crashes=1, inputs=1), cold=True),
    Configuration("an input, zombies", SPOKEN_TURN, Bounds(stalls=1, inputs=1)),
    Configuration("an input, stale reads", SPOKEN_TURN, Bounds(stale_reads=2, inputs=1)),
    Configuration("an input, a drain", SPOKEN_TURN, Bounds(releases=1, inputs=1)),
    Configuration("an input, a drain, crashes", SPOKEN_TURN, Bounds(crashes=1, releases=1, inputs=1)),
    Configuration("two inputs", SPOKEN_TURN, Bounds(inputs=2)),
    Configuration("a redirect", SPOKEN_TURN, Bounds(crashes=1, redirects=1)),
    Configuration("an input, a redirect", SPOKEN_TURN, Bounds(inputs=1, redirects=1)),
    Configuration("an input, given up", SPOKEN_TURN, Bounds(failures=1, replays=1, inputs=1), cold=True),
    Configuration("an input, a retry", SPOKEN_TURN, Bounds(crashes=1, retries=1, inputs=1), cold=True),
    Configuration("an input, a cancel", SPOKEN_TURN, Bounds(crashes=1, cancels=1, inputs=1)),
    Configuration("an input, stranded", SPOKEN_TURN, Bounds(crashes=1, replays=1, inputs=1), deliveries_max=1),
    Configuration("an input beside an approval", APPROVED_CALL, Bounds(approvals=1, inputs=1)),
    Configuration("two inputs, two stewards", SPOKEN_TURN, Bounds(inputs=2), stewards=2),
    Configuration("an input beside a call", SPOKEN_CALL, Bounds(crashes=1, inputs=1), cold=True),
)
"""Each within `STATES_MAX`; the search fails at one that is not."""

SHOWN_BY: dict[Off, str] = {
    Off.ACK_FIRST: "a call",
    Off.NO_EVENT_ID: "a turn, crashes",
    Off.NO_FOLD_OF_RESULTS: "a call",
    Off.NO_DUE_WHEN_SETTLING: "two calls",
    Off.NO_CLAIM_ID: "a turn, zombies",
    Off.NO_BINDING: "two calls, a short window",
    Off.OLD_TRY_CLAIMED: "a turn, a retry, zombies",
    Off.RETRY_STAYS_BOUND: "a turn, a retry",
    Off.NO_LEASE_CLOCK: "a turn, zombies",
    Off.NO_SECOND_DECISION: "a call",
    Off.NO_SILENCE: "a turn, zombies",
    Off.NO_GEN_IN_MESSAGE_ID: "a turn, given up",
    Off.NO_TRIES_IN_MESSAGE_ID: "a turn, a retry",
    Off.NO_GEN_IN_DECISION: "a call, stranded",
    Off.REPLAY_ALWAYS: "a call, replayed twice",
    Off.REPLAY_UNPUBLISHED: "a turn, given up",
    Off.REPLAY_BEFORE_TIMER: "a turn, replayed, a retry",
    Off.DEAD_LETTER_OF_TASK: "two calls, one given up",
    Off.REPAIRED_UNWRITTEN: "a turn, stranded",
    Off.NO_SWEEP: "a turn, stranded",
    Off.STRANDED_UNREAD: "a call, stranded",
    Off.STRANDED_UNSETTLED: "a call, stranded",
    Off.CANCEL_UNFENCED: "a turn, a cancel",
    Off.NEW_TRY_DROPPED: "a turn, a retry, stale reads",
    Off.RETRY_UNASKED: "a turn, a retry, stale reads",
    Off.OLD_TIMER_BRINGS: "a turn, a retry, a short window",
    Off.ONE_TIMER_OF_STEP: "a turn, a retry, a short window",
    Off.OLD_RELEASE_CLAIMED: "a turn, a drain, zombies",
    Off.NEW_RELEASE_DROPPED: "a turn, drains, stale reads",
    Off.RELEASED_STILL_OWNS: "a turn, a drain, zombies",
    Off.NO_RELEASES_IN_MESSAGE_ID: "a turn, a drain",
    Off.RELEASED_END_UNSENT: "a turn, a drain",
    Off.RELEASED_TO_TIMER: "a turn, a retry, a drain",
    Off.BASE_BY_TEXT: "an input, a long turn",
    Off.END_UNSEEN: "an input",
    Off.INPUT_AGAIN: "an input",
    Off.NO_RECONCILIATION: "a turn, a loss",
    Off.PUT_BACK_UNRELEASED: "a turn, a loss",
    Off.PUT_BACK_ANYWAY: "a turn, a loss, haste",
    Off.NO_HOLD: "a hold",
    Off.PAUSE_ENDLESS: "a hold, late or twice",
    Off.NO_REST: "a hold, late or twice",
    Off.BUSY_ACKED: "a hold, lost",
    Off.HOLD_IS_A_FENCE: "a hold",
    Off.LATE_SUBSCRIPTION: "following, overflows",
    Off.LIVE_HOLE: "following, overflows",
    Off.JOURNAL_HOLE: "following, a purge",
    Off.STALE_PAGE_IS_END: "following, stale reads",
    Off.NO_IDLE_READ: "following, overflows",
    Off.OVERFLOW_FORGOTTEN: "following, overflows",
    Off.ARCHIVE_UNASKED: "packing, late first turns",
    Off.PACK_UNFENCED: "packing, zombies",
    Off.PACKED_AGAIN: "packing, crashes",
    Off.PURGED_FIRST: "packing, crashes",
    Off.LAST_PACK_UNREAD: "packing, crashes",
    Off.LEFT_PIECE_FORGOTTEN: "packing, crashes",
    Off.ABSENCE_UNASKED: "a call, stale reads",
    Off.GOES_ON_AFTER_END: "a call, a cancel",
}
"""Where the absence of a rule shows."""


ALL: tuple[Searchable, ...] = (*CONFIGURATIONS, *STREAMS, *FOLLOWED, *PACKED)
"""Those of a task, and of the small models beside it."""


def searchable(name: str) -> Searchable:
    """What is to be searched, of whichever model, by its name."""
    return next(each for each in ALL if each.name == name)


def named(name: str) -> Configuration:
    """The configuration of a task, by its name."""
    return next(configuration for configuration in CONFIGURATIONS if configuration.name == name)
