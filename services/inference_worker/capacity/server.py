"""What one model server bears, as one worker sees it: what is under way there, and the limit that holds for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inference_worker.capacity.followed_limit import FollowedLimit
from inference_worker.capacity.probed_limit import ProbedLimit
from inference_worker.capacity.signals import Kind, ServerLoad
from mesh.configuration.capacity_table import PLACES_MAX, CapacitySettings

SILENT_SECONDS = 30.0
"""A server that tells nothing for so long is treated as one that never did: from its limit on others are tried."""


class ServerCapacity:
    """How many turns a provider takes at once. All workers count; `workers` of them share it, this one as `place`.

    `wide`: nobody has set a limit, and this worker has so many places. Then it bears all of them, until it tells that
    it does not.
    """

    def __init__(
        self, provider: str, settings: CapacitySettings, changed: Callable[[], None], wide: int | None = None
    ) -> None:
        limit_max = settings.max or PLACES_MAX
        self.provider = provider
        self.settings = settings
        self.under_way = 0
        """Streams that this worker has open there."""
        self.busy = asyncio.Event()
        """Set while it has any."""
        self.workers = 1
        self.place = 0
        self._changed = changed
        self._wide = wide
        self.has_told = False
        """Whether it has ever told of itself."""
        self._followed = FollowedLimit(settings.min, limit_max)
        self._probed = ProbedLimit(settings.min, limit_max)
        self._told_at: float | None = None
        self._silent = ""
        self._kind: Kind | None = None
        self._told = (0, 0, False)
        self._widen()

    @property
    def counts(self) -> bool:
        """Whether there is a limit; else it bears whatever comes."""
        return self._wide is None or self._follows

    @property
    def is_wide(self) -> bool:
        """Whether nobody has set a limit."""
        return self._wide is not None

    @property
    def is_told(self) -> bool:
        """Whether the server has told of itself lately."""
        return self._told_at is not None

    @property
    def of_all(self) -> int:
        """How many turns of all workers it takes at once."""
        return self._followed.limit if self._follows else self._probed.limit

    @property
    def limit(self) -> int:
        """How many of this worker. One at least: who has none could never find out that there is more."""
        whole, rest = divmod(self.of_all, self.workers)
        return max(1, whole + (self.place < rest))

    @property
    def room(self) -> float:
        """How much of that is free, 0 to 1."""
        return max(0.0, 1.0 - self.under_way / self.limit)

    @property
    def why(self) -> str:
        """What that follows from, in a few words."""
        law = f"{self._kind}: {self._followed.why}" if self._follows else self._probed.why
        return f"{law} ({self._silent})" if self._silent else law

    @property
    def _follows(self) -> bool:
        return self._told_at is not None and self._kind != "ollama"

    def began(self) -> Turn:
        """A stream is opened."""
        self.under_way += 1
        self.busy.set()
        self._followed.began(self.under_way, self.workers)
        counts = self._probed.counts(self.under_way, self.workers)
        return Turn(self, self._probed.epoch if counts else None)

    def told(self, kind: Kind, load: ServerLoad) -> None:
        """The server has told this."""
        self._kind, self._told_at, self._silent, self.has_told = kind, _now(), "", True
        if kind == "ollama":
            # A model that does not fit into the GPU's memory gets slower with each request beside it.
            self._probed.may_grow = load.in_gpu is None or load.in_gpu >= 1.0
        else:
            self._followed.read(load, self.under_way * self.workers, self._told_at)
        self.look()

    def silent(self, reason: str) -> None:
        """The server has told nothing. What held goes on holding, for a while."""
        self._followed.silent()
        if self._told_at is not None and _now() - self._told_at < SILENT_SECONDS:
            return
        if self._follows:
            limits = self.settings.min, self.settings.max or PLACES_MAX
            self._probed = ProbedLimit(*limits, start=self._followed.limit, epoch=self._probed.epoch + 1)
        self._silent, self._kind, self._told_at = reason, None, None
        self._probed.may_grow = True
        self.look()

    def gpu_is_full(self, is_full: bool) -> None:
        """Whether this machine's GPU has memory left, for a server here that tells nothing of its own."""
        self._probed.may_grow = not is_full

    def shared(self, workers: int, place: int) -> None:
        """So many workers share it, of whom this is the one at that place, from 0."""
        self.workers, self.place = workers, place
        self._widen()
        self.look()

    def _widen(self) -> None:
        if self._wide is not None:
            self._followed.widen(self._wide * self.workers)

    def look(self) -> None:
        """Tell whoever waits for it if the limit has changed."""
        told = (self.limit, self.of_all, self.counts)
        if told != self._told:
            self._told = told
            self._changed()

    def ended(self, epoch: int | None, tokens: int, seconds: float) -> None:
        """A stream has come to its end."""
        self._followed.ended(self.workers)
        if epoch is not None:
            self._probed.ended(epoch, tokens, seconds, _now(), self.workers)
        self.look()

    def over(self) -> None:
        """A stream is closed."""
        self.under_way -= 1
        if not self.under_way:
            self.busy.clear()

    def refused(self) -> None:
        """The server has refused a stream, and has the others."""
        others = (self.under_way - 1) * self.workers
        self._followed.refused(others, _now())
        self._probed.refused(others, _now())
        self.look()


class Turn:
    """One stream of a server."""

    def __init__(self, server: ServerCapacity, epoch: int | None) -> None:
        self._server = server
        self._epoch = epoch
        self._began_at = _now()

    def finished(self, tokens: int) -> None:
        """It has put out so many tokens, and is whole."""
        self._server.ended(self._epoch, tokens, _now() - self._began_at)

    def refused(self) -> None:
        """The server has no room for it."""
        self._server.refused()

    def over(self) -> None:
        """It is closed, however it went."""
        self._server.over()


def _now() -> float:
    return asyncio.get_running_loop().time()
