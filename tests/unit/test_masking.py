"""Secrets taken out of what others have written, and out of every line of a log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from inference_worker.dialects.errors import failure_of_status
from mesh.clock import now
from mesh.masking import Mask
from mesh.telemetry.variables import header_values
from tests.support import children

KEY = 'sk-Canary/"0123\\456789'


@pytest.mark.parametrize(
    "said",
    [
        f"key {KEY} is wrong",
        json.dumps({"key": KEY}),
        f"{KEY}{KEY}",
        KEY.lower(),
        KEY.upper(),
        "https://x.example/?key=sk-Canary%2F%220123%5C456789",
        f"Authorization: Bearer {KEY}",
    ],
)
def test_a_secret_is_masked_however_it_is_written(said: str) -> None:
    masked = Mask([f"Bearer {KEY}"])(said)
    assert "canary" not in masked.lower()
    assert "[secret]" in masked


def test_the_rest_of_a_text_stays_and_short_words_are_no_secrets() -> None:
    assert Mask(["secret-of-it", "secret-of-it-too"])("a secret-of-it-too b") == "a [secret] b"
    assert Mask(["short", ""])("short and sweet") == "short and sweet"
    assert Mask()("anything") == "anything"
    assert Mask(["secret-of-it"], shown=r"\1")("secret-of-it") == r"\1"


def test_a_key_as_the_name_of_an_error_is_in_no_message() -> None:
    """The words of an error are logged, and a server may put anything there."""
    key = "sk-canary-0123456789"
    failure = failure_of_status(400, {}, json.dumps({"error": {"code": key, "message": f"no {key}"}}).encode(), now())
    assert key in str(failure)
    failure.without(Mask([key], shown="[key]"))
    assert (str(failure), failure.detail) == ("HTTP 400 ([key])", "no [key]")


def test_the_headers_for_a_collector_are_secrets() -> None:
    given = {
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20canary-one,x-key=canary-two",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-key=canary-three",
    }
    assert header_values(given) == ["Bearer canary-one", "canary-two", "canary-three"]
    assert header_values({}) == []


@pytest.mark.processes
@pytest.mark.parametrize("form", ["json", "console"])
async def test_no_line_of_a_log_has_a_secret_whoever_writes_it(form: str, tmp_path: Path) -> None:
    code = f"""
import logging, structlog
from pathlib import Path
from mesh.broker.credentials import Credentials
from mesh.masking import hide
from mesh.configuration.secret_sources import Secrets
from mesh.configuration.settings import Settings
from mesh.telemetry import traces
held = Secrets({{"k": "canary-key-1"}})
traces.configure(Settings(log_format={form!r}, nats_url="nats://u:canary-password@h", secrets=held), "steward")
log = structlog.get_logger("x")
log.info("one", error="of canary-key-1 and canary-password", ours="stays")
try:
    raise ValueError("canary-key-1")
except ValueError:
    log.exception("two")
logging.getLogger("library").warning("three canary-key-1")
hide(["canary-key-2"])
log.info("four", a={{"b": ["canary-key-1", "canary-key-2"]}})
log.info("five", url="https://x/?key=CANARY-KEY-1")
open("password", "w").write("canary-of-a-file")
Credentials(Settings(nats_user="u", nats_password_file=Path("password").absolute()), "steward").read()
log.info("six", error="of canary-of-a-file")
"""
    ended = await children.run([sys.executable, "-c", code], {}, cwd=tmp_path, seconds=30)
    assert ended.returncode == 0, ended.stderr
    assert "canary" not in (ended.stdout + ended.stderr).lower()
    lines = ended.stderr.splitlines()
    assert all(any(word in line for line in lines) for word in ("one", "two", "three", "four", "five", "six", "stays"))
    assert ended.stderr.count("[secret]") == 8
