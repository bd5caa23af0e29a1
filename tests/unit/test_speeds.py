"""How fast a model is thought to be, by what was seen of it lately."""

from __future__ import annotations

import random

import pytest

from contracts.codec import decode, encode
from contracts.records.speeds import MODELS_TOLD_MAX, ModelSums, SpeedSample
from inference_worker.models.speeds import MODELS_MAX, Speed, Speeds
from inference_worker.speed_reports import DELIVERIES_PER_SECOND_MAX, Sampling


def call(seconds: float, tokens: int = 100, in_flight: int = 0, model: str = "m") -> ModelSums:
    """A call whose first token came after so long."""
    return ModelSums(
        provider="p",
        model=model,
        calls=1,
        first_token_seconds=seconds,
        input_tokens=tokens,
        input_squares=tokens**2,
        input_by_seconds=tokens * seconds,
        in_flight=in_flight,
    )


def answer(tokens: int, seconds: float) -> ModelSums:
    return ModelSums(provider="p", model="m", answers=1, output_tokens=tokens, output_seconds=seconds)


def speed_of(*seen: ModelSums, every_seconds: float = 0.1) -> tuple[Speed, float]:
    """What is known after these, and the time then."""
    speed, at = Speed(), 1_000.0
    for each in seen:
        at += every_seconds
        speed.merge(at, each)
    return speed, at


def first_token(speed: Speed, at: float, tokens: int = 100) -> float:
    seconds = speed.first_token_seconds(tokens, at)
    assert seconds is not None
    return seconds


def test_nothing_is_known_before_a_call_and_little_before_an_answer() -> None:
    speed = Speed()
    assert (speed.first_token_seconds(100, 0.0), speed.is_known(0.0), speed.success) == (None, False, 1.0)
    speed.merge(1.0, call(0.5))
    known = [speed.is_known(1.0)]
    speed.merge(2.0, answer(100, 4.0))
    assert [*known, speed.is_known(2.0)] == [False, True]
    assert (speed.output_tokens, speed.output_seconds(50)) == (100, 2.0)
    hurried, _ = speed_of(call(0.5), call(0.5))
    assert hurried.is_known(1_001.0)
    hanging = Speed()
    hanging.begin(5.0)
    assert [hanging.is_known(at) for at in (14.0, 15.0)] == [False, True]
    assert hanging.first_token_seconds(100, 15.0) == 10.0


@pytest.mark.parametrize("before", [3, 20, 500])
@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_a_change_by_five_is_known_by_the_fifth_call_however_many_were_before(before: int, factor: float) -> None:
    speed, at = speed_of(*[call(1.0)] * before, *[call(factor)] * 5)
    assert factor / 2 <= first_token(speed, at) <= factor * 2


def test_one_that_has_recovered_is_known_by_the_first_call_after_a_while() -> None:
    speed, at = speed_of(*[call(5.0)] * 50)
    speed.merge(at + 5.0, ModelSums(provider="p", model="m", begun=1))
    speed.merge(at + 5.5, call(0.5))
    assert first_token(speed, at + 5.5) < 2.5
    speed.merge(at + 6.0, call(0.5))
    assert first_token(speed, at + 6.0) < 1.5


def test_a_single_odd_call_among_many_moves_little() -> None:
    speed, at = speed_of(*[call(1.0)] * 50, call(5.0))
    assert first_token(speed, at) < 1.5


def test_where_calls_are_rare_one_of_them_does_not_decide() -> None:
    speed, at = speed_of(*[call(1.0)] * 10, call(1.9), every_seconds=3_600.0)
    assert first_token(speed, at) < 1.5


def test_what_is_old_counts_less_than_what_is_new() -> None:
    speed, at = speed_of(*[call(1.0)] * 20)
    for _ in range(5):
        at += 30.0
        speed.merge(at, call(1.8))
    assert first_token(speed, at) > 1.6


def test_a_longer_prompt_takes_longer_as_far_as_calls_have_shown() -> None:
    def seconds_of(tokens: int) -> float:
        return 0.2 + tokens * 0.001

    speed, at = speed_of(*(call(seconds_of(tokens), tokens) for tokens in (100, 2_000, 500, 1_000, 1_500)))
    for tokens in (100, 1_000, 5_000):
        assert first_token(speed, at, tokens) == pytest.approx(seconds_of(tokens), rel=0.05)
    alike, at = speed_of(*[call(0.5, 100), call(0.52, 101)] * 3)
    assert first_token(alike, at, 10_000) < 0.6  # They tell nothing of size.


