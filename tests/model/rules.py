"""The rules of a writer (PROTOCOL.md, section 9), of holds (8a), of packing (14a, 14b) and of a follower (16).

And the ways to leave one out. A rule has more than one switch where it says more than one thing: each half has to be
found missing.
"""

from __future__ import annotations

from enum import Enum


class Off(Enum):
    """One way to break a rule. The value is the rule's number, or its section's, and what is done instead."""

    ACK_FIRST = (1, "acks before it publishes what is due")
    NO_EVENT_ID = (1, "appends again after a lost answer, without looking for its event")
    NO_FOLD_OF_RESULTS = (2, "claims whatever it is given, done or not")
    NO_DUE_WHEN_SETTLING = (2, "settles without publishing what is due")
    NO_CLAIM_ID = (3, "takes any claim of its step for its own")
    NO_BINDING = (3, "works on any message for a step")
    OLD_TRY_CLAIMED = (3, "claims a message again that a retry has taken away")
    RETRY_STAYS_BOUND = (3, "works on no other message for a step whose retry took the first one away")
    NO_LEASE_CLOCK = (4, "never looks at the clock of its lease")
    NO_SECOND_DECISION = (5, "appends the same again after a conflict, whatever was written")
    NO_SILENCE = (5, "acks although it has lost the step")
    NO_GEN_IN_MESSAGE_ID = (6, "leaves gen out of the message id")
    NO_TRIES_IN_MESSAGE_ID = (6, "leaves the tries out of the message id of a retry")
    NO_GEN_IN_DECISION = (6, "takes a message of any gen for one of the current gen")
    REPLAY_ALWAYS = (7, "replays what has no open dead letter")
    REPLAY_UNPUBLISHED = (7, "publishes nothing for a replay that the journal has already")
    REPLAY_BEFORE_TIMER = (7, "publishes the work of a replay again whose next try a timer brings")
    DEAD_LETTER_OF_TASK = (7, "takes the dead letter of one step for all of them")
    REPAIRED_UNWRITTEN = (7, "writes no record of a dead letter that was replayed before it could")
    NO_SWEEP = (8, "leaves messages that nobody will get")
    STRANDED_UNREAD = (8, "makes a dead letter of every stranded message, without a look at its (step, gen)")
    STRANDED_UNSETTLED = (8, "deletes a stranded message whose step is done without settling it")
    CANCEL_UNFENCED = (9, "writes a cancel without the fence")
    NEW_TRY_DROPPED = (11, "believes a stale read that another message stands for a step that a timer brought")
    RETRY_UNASKED = (11, "believes a stale read that no next try is due")
    OLD_TIMER_BRINGS = (6, "brings the next try when the timer of an earlier one fires")
    ONE_TIMER_OF_STEP = (6, "schedules all tries of a step on one subject")
    ABSENCE_UNASKED = (11, "believes a stale read that there is no such call")
    GOES_ON_AFTER_END = (12, "goes on with its step after the task's end")
    OLD_RELEASE_CLAIMED = (3, "claims a message of before its step was released")
    NEW_RELEASE_DROPPED = (11, "drops a message that says more releases than the read that it believes")
    RELEASED_STILL_OWNS = (3, "goes on with a step that was released")
    NO_RELEASES_IN_MESSAGE_ID = (6, "leaves the releases out of the message id")
    RELEASED_END_UNSENT = (2, "publishes no message of a released turn that lacks nothing but its end")
    RELEASED_TO_TIMER = (3, "leaves a released step to the timer that had brought it")
    BASE_BY_TEXT = ("§7", "takes the last claim before the text that it has read for a turn's base")
    END_UNSEEN = (5, "appends the task's end without another look for inputs")
    INPUT_AGAIN = ("§10a", "carries out an input that the journal has already")
    NO_RECONCILIATION = ("§12", "leaves a task alone whose message is gone")
    PUT_BACK_UNRELEASED = ("§12", "puts a lost message back without a release of its step")
    PUT_BACK_ANYWAY = ("§12", "puts a lost message back whatever was written since it was missed")
    NO_HOLD = ("§8a", "asks nobody to make way, and only tries again")
    PAUSE_ENDLESS = ("§8a", "pauses until somebody comes, however long that takes")
    NO_REST = ("§8a", "pauses whenever it is asked, also after a pause in which nobody came")
    BUSY_ACKED = ("§8a", "acks a command whose conflicts are used up")
    HOLD_IS_A_FENCE = ("§8a", "appends without a fence once it has asked for a hold")
    LATE_SUBSCRIPTION = ("§16", "subscribes once it has read the journal")
    LIVE_HOLE = ("§16", "hands on a live event without a look at its n")
    JOURNAL_HOLE = ("§16", "hands on what the journal has behind a hole, without a word")
    STALE_PAGE_IS_END = ("§16", "takes a page without events for the end of what there is")
    NO_IDLE_READ = ("§16", "never looks into the journal while nothing comes")
    OVERFLOW_FORGOTTEN = ("§16", "forgets that its buffer overflowed while it was reading")

    ARCHIVE_UNASKED = ("§14a", "begins a journal without a look into the archive")
    PACK_UNFENCED = ("§14a", "stores a pack without the fence")
    PACKED_AGAIN = ("§14a", "packs what is packed already")
    PURGED_FIRST = ("§14a", "purges a task before it is written down where it lies")
    LAST_PACK_UNREAD = ("§14a", "takes a piece over without a look at the last pack of it")
    LEFT_PIECE_FORGOTTEN = ("§14b", "begins a walk anew over a piece that somebody has left")

    @property
    def rule(self) -> int | str:
        """The rule's number in section 9; else the section that says it, such as `§16`."""
        rule: int | str = self.value[0]
        return rule

    @property
    def meaning(self) -> str:
        """What is done instead."""
        meaning: str = self.value[1]
        return meaning


Rules = frozenset[Off]
"""What is switched off."""
ALL_RULES: Rules = frozenset()
MUST_BE_NEEDED: tuple[int | str, ...] = (*range(2, 9), "§8a", "§14a", "§14b", "§16")
"""Rules of which each switch must lead to a counterexample, and has no other reason to be here."""
