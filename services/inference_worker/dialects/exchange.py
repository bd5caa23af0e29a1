"""One exchange with a model's server, over httpx: the connection, the times, and the end. The dialects are elsewhere.

Three clocks run: for the connection, for the first token, and for each one after it. A request is let go of as soon as
it is sent: with images it is megabytes, and a model may answer for minutes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Protocol, cast

import httpx
import msgspec

from contracts import VERSION
from contracts.journal.parts import Usage
from inference_worker.dialects.connections import Connections
from inference_worker.dialects.errors import ProviderFailed, failure_in_stream, failure_of_status
from inference_worker.dialects.event_lines import LineReader
from inference_worker.dialects.reading import decoded
from inference_worker.models import endpoints
from inference_worker.models.chunks import Begun, Chunk, Meter, TurnInput
from mesh.clock import now
from mesh.configuration.provider_tables import ServerConfiguration
from mesh.masking import Mask

KEEPALIVE_SECONDS = 4.0
"""How long an idle connection is kept: uvicorn, which vLLM runs on, closes it after 5 s."""
USAGE_SECONDS = 5.0
"""How long the usage may take once the model has finished: the answer is whole without it."""
DRAIN_SECONDS = 0.2
"""How long the end of the response may take after the stream's own end: then the connection can be used again."""
ERROR_BODY_BYTES_MAX = 64 * 1024
ERROR_BODY_SECONDS = 5.0
PART_BYTES = 256 * 1024
"""Of a body, as it is handed to the connection: that keeps a copy of what the server does not take yet."""
DONE = b"[DONE]"
"""The end of a chat completions stream."""
UNREACHABLE = "provider-unreachable"
_NO_STREAM = ("application/json", "text/html")


BodyOf = Callable[[TurnInput], dict[str, Any]]
"""The body of a request for a turn, as that is shown. It may be asked for more than once."""


class Answer(Protocol):
    """What a server has said so far, in its dialect."""

    @property
    def begun(self) -> bool:
        """The first token has come."""
        ...

    @property
    def heard(self) -> int:
        """How many events it was, without those that only say that the server lives."""
        ...

    @property
    def over(self) -> bool:
        """The model has certainly finished, whatever comes of the connection; only its usage may be missing."""
        ...

    @property
    def done(self) -> bool:
        """Nothing more will come."""
        ...

    @property
    def usage(self) -> Usage:
        """What the request has used, as far as the server has told."""
        ...

    def take(self, payload: bytes) -> list[Chunk]:
        """Take the payload of one event. Raises `ProviderFailed` for an error in mid-stream, and for rubbish."""
        ...

    def end(self) -> list[Chunk]:
        """What was held back for more to come, now that nothing comes any more."""
        ...


def open_client(configuration: ServerConfiguration, headers: Mapping[str, str], connections_max: int) -> Connections:
    """The connections to one server. Proxies and certificates are those of the environment, as httpx knows it."""
    trusted = httpx.create_ssl_context()
    return Connections(lambda most: _client(configuration, headers, most, trusted), connections_max)


def _client(
    configuration: ServerConfiguration, headers: Mapping[str, str], connections_max: int, trusted: ssl.SSLContext
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=trusted,
        headers={
            "Accept": "text/event-stream",
            # A compressed stream is a delayed one.
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": f"taskmesh/{VERSION}",
            **configuration.headers,
            **headers,
        },
        # Each read has a clock of ours: httpx's would begin anew with every comment that keeps the connection alive.
        timeout=httpx.Timeout(None, connect=configuration.connect_seconds),
        limits=httpx.Limits(
            max_connections=connections_max,
            max_keepalive_connections=connections_max,
            keepalive_expiry=KEEPALIVE_SECONDS,
        ),
    )


