"""What model servers tell about their load, read off their pages. Pure.

    kind       page       running, waiting; cache in use; taken back to make room
    vLLM       /metrics   vllm:num_requests_running, vllm:num_requests_waiting; vllm:kv_cache_usage_perc or
                          vllm:gpu_cache_usage_perc; vllm:num_preemptions_total
    SGLang     /metrics   sglang:num_running_reqs, sglang:num_queue_reqs; sglang:token_usage;
                          sglang:num_retracted_requests_total
    TGI        /metrics   tgi_batch_current_size, tgi_queue_size
    llama.cpp  /slots     slots with is_processing, of all slots
    llama.cpp  /metrics   llamacpp:requests_processing, llamacpp:requests_deferred
    Ollama     /api/ps    whether a model is loaded, and how much of it in the GPU's memory

Sources: docs.vllm.ai/en/v0.32.0/usage/metrics (the cache's name is `kv_cache_usage_perc` in the V1 engine, and
`gpu_cache_usage_perc` up to 0.9), docs.sglang.io/references/production_metrics.html with srt/metrics/collector.py
(only with `--enable-metrics`), huggingface.co/docs/text-generation-inference/reference/metrics (3.x),
tools/server/README.md of llama.cpp (`/slots` unless `--no-slots`, `/metrics` only with `--metrics`; its older
`kv_cache_usage_ratio` is gone), docs.ollama.com/api/ps (0.40). Ollama tells neither its queue nor how many it takes at
once (`OLLAMA_NUM_PARALLEL`): beyond `OLLAMA_MAX_QUEUE` it answers 503.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

Kind = Literal["vllm", "llama_cpp", "ollama", "sglang", "tgi"]

PAGES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "vllm": ("/metrics",),
    "sglang": ("/metrics",),
    "tgi": ("/metrics",),
    "llama_cpp": ("/slots", "/metrics"),
    "ollama": ("/api/ps",),
}
"""Where each kind tells of itself, the best page first. Paths below the server's root."""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server told, of all of its clients. None is what it did not tell."""

    running: int | None = None
    """Requests that it works on."""
    waiting: int = 0
    """Requests that it has taken, and that wait for room."""
    cache: float | None = None
    """The part of the cache for keys and values that is in use, 0 to 1."""
    taken_back: int = 0
    """How often it has stopped a request to make room, since it was started."""
    slots: int | None = None
    """How many requests it works on at once; more wait."""
    in_gpu: float | None = None
    """The part of the loaded models that is in the GPU's memory, 0 to 1; None while none is loaded."""


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of a kind's metrics. Of several for one thing a server has one, by its version."""

    running: str
    waiting: str
    cache: tuple[str, ...] = ()
    taken_back: tuple[str, ...] = ()


_METRICS: Final[Mapping[Kind, _Names]] = {
    "vllm": _Names(
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        ("vllm:num_preemptions_total",),
    ),
    "sglang": _Names(
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
        ("sglang:token_usage",),
        ("sglang:num_retracted_requests_total",),
    ),
    "tgi": _Names("tgi_batch_current_size", "tgi_queue_size"),
    "llama_cpp": _Names("llamacpp:requests_processing", "llamacpp:requests_deferred"),
}


class NotTold(Exception):
    """The page does not say what it should."""


def kind_of_metrics(page: str) -> Kind | None:
    """Whose metrics these are, by their names; None if it is nobody's that is known."""
    for kind, names in _METRICS.items():
        if names.running in page or names.waiting in page:
            return kind
    return None


def read_metrics(kind: Kind, page: str) -> ServerLoad:
    """The load by a page in Prometheus' text format. Raises `NotTold`.

    Engines of one server (`engine`, `dp_rank`) add up; of their caches the fullest counts. What SGLang tells of each
    priority it tells of all together, too.
    """
    # By the mode that needs it: a worker without metrics to read goes without the parser.
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - see above

    names, found = _METRICS[kind], dict[str, list[float]]()
    wanted = (names.running, names.waiting, *names.cache, *names.taken_back)
    # A page has a thousand lines and more, nearly all of them of histograms: the parser would take the worker's time.
    lines = "\n".join(line for line in page.splitlines() if line.startswith(wanted))
    try:
        for family in text_string_to_metric_families(lines):
            for sample in family.samples:
                if sample.labels.get("priority"):
                    continue
                found.setdefault(sample.name, []).append(float(sample.value))
    except (ValueError, KeyError, IndexError) as error:
        raise NotTold(f"the page can't be read: {error!r:.80}") from None
    if names.running not in found and names.waiting not in found:
        raise NotTold(f"it lacks {names.running}")
    caches = [max(found[name]) for name in names.cache if name in found]
    return ServerLoad(
        running=_whole(sum(found.get(names.running, [0.0]))),
        waiting=_whole(sum(found.get(names.waiting, [0.0]))),
        cache=min(max(caches[0], 0.0), 1.0) if caches else None,
        taken_back=_whole(sum(sum(found.get(name, [])) for name in names.taken_back)),
    )


class _Slot(msgspec.Struct):
    is_processing: bool = False


class _Loaded(msgspec.Struct):
    size: int = 0
    size_vram: int = 0


class _Running(msgspec.Struct):
    models: list[_Loaded]


def read_slots(page: bytes) -> ServerLoad:
    """The load by llama.cpp's `/slots`. Raises `NotTold`."""
    try:
        slots = msgspec.json.decode(page, type=list[_Slot])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NotTold("it is no list of slots") from None
    if not slots:
        raise NotTold("it has no slots")
    return ServerLoad(running=sum(slot.is_processing for slot in slots), slots=len(slots))


def read_loaded(page: bytes) -> ServerLoad:
    """What is loaded, by Ollama's `/api/ps`. Raises `NotTold`."""
    try:
        models = msgspec.json.decode(page, type=_Running).models
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NotTold("it is no list of models") from None
    size = sum(max(each.size, 0) for each in models)
    return ServerLoad(in_gpu=min(1.0, sum(max(each.size_vram, 0) for each in models) / size) if size else None)


def read(kind: Kind, path: str, page: bytes) -> ServerLoad:
    """The load by one of a kind's pages. Raises `NotTold`."""
    match path:
        case "/slots":
            return read_slots(page)
        case "/api/ps":
            return read_loaded(page)
        case _:
            return read_metrics(kind, page.decode("utf-8", "replace"))


def _whole(value: float) -> int:
    """A count; what is no number, or none that a server can have, is 0."""
    return int(value) if 0 <= value < 1e15 else 0  # noqa: PLR2004 - NaN fails both
