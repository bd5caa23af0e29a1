"""Secrets in files: where a path leads, what is read, and what each wrong file is told as."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.secret_files import SECRET_BYTES_MAX, is_open_to_all, read_secret, secret_path
from mesh.configuration.secret_sources import (
    Secrets,
    open_to_all,
    read_secrets,
    secret_mistakes,
    server_secrets,
    signing_keys,
)
from mesh.configuration.secrets import environment_for
from mesh.configuration.settings import load_service_settings, load_variables, variable_mistakes
from mesh.configuration.showing import shown_variables
from mesh.errors import SettingsError
from mesh.serving.privacy import has_secrets
from meshctl.__main__ import build_parser
from meshctl.flags import environment_with

KEY = "sk-canary-0123456789"
HOOK = "whsec_" + "c" * 43 + "="
CONFIGURATION = """
[providers.used]
kind = "openai"
base_url = "https://used.example/v1"
api_key_file = "keys/used"
[providers.idle]
kind = "anthropic"
api_key_file = "keys/idle"
[pools.default]
provider = "used"
model = "m"
[webhooks.ops]
url = "https://ops.example/"
secret_file = "keys/hook"
on = ["task.completed"]
[mcp.files]
command = ["files"]
env_file = { FILES_TOKEN = "keys/files" }
[mcp.tickets]
url = "https://tickets.example/mcp"
api_key_file = "keys/tickets"
headers_file = { X-Tenant-Key = "keys/tenant" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A mesh.toml and the files that it names; the key that no pool needs is not there."""
    (tmp_path / "mesh.toml").write_text(CONFIGURATION)
    (tmp_path / "keys").mkdir(mode=0o700)
    for name in ("used", "files", "tickets", "tenant"):
        (tmp_path / "keys" / name).write_text(f"{KEY}-{name}\n")
    (tmp_path / "keys" / "hook").write_text(f"{HOOK}\n{HOOK}\n")
    return tmp_path


def test_each_secret_is_read_from_its_file_beside_the_configuration_without_its_last_line_break(folder: Path) -> None:
    settings = load_service_settings("inference_worker", {"MESH_CONFIG": str(folder / "mesh.toml")})
    assert settings.secrets == Secrets({"providers.used.api_key": f"{KEY}-used"})
    configuration = settings.configuration
    every = read_secrets(configuration, {})
    assert [len(keys) for keys in signing_keys(configuration, every).values()] == [2]
    files = server_secrets("files", configuration.tools.mcp["files"], every)
    assert (files.headers, files.variables) == ({}, {"FILES_TOKEN": f"{KEY}-files"})
    tickets = server_secrets("tickets", configuration.tools.mcp["tickets"], every)
    assert tickets.headers == {"Authorization": f"Bearer {KEY}-tickets", "X-Tenant-Key": f"{KEY}-tenant"}


@pytest.mark.parametrize(
    ("service", "keys"),
    [
        ("inference_worker", {"providers.used.api_key"}),
        ("steward", {"webhooks.ops.secret"}),
        ("tool_runner", {"mcp.files.env.FILES_TOKEN", "mcp.tickets.api_key", "mcp.tickets.headers.X-Tenant-Key"}),
        ("ingress", set()),
        ("stream_edge", set()),
    ],
)
def test_a_service_reads_its_own_secrets_alone_and_keeps_them_private(
    folder: Path, service: str, keys: set[str]
) -> None:
    settings = load_service_settings(service, {"MESH_CONFIG": str(folder / "mesh.toml")})
    assert {key for key in keys if settings.secrets.get(key)} == keys
    assert len(settings.secrets.texts()) == len(keys)
    assert has_secrets(settings.configuration, service)  # The program of an MCP server runs as the same user.
    alone = parse_configuration(
        CONFIGURATION.replace('command = ["files"]', "")
        .replace('env_file = { FILES_TOKEN = "keys/files" }', 'url = "https://files.example/"')
        .encode()
    )
    assert has_secrets(alone, service) == bool(keys)


def test_neither_the_secrets_nor_settings_show_one(folder: Path) -> None:
    settings = load_service_settings("tool_runner", {"MESH_CONFIG": str(folder / "mesh.toml")})
    assert KEY not in repr(settings) + str(settings) + repr(settings.secrets)
    assert "mcp.tickets.api_key" in repr(settings.secrets)


def test_no_variable_is_withheld_for_a_file(folder: Path) -> None:
    configuration = load_service_settings("ingress", {"MESH_CONFIG": str(folder / "mesh.toml")}).configuration
    assert environment_for("steward", {"FILES_TOKEN": "x"}, configuration) == {"FILES_TOKEN": "x"}


def nothing(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def holding(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nothing, "is not there"),
        (a_folder, "is no regular file"),
        (a_pipe, "is no regular file"),
        (a_loop, "can't be read: Too many levels of symbolic links"),
        (holding(b""), "is empty"),
        (holding(b" \r\n\t\n"), "is empty"),
        (holding(b"k" * (SECRET_BYTES_MAX + 1)), f"has more than {SECRET_BYTES_MAX} bytes"),
        (holding(b"\xff" + KEY.encode()), "holds what is no text"),
        (holding(f"{KEY} {KEY}".encode()), "holds what can't be a key"),
        (holding(f"{KEY}\n{KEY}".encode()), "holds what can't be a key"),
        (holding(f"\ufeff{KEY}".encode()), "holds what can't be a key"),
        (holding(f"{KEY}\0".encode()), "holds what can't be a key"),
        (holding(f"{KEY}ä".encode()), "holds what can't be a key"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_key_and_its_path_and_without_what_it_holds(
    folder: Path, change: Callable[[Path], None], reason: str
) -> None:
    path = folder / "keys" / "used"
    change(path)
    with pytest.raises(SettingsError) as failed:
        load_service_settings("inference_worker", {"MESH_CONFIG": str(folder / "mesh.toml")})
    said = str(failed.value)
    assert said.startswith(f"{folder / 'mesh.toml'}: providers.used.api_key_file: the file {path} {reason}"), said
    assert "\n" not in said
    assert KEY not in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_told_so(folder: Path) -> None:
    (folder / "keys" / "used").chmod(0)
    with pytest.raises(SettingsError, match="can't be read: Permission denied"):
        load_service_settings("inference_worker", {"MESH_CONFIG": str(folder / "mesh.toml")})


def test_every_wrong_file_of_a_configuration_is_told(folder: Path) -> None:
    for name, content in {
        "files": "a\0b",
        "tickets": "a\nb",
        "tenant": "",
        "hook": "hunter2hunter2",
        "used": "a b",
    }.items():
        (folder / "keys" / name).write_text(content)
    configuration = load_configuration_of(folder)
    mistakes = secret_mistakes(configuration, {})
    assert [mistake.removeprefix(f"{folder}/mesh.toml: ").partition(": ")[0] for mistake in mistakes] == [
        "providers.used.api_key_file",
        "webhooks.ops.secret_file",
        "mcp.files.env_file.FILES_TOKEN",
        "mcp.tickets.headers_file.X-Tenant-Key",
        "mcp.tickets.api_key_file",
    ]
    assert "hunter2" not in " ".join(mistakes)


def load_configuration_of(folder: Path):  # type: ignore[no-untyped-def]
    return load_service_settings("ingress", {"MESH_CONFIG": str(folder / "mesh.toml")}).configuration


def test_a_path_is_absolute_or_beside_the_configuration_or_among_a_units_credentials() -> None:
    def of(file: str, source: str = "/etc/taskmesh/mesh.toml") -> str:
        return str(secret_path(file, source, {"CREDENTIALS_DIRECTORY": "/run/credentials/x.service"}, "k"))

    assert of("/run/secrets/key") == "/run/secrets/key"
    assert of("keys/a") == "/etc/taskmesh/keys/a"
    assert of("keys/a", "mesh.toml") == "keys/a"
    assert of("$CREDENTIALS_DIRECTORY/key") == "/run/credentials/x.service/key"
    with pytest.raises(SettingsError, match=r"^k: the variable CREDENTIALS_DIRECTORY is not set"):
        secret_path("$CREDENTIALS_DIRECTORY/key", "mesh.toml", {}, "k")
    with pytest.raises(SettingsError, match="NUL"):
        secret_path("a\0b", "mesh.toml", {}, "k")


def test_a_file_behind_a_link_is_read_as_kubernetes_mounts_it(tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "key").write_text(KEY)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "key").symlink_to("..data/key")
    assert read_secret(tmp_path / "key", "k") == KEY


def test_a_file_that_every_user_may_read_is_known(folder: Path) -> None:
    path = folder / "keys" / "used"
    path.chmod(0o644)
    configuration = load_configuration_of(folder)
    assert not is_open_to_all(path), "its folder keeps others away"
    (folder / "keys").chmod(0o755)
    assert is_open_to_all(path)
    assert open_to_all(configuration, {}, "inference_worker") == [path]
    path.chmod(0o640)
    assert open_to_all(configuration, {}, "inference_worker") == []
    assert not is_open_to_all(folder / "keys" / "none")


LOCAL = '[providers.local]\nkind = "openai"\nbase_url = "http://127.0.0.1:8000/v1"\n'


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("[mcp.files]\ncommand = ['a']\napi_key_file = 'a'", "mcp.files.api_key_file", "env_file"),
        ("[mcp.files]\ncommand = ['a']\nheaders_file = { A = 'b' }", "mcp.files", "are for a url"),
        ("[mcp.files]\ncommand = ['a']\nenv_file = { A = 'b' }\nenv_from = ['A']", "mcp.files.env_file.A", "beside"),
        ("[mcp.files]\nurl = 'http://a'\nenv_file = { A = 'b' }", "mcp.files", "are for a command"),
        (
            "[mcp.f]\nurl = 'http://a'\napi_key_env = 'A'\napi_key_file = 'a'",
            "mcp.f.api_key_file",
            "only one of the two",
        ),
        (
            "[mcp.f]\nurl = 'http://a'\nheaders_env = { X-A = 'A' }\nheaders_file = { x-a = 'a' }",
            "mcp.f.headers_file.'x-a'",
            "is there twice",
        ),
        (
            "[mcp.f]\nurl = 'http://a'\napi_key_file = 'a'\nheaders_file = { authorization = 'a' }",
            "mcp.f.headers_file.'authorization'",
            "api_key_file",
        ),
        (f"{LOCAL}api_key_env = 'A'\napi_key_file = 'a'", "providers.local.api_key_file", "only one of the two"),
        (f"{LOCAL}api_key_file = ''", "providers.local.api_key_file", "length >= 1"),
    ],
)
def test_where_a_secret_is_is_said_once_and_where_it_can_be(text: str, key: str, reason: str) -> None:
    with pytest.raises(SettingsError) as failed:
        parse_configuration(text.encode())
    assert str(failed.value).startswith(f"mesh.toml: {key}: ")
    assert reason in str(failed.value)


# MESH_NATS_URL_FILE

URL = "nats://mesh:hunter2hunter2@127.0.0.1:4222"


def test_the_brokers_url_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{URL}\n")
    settings = load_variables({"MESH_NATS_URL_FILE": str(file)})
    assert (settings.nats_url, settings.broker_url) == (URL, URL)
    assert settings.secret_texts == ["hunter2hunter2"]
    [shown] = [each for each in shown_variables(settings) if each.key == "MESH_NATS_URL"]
    assert (shown.value, shown.origin) == ("nats://***@127.0.0.1:4222", "MESH_NATS_URL_FILE")
    of_unit = {"MESH_NATS_URL_FILE": "$CREDENTIALS_DIRECTORY/url", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load_variables(of_unit).nats_url == URL


@pytest.mark.parametrize(
    ("content", "more", "reason"),
    [
        (None, {}, "is not there"),
        ("", {}, "is empty"),
        ("http://hunter2hunter2@x", {}, "holds no URL of a broker"),
        (URL, {"MESH_NATS_URL": URL}, "is there beside MESH_NATS_URL"),
    ],
)
def test_a_wrong_file_of_the_brokers_url_is_one_line_without_it(
    tmp_path: Path, content: str | None, more: dict[str, str], reason: str
) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_text(content)
    environment = {"MESH_NATS_URL_FILE": str(file), **more}
    with pytest.raises(SettingsError) as failed:
        load_variables(environment)
    [told] = variable_mistakes(environment)
    for said in (str(failed.value), told):
        assert said.startswith("MESH_NATS_URL_FILE: ")
        assert reason in said
        assert "hunter2" not in said


@pytest.mark.parametrize(("flag", "gone"), [("--nats-url", "MESH_NATS_URL_FILE"), ("--nats-url-file", "MESH_NATS_URL")])
def test_a_flag_outranks_the_variable_that_says_the_same(flag: str, gone: str) -> None:
    arguments = build_parser().parse_args(["up", flag, "nats://127.0.0.1:1"])
    merged = environment_with(arguments, {"MESH_NATS_URL": "nats://a:1", "MESH_NATS_URL_FILE": "/a"})
    assert gone not in merged