def test_no_size_of_a_prompt_makes_time_negative() -> None:
    falling, at = speed_of(call(3.0, 100), call(2.0, 1_000), call(1.5, 2_000), call(1.4, 3_000))
    assert first_token(falling, at, 100_000) >= 1.0
    steep, at = speed_of(call(0.1, 1_000), call(2.0, 2_000), call(0.1, 900), call(2.2, 2_100))
    assert first_token(steep, at, 0) >= 0.0


def test_calls_that_wait_by_now_tell_of_a_server_that_hangs() -> None:
    speed, at = speed_of(*[call(0.5)] * 20)
    numbers = [speed.begin(at) for _ in range(3)]
    assert first_token(speed, at + 30.0) == pytest.approx(30.0)
    for number in numbers:
        speed.spoke(number)
        speed.end(number)
    assert first_token(speed, at + 30.0) < 1.0


def test_what_load_has_made_slow_is_fast_again_without_it() -> None:
    """And a server that is slow for another reason is not."""
    loaded, at = speed_of(*[call(0.2, in_flight=0)] * 3, *[call(2.0, in_flight=9)] * 10, every_seconds=0.05)
    assert first_token(loaded, at) < 0.7  # This worker has no call there now.
    for _ in range(9):
        loaded.begin(at)
    assert first_token(loaded, at) > 1.5
    slow, at = speed_of(*[call(0.2)] * 3, *[call(2.0)] * 10, every_seconds=0.05)
    assert first_token(slow, at) > 1.5


def test_failures_count_until_calls_succeed() -> None:
    failed = ModelSums(provider="p", model="m", failures=1)
    speed, at = speed_of(*[call(1.0)] * 10, *[failed] * 10)
    assert speed.success < 0.6
    for _ in range(3):
        speed.merge(at, call(1.0))
    assert speed.success > 0.62
    never, _ = speed_of(*[failed] * 10)
    assert never.success < 0.1


def test_who_breaks_off_all_of_its_answers_has_no_success_and_is_news_once_one_is_whole() -> None:
    broken = ModelSums(provider="p", model="m", failures=1, broken=1)
    speed, at = speed_of(*[call(0.1), broken] * 10)
    assert speed.success < 0.1
    for since in (5.0, 10.0, 15.0):
        speed.merge(at + since, call(0.1))
        speed.merge(at + since + 1.0, answer(100, 1.0))
    assert speed.success > 0.6


def test_a_worker_of_before_tells_of_broken_answers_as_of_any_that_failed() -> None:
    told = decode(
        b'{"worker": "w", "models": [{"provider": "p", "model": "m", "calls": 9, "failures": 9}]}', SpeedSample
    )
    speed, _ = speed_of(*told.models)
    assert speed.success == pytest.approx(0.5, abs=0.05)


def test_all_that_hear_the_same_come_to_the_same() -> None:
    """What was seen in a second comes in one message, over the wire."""
    teller, one, other = Speeds(), Speeds(), Speeds()
    for seconds in (0.4, 0.5, 0.6):
        teller.saw(call(seconds), 10.0)
    teller.saw(answer(300, 3.0), 10.0)
    told = decode(encode(SpeedSample(worker="w", models=teller.take_untold())), SpeedSample)
    assert teller.take_untold() == []
    assert [(sums.calls, sums.answers, sums.first_token_seconds) for sums in told.models] == [(3, 1, 1.5)]
    for listener in (one, other):
        listener.heard(told.models, 11.0)
        assert listener.of("p", "m").first_token_seconds(100, 11.0) == pytest.approx(0.5)
    assert one.of("p", "m").tried_at == 11.0


@pytest.mark.parametrize("workers", [2, 60, 200, 1_000])
def test_of_a_large_fleet_a_part_reports_so_that_not_all_hear_from_all(workers: int) -> None:
    fleet = [Sampling(random.Random(number)) for number in range(workers)]
    reported, delivered = 0, []
    for _ in range(40):
        drawn = [each.is_drawn(max(0, reported - 1)) for each in fleet]
        reported = sum(drawn)
        delivered.append(reported * workers)
    lately = sum(delivered[20:]) / 20
    assert lately <= 2 * DELIVERIES_PER_SECOND_MAX
    assert lately >= min(workers**2, 0.2 * DELIVERIES_PER_SECOND_MAX)


def test_what_is_remembered_and_told_is_bounded() -> None:
    speeds = Speeds()
    for number in range(MODELS_MAX + 10):
        speeds.saw(call(0.5, model=f"m{number}"), 1.0)
    assert not speeds.of("p", "m0").is_known(1.0)
    assert len(speeds.take_untold()) == MODELS_TOLD_MAX
