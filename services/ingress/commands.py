"""Commands on their way into CONTROL."""

from __future__ import annotations

import random

from opentelemetry.trace import SpanKind

from contracts import headers, subjects
from contracts.codec import encode
from contracts.messages.control import Command
from mesh.broker.requests import PubAck, Requests
from mesh.errors import BrokerError, MessageTooLarge
from mesh.serving.http import AnyRequest, RequestRefused
from mesh.telemetry import traces

RETRY_SECONDS = 5.0
"""When to try again where CONTROL takes no command."""


async def send(requests: Requests, command: Command, message_id: str, request: AnyRequest, route: str) -> PubAck:
    """Store a command, once for each message id that CONTROL remembers, as part of the client's trace if it has one.

    Raises `RequestRefused` if there is no room, `BrokerUnavailable` if nobody knows whether it is stored.
    """
    incoming = traces.parse_traceparent(request.headers.get(headers.TRACEPARENT))
    subject = subjects.control(str(command.__struct_config__.tag), command.tenant)
    try:
        with traces.span(f"POST {route}", incoming, SpanKind.SERVER, {"taskmesh.task": command.task}):
            traceparent = traces.current_traceparent() or traces.new_traceparent()
            message_headers = {headers.MESSAGE_ID: message_id, headers.TRACEPARENT: traceparent}
            return await requests.publish(subject, encode(command), message_headers)
    except MessageTooLarge as error:
        raise RequestRefused(error.code, str(error)) from None
    except BrokerError as error:
        # Those who were refused together do not come back together.
        later = RETRY_SECONDS * (1 + random.random())
        raise RequestRefused("queue-full", str(error), retry_after_seconds=later, cause="commands") from None
