"""The embedded broker's logins are rotated while tasks stream: no request fails, no token is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh.broker.embedded import ADMIN, LOGINS
from tests.support.home_logins import logins_of, said_by_broker
from tests.support.steady_load import under_load
from tests.support.up import ENVIRONMENT, meshctl, up
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio]


async def test_logins_are_rotated_under_load_without_a_failed_request_or_a_lost_token(tmp_path: Path) -> None:
    async with up(tmp_path / "home") as mesh:
        first = logins_of(mesh)
        assert first.keys() == set(LOGINS)
        async with under_load(mesh.ready["ingress_url"], mesh.ready["edge_url"]) as load:
            for number in (2, 3):
                answer = await meshctl("rotate", "--home", str(mesh.home))
                assert answer.returncode == 0, answer.stderr
                written, rotated = map(json.loads, answer.stdout.splitlines())
                assert written == {"event": "logins.written", "logins": list(LOGINS)}
                assert rotated == {"event": "logins.rotated", "cut_off": 0}
                assert {login.user for login in logins_of(mesh).values()} == {f"{role}-{number}" for role in LOGINS}
        assert load.faults == []
        last = logins_of(mesh)
        for role in LOGINS:
            assert "Authorization Violation" in await said_by_broker(mesh, first[role]), role
            assert await said_by_broker(mesh, last[role]) == "", role
        workers = await meshctl("workers", environment={**ENVIRONMENT, "MESH_HOME": str(mesh.home)})
        assert len(workers.stdout.splitlines()) == 5, workers.stderr
        logs = [mesh.log, *(mesh.home / "logs").glob("*.log")]
        text = "".join(path.read_text() for path in logs)
        assert "broker.renews" in text
        assert not re.findall(r'"broker\.(?:disconnected|credentials_unusable)"', text)
        assert not [login for login in (*first.values(), *last.values()) if (login.password or "") in text]


async def test_who_goes_on_using_an_old_login_is_named_and_cut_off(tmp_path: Path) -> None:
    async with up(tmp_path / "home", "--workers", "0", "--runners", "0") as mesh:
        old = logins_of(mesh)[ADMIN]
        closed = []

        async def on_closed() -> None:
            closed.append(True)

        client = Client()
        await client.connect(
            mesh.ready["nats_url"],
            user=old.user,
            password=old.password,
            name="my-script",
            allow_reconnect=False,
            closed_cb=on_closed,
        )
        answer = await meshctl("rotate", "--home", str(mesh.home), "--grace", "3")
        assert answer.returncode == 0, answer.stderr
        lines = [json.loads(line) for line in answer.stdout.splitlines()]
        assert lines[1:] == [
            {"event": "login.cut_off", "name": "my-script", "user": "admin-1"},
            {"event": "logins.rotated", "cut_off": 1},
        ]
        await until(lambda: bool(closed))


async def test_a_rotation_that_can_t_be_written_down_is_told_and_the_next_one_goes_on_from_there(
    tmp_path: Path,
) -> None:
    async with up(tmp_path / "home", "--workers", "0", "--runners", "0") as mesh:
        in_the_way = mesh.home / "logins" / "steward.new"
        in_the_way.mkdir()
        answer = await meshctl("rotate", "--home", str(mesh.home))
        assert answer.returncode == 1
        assert f"can't write {mesh.home}/logins: Is a directory" in answer.stderr, answer.stderr
        half = logins_of(mesh)
        assert (half["ingress"].user, half["steward"].user) == ("ingress-2", "steward-1")
        for login in half.values():
            assert await said_by_broker(mesh, login) == ""
        in_the_way.rmdir()
        answer = await meshctl("rotate", "--home", str(mesh.home))
        assert answer.returncode == 0, answer.stderr
        whole = logins_of(mesh)
        assert (whole["ingress"].user, whole["steward"].user) == ("ingress-3", "steward-2")
        for role in LOGINS:
            assert await said_by_broker(mesh, whole[role]) == "", role
            assert "Authorization Violation" in await said_by_broker(mesh, half[role]), role


async def test_a_broker_of_ones_own_is_not_rotated_here(tmp_path: Path) -> None:
    answer = await meshctl("rotate", "--home", str(tmp_path / "nowhere"))
    assert answer.returncode == 1
    assert "no mesh runs on" in answer.stderr
    answer = await meshctl("rotate", "--home", str(tmp_path), "--grace", "-1")
    assert answer.returncode == 2
    assert "--grace -1: must be between 0 and 86400" in answer.stderr
