"""Adaptive coalescing: tokens gather while an append is in flight, in order and within a bound."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_worker.turn import coalescing
from inference_worker.turn.coalescing import DELTA_CHARACTERS_MAX, PENDING_CHARACTERS_MAX, DeltaKind, DeltaWriter
from tests.support.waiting import until


class Appends:
    """Records what is appended. While `gate` is closed, an append does not return."""

    def __init__(self, *, gate_open: bool = True) -> None:
        self.done: list[tuple[DeltaKind, str]] = []
        self.started = 0
        self.in_flight = 0
        self.cancelled = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        if gate_open:
            self.gate.set()

    async def append(self, kind: DeltaKind, text: str) -> None:
        self.started += 1
        self.in_flight += 1
        assert self.in_flight == 1, "two appends in flight"
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if self.error is not None:
                raise self.error
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        self.done.append((kind, text))


async def write_to(writer: DeltaWriter, kind: DeltaKind, text: str) -> None:
    """As a turn does."""
    if text and writer.put(kind, text):
        await writer.room()


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_token_goes_out_at_once_when_nothing_is_in_flight() -> None:
    appends = Appends()
    async with DeltaWriter(appends.append) as writer:
        for token in ("a", "b", "c"):
            await write_to(writer, "output", token)
            await settle()
            assert appends.done[-1] == ("output", token)


async def test_tokens_gather_while_an_append_is_in_flight_and_go_out_as_one() -> None:
    appends = Appends(gate_open=False)
    async with DeltaWriter(appends.append) as writer:
        await write_to(writer, "output", "a")
        await settle()
        for token in ("b", "c", "d"):
            await write_to(writer, "output", token)
            await settle()
        assert appends.started == 1
        appends.gate.set()
    assert appends.done == [("output", "a"), ("output", "bcd")]


async def test_kinds_keep_their_order_and_are_not_mixed() -> None:
    appends = Appends()
    async with DeltaWriter(appends.append) as writer:
        for kind, token in (("reasoning", "a"), ("reasoning", "b"), ("output", "c"), ("reasoning", "d")):
            await write_to(writer, "output" if kind == "output" else "reasoning", token)
    assert appends.done == [("reasoning", "ab"), ("output", "c"), ("reasoning", "d")]


async def test_an_event_holds_no_more_than_its_limit() -> None:
    appends = Appends()
    text = "0123456789" * (DELTA_CHARACTERS_MAX // 4)
    async with DeltaWriter(appends.append) as writer:
        await write_to(writer, "output", "first")
        await write_to(writer, "output", text)
        await write_to(writer, "output", "last")
    assert "".join(part for _, part in appends.done) == "first" + text + "last"
    assert [len(part) for _, part in appends.done[:-1]] == [DELTA_CHARACTERS_MAX] * (len(appends.done) - 1)
    assert 0 < len(appends.done[-1][1]) <= DELTA_CHARACTERS_MAX


async def test_a_writer_waits_when_too_much_has_gathered() -> None:
    appends = Appends(gate_open=False)
    written = 0

    async def write() -> None:
        nonlocal written
        async with DeltaWriter(appends.append) as writer:
            for _ in range(20):
                await write_to(writer, "output", "x" * (PENDING_CHARACTERS_MAX // 8))
                written += 1
                await asyncio.sleep(0)

    task = asyncio.create_task(write())
    for _ in range(100):
        await asyncio.sleep(0)
    # One event is in flight; behind it gathers what may gather, and the write that goes beyond it waits.
    assert written <= 8 + 2
    appends.gate.set()
    await task
    assert written == 20
    assert sum(len(text) for _, text in appends.done) == 20 * (PENDING_CHARACTERS_MAX // 8)


async def test_the_next_write_raises_what_an_append_raised() -> None:
    appends = Appends()
    appends.error = RuntimeError("full")

    async def write() -> None:
        async with DeltaWriter(appends.append) as writer:
            await write_to(writer, "output", "a")
            await settle()
            await write_to(writer, "output", "b")
            pytest.fail("nobody was told")

    with pytest.raises(RuntimeError, match="full"):
        await write()
    assert (appends.started, appends.done) == (1, [])


async def test_the_end_raises_what_the_last_append_raised() -> None:
    appends = Appends()
    appends.error = RuntimeError("full")
    with pytest.raises(RuntimeError, match="full"):
        async with DeltaWriter(appends.append) as writer:
            await write_to(writer, "output", "a")


async def test_an_error_that_comes_while_a_writer_waits_reaches_it() -> None:
    appends = Appends(gate_open=False)
    appends.error = RuntimeError("full")

    async def write() -> None:
        async with DeltaWriter(appends.append) as writer:
            await write_to(writer, "output", "x" * (PENDING_CHARACTERS_MAX + 1))
            pytest.fail("nobody was told")

    task = asyncio.create_task(write())
    await settle()
    appends.gate.set()
    with pytest.raises(RuntimeError, match="full"):
        await task


async def test_a_normal_end_waits_for_the_last_append_and_loses_nothing() -> None:
    appends = Appends(gate_open=False)

    async def write() -> None:
        async with DeltaWriter(appends.append) as writer:
            await write_to(writer, "output", "a")
            await settle()
            await write_to(writer, "output", "b")

    task = asyncio.create_task(write())
    await settle()
    await settle()
    assert not task.done()
    appends.gate.set()
    await task
    assert appends.done == [("output", "a"), ("output", "b")]


async def test_an_end_by_an_error_drops_what_gathered_and_keeps_the_error() -> None:
    appends = Appends(gate_open=False)

    async def write() -> None:
        async with DeltaWriter(appends.append) as writer:
            await write_to(writer, "output", "a")
            await settle()
            await write_to(writer, "output", "b")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await write()
    assert (appends.done, appends.started, appends.cancelled, appends.in_flight) == ([], 1, 1, 0)


writes = st.lists(
    st.tuples(
        st.sampled_from(["output", "reasoning"]),
        st.one_of(
            st.text(max_size=5), st.sampled_from(["x" * (DELTA_CHARACTERS_MAX + 1), "y" * PENDING_CHARACTERS_MAX])
        ),
        st.booleans(),
    ),
    max_size=12,
)


@given(writes)
async def test_whatever_is_written_is_appended_in_order(written: list[tuple[DeltaKind, str, bool]]) -> None:
    appends = Appends()
    async with DeltaWriter(appends.append) as writer:
        for kind, text, pause in written:
            await write_to(writer, kind, text)
            if pause:
                await settle()
    assert runs(appends.done) == runs([(kind, text) for kind, text, _ in written])
    assert all(0 < len(text) <= DELTA_CHARACTERS_MAX for _, text in appends.done)


def runs(parts: list[tuple[DeltaKind, str]]) -> list[tuple[DeltaKind, str]]:
    """Neighbours of one kind joined, empty texts left out."""
    joined: list[tuple[DeltaKind, str]] = []
    for kind, text in parts:
        if not text:
            continue
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


async def test_what_an_append_keeps_waiting_is_previewed_as_a_whole_until_it_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coalescing, "PREVIEW_SECONDS", 0.01)
    stored = asyncio.Event()
    previews: list[str] = []

    async def append(kind: DeltaKind, text: str) -> None:
        await stored.wait()

    async def preview(text: str) -> None:
        previews.append(text)

    async with DeltaWriter(append, preview) as writer:
        await write_to(writer, "output", "one ")
        await until(lambda: bool(previews))
        await write_to(writer, "reasoning", "and so ")
        await write_to(writer, "output", "two ")
        await until(lambda: previews[-1] == "one two ")
        assert previews[0] == "one "
        stored.set()
    ended = len(previews)
    async with DeltaWriter(append, preview) as writer:
        await write_to(writer, "output", "three ")
    assert len(previews) == ended
