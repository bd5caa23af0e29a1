"""What is concluded about a model server from what it tells, and from what it does not tell any more."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

import pytest

from contracts.records.status import WorkerRecord
from inference_worker.capacity import server as server_module
from inference_worker.capacity.capacities import SILENT_SECONDS as WORKER_SILENT_SECONDS
from inference_worker.capacity.capacities import Capacities
from inference_worker.capacity.followed_limit import START
from inference_worker.capacity.server import SILENT_SECONDS, ServerCapacity
from inference_worker.capacity.signals import ServerLoad
from mesh.clock import now
from mesh.configuration.addresses import is_near
from mesh.configuration.capacity_table import CapacitySettings
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.settings import Settings

PLACES = 64


class Time:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(server_module, "_now", clock)
    return clock


def server(wide: int | None = None) -> ServerCapacity:
    return ServerCapacity("p", CapacitySettings(), lambda: None, wide)


async def test_one_that_tells_nothing_any_more_is_tried_from_the_limit_that_it_had(time: Time) -> None:
    capacity = server()
    capacity.told("llama_cpp", ServerLoad(running=0, slots=20))
    time.at += SILENT_SECONDS - 1
    capacity.silent("it is away")
    assert (capacity.limit, capacity.is_told, capacity.why) == (20, True, "llama_cpp: 20 slots")
    time.at += 2
    capacity.silent("it is away")
    assert (capacity.limit, capacity.is_told) == (20, False)
    assert capacity.why == "nothing is known yet (it is away)"
    turns = [capacity.began() for _ in range(20)]
    for turn in turns:
        turn.refused()
        turn.over()
    assert capacity.limit < 20  # A refusal counts.
    capacity.told("vllm", ServerLoad(running=3, cache=0.1))
    assert (capacity.is_told, capacity.why) == (True, "vllm: cache at 10%, nothing waits")


async def test_a_pressed_server_that_goes_silent_is_not_held_down_for_ever(time: Time) -> None:
    capacity = server()
    for _ in range(20):
        capacity.told("vllm", ServerLoad(running=1, waiting=50, cache=1.0))
        time.at += 3
    assert capacity.limit == 1
    time.at += SILENT_SECONDS
    capacity.silent("it is away")
    for _ in range(200):
        turn = capacity.began()
        time.at += 1
        turn.finished(20)
        turn.over()
    assert capacity.limit > 1


async def test_without_a_table_a_server_bears_all_places_until_it_tells_that_it_does_not(time: Time) -> None:
    capacity = server(wide=PLACES)
    assert not capacity.counts
    capacity.silent("/metrics answers 404")
    capacity.refused()
    assert not capacity.counts
    capacity.told("llama_cpp", ServerLoad(running=0, slots=4))
    assert (capacity.counts, capacity.limit) == (True, 4)
    time.at += SILENT_SECONDS + 1
    capacity.silent("it is away")
    assert not capacity.counts


async def test_an_engine_without_a_table_begins_with_the_places_of_all_workers(time: Time) -> None:
    capacity = server(wide=PLACES)
    capacity.shared(2, 0)
    capacity.told("vllm", ServerLoad(running=0, cache=0.0))
    assert (capacity.counts, capacity.limit, capacity.of_all) == (True, PLACES, 2 * PLACES)
    with_table = server()
    with_table.told("vllm", ServerLoad(running=0, cache=0.0))
    assert with_table.limit == START
    capacity.told("ollama", ServerLoad())
    assert not capacity.counts  # It tells nothing of how much it takes.


TOML = """
[providers.near]
kind = "openai"
base_url = "http://127.0.0.1:1/v1"
[providers.limited]
kind = "openai"
base_url = "http://far.example.com/v1"
capacity = { signals = "none", min = 9, max = 9 }
[providers.far]
kind = "openai"
base_url = "http://far.example.com/v1"
[pools.default]
provider = "near"
model = "m"
[pools.other]
provider = "limited"
model = "m"
[pools.third]
provider = "far"
model = "m"
"""


def record(
    worker: str, seconds_ago: float = 0.0, pools: tuple[str, ...] = ("other",), draining: bool = False
) -> WorkerRecord:
    at = now() - timedelta(seconds=seconds_ago)
    return WorkerRecord(
        worker=worker,
        service="inference_worker",
        version="0.2.0",
        pid=1,
        host="h",
        pools=pools,
        running=0,
        started_at=at,
        time=at,
        draining=draining,
    )


def capacities(worker: str = "b") -> Capacities:
    settings = Settings(configuration=parse_configuration(TOML.encode()))
    return Capacities(None, settings, worker)  # type: ignore[arg-type]  # nothing is asked here


async def test_servers_near_by_are_followed_without_a_table_and_others_are_not() -> None:
    made = capacities()
    assert set(made._servers) == {"near", "limited"}
    assert set(made.servers) == {"limited"}
    made._servers["near"].told("llama_cpp", ServerLoad(running=0, slots=2))
    assert set(made.servers) == {"near", "limited"}


async def test_who_was_killed_drains_or_serves_others_has_no_part_in_a_server() -> None:
    made = capacities("b")
    others = [
        record("a"),
        record("b"),
        record("killed", WORKER_SILENT_SECONDS + 1),
        record("drains", draining=True),
        record("elsewhere", pools=("third",)),
    ]
    limited = made.servers["limited"]
    made._share(limited, frozenset({"other"}), others)
    assert (limited.workers, limited.place, limited.limit) == (2, 1, 4)
    limits = []
    for worker in ("a", "b"):
        mine = capacities(worker)
        mine._share(mine.servers["limited"], frozenset({"other"}), others)
        limits.append(mine.servers["limited"].limit)
    assert limits == [5, 4]
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("host", "near"),
    [
        *zip(("localhost", "127.0.0.1", "::1", "10.1.2.3", "192.168.0.7", "fd00::1", "vllm"), itertools.repeat(True)),
        *zip(
            ("api.openai.com", "8.8.8.8", "169.254.169.254", "0.0.0.0", "h.local.", "", "2a00::1"),
            itertools.repeat(False),
        ),
    ],
)
def test_near_are_this_machine_private_addresses_and_names_without_a_dot(host: str, near: bool) -> None:
    assert is_near(host) is near
