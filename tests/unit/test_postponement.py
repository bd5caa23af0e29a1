"""How the message of a step waits: the table of `mesh.steps.postponement`."""

from __future__ import annotations

import pytest

from contracts.retries import NAK_SECONDS_MAX
from mesh.broker.answers import NOT_VISIBLE_YET, Ack, Answer, Hold, Nak
from mesh.steps.postponement import NOT_VISIBLE_DELIVERIES_MAX, until_next_try, until_visible
from mesh.task.failures import Retry, StepFailed

SOON, LATE = Retry(NAK_SECONDS_MAX, 1), Retry(NAK_SECONDS_MAX + 0.1, 1)


def failed(*, counts: bool) -> StepFailed:
    error = StepFailed("provider-overloaded", "it fails", retryable=True)
    error.counts = counts
    return error


def test_a_message_without_a_journal_goes_back_seven_times() -> None:
    answers = [until_visible(delivery) for delivery in range(1, 10)]
    assert NOT_VISIBLE_DELIVERIES_MAX == 8
    assert answers == [NOT_VISIBLE_YET] * 7 + [None] * 2


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
