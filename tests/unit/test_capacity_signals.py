"""What model servers tell about their load, in their own words, and in others'."""

from __future__ import annotations

import sys
import time
import types

import pytest

from inference_worker.capacity import gpu
from inference_worker.capacity.reading import LoadReader, root_of
from inference_worker.capacity.signals import NotTold, ServerLoad, kind_of_metrics, read
from mesh.configuration.capacity_table import CapacitySettings
from mesh.configuration.provider_tables import AnthropicProviderConfiguration, OpenAIProviderConfiguration

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-8B"} 12.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen3-8B"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-8B"} 2.0
vllm:num_requests_waiting{engine="1",model_name="Qwen/Qwen3-8B"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-8B"} 0.71
vllm:kv_cache_usage_perc{engine="1",model_name="Qwen/Qwen3-8B"} 0.2
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="Qwen/Qwen3-8B"} 4.0
"""
OLDER_VLLM = VLLM.replace("kv_cache_usage", "gpu_cache_usage")
SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m",tp_rank="0"} 7.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 1.0
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="m",tp_rank="0"} 0.28
"""
SGLANG_WITH_PRIORITIES = SGLANG.replace('tp_rank="0"', 'priority=""') + (
    'sglang:num_running_reqs{model_name="m",priority="1"} 5.0\nsglang:num_queue_reqs{model_name="m",priority="2"} 1.0\n'
)
NEWER_VLLM = VLLM + 'vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 2.0\n'
TGI = "# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 9\n# TYPE tgi_queue_size gauge\ntgi_queue_size 5\n"
LLAMA_CPP = """\
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
"""


@pytest.mark.parametrize(
    ("kind", "page", "load"),
    [
        ("vllm", VLLM, ServerLoad(running=15, waiting=2, cache=0.71, taken_back=4)),
        ("vllm", OLDER_VLLM, ServerLoad(running=15, waiting=2, cache=0.71, taken_back=4)),
        ("vllm", NEWER_VLLM, ServerLoad(running=15, waiting=2, cache=0.71, taken_back=4)),
        ("sglang", SGLANG, ServerLoad(running=7, waiting=1, cache=0.28)),
        ("sglang", SGLANG_WITH_PRIORITIES, ServerLoad(running=7, waiting=1, cache=0.28)),
        ("tgi", TGI, ServerLoad(running=9, waiting=5)),
        ("llama_cpp", LLAMA_CPP, ServerLoad(running=2, waiting=1)),
    ],
)
def test_metrics_are_read_and_recognised(kind: str, page: str, load: ServerLoad) -> None:
    assert kind_of_metrics(page) == kind
    assert read(kind, "/metrics", page.encode()) == load


def test_slots_of_llama_cpp_and_models_of_ollama_are_read() -> None:
    slots = b'[{"id": 0, "is_processing": true, "params": {}}, {"id": 1, "is_processing": false}, {"id": 2}]'
    assert read("llama_cpp", "/slots", slots) == ServerLoad(running=1, slots=3)
    loaded = b'{"models": [{"name": "qwen3", "size": 400, "size_vram": 300}, {"size": 100, "size_vram": 100}]}'
    assert read("ollama", "/api/ps", loaded) == ServerLoad(in_gpu=0.8)
    assert read("ollama", "/api/ps", b'{"models": []}') == ServerLoad()


