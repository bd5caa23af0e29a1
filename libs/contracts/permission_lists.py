"""Lists of what a user of the broker may publish and subscribe, and how they are gathered.

`contracts.permissions` has those of each process, `contracts.guests` those of who is none of the mesh.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from contracts import subjects
from contracts.declarations import BucketDeclaration

RESPONSES_MAX: Final = 16
"""Answers to one request: a discovery (`$SRV.INFO`) and an order have one each."""
RESPONSE_SECONDS: Final = 600
"""A process that was suspended answers late what nobody waits for any more: no reason to call that a violation."""
_ACK_TOKENS: Final = ".*.*.*.*.*"
"""Deliveries, the message's and the consumer's sequence, time, pending (NATS ADR-15)."""


class Responses(NamedTuple):
    """The right to answer whoever asks on a subject that one listens to: so often, and so long after the question."""

    max: int = RESPONSES_MAX
    seconds: int = RESPONSE_SECONDS


class Permissions(NamedTuple):
    """What a user of the broker may do. Subjects in NATS's own form, with `*` and `>`; all that is not named is denied.

    `allow_responses`: None if it may answer nobody.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    allow_responses: Responses | None = None


class Lists:
    """Gathers what a user may do. `domain`: of the JetStream that is meant, where it is another server's."""

    def __init__(self, domain: str | None) -> None:
        self._api = subjects.jetstream_api(domain)
        self._domain = domain
        self._publish: dict[str, None] = {}
        self._subscribe: dict[str, None] = {}

    def publish(self, *names: str) -> None:
        """Subjects as they are."""
        self._publish.update(dict.fromkeys(names))

    def subscribe(self, *names: str) -> None:
        """The same, to listen to."""
        self._subscribe.update(dict.fromkeys(names))

    def call(self, *calls: str) -> None:
        """Calls of the JetStream API."""
        self.publish(*(self._api + each for each in calls))

    def write(self, bucket: BucketDeclaration, keys: str = ">") -> None:
        """Put and delete keys. Servers keep `$KV.>` within a domain (NATS ADR-8)."""
        subject = f"$KV.{bucket.name}.{keys}"
        self.publish(self._api + subject if self._domain else subject)

    def read_keys(self, *buckets: BucketDeclaration) -> None:
        """Read single keys, and nothing else of a bucket."""
        self.call(*(f"DIRECT.GET.{each.stream_name}.$KV.{each.name}.>" for each in buckets))

    def read_bucket(self, *buckets: BucketDeclaration) -> None:
        """Read keys, one or many, also at the leader."""
        self.read_keys(*buckets)
        self.read(*(each.stream_name for each in buckets))

    def read(self, *streams: str) -> None:
        """Read a stream's messages, at a replica and at its leader."""
        for stream in streams:
            self.call(f"DIRECT.GET.{stream}", f"STREAM.MSG.GET.{stream}")

    def info(self, *streams: str) -> None:
        """Ask how streams stand."""
        self.call(*(f"STREAM.INFO.{each}" for each in streams))

    def pull(self, stream: str, *consumers: str) -> None:
        """Pull a stream's consumers, and answer what they deliver.

        An answer's subject is one of two, by what the server is configured to (`js_ack_fc_v2`): the newer has the
        domain and the account before the stream, and a random token at its end.
        """
        for consumer in consumers:
            self.call(f"CONSUMER.MSG.NEXT.{stream}.{consumer}")
            place = f"{stream}.{consumer}{_ACK_TOKENS}"
            self.publish(f"$JS.ACK.{place}", f"$JS.ACK.*.*.{place}", f"$JS.ACK.*.*.{place}.*")

    def made(self) -> Permissions:
        return Permissions(tuple(self._publish), tuple(self._subscribe))
