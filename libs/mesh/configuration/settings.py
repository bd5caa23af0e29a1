"""Settings: read once at the start from `MESH_*` variables, frozen, each with its unit and default."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from contracts.declarations import ACK_WAIT_SECONDS, MAX_DELIVER
from contracts.retries import STEP_POLICY
from mesh.configuration.broker_urls import BrokerLogin, parse_broker_url, without_password
from mesh.configuration.mesh_toml import DEFAULT_FILE, Configuration, default_configuration, load_configuration
from mesh.configuration.secret_files import read_secret, secret_path
from mesh.configuration.secret_sources import Secrets, read_secrets
from mesh.errors import SettingsError

PORT_MAX = 65_535
SOURCE_VARIABLE: Final = "MESH_CONFIG_SOURCE"
"""Set by `meshctl up` for its processes: MESH_CONFIG is then a copy of the file that this names."""
_DOMAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where HTTP listens. Port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set from outside. A field `x_y` is the variable `MESH_X_Y`, but for the last three."""

    home: Path = Path(".mesh")
    """The folder of the embedded broker's data, the logs and the pids."""
    nats_url: str | None = None
    """A NATS of your own; servers of a cluster with commas. Unset: `meshctl up` embeds one, and a service that runs
    alone looks on MESH_NATS_PORT."""
    nats_url_file: Path | None = None
    """A file that holds MESH_NATS_URL, in its place: for one with a password. It is read at the start."""
    nats_creds: Path | None = None
    """File with the JWT and seed of a user of the broker (`.creds`), in operator mode. This and the next eight are read
    anew at each connect, and each may be of one service alone: `MESH_NATS_CREDS_STEWARD`."""
    nats_nkey: Path | None = None
    """File with the seed of a user's nkey (`SU…`)."""
    nats_user: str | None = None
    """Name of a user of the broker; MESH_NATS_PASSWORD_FILE has the password."""
    nats_password_file: Path | None = None
    """File with the password of MESH_NATS_USER."""
    nats_token_file: Path | None = None
    """File with the broker's token."""
    nats_tls_ca: Path | None = None
    """File with the authorities that may sign the broker's certificate (PEM); unset are the machine's."""
    nats_tls_cert: Path | None = None
    """File with the certificate that is shown to the broker, and those between it and its authority (PEM)."""
    nats_tls_key: Path | None = None
    """File with the key of MESH_NATS_TLS_CERT (PEM, without a passphrase)."""
    nats_tls_first: bool = False
    """Whether TLS begins before the broker has said anything, as its `handshake_first` wants it."""
    nats_domain: str | None = None
    """The JetStream domain of the streams, if it is not that of the server at MESH_NATS_URL: a leaf's, or a hub's."""
    nats_server: str | None = None
    """The nats-server program to embed; unset looks on the PATH, then in the `broker` extra."""
    nats_port: int = 4222
    """Port of the embedded broker; 0 takes a free one."""
    ingress_address: Address = Address("127.0.0.1", 8080)
    """Where the ingress listens."""
    ingress_public_url: str | None = None
    """The URL that the links in a webhook begin with, but for `events`; unset is `http://<MESH_INGRESS_ADDRESS>`, with
    TLS https."""
    ingress_cors_origins: tuple[str, ...] = ()
    """Origins, separated by commas, whose pages may send tasks and read them; `*` is all."""
    edge_address: Address = Address("127.0.0.1", 8081)
    """Where the stream edge listens."""
    edge_public_url: str | None = None
    """The URL that `links.events` begins with; unset is `http://<MESH_EDGE_ADDRESS>`, with TLS https."""
    edge_cors_origins: tuple[str, ...] = ()
    """Origins, separated by commas, whose pages may read streams; `*` is all."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, separated by commas, that requests may call ingress and edge by (`Host`); `*` is all. Loopback names, IP
    addresses and the names in the public URLs always may. Unset: no others on a loopback address, else all."""
    tls_cert: Path | None = None
    """A PEM file with the certificate that ingress, edge and MESH_OPS_ADDRESS show, and those that lead to its
    authority. They speak TLS alone then. Its changes are taken while they run."""
    tls_key: Path | None = None
    """The PEM file of its private key, without a password; unset: it is in MESH_TLS_CERT."""
    tls_hsts_days: float = 365.0
    """How long browsers are told to ask for this host by https alone, on all its ports (HSTS); 0: not at all. On a
    loopback address nobody is told."""
    edge_streams_max: int = 4096
    """Streams open at once on one edge; one more gets 429."""
    ops_address: Address | None = None
    """Where a process of any service serves its operators: `/health/live`, `/health/ready` and `/metrics`. Unset:
    nowhere. Under `meshctl up` each process has a port of its own: this one and those after it, or with port 0 a free
    one."""
    workers: int = 1
    """Processes of inference_worker that `meshctl up` starts."""
    runners: int = 1
    """Processes of tool_runner that `meshctl up` starts."""
    worker_concurrency: int = 64
    """Steps at once in one worker or runner process, at most: a worker takes fewer where model servers bear fewer."""
    config: Path | None = None
    """The file of pools, providers, tools, webhooks; unset is `mesh.toml`, if it is there; /dev/null is none."""
    ack_wait_seconds: float = ACK_WAIT_SECONDS
    """Lease of a step. Heartbeats go out at a third of it."""
    max_tries: int = STEP_POLICY.tries_max
    """Tries of a step by policy. A step that fails at all of them becomes a dead letter."""
    max_deliver: int = MAX_DELIVER
    """Deliveries of a work message by the broker."""
    retention_days: float = 30.0
    """How long a task is kept after its end, with its dead letters and results. Without an end it is kept for ever."""
    delta_retention_hours: float = 24.0
    """How long the tokens of a turn are kept one by one after its end. Its text stays as long as its task."""
    pack_after_hours: float = 24.0
    """How long after its end a task is packed: from then on it takes no memory of the broker. Its deltas go then."""
    hot_tasks_max: int = 250_000
    """With more tasks than this that are not packed they are packed ten minutes after their end. Each takes about a
    kilobyte of the broker's memory."""
    reconcile_after_seconds: float = 60.0
    """How long a task is quiet before the steward looks whether the message that it waits for is still there."""
    waiting_hours: float = 24.0
    """How long an approval or a question stays open; then it expires, and the task goes on without it."""
    high_water_percent: float = 90.0
    """New tasks get 503 while a stream that they need, the account, or the disk uses this much of its storage."""
    filling_percent: float = 70.0
    """From here on storage counts as filling: the log, `meshctl doctor` and `meshctl storage` warn."""
    sync_interval: str = "always"
    """The embedded broker's fsync: `always`, or a time such as `1s`."""
    upgrade_streams: bool = True
    """Whether `meshctl up` and the steward give streams of a broker of your own what a new version needs of them, as
    far as it takes nothing. With 0 they name it, and `meshctl up` does not start before `meshctl streams apply`."""
    drain_seconds: float = 120.0
    """After SIGTERM running steps go on for as long as steps take, and so long at most; then they are handed over."""
    watchdog_seconds: float = 60.0
    """A process whose event loop stands still for so long is ended, with its stacks in the log; 0: never. Time in which
    the process was stopped, or its machine slept, does not count."""
    index_folder: Path | None = None
    """Where the ingress keeps its index of tasks, for lists: some 300 bytes for each. `meshctl up` has it in MESH_HOME.
    Unset: a temporary file, built anew at each start."""
    log_format: str = "auto"
    """`console`, `json`, or `auto`: console on a terminal, else json."""
    log_level: str = "info"
    """debug, info, warning or error."""
    scripted_allow_exit: bool = False
    """Whether the scripted model obeys `!exit`, which kills its process. For failure tests."""
    configuration: Configuration = field(default_factory=default_configuration)
    """What that file says. It has no variable of its own."""
    secrets: Secrets = field(default_factory=Secrets, compare=False)
    """What a service has read of the secrets that the file names. It has no variable."""
    given: frozenset[str] = field(default=frozenset(), compare=False)
    """Names of the fields that a variable has set. It has none itself."""
    of_role: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """What variables say of one service alone, by its name and the field's."""

    def is_given(self, name: str) -> bool:
        """Whether somebody asked for this field's value, be it the default itself."""
        return name in self.given or getattr(self, name) != getattr(Settings(), name)

    def variable_of(self, name: str, role: str) -> str:
        """The variable that says a field's value for a role: `MESH_NATS_CREDS_STEWARD`, else `MESH_NATS_CREDS`."""
        own = name in self.of_role.get(role, {})
        return role_variable(name, role) if own else f"MESH_{name.upper()}"

    def for_role(self, role: str) -> Settings:
        """These settings with what is said of a role alone. A login of its own takes the place of the common one."""
        own = self.of_role.get(role)
        if not own:
            return self
        common = dict.fromkeys(LOGIN_FIELDS) if not own.keys().isdisjoint(LOGIN_FIELDS) else {}
        return replace(self, **{**common, **own})

    @property
    def broker_url(self) -> str:
        """Where the broker is, for a service that runs alone."""
        return self.nats_url or f"nats://127.0.0.1:{self.nats_port}"

    @property
    def scheme(self) -> str:
        """Of the URLs of this mesh's HTTP services."""
        return "http" if self.tls_cert is None else "https"

    @property
    def ingress_base_url(self) -> str:
        """What the links in a webhook begin with, but for `events`."""
        return (self.ingress_public_url or f"{self.scheme}://{self.ingress_address}").rstrip("/")

    @property
    def events_base_url(self) -> str:
        """What `links.events` begins with."""
        return (self.edge_public_url or f"{self.scheme}://{self.edge_address}").rstrip("/")

    @property
    def logged_level(self) -> str:
        """The least level that is logged: of the file, else of the variable."""
        return self.configuration.logs.level or self.log_level

    @property
    def waiting_seconds(self) -> float:
        """How long an approval or a question stays open."""
        return self.waiting_hours * 3600

    @property
    def retention_age(self) -> timedelta:
        """How long after its end a task goes."""
        return timedelta(days=self.retention_days)

    @property
    def pack_age(self) -> timedelta:
        """How long after its end a task is packed: before it goes, in any case."""
        return min(timedelta(hours=self.pack_after_hours), self.retention_age)

    @property
    def secret_texts(self) -> list[str]:
        """What must be in no text that leaves the process."""
        login = parse_broker_url(self.nats_url).login if self.nats_url is not None else BrokerLogin()
        return [*self.secrets.texts(), *filter(None, (login.password, login.token))]

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the pools. Without a configuration file there is one."""
        return tuple(self.configuration.pools)


BOUNDS: Mapping[str, tuple[float, float]] = {
    "nats_port": (0, PORT_MAX),
    "tls_hsts_days": (0, 36_500),
    "edge_streams_max": (1, 100_000),
    "workers": (0, 256),
    "runners": (0, 256),
    "worker_concurrency": (1, 10_000),
    "ack_wait_seconds": (0.3, 3600),
    "max_tries": (1, 1000),
    "max_deliver": (1, 10_000),
    "retention_days": (0, 36_500),
    "delta_retention_hours": (0, 876_000),
    "pack_after_hours": (0, 876_000),
    "hot_tasks_max": (0, 1_000_000_000),
    "reconcile_after_seconds": (0.1, 86_400),
    "waiting_hours": (0.0001, 876_000),
    "high_water_percent": (0, 100),
    "filling_percent": (0, 100),
    "drain_seconds": (0, 3600),
    "watchdog_seconds": (0, 86_400),
}
"""The least and the most that each number may be."""
CHOICES: Mapping[str, tuple[str, ...]] = {
    "log_format": ("auto", "console", "json"),
    "log_level": ("debug", "info", "warning", "error"),
}
"""The words that there are for a setting."""


LOGIN_FIELDS: Final = ("nats_creds", "nats_nkey", "nats_user", "nats_password_file", "nats_token_file")
"""Who a process is to its broker."""
ROLE_FIELDS: Final = (*LOGIN_FIELDS, "nats_tls_ca", "nats_tls_cert", "nats_tls_key", "nats_tls_first")
"""What may be said of one service alone."""
SERVICES: Final = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
BROKER_ROLES: Final = (*SERVICES, "meshctl")
"""Who connects to a broker: the services, and meshctl."""


def variable_fields() -> list[Field[Any]]:
    """The fields of `Settings` that are variables."""
    return [each for each in fields(Settings) if each.name not in ("configuration", "secrets", "given", "of_role")]


def role_variable(name: str, role: str) -> str:
    """The variable of a field for one role: `MESH_NATS_CREDS_STEWARD`."""
    return f"MESH_{name.upper()}_{role.upper()}"


def role_variables(role: str) -> frozenset[str]:
    """All of them for one role."""
    return frozenset(role_variable(name, role) for name in ROLE_FIELDS)


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read settings from variables, and the configuration file. Raises `SettingsError` that names what is at fault."""
    settings = load_variables(environment)
    configuration = load_configuration(settings.config)
    if SOURCE_VARIABLE in environment:
        configuration = msgspec.structs.replace(configuration, source=environment[SOURCE_VARIABLE] or DEFAULT_FILE)
    return replace(settings, configuration=configuration)


