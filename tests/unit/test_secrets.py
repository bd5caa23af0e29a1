"""Which service is given which secrets, and that a process can keep its own to itself."""

from __future__ import annotations

import sys

import pytest

from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.secret_sources import secrets_of
from mesh.configuration.secrets import environment_for
from mesh.serving.privacy import has_secrets
from tests.support import children

CONFIGURATION = parse_configuration(
    b"""
    [providers.used]
    kind = "openai"
    base_url = "https://used.example/v1"
    api_key_env = "USED_KEY"
    [providers.idle]
    kind = "anthropic"
    api_key_env = "IDLE_KEY"
    [pools.default]
    provider = "used"
    model = "m"
    [webhooks.billing]
    url = "https://billing.example/"
    secret_env = "HOOK_SECRET"
    on = ["task.completed"]
    [mcp.files]
    command = ["files"]
    env_from = ["FILES_TOKEN", "HOME", "SHARED"]
    [mcp.tickets]
    url = "https://tickets.example/mcp"
    api_key_env = "TICKETS_KEY"
    headers_env = { X-Tenant-Key = "TENANT_KEY" }
    """
)
SECRETS = {"USED_KEY", "IDLE_KEY", "HOOK_SECRET", "FILES_TOKEN", "SHARED", "TICKETS_KEY", "TENANT_KEY"}
OTHERS = {"HOME", "PATH", "MESH_NATS_URL", "OTEL_EXPORTER_OTLP_HEADERS", "EDITOR"}
ENVIRONMENT = dict.fromkeys(SECRETS | OTHERS, "x")


@pytest.mark.parametrize(
    ("service", "given"),
    [
        ("inference_worker", {"USED_KEY"}),
        ("tool_runner", {"FILES_TOKEN", "SHARED", "TICKETS_KEY", "TENANT_KEY"}),
        ("steward", {"HOOK_SECRET"}),
        ("ingress", set()),
        ("stream_edge", set()),
        ("nats_server", set()),
    ],
)
def test_each_service_is_given_its_own_secrets_and_what_is_everybodys(service: str, given: set[str]) -> None:
    assert set(environment_for(service, ENVIRONMENT, CONFIGURATION)) == given | OTHERS
    assert secrets_of(CONFIGURATION, service) - {"HOME"} == given


@pytest.mark.parametrize("service", ["ingress", "stream_edge", "inference_worker", "tool_runner", "steward"])
def test_where_programs_run_every_service_keeps_its_login_from_them_though_it_has_no_secret_else(service: str) -> None:
    """The environment of each has the broker's URL, and a program runs as the same user."""
    programs = parse_configuration(b'[mcp.files]\ncommand = ["files"]')
    assert has_secrets(programs, service)
    assert not has_secrets(parse_configuration(b""), service)


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
async def test_a_process_that_keeps_private_is_not_dumpable() -> None:
    code = (
        "import ctypes; from mesh.serving.privacy import keep_private; prctl = ctypes.CDLL(None).prctl;"
        "before = prctl(3, 0, 0, 0, 0); keep_private(); print(before, prctl(3, 0, 0, 0, 0))"
    )
    ended = await children.run([sys.executable, "-c", code], {}, seconds=30)
    assert (ended.returncode, ended.stdout) == (0, "1 0\n"), ended
