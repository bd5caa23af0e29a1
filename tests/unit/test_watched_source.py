"""One stream for all who watch a source."""

from __future__ import annotations

import pytest

from inference_worker.models.chunks import Chunk, TextDelta, TurnInput
from inference_worker.models.watched_source import WatchedCall, WatchedSource
from mesh.task.failures import StepFailed
from tests.unit.played import STOP, PlayedProvider

TURN = TurnInput(messages=(), model="m")


class Noted(WatchedCall):
    def __init__(self, name: str, told: list[str], *, hears_all: bool) -> None:
        self.name, self.told, self.hears_all = name, told, hears_all

    def heard(self, chunk: Chunk) -> None:
        self.told.append(f"{self.name} {chunk.text if isinstance(chunk, TextDelta) else 'end'}")

    def failed(self, error: StepFailed) -> None:
        self.told.append(f"{self.name} {error.code}")

    def over(self, characters: int) -> None:
        self.told.append(f"{self.name} over {characters}")


class Noting:
    def __init__(self, name: str, told: list[str], *, hears_all: bool = False, refuses: bool = False) -> None:
        self.name, self.told, self.hears_all, self.refuses = name, told, hears_all, refuses

    def begin(self, turn: TurnInput) -> tuple[TurnInput, WatchedCall]:
        if self.refuses:
            raise StepFailed("provider-unavailable", "no", retryable=True)
        return turn, Noted(self.name, self.told, hears_all=self.hears_all)


async def stream(source: WatchedSource) -> int:
    return len([chunk async for chunk in source.stream(TURN)])


async def test_who_hears_all_does_and_others_the_first_chunk_and_the_end() -> None:
    told: list[str] = []
    played = PlayedProvider(TextDelta("a"), TextDelta("bc"), STOP)
    inner = WatchedSource(played, Noting("inner", told))
    assert await stream(WatchedSource(inner, Noting("outer", told, hears_all=True))) == 3
    assert told == ["outer a", "inner a", "outer bc", "outer end", "inner end", "inner over 3", "outer over 3"]


@pytest.mark.parametrize("breaks_off", [False, True])
async def test_a_failure_is_told_from_within(breaks_off: bool) -> None:
    told: list[str] = []
    failure = () if breaks_off else (StepFailed("provider-disconnected", "it broke off", retryable=True),)
    source = WatchedSource(PlayedProvider(TextDelta("a"), *failure), Noting("outer", told), Noting("inner", told))
    with pytest.raises(StepFailed, match="broke off"):
        await stream(source)
    assert told[2:4] == ["inner provider-disconnected", "outer provider-disconnected"]
    assert told[4:] == ["inner over 1", "outer over 1"]


async def test_who_lets_no_call_begin_has_no_other_begun() -> None:
    told: list[str] = []
    played = PlayedProvider(STOP)
    with pytest.raises(StepFailed, match="no"):
        await stream(WatchedSource(played, Noting("outer", told, refuses=True), Noting("inner", told)))
    assert (told, played.asked) == ([], [])
