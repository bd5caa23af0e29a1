"""What a call of a model tells of it: its first token, its speed, its end, and what becomes of that in a choice."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import pytest

from contracts.journal.parts import Usage
from contracts.records.speeds import ModelSums
from inference_worker.models.chunks import Begun, Chunk, Finished, TextDelta, TurnInput
from inference_worker.models.prompt_size import PromptSize
from inference_worker.models.speeds import Speeds
from inference_worker.models.timed_source import Timed
from inference_worker.models.watched_source import WatchedSource
from mesh.task.failures import StepFailed
from tests.unit.played import STOP, PlayedProvider
from tests.unit.test_router import NAMES, House, always, begun, without

TURN = TurnInput(messages=(), model="m", size=PromptSize(1_000, 400))


class Clock:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.at = 50.0

    def __call__(self) -> float:
        return self.at

    async def on(self, seconds: float) -> None:
        self.at += seconds


def after(clock: Clock, seconds: float) -> Callable[[], object]:
    return lambda: clock.on(seconds)


async def fed(house: House, index: int, at: Clock, *chunks: object) -> None:
    """A call of this one, which plays that back."""
    provider, model = NAMES[index]
    played = PlayedProvider(*chunks, named=(provider, model))  # type: ignore[arg-type]  # chunks and waits
    source = WatchedSource(played, Timed(provider, house.speeds, at))
    with contextlib.suppress(StepFailed, RuntimeError):
        async for _ in source.stream(msgspec.structs.replace(TURN, model=model)):
            pass


def chosen(house: House) -> Counter[str]:
    """Which providers get a hundred turns."""
    return Counter(house.pool.claim(begun().state, 1, always)["provider"] for _ in range(100))


@pytest.mark.parametrize("after_a_word", [False, True])
async def test_a_provider_that_is_quick_because_it_fails_gets_no_turns_for_that(after_a_word: bool) -> None:
    house, clock = House(1.0, None), Clock()
    clock.at = house.at
    said = [after(clock, 0.01), TextDelta("Hel")] if after_a_word else [after(clock, 0.01)]
    for _ in range(10):
        await fed(house, 1, clock, *said, StepFailed("provider-disconnected", "it broke off", retryable=True))
    assert chosen(house)["backup"] <= 5


async def test_a_provider_whose_answers_all_end_at_a_deadline_is_known_to_crawl() -> None:
    """Its first token is quick, and none of its answers ever ends."""
    house, clock = House(1.0, None), Clock()
    clock.at = house.at
    for _ in range(10):
        await fed(house, 1, clock, after(clock, 0.01), TextDelta("H" * 40), after(clock, 9.0), RuntimeError("cut"))
    assert chosen(house)["backup"] <= 5


async def test_who_has_never_come_to_an_end_goes_on_as_fast_as_the_fastest_and_no_faster() -> None:
    house, clock = House(1.0, None), Clock()
    clock.at = house.at
    for _ in range(3):
        await fed(house, 1, clock, after(clock, 1.0), Begun(), RuntimeError("its reader has gone"))
    reasons = {house.pool.claim(begun().state, 1, without("main"))["reason"] for _ in range(5)}
    assert reasons == {"only seconds=1.00 of=1"}
    both = [house.pool.claim(begun().state, 1, always) for _ in range(200)]
    assert 50 < sum(each["provider"] == "main" for each in both) < 150


async def heard(source: WatchedSource, turn: TurnInput) -> list[Chunk]:
    return [chunk async for chunk in source.stream(turn)]


def measured(clock: Clock, chunks: Sequence[object]) -> tuple[WatchedSource, Speeds]:
    speeds = Speeds()
    played = PlayedProvider(*chunks)  # type: ignore[arg-type]  # chunks and waits
    return WatchedSource(played, Timed(played.name, speeds, clock)), speeds


async def test_a_call_is_timed_to_its_first_token_and_from_there_to_its_end() -> None:
    clock = Clock()
    played = [after(clock, 2.0), TextDelta("a"), after(clock, 3.0), TextDelta("b"), after(clock, 1.0)]
    source, speeds = measured(clock, [*played, Finished(finish_reason="stop", usage=Usage(1_000, 80))])
    assert len(await heard(source, TURN)) == 3
    (told,) = speeds.take_untold()
    assert (told.provider, told.model, told.begun, told.calls, told.failures) == ("played", "m", 1, 1, 0)
    assert (told.first_token_seconds, told.input_tokens, told.in_flight) == (2.0, 600, 0)
    assert (told.answers, told.output_tokens, told.output_seconds) == (1, 80, 4.0)
    assert speeds.of("played", "m").first_token_seconds(600, clock.at + 100.0) == 2.0  # It waits no more.


@pytest.mark.parametrize(
    ("code", "failures"),
    [
        ("provider-error", 1),
        ("provider-overloaded", 1),
        ("rate-limited", 1),
        ("provider-bad-request", 0),
        ("context-too-long", 0),
    ],
)
async def test_only_what_the_provider_is_at_fault_for_counts_as_a_failure(code: str, failures: int) -> None:
    clock = Clock()
    source, speeds = measured(clock, [StepFailed(code, "no", retryable=True)])
    with pytest.raises(StepFailed):
        await heard(source, TURN)
    (told,) = speeds.take_untold()
    assert (told.begun, told.calls, told.failures) == (1, 0, failures)


@pytest.mark.parametrize(("waited", "calls"), [(9.0, 1), (0.5, 0)])
async def test_who_is_left_before_its_first_token_had_let_wait_for_so_long_at_least(waited: float, calls: int) -> None:
    clock = Clock()
    source, speeds = measured(clock, [after(clock, waited), RuntimeError("the reader has gone")])
    speeds.heard([ModelSums(provider="played", model="m", calls=5, first_token_seconds=5.0, answers=5)], clock.at)
    with pytest.raises(RuntimeError):
        await heard(source, TURN)
    (told,) = speeds.take_untold()
    assert (told.calls, told.first_token_seconds) == (calls, waited * calls)


async def test_a_turn_that_goes_on_with_a_text_tells_nothing_of_tokens_a_second() -> None:
    clock = Clock()
    source, speeds = measured(clock, [TextDelta("a"), after(clock, 1.0), STOP])
    await heard(source, msgspec.structs.replace(TURN, prefix="Hello"))
    (told,) = speeds.take_untold()
    assert (told.calls, told.answers) == (1, 0)