def test_a_page_of_thousands_of_lines_is_read_in_no_time_and_whatever_else_it_holds() -> None:
    histogram = "".join(f'vllm:e2e_request_latency_seconds_bucket{{le="{edge}"}} 1.0\n' for edge in range(20_000))
    rubbish = 'nonsense{ 1 2 3\n# TYPE \nvllm:other{x="\n'
    began = time.process_time()
    load = read("vllm", "/metrics", (histogram + rubbish + VLLM).encode())
    assert load == ServerLoad(running=15, waiting=2, cache=0.71, taken_back=4)
    # About 10 ms: with the parser alone it is half a second.
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize("name", ["other", "NVMLError"])
def test_without_a_gpu_or_what_reads_it_no_memory_is_full(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def bindings(used: int) -> types.ModuleType:
        nvml = types.ModuleType("pynvml")
        nvml.NVMLError = type("NVMLError", (Exception,), {})  # type: ignore[attr-defined]  # as the real one has it

        def init() -> None:
            if name == "NVMLError":
                raise nvml.NVMLError("no driver")

        memory = types.SimpleNamespace(used=used, total=100)
        nvml.nvmlInit, nvml.nvmlDeviceGetCount = init, lambda: 1  # type: ignore[attr-defined]  # the same
        nvml.nvmlDeviceGetHandleByIndex = lambda index: index  # type: ignore[attr-defined]  # the same
        nvml.nvmlDeviceGetMemoryInfo = lambda _: memory  # type: ignore[attr-defined]  # the same
        return nvml

    for used, full in ((99, name == "other"), (50, False)):
        monkeypatch.setitem(sys.modules, "pynvml", bindings(used))
        gpu._nvml.cache_clear()
        assert gpu.memory_is_full() is full
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu._nvml.cache_clear()
    assert not gpu.memory_is_full()
    gpu._nvml.cache_clear()


@pytest.mark.parametrize(
    ("kind", "path", "page"),
    [
        ("vllm", "/metrics", b"<html>not found</html>"),
        ("vllm", "/metrics", b"up 1\n"),
        ("vllm", "/metrics", b"vllm:num_requests_running{ 12\n"),
        ("vllm", "/metrics", b"vllm:num_requests_running not a number\n"),
        ("vllm", "/metrics", b"\xff\xfe\x00"),
        ("llama_cpp", "/slots", b'{"error": {"code": 501}}'),
        ("llama_cpp", "/slots", b"[]"),
        ("llama_cpp", "/slots", b"[" * 100_000),
        ("ollama", "/api/ps", b'{"models": 3}'),
        ("ollama", "/api/ps", b""),
    ],
)
def test_a_page_that_says_something_else_says_nothing(kind: str, path: str, page: bytes) -> None:
    with pytest.raises(NotTold):
        read(kind, path, page)  # type: ignore[arg-type]  # one of the kinds


def test_numbers_that_no_server_can_have_are_none() -> None:
    page = b"vllm:num_requests_running NaN\nvllm:num_requests_waiting -3\nvllm:kv_cache_usage_perc 1.7\n"
    assert read("vllm", "/metrics", page) == ServerLoad(running=0, waiting=0, cache=1.0)


def server(base_url: str) -> OpenAIProviderConfiguration:
    return OpenAIProviderConfiguration(base_url=base_url, headers={"X-Team": "t"})


def test_pages_are_beside_the_api_unless_a_place_is_set() -> None:
    auto = CapacitySettings()
    assert root_of(server("http://h:8000/v1"), auto) == "http://h:8000"
    assert root_of(server("http://h:8000/v1/"), auto) == "http://h:8000"
    assert root_of(server("http://h/models/qwen"), auto) == "http://h/models/qwen"
    assert root_of(server("http://h:8000/v1"), CapacitySettings(url="http://m:9/x/")) == "http://m:9/x"


def test_a_key_goes_to_the_providers_own_server_and_to_nobody_else() -> None:
    own, plain = LoadReader(server("http://h:8000/v1"), CapacitySettings(), "secret"), {"Accept-Encoding": "identity"}
    assert own._headers == {"X-Team": "t", "Authorization": "Bearer secret", **plain}
    for elsewhere in ("http://other:8000", "http://h:9000", "https://h:8000"):
        assert LoadReader(server("http://h:8000/v1"), CapacitySettings(url=elsewhere), "secret")._headers == plain


def test_vendors_of_apis_are_not_asked_unless_it_is_said_what_they_tell() -> None:
    for vendor in (
        server("https://api.openai.com/v1"),
        server("https://api.mistral.ai/v1"),
        AnthropicProviderConfiguration(),
    ):
        assert not LoadReader(vendor, CapacitySettings(), None).asks
        assert LoadReader(vendor, CapacitySettings(signals="vllm"), None).asks
    assert LoadReader(server("http://127.0.0.1:8000/v1"), CapacitySettings(), None).asks
    assert not LoadReader(server("http://127.0.0.1:8000/v1"), CapacitySettings(signals="none"), None).asks
