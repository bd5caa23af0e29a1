"""How much a model server bears, as mesh.toml sets it: `[providers.<name>.capacity]`, and `[pools.<name>.places]`."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from mesh.configuration.addresses import is_host
from mesh.errors import SettingsError

PLACES_MAX = 10_000

Places = Annotated[int, Meta(ge=1, le=PLACES_MAX)]
Signals = Literal["auto", "vllm", "llama_cpp", "ollama", "sglang", "tgi", "none"]


class CapacitySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many turns a server gets at once: as many as it bears, by what it tells, or by what its answers show.

    All workers count together, and share it alike. Without this table a worker sends as many as it has places, but for
    a server near by that tells that it bears fewer.
    """

    signals: Signals = "auto"
    """What the server tells: `/metrics` of vLLM, SGLang or TGI, `/slots` of llama.cpp, `/api/ps` of Ollama.

    `auto`: whichever of these is there. `none`: nothing is asked; speed and refusals of its answers show the limit.
    """
    url: Annotated[str, Meta(max_length=2048)] | None = None
    """Where that is asked, without the page's own path. Unset: `base_url` without its `/v1`."""
    min: Places = 1
    """Never fewer turns at once than so many, of all workers."""
    max: Places | None = None
    """Never more. Unset: as many as the workers have places."""


class PlacesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pool's part of the places of a worker that serves several pools.

    A free place goes to the pool that has the most work waiting, by weight. A pool with work gets at least half of what
    its weight alone would give it.
    """

    weight: Annotated[float, Meta(ge=0.01, le=1_000)] = 1.0
    """How much a waiting turn of this pool counts, as it stands to the other pools' weights."""
    min: Annotated[int, Meta(ge=0, le=PLACES_MAX)] = 0
    """Places of each worker that other pools leave free for this one."""
    max: Places | None = None
    """The most places of a worker that it takes. Unset: all of them."""


def check_capacity(settings: CapacitySettings | None, key: str, source: str) -> None:
    """Raise `SettingsError` if the keys of `[providers.<name>.capacity]` don't go together. `key`: that table's."""
    if settings is None:
        return
    if settings.max is not None and settings.min > settings.max:
        raise SettingsError(f"{source}: {key}.min: must not be more than max")
    if settings.url is not None and not _is_usable(settings.url):
        raise SettingsError(f"{source}: {key}.url: must be http(s)://<host>[:<port>][/<path>], without user and query")


def check_places(settings: PlacesSettings, key: str, source: str) -> None:
    """Raise `SettingsError` if the keys of `[pools.<name>.places]` don't go together. `key`: that table's."""
    if settings.max is not None and settings.min > settings.max:
        raise SettingsError(f"{source}: {key}.min: must not be more than max")


def _is_usable(address: str) -> bool:
    try:
        url = urlsplit(address)
        usable = url.scheme in ("http", "https") and is_host(url.hostname or "") and url.port != 0
    except ValueError:
        return False
    bare = url.username is None and not url.query and not url.fragment
    return usable and bare and address.isascii() and address.isprintable() and " " not in address