class ModelServer:
    """A server's address, where turns are posted to. `key` is what no error may tell."""

    def __init__(self, url: str, configuration: ServerConfiguration, connections: Connections, key: str | None) -> None:
        self._url = httpx.URL(url)
        self._configuration = configuration
        self._connections = connections
        self._mask = Mask([key] if key else [], shown="[key]")

    async def stream(self, turn: TurnInput, body_of: BodyOf, answer: Answer) -> AsyncGenerator[Chunk, None]:
        """Post a request for a turn, and let `answer` take what comes of it. Raises `ProviderFailed`.

        Whether the answer is whole, once it has ended, is for the answer to say. Closing the generator closes the
        connection at once.
        """
        body = await _body(turn, body_of)
        # What is shown was read before: the server's time begins here.
        give_up_at = _clock() + self._configuration.first_token_seconds
        try:
            with self._connections.one() as client:
                response = await self._open(client, body, give_up_at, turn)
                try:
                    # The response's iterator is a generator, whatever its type says; it is closed here, not by chance.
                    data = cast("AsyncGenerator[bytes, None]", response.aiter_bytes())
                    async with aclosing(data), aclosing(self._chunks(data, answer, give_up_at, turn.meter)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                        if answer.over or answer.done:
                            turn.meter.over()
                            await _drain(data)
                finally:
                    await response.aclose()
        except ProviderFailed as error:
            error.without(self._mask)
            raise

    async def _chunks(
        self, body: AsyncGenerator[bytes, None], answer: Answer, give_up_at: float, meter: Meter
    ) -> AsyncGenerator[Chunk, None]:
        lines, heard, quiet_until = LineReader(), answer.heard, give_up_at
        told = answer.begun
        between_seconds = self._configuration.between_tokens_seconds
        quiet_seconds = max(self._configuration.first_token_seconds, between_seconds)
        while not answer.done:
            data = await _read(body, give_up_at, answer)
            payloads = lines.feed(data) if data is not None else [last for last in lines.end() if _is_whole(last)]
            for payload in payloads:
                endpoints.heard(payload)
                said = answer.take(payload)
                meter.tell(answer.usage)
                for chunk in said:
                    told = True
                    yield chunk
            if answer.begun and not told:
                told = True
                yield Begun()
            if data is None:
                break
            if answer.over:
                give_up_at = _clock() + USAGE_SECONDS
            elif answer.begun and payloads:
                if answer.heard != heard:
                    heard, quiet_until = answer.heard, _clock() + quiet_seconds
                # Signs of life are believed for as long as a first token may take, and no longer.
                give_up_at = min(_clock() + between_seconds, quiet_until)
        for chunk in answer.end():
            yield chunk

    async def _open(self, client: httpx.AsyncClient, body: _Body, give_up_at: float, turn: TurnInput) -> httpx.Response:
        """Send the request, and wait for the head of the answer. Raises what an answer that is no stream stands for."""
        headers = {"Content-Length": str(body.size_bytes)}
        turn.meter.ask()
        try:
            request = client.build_request("POST", self._url, content=body.parts(), headers=headers)
            with _translated():
                async with asyncio.timeout_at(give_up_at):
                    response = await client.send(request, stream=True)
        except ProviderFailed as error:
            if error.code == UNREACHABLE:
                turn.meter.refused()
            raise
        finally:
            # A server may answer before it has read all.
            body.let_go()
        if turn.on_headers is not None:
            turn.on_headers(response.headers)
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code == httpx.codes.OK and content_type not in _NO_STREAM:
            return response
        if response.status_code != httpx.codes.OK:
            turn.meter.refused()
        try:
            said = await _error_body(response)
        finally:
            await response.aclose()
        if response.status_code != httpx.codes.OK:
            raise failure_of_status(response.status_code, response.headers, said, now())
        raise _no_stream(said, content_type)


class _Body:
    """What is posted, until it is sent."""

    def __init__(self, content: bytes, on_sent: Callable[[], None]) -> None:
        self.size_bytes = len(content)
        self._content = content
        self._on_sent = on_sent

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The content, once."""
        for start in range(0, self.size_bytes, PART_BYTES):
            yield self._content[start : start + PART_BYTES]
        self.let_go()

    def let_go(self) -> None:
        """Hold it no longer."""
        self._content = b""
        self._on_sent()


async def _body(turn: TurnInput, body_of: BodyOf) -> _Body:
    shown = await turn.sight.show(turn.messages) if turn.sight is not None else None
    if shown is None:
        return _Body(msgspec.json.encode(body_of(turn)), lambda: None)
    try:
        return _Body(msgspec.json.encode(body_of(msgspec.structs.replace(turn, messages=shown.messages))), shown.sent)
    except BaseException:
        shown.sent()
        raise


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _is_whole(payload: bytes) -> bool:
    """Whether a last line without an end is whole. If it was cut off it counts for nothing."""
    if payload == DONE:
        return True
    try:
        decoded(payload)
    except ValueError:
        return False
    return True


async def _read(body: AsyncGenerator[bytes, None], give_up_at: float, answer: Answer) -> bytes | None:
    """More of the answer; None at its end. Once the model has finished, a failure is as good as the end."""
    try:
        with _translated():
            async with asyncio.timeout_at(give_up_at):
                return await anext(body, None)
    except ProviderFailed:
        if not answer.over:
            raise
        return None


async def _drain(body: AsyncGenerator[bytes, None]) -> None:
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while await anext(body, None) is not None:
                pass
    except (TimeoutError, httpx.HTTPError):
        pass  # Then the connection is closed with the response.


async def _error_body(response: httpx.Response) -> bytes:
    """As much of the body as comes in time: it is there to be shown."""
    said = bytearray()
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            async for data in response.aiter_bytes():
                said += data
                if len(said) >= ERROR_BODY_BYTES_MAX:
                    break
    except (TimeoutError, httpx.HTTPError):
        pass
    return bytes(said[:ERROR_BODY_BYTES_MAX])


def _no_stream(said: bytes, content_type: str) -> ProviderFailed:
    try:
        value = msgspec.json.decode(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    # Gemini lists its errors.
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, dict) and (first.get("error") or first.get("object") == "error"):
        return failure_in_stream(value)
    return ProviderFailed("provider-error", f"the answer is {content_type}, and no stream: is base_url right?")


@contextmanager
def _translated() -> Iterator[None]:
    """Failures of the connection as the step's. Their texts name addresses and system errors, no payloads."""
    try:
        yield
    except TimeoutError:
        raise ProviderFailed("provider-timeout", "no token came in time", retryable=True) from None
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        said = str(error) or "no connection in time"
        raise ProviderFailed(UNREACHABLE, f"no connection: {said}", retryable=True) from None
    except httpx.HTTPError as error:
        said = f"the connection broke ({type(error).__name__})"
        raise ProviderFailed("provider-disconnected", said, retryable=True) from None
