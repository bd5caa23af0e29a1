"""What the event loops log of connections that their other end has given up."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mesh.telemetry.log_output import LibraryNoise
from tests.support.certificates import make_certificate, server_context
from tests.support.patience import stretched

RUNNERS = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@pytest.fixture(params=[*RUNNERS])
def run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Each loop's way to run a coroutine."""
    return RUNNERS[request.param]


@pytest.fixture(params=[False, True], ids=["as it is", "filtered"])
def is_filtered(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the noise is dropped."""
    noise = LibraryNoise()
    logger = logging.getLogger("asyncio")
    before = list(logger.filters)
    for each in before:
        logger.removeFilter(each)
    if request.param:
        logger.addFilter(noise)
    yield request.param
    logger.removeFilter(noise)
    for each in before:
        logger.addFilter(each)


def test_a_connection_that_was_reset_before_its_handshake_is_no_traceback(
    is_filtered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def reset_first() -> None:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.transport.abort()
            # Nobody tells that it failed; what is logged is logged at once.
            with pytest.raises(TimeoutError):
                await _upgraded(writer, ssl.create_default_context(), seconds_max=0.1)

    uvloop.run(reset_first())
    assert ("the handler is closed" in caplog.text) is not is_filtered


def test_the_end_of_an_encrypted_connection_is_no_warning(
    is_filtered: bool, run: Callable[[Any], None], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file = make_certificate(tmp_path, "localhost")

    async def ended() -> None:
        context = server_context(file)
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            reader = await _upgraded(writer, ssl.create_default_context(cafile=file))
            assert await reader.read() == b""
            writer.close()

    run(ended())
    assert ("eof_received" in caplog.text) is not is_filtered


def test_other_lines_of_the_loops_are_written(caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(_fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    logging.getLogger("asyncio").addFilter(noise := LibraryNoise())
    try:
        uvloop.run(failing())
    finally:
        logging.getLogger("asyncio").removeFilter(noise)
    assert "the handler is closed, says a stranger" in caplog.text


def _fail() -> None:
    raise RuntimeError("the handler is closed, says a stranger")


async def _upgraded(
    writer: asyncio.StreamWriter, context: ssl.SSLContext, seconds_max: float = 30
) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    loop = asyncio.get_running_loop()
    upgrade = loop.start_tls(writer.transport, protocol, context, server_hostname="localhost")
    await asyncio.wait_for(upgrade, stretched(seconds_max))
    return reader
