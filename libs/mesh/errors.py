"""What can go wrong between a service and its broker."""

from __future__ import annotations

from contracts.errors import TaskmeshError


class SettingsError(TaskmeshError):
    """A setting that makes no sense. Stops the start, with one clear line."""


class BrokerRefused(SettingsError):
    """The broker is there, and does not take the login that it was shown, or is not trusted."""


class BrokerDistrusted(BrokerRefused):
    """No TLS comes about: the broker's certificate, or ours, is not trusted, or one side wants none."""


class BrokerUnavailable(TaskmeshError):
    """The broker gave no answer in time. What was asked of it may or may not have been done."""

    code = "broker-unavailable"
    retryable = True


class NoLeader(BrokerUnavailable):
    """A cluster answers that it can't answer: what was asked for has no leader at present, or is being moved.

    An election is under way (4 to 9 s after its leader's death), or too many servers are away for one.
    """


class BrokerError(TaskmeshError):
    """The broker answered with an error. `number` is its JetStream error code, e.g. 10071."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"{message} ({number})")
        self.number = number
        self.said = message
        """The description alone."""


class NoRoom(BrokerError):
    """A stream has no room for what was published: it is not stored. There may be some later."""


class MessageTooLarge(BrokerError):
    """A message is larger than the broker, or its stream, takes one. It is not stored."""

    code = "payload-too-large"


class NotAllowed(BrokerUnavailable):
    """The broker's user may not publish on a subject: nothing was done. An operator may give the right later."""


class QueueFull(TaskmeshError):
    """TASKS refused a submission: the lane, or the mesh, has as much waiting work as it may."""

    code = "queue-full"
    retryable = True

    def __init__(self, message: str, *, cause: str = "lane") -> None:
        super().__init__(message)
        self.cause = cause
        """`lane`: the tenant's part of the lane is full.  queues: those of the whole mesh are.  storage: a stream,
        or the disk, has no room."""


class IdempotencyMismatch(TaskmeshError):
    """An idempotency key came back with another request."""

    code = "idempotency-mismatch"


class StepLost(TaskmeshError):
    """This process does not own the step any more. Send nothing more for its delivery."""

    code = "step-lost"


class JournalBusy(TaskmeshError):
    """Others write to a journal faster than this process gets in, though they were asked to let it."""

    code = "journal-busy"
    retryable = True


class NotRequeued(TaskmeshError):
    """The message of a dead letter that nobody could carry out, were it put back."""

    code = "conflict"


class JournalNotUnderstood(TaskmeshError):
    """A journal has an event that this version can't read: one of another version may."""

    code = "internal"


class JournalCorrupt(TaskmeshError):
    """A journal that no writer of this protocol can have written, e.g. one with a hole in n."""

    code = "journal-corrupt"
