"""When the ingress has no room for more tasks."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from contracts.records.storage import StoreRoom
from ingress.storage import Storage
from mesh.broker.credentials import Credentials
from mesh.broker.levels import Level, above, disk_level, refusing
from mesh.broker.nats_client import NatsClient
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings


@pytest.mark.parametrize(
    ("used", "limit", "percent", "refused"),
    [
        (0, 100, 90, False),
        (89, 100, 90, False),
        (90, 100, 90, True),
        (200, 100, 90, True),
        (10**15, -1, 90, False),
        (10**15, 0, 90, False),
    ],
)
def test_a_level_is_too_high_from_its_mark_on_and_never_without_a_limit(
    used: int, limit: int, percent: float, refused: bool
) -> None:
    assert bool(above([Level("EVENTS", used, limit)], percent)) is refused


def test_the_fullest_comes_first() -> None:
    levels = [Level("TASKS", 91, 100), Level("EVENTS", 99, 100), Level("account", 5, 100)]
    assert [level.name for level in above(levels, 90)] == ["EVENTS", "TASKS"]


@pytest.fixture
def storage() -> Storage:
    """An ingress's, told of levels by the test: it asks nobody."""
    return Storage(Requests(NatsClient(Credentials(Settings(), "ingress"))), high_water_percent=90, filling_percent=70)


def said(storage: Storage, *levels: Level) -> list[tuple[str, object]]:
    """The events of one look, each with what it is about."""
    with capture_logs() as lines:
        storage.judge(list(levels))
    return [(line["event"], line.get("name") or line.get("full")) for line in lines]


def test_what_is_filling_is_said_once_for_each_time_that_it_does(storage: Storage) -> None:
    assert said(storage, Level("EVENTS", 69, 100), Level("disk", 10, 100)) == []
    assert said(storage, Level("EVENTS", 70, 100), Level("disk", 10, 100)) == [("storage.filling", "EVENTS")]
    assert said(storage, Level("EVENTS", 71, 100), Level("disk", 75, 100)) == [("storage.filling", "disk")]
    assert said(storage, Level("EVENTS", 68, 100), Level("disk", 75, 100)) == []
    assert said(storage, Level("EVENTS", 72, 100), Level("disk", 75, 100)) == [], "it only trembled"
    assert said(storage, Level("EVENTS", 50, 100), Level("disk", 75, 100)) == []
    assert said(storage, Level("EVENTS", 70, 100), Level("disk", 75, 100)) == [("storage.filling", "EVENTS")]


def test_a_full_disk_refuses_and_is_named_until_there_is_room(storage: Storage) -> None:
    assert said(storage, Level("disk", 90, 100)) == [("storage.high_water", ["disk"]), ("storage.filling", "disk")]
    assert storage.refusal == "the disk of the broker's store is 90 % full"
    assert [(check.name, check.ok) for check in storage.marked([])] == [("disk", False)]
    assert said(storage, Level("disk", 89, 100)) == [("storage.room_again", None)]
    assert storage.refusal is None


def test_a_full_archive_warns_and_refuses_nobody(storage: Storage) -> None:
    assert said(storage, Level("ARCHIVE", 99, 100)) == [("storage.filling", "ARCHIVE")]
    assert storage.refusal is None
    assert refusing([Level("ARCHIVE", 99, 100), Level("KV_archive", 99, 100)], 90) == []


@pytest.mark.parametrize(
    ("used", "free", "percent"),
    [
        (1_000, 99_100, 1),
        (1_000, 1_100, 50),
        # Others have filled the disk.
        (1_000, 200, 91),
        (1_000, 100, 100),
        (1_000, 0, 111),
        (0, 0, 0),
    ],
)
def test_a_disk_is_as_full_as_what_the_store_can_have_of_it(used: int, free: int, percent: int) -> None:
    room = StoreRoom(used_bytes=used, free_bytes=free, reserve_bytes=100, share_bytes=0, memory_bytes=1)
    assert round(disk_level(room).percent) == percent