def load_service_settings(service: str, environment: Mapping[str, str] = os.environ) -> Settings:
    """`load_settings`, with the secrets that one service needs. Raises `SettingsError`, which shows none of them."""
    settings = load_settings(environment)
    return replace(settings, secrets=read_secrets(settings.configuration, environment, service))


def load_variables(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read settings from variables alone: for who needs nothing of the file, and shall not fail for a mistake in it.

    Raises `SettingsError` that names the variable.
    """
    values: dict[str, object] = {}
    of_role: dict[str, dict[str, object]] = {}
    for setting, variable, role in _variables():
        raw = environment.get(variable)
        if raw:
            into = values if role is None else of_role.setdefault(role, {})
            into[setting.name] = _value(setting, raw, variable)
    if "nats_url_file" in values:
        values["nats_url"] = _url_of_file(environment)
    return Settings(**values, given=frozenset(values), of_role=of_role)  # type: ignore[arg-type]  # see _parse


def variable_mistakes(environment: Mapping[str, str]) -> list[str]:
    """What is wrong with each of the variables that there are, one line each; empty if all is well."""
    mistakes: list[str] = []
    for setting, variable, _ in _variables():
        raw = environment.get(variable)
        try:
            if raw:
                _value(setting, raw, variable)
        except SettingsError as error:
            mistakes.append(str(error))
    try:
        _url_of_file(environment)
    except SettingsError as error:
        mistakes.append(str(error))
    return mistakes


def _url_of_file(environment: Mapping[str, str]) -> str | None:
    """What the file of MESH_NATS_URL_FILE holds; None if none is named. Raises `SettingsError`."""
    variable = "MESH_NATS_URL_FILE"
    file = environment.get(variable)
    if not file:
        return None
    if environment.get("MESH_NATS_URL"):
        raise SettingsError(f"{variable}: is there beside MESH_NATS_URL: only one of the two can be")
    path = secret_path(file, "", environment, variable)
    url = read_secret(path, variable)
    try:
        parse_broker_url(url)
    except ValueError as error:
        raise SettingsError(f"{variable}: the file {path} holds no URL of a broker: {error}") from None
    return url


def _variables() -> Iterator[tuple[Field[Any], str, str | None]]:
    """Each setting, with the variable that sets it; of those that one role may have alone, that role's too."""
    for setting in variable_fields():
        yield setting, f"MESH_{setting.name.upper()}", None
        if setting.name in ROLE_FIELDS:
            for role in BROKER_ROLES:
                yield setting, role_variable(setting.name, role), role


def _value(setting: Field[Any], raw: str, variable: str) -> object:
    """The value of a variable, within its bounds. Raises `SettingsError`."""
    name = setting.name
    try:
        value = _parse(str(setting.type), raw)
        if name == "nats_url":
            parse_broker_url(raw)
    except ValueError as error:
        shown = without_password(raw) if name == "nats_url" else raw
        raise SettingsError(f"{variable}={shown!r}: {error}") from None
    low, high = BOUNDS.get(name, (None, None))
    if low is not None and high is not None and not low <= value <= high:  # type: ignore[operator]  # it is a number
        raise SettingsError(f"{variable}={value}: must be between {low:g} and {high:g}")
    if name in CHOICES and value not in CHOICES[name]:
        raise SettingsError(f"{variable}={value!r}: must be one of {', '.join(CHOICES[name])}")
    if name == "nats_domain" and _DOMAIN.fullmatch(raw) is None:
        raise SettingsError(f"{variable}={raw!r}: must be letters, digits, - and _")
    return value


def _parse(kind: str, raw: str) -> object:
    kind = kind.removesuffix(" | None")
    if kind in ("int", "float"):
        try:
            return int(raw) if kind == "int" else float(raw)
        except ValueError:
            raise ValueError("must be a whole number" if kind == "int" else "must be a number") from None
    if kind == "bool":
        if raw.lower() in ("1", "true", "yes", "on"):
            return True
        if raw.lower() in ("0", "false", "no", "off"):
            return False
        raise ValueError("must be 1 or 0")
    if kind == "Path":
        return Path(raw)
    if kind == "Address":
        return parse_address(raw)
    if kind.startswith("tuple"):
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    return raw


def parse_address(raw: str) -> Address:
    """The address that a text is. Raises `ValueError`."""
    host, colon, port = raw.rpartition(":")
    if not colon or not host:
        raise ValueError("must be <host>:<port>")
    number = int(port)
    if not 0 <= number <= PORT_MAX:
        raise ValueError("the port must be between 0 and 65535")
    return Address(host.removeprefix("[").removesuffix("]"), number)


def worker_name(service: str, pid: int | None = None) -> str:
    """Name of a process, this one by default, among all workers, e.g. `inference_worker-4711@host`."""
    return f"{service}-{pid or os.getpid()}@{platform.node() or sys.platform}"
