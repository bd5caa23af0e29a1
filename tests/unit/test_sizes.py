"""How a total is shared out among streams. Pure."""

from __future__ import annotations

import itertools

import pytest

from contracts.sizes import (
    DEFAULT_TOTAL_BYTES,
    GIB,
    LEAST_TOTAL_BYTES,
    MIB,
    SIZES,
    SizesDoNotFit,
    share_of,
    share_out,
    text,
)
from contracts.streams import BUCKETS, STREAMS

TIB = 1024 * GIB
TOTALS = [LEAST_TOTAL_BYTES, GIB * 3 // 4, GIB * 3 // 2, 15 * GIB, DEFAULT_TOTAL_BYTES, 768 * GIB, 75 * TIB]
NAMES = {stream.name for stream in STREAMS} | {bucket.stream_name for bucket in BUCKETS}


def test_every_stream_and_bucket_has_a_size() -> None:
    assert SIZES.keys() == NAMES


@pytest.mark.parametrize("total", TOTALS, ids=text)
@pytest.mark.parametrize("memory", [None, GIB, 64 * GIB])
def test_each_is_within_its_bounds_and_all_within_the_total(total: int, memory: int | None) -> None:
    sizes = share_out(total, None, memory)
    assert sizes.keys() == NAMES
    assert all(SIZES[name].least_bytes <= size <= SIZES[name].most_bytes for name, size in sizes.items())
    assert all(size % MIB == 0 for size in sizes.values())
    assert total - len(sizes) * MIB <= sum(sizes.values()) <= total


@pytest.mark.parametrize(("less", "more"), list(itertools.pairwise(TOTALS)))
def test_more_room_makes_no_stream_smaller(less: int, more: int) -> None:
    before, after = share_out(less), share_out(more)
    assert all(after[name] >= size for name, size in before.items())


def test_what_is_declared_is_the_default_total_shared_out() -> None:
    declared = {stream.name: stream.max_bytes for stream in (*STREAMS, *(bucket.as_stream() for bucket in BUCKETS))}
    assert declared == share_out(DEFAULT_TOTAL_BYTES)


def test_less_than_the_least_is_told_with_the_numbers() -> None:
    assert text(LEAST_TOTAL_BYTES) == "288MiB"
    with pytest.raises(SizesDoNotFit, match="need 288MiB at least, and there are 287MiB"):
        share_out(LEAST_TOTAL_BYTES - MIB)


def test_what_is_given_holds_and_the_others_share_the_rest() -> None:
    sizes = share_out(20 * GIB, {"OBJ_results": 10 * GIB, "KV_tasks": 5 * GIB})
    assert (sizes["OBJ_results"], sizes["KV_tasks"]) == (10 * GIB, 5 * GIB)
    assert sum(sizes.values()) <= 20 * GIB
    assert sizes["EVENTS"] < share_out(20 * GIB)["EVENTS"]


def test_what_is_given_and_leaves_too_little_is_told_with_the_numbers() -> None:
    with pytest.raises(SizesDoNotFit, match=r"come to 1\.9GiB, and the other streams need 224MiB .* total of 2GiB"):
        share_out(2 * GIB, {"EVENTS": 2 * GIB - 64 * MIB})


def test_all_may_be_given() -> None:
    given = share_out(GIB)
    assert share_out(2 * GIB, given) == given


def test_memory_bounds_the_records_of_unpacked_tasks_and_nothing_else() -> None:
    unbounded, bounded = share_out(100 * GIB), share_out(100 * GIB, None, GIB)
    assert 200 * MIB < bounded["KV_tasks"] < 300 * MIB < unbounded["KV_tasks"]
    assert all(bounded[name] >= size for name, size in unbounded.items() if name != "KV_tasks")
    assert share_out(100 * GIB, None, MIB)["KV_tasks"] == SIZES["KV_tasks"].least_bytes
    assert share_out(100 * GIB, {"KV_tasks": 8 * GIB}, GIB)["KV_tasks"] == 8 * GIB


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0KiB"), (1_500, "1KiB"), (MIB, "1MiB"), (1_610_612_736, "1.5GiB"), (2 * TIB, "2TiB"), (GIB - 1, "1023.9MiB")],
)
def test_sizes_are_told_in_the_largest_unit_that_fits(size: int, said: str) -> None:
    assert text(size) == said


def test_a_share_is_in_whole_mib() -> None:
    assert share_of(2 * GIB + 1, 75) == 1536 * MIB
    assert share_of(0, 75) == 0
