"""MESH_HOME: the folder of a mesh: its data, logs, pids and addresses, and the lock that keeps it to one mesh."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from mesh.broker.embedded import LOCK_FILE, LOGINS_FOLDER, PORTS_FOLDER, is_alive, is_locked
from meshctl.errors import HomeBusy, MeshctlError
from meshctl.supervision import private_files

LOG_BYTES_MAX: Final = 10 * 1024 * 1024
"""A log above it is rotated to `.1`: so a process has twice this much, and what it writes in a second."""
LOGS_BYTES_MAX: Final = 256 * 1024 * 1024
"""All logs of a home together: of many processes each has a smaller share, and logs of gone places go first."""
LOG_BYTES_MIN: Final = 128 * 1024
BROKER_LOG: Final = "nats_server"
"""nats-server keeps its log within a bound itself."""
OPERATOR_KEY_FILE: Final = "operator.key"
"""In MESH_HOME: the API key by which meshctl asks a mesh of its own that asks for keys."""
LOG_TAIL_LINES: Final = 15
LOG_TAIL_BYTES_MAX: Final = 16 * 1024
LOCK_WAIT_SECONDS: Final = 5.0
"""How long to wait for the broker of a `meshctl up` that was killed: it holds the lock until it has ended."""
LOCK_POLL_SECONDS: Final = 0.05


class Addresses(msgspec.Struct, frozen=True):
    """Where a running mesh answers, as `addresses.json` says it."""

    ingress_url: str
    edge_url: str
    nats_url: str | None = None
    """None if the URL holds a password: no file does."""
    tls_cert: str | None = None
    """The file of the certificate that ingress and edge show; None: they speak plain HTTP."""


class Home:
    """The paths below MESH_HOME, absolute."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.pids = self.path / "pids.json"
        self.addresses = self.path / "addresses.json"
        self.lock = self.path / LOCK_FILE
        self.nats_config = self.path / "nats.conf"
        self.nats_ports = self.path / PORTS_FOLDER
        self.logins = self.path / LOGINS_FOLDER
        self.operator_key = self.path / OPERATOR_KEY_FILE
        self.jetstream = self.path / "jetstream"
        self.index = self.path / "index"
        self.configuration = self.path / "mesh.toml"
        self.control = self.path / "control.sock"

    def create(self) -> None:
        """Make the folders; readable for their owner alone, since journals hold what users wrote."""
        try:
            for folder in (self.path, self.logs):
                private_files.create_folder(folder)
        except OSError as error:
            raise MeshctlError(f"can't use MESH_HOME={self.path}: {error.strerror or error}") from None

    def create_folder(self, folder: Path) -> None:
        """Make one of its folders. Raises `MeshctlError`."""
        try:
            private_files.create_folder(folder)
        except OSError as error:
            raise MeshctlError(f"can't use {folder}: {error.strerror or error}") from None

    def write_private(self, path: Path, content: bytes) -> None:
        """Replace a file of this folder; only its owner can read it."""
        private_files.write(path, content)

    def read_operator_key(self) -> str | None:
        """The API key of whoever owns this home; None if no mesh has made one here."""
        try:
            if self.operator_key.is_symlink():
                return None
            return self.operator_key.read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def write_operator_key(self, key: str) -> None:
        """Keep it; only the home's owner can read it."""
        self.write_private(self.operator_key, key.encode() + b"\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder. Yields the lock's descriptor: a child that inherits it holds the lock while it lives.

        Raises `HomeBusy` if another mesh runs here.
        """
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise MeshctlError(f"can't use MESH_HOME={self.path}: {error.strerror or error}") from None
        try:
            self._take(descriptor)
            try:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            except OSError as error:
                raise MeshctlError(f"can't use MESH_HOME={self.path}: {error.strerror or error}") from None
            yield descriptor
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        give_up_at = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                owner = _pid_in(os.pread(descriptor, 20, 0))
                if owner is not None and is_alive(owner):
                    raise HomeBusy(f"another meshctl (pid {owner}) runs on {self.path}") from None
                if time.monotonic() > give_up_at:
                    raise HomeBusy(f"a nats-server that an earlier meshctl started still runs on {self.path}") from None
            time.sleep(LOCK_POLL_SECONDS)

    def is_locked(self) -> bool:
        """Whether a mesh runs here. A mesh that was killed holds no lock, whoever has its pid by now."""
        return is_locked(self.path)

    def write_pids(self, pids: Mapping[str, list[int]]) -> None:
        """Replace pids.json."""
        self.write_private(self.pids, msgspec.json.encode(pids) + b"\n")

    def remove_pids(self) -> None:
        """Nothing runs any more."""
        self.pids.unlink(missing_ok=True)

    def write_addresses(self, addresses: Addresses) -> None:
        """Say where the mesh is, once it serves."""
        self.write_private(self.addresses, msgspec.json.encode(addresses) + b"\n")

    def read_addresses(self) -> Addresses | None:
        """Where the mesh is that runs here, or that ran here and was killed. None if there is no such file."""
        try:
            return msgspec.json.decode(self.addresses.read_bytes(), type=Addresses)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise MeshctlError(f"can't read {self.addresses}: {error}") from None

    def remove_addresses(self) -> None:
        """Nobody answers any more."""
        self.addresses.unlink(missing_ok=True)

    def log_path(self, name: str) -> Path:
        """Where a process writes its standard error."""
        return self.logs / f"{name}.log"

    def open_log(self, name: str) -> int:
        """A descriptor that appends to a process's log; a log that has grown too long is put aside first."""
        path = self.log_path(name)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LOG_BYTES_MAX:
                path.replace(path.with_name(path.name + ".1"))
        return private_files.open_to_append(path)

    def rotate_logs(self, names: Iterable[str]) -> None:
        """Put aside what these logs hold, where they have grown too long; who writes them goes on. Raises `OSError`.

        Together they stay within `LOGS_BYTES_MAX`; what others have left goes then, the oldest first.
        """
        living = [self.log_path(name) for name in names]
        bytes_max = max(LOG_BYTES_MIN, min(LOG_BYTES_MAX, LOGS_BYTES_MAX // (2 * max(1, len(living)))))
        for path in living:
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_size > bytes_max:
                    private_files.move_content(path, path.with_name(path.name + ".1"))
        self._remove_old_logs({path.name for path in living})

    def _remove_old_logs(self, living: set[str]) -> None:
        left: list[tuple[float, int, Path]] = []
        total = 0
        for path in self.logs.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                total += found.st_size
                if path.name.removesuffix(".1") not in living and not path.name.startswith(BROKER_LOG):
                    left.append((found.st_mtime, found.st_size, path))
        for _, size, path in sorted(left):
            if total <= LOGS_BYTES_MAX:
                return
            path.unlink(missing_ok=True)
            total -= size

    def log_size(self, name: str) -> int:
        """How long a log is; 0 where there is none."""
        try:
            return self.log_path(name).stat().st_size
        except FileNotFoundError:
            return 0

    def log_tail(self, name: str, since: int = 0) -> list[str]:
        """The last lines of a log, none from before the offset `since`."""
        try:
            with self.log_path(name).open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(since if since <= size else 0, size - LOG_TAIL_BYTES_MAX))
                return log.read().decode("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
        except FileNotFoundError:
            return []


def _pid_in(raw: bytes) -> int | None:
    text = raw.decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None
