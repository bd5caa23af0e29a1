"""How the message of a step waits: the table of `mesh.steps.postponement`."""

from __future__ import annotations

import pytest

from contracts.retries import NAK_SECONDS_MAX
from mesh.broker.answers import Ack, Answer, Hold, Nak
from mesh.steps.postponement import NOT_VISIBLE_DELIVERIES_MAX, may_be_visible_soon, until_next_try
from mesh.task.failures import Retry, StepFailed

SOON, LATE = Retry(NAK_SECONDS_MAX, 1), Retry(NAK_SECONDS_MAX + 0.1, 1)


def failed(*, counts: bool) -> StepFailed:
    error = StepFailed("provider-overloaded", "it fails", retryable=True)
    error.counts = counts
    return error


def test_a_message_without_a_journal_goes_back_seven_times_before_the_leader_is_asked() -> None:
    assert NOT_VISIBLE_DELIVERIES_MAX == 8
    assert [may_be_visible_soon(delivery) for delivery in range(1, 10)] == [True] * 7 + [False] * 2


@pytest.mark.parametrize(
    ("retry", "counts", "has_permit", "answer"),
    [
        pytest.param(SOON, True, True, Nak(NAK_SECONDS_MAX), id="a try that counts goes back to its queue"),
        pytest.param(SOON, True, False, Nak(NAK_SECONDS_MAX), id="also while its gate is shut"),
        pytest.param(SOON, False, True, Nak(NAK_SECONDS_MAX), id="one that does not, while its gate is open"),
        pytest.param(SOON, False, False, Hold(NAK_SECONDS_MAX), id="one that does not waits in hand for its gate"),
        pytest.param(LATE, True, True, Ack(), id="what comes late is brought by a timer"),
        pytest.param(LATE, True, False, Ack(), id="whatever its gate says"),
    ],
)
def test_where_a_message_waits_for_its_next_try(retry: Retry, counts: bool, has_permit: bool, answer: Answer) -> None:
    assert until_next_try(retry, failed(counts=counts), has_permit=has_permit) == answer
