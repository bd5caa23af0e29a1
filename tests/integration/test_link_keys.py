"""The keys that sign links, at a real broker: made once, read seldom, and known to whoever needs them."""

from __future__ import annotations

import asyncio

import pytest

from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.identifiers import new_id
from contracts.links import LINK_KEYS_KEY, LinkExpired, LinkInvalid
from contracts.streams import KEYS_BUCKET
from mesh.access.link_keys import LinkSigning, rotate_keys
from mesh.broker import key_value
from mesh.broker.connection import Connection

pytestmark = pytest.mark.integration

TENANT = "default"


async def test_the_first_links_of_several_processes_are_signed_with_one_key(connection: Connection) -> None:
    makers = [LinkSigning(connection.requests) for _ in range(8)]
    task = new_id()
    made = await asyncio.gather(*(maker.make(TENANT, task, 60) for maker in makers))
    assert len({each.token.partition(".")[0] for each in made}) == 1
    for each in made:
        assert await LinkSigning(connection.requests).check(each.token, task) == each.link


async def test_a_deleted_key_is_made_anew(connection: Connection) -> None:
    signing, task = LinkSigning(connection.requests), new_id()
    before = await signing.make(TENANT, task, 60)
    await key_value.delete(connection.requests, KEYS_BUCKET.name, LINK_KEYS_KEY)
    after = await LinkSigning(connection.requests).make(TENANT, task, 60)
    assert before.token.partition(".")[0] != after.token.partition(".")[0]
    with pytest.raises(LinkInvalid):
        await LinkSigning(connection.requests).check(before.token, task)


async def test_a_link_of_a_key_that_was_made_a_moment_ago_is_known_at_once(connection: Connection) -> None:
    edge, task = LinkSigning(connection.requests), new_id()
    old = await LinkSigning(connection.requests).make(TENANT, task, 600)
    assert await edge.check(old.token, task) == old.link
    await rotate_keys(connection.requests, grace_seconds=300)
    new = await LinkSigning(connection.requests).make(TENANT, task, 600)
    assert await edge.check(new.token, task) == new.link
    assert (await edge.check(old.token, task)).expires_at < old.link.expires_at


async def test_links_with_keys_that_nobody_has_cost_few_reads_and_keep_nobody_out(connection: Connection) -> None:
    edge, task = LinkSigning(connection.requests), new_id()
    real = await LinkSigning(connection.requests).make(TENANT, task, 600)
    made_up = [f"{number:08d}{real.token[8:]}" for number in range(50)]
    before = connection.client.stats["out_msgs"]
    found = await asyncio.gather(
        *(edge.check(token, task) for token in made_up), edge.check(real.token, task), return_exceptions=True
    )
    reads = connection.client.stats["out_msgs"] - before
    assert all(isinstance(each, LinkInvalid) for each in found[:-1])
    assert found[-1] == real.link
    assert reads <= 3, f"{reads} reads for {len(made_up)} links"


async def test_what_is_known_holds_while_the_broker_is_away(connection: Connection) -> None:
    """Keys can't be taken back then, and a stream of a task that is followed already needs nothing of the broker."""
    edge, task = LinkSigning(connection.requests), new_id()
    real = await LinkSigning(connection.requests).make(TENANT, task, 600)
    assert await edge.check(real.token, task) == real.link
    await connection.requests.api(f"STREAM.DELETE.{KEYS_BUCKET.stream_name}")
    with pytest.raises(TaskmeshError):
        await edge.check("x" * 8 + real.token[8:], task)
    assert await edge.check(real.token, task) == real.link


async def test_a_read_that_fails_is_that_of_all_who_wait_for_it(connection: Connection) -> None:
    """Each for itself, and one after the other, they would wait for a broker that is away as often as there are."""
    edge, task = LinkSigning(connection.requests), new_id()
    real = await LinkSigning(connection.requests).make(TENANT, task, 600)
    await connection.requests.api(f"STREAM.DELETE.{KEYS_BUCKET.stream_name}")
    before = connection.client.stats["out_msgs"]
    found = await asyncio.gather(*(edge.check(real.token, task) for _ in range(20)), return_exceptions=True)
    reads = connection.client.stats["out_msgs"] - before
    assert all(isinstance(each, TaskmeshError) and not isinstance(each, LinkInvalid) for each in found), found
    assert reads <= 3, f"{reads} reads for {len(found)} links"


async def test_keys_that_this_version_cannot_read_are_said_without_being_shown(connection: Connection) -> None:
    value = encode({"keys": [{"id": "abcdefgh", "secret": "canary-secret", "created_at": "2026-01-01T00:00:00Z"}]})
    await key_value.put(connection.requests, KEYS_BUCKET.name, LINK_KEYS_KEY, value)
    with pytest.raises(TaskmeshError) as refused:
        await LinkSigning(connection.requests).make(TENANT, new_id(), 60)
    assert "canary" not in str(refused.value)
    assert refused.value.code == "internal"


async def test_an_expired_link_is_told_from_one_that_is_none(connection: Connection) -> None:
    signing, task = LinkSigning(connection.requests), new_id()
    made = await signing.make(TENANT, task, 0)
    with pytest.raises(LinkExpired):
        await signing.check(made.token, task)
