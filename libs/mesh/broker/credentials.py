"""What a process shows its broker: a login, a certificate, or what the home of an embedded broker holds for it.

There is one login at a time: creds, nkey, user and password, or token from files, the login in MESH_NATS_URL, or the
home's own. All files are read anew at each connect, so that what is rotated is taken up by the next one, which
`Renewal` makes happen soon.
"""

from __future__ import annotations

import copy
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from mesh.broker import embedded
from mesh.broker.credential_files import (
    LoginUnusable,
    NamedFile,
    Stamp,
    public_key_of,
    read_creds,
    read_seed,
    read_word,
    sign,
)
from mesh.clock import wall_clock
from mesh.configuration.broker_urls import BrokerUrl, parse_broker_url, without_password
from mesh.configuration.settings import LOGIN_FIELDS, Settings
from mesh.errors import SettingsError
from mesh.masking import hide

_TLS_FILES: Final = ("nats_tls_ca", "nats_tls_cert", "nats_tls_key")
_ENCRYPTED_SCHEMES: Final = ("tls", "wss")


class Shown(NamedTuple):
    """What the broker is shown: at most one of user with password, token, and nkey, the last maybe with a JWT."""

    user: str | None = None
    password: str | None = None
    token: str | None = None
    jwt: str | None = None
    public_key: str | None = None
    seed: str | None = None
    file: NamedFile | None = None

    def sign(self, nonce: str) -> bytes:
        """The answer to a server's nonce. Raises `LoginUnusable`."""
        assert self.seed is not None  # noqa: S101 - asked of an nkey alone
        assert self.file is not None  # noqa: S101 - it is where the seed is from
        return sign(self.seed, nonce.encode(), self.file)


class Credentials:
    """The login and the certificates of one process."""

    def __init__(self, settings: Settings, role: str, login: str | None = None) -> None:
        """`role`: a service's name, or `meshctl`. `login`: which of an embedded broker's; None is the role's.

        Raises `SettingsError` if the URL is none, `LoginUnusable` for two logins, or the half of one.
        """
        own = settings.for_role(role)
        try:
            self.url: BrokerUrl = parse_broker_url(own.broker_url)
        except ValueError as error:
            raise SettingsError(f"MESH_NATS_URL={without_password(own.broker_url)!r}: {error}") from None
        self._at = without_password(own.broker_url)
        self._home = own.home
        self._login = login or embedded.login_name(role)
        self._named = {
            name: NamedFile(settings.variable_of(name, role), getattr(own, name))
            for name in (*LOGIN_FIELDS, *_TLS_FILES)
            if name != "nats_user" and getattr(own, name) is not None
        }
        self._user = own.nats_user
        self._user_variable = settings.variable_of("nats_user", role)
        self.tls_first = own.nats_tls_first
        self._seen: dict[NamedFile, Stamp] = {}
        """The files that the last connect has read, as they were."""
        self._check_one_login()
        self._check_pairs()

    @property
    def wants_tls(self) -> bool:
        """Whether nothing may go to the broker in the clear: the URL, or a setting of TLS, says so."""
        encrypted = any(server.partition("://")[0] in _ENCRYPTED_SCHEMES for server in self.url.servers)
        return encrypted or self.tls_first or any(name in self._named for name in _TLS_FILES)

    def read(self) -> Shown:
        """The login, from its file as it is now; no line of a log has it from then on. Raises `LoginUnusable`."""
        shown = self._read()
        hide(filter(None, (shown.password, shown.token, shown.seed)))
        return shown

    def _read(self) -> Shown:
        named = self._named
        if file := named.get("nats_creds"):
            self._note(file)
            creds = read_creds(file)
            return Shown(jwt=creds.jwt.text, public_key=creds.jwt.subject, seed=creds.seed, file=file)
        if file := named.get("nats_nkey"):
            self._note(file)
            seed = read_seed(file)
            return Shown(public_key=public_key_of(seed, file), seed=seed, file=file)
        if file := named.get("nats_password_file"):
            self._note(file)
            return Shown(user=self._user, password=read_word(file))
        if file := named.get("nats_token_file"):
            self._note(file)
            return Shown(token=read_word(file))
        login = self.url.login
        if login.token is not None or login.user is not None:
            return Shown(login.user, login.password, login.token)
        return self._of_home()

    def ssl_context(self) -> ssl.SSLContext:
        """Whom to trust and what to show, from the files as they are now. Raises `LoginUnusable`."""
        ca, cert, key = (self._named.get(name) for name in _TLS_FILES)
        for file in filter(None, (ca, cert, key)):
            self._note(file)
            file.read()  # What can't be read is told better than by OpenSSL.
        context = ssl.create_default_context()
        if ca is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                context.load_verify_locations(ca.path)
            except (ssl.SSLError, OSError):
                raise ca.unusable("holds no certificate of an authority (PEM)") from None
        if cert is not None and key is not None:
            _load(context, cert, key)
        return context

    def check(self) -> None:
        """Read all of it once. Raises `LoginUnusable`."""
        self.read()
        if any(name in self._named for name in _TLS_FILES):
            self.ssl_context()

    def has_changed(self) -> bool:
        """Whether a file is another one than the last connect has read."""
        return any(file.stamp() != stamp for file, stamp in self._seen.items())

    def copy(self) -> Credentials:
        """The same, for another connection."""
        other = copy.copy(self)
        other._seen = {}
        return other

    def open_to_others(self) -> list[str]:
        """The files of secrets that every user of the machine can read or change, one line each."""
        return [
            f"{file} can be read by every user of this machine: chmod o= {file.path}"
            for name, file in self._named.items()
            if name not in ("nats_tls_ca", "nats_tls_cert") and file.is_open_to_others()
        ]

    def refusal(self) -> str:
        """What to say if the broker does not take the login."""
        refuses = f"the broker at {self._at} refuses"
        named = self._named
        if file := named.get("nats_creds"):
            return f"{refuses} the credentials of {file}{_why(file)}"
        if file := named.get("nats_nkey"):
            return f"{refuses} the nkey of {file}{_whose(file)}"
        if file := named.get("nats_password_file"):
            return f"{refuses} the user of {self._user_variable}={self._user}, or the password of {file}"
        if file := named.get("nats_token_file"):
            return f"{refuses} the token of {file}"
        if self.url.login.token is not None:
            return f"{refuses} the token of MESH_NATS_URL"
        if self.url.login.user is not None:
            return f"{refuses} the user or password of MESH_NATS_URL"
        if self._home_login() is not None:
            return f"{refuses} the login of {embedded.login_path(self._home, self._login)}: is it of another broker?"
        return (
            f"the broker at {self._at} asks for a login, and there is none:"
            " MESH_NATS_CREDS, MESH_NATS_NKEY, MESH_NATS_USER, MESH_NATS_TOKEN_FILE and MESH_NATS_URL"
            " (nats://<user>:<password>@<host>:<port>) name one; the broker of a meshctl up is found by its MESH_HOME"
        )

    def tls_failure(self, error: ssl.SSLError) -> str:
        """What to say if no TLS comes about."""
        if isinstance(error, ssl.SSLCertVerificationError):
            authority = self._named.get("nats_tls_ca")
            trusted = f"{authority} has not its authority" if authority else "MESH_NATS_TLS_CA names its authority"
            reason = error.verify_message or str(error)
            return f"the broker at {self._at} shows a certificate that is not trusted here: {reason}; {trusted}"
        reason = (error.reason or str(error)).upper()
        cert = self._named.get("nats_tls_cert")
        if "CERTIFICATE_REQUIRED" in reason or (cert is None and "ALERT" in reason):
            return f"the broker at {self._at} asks for a certificate: MESH_NATS_TLS_CERT and MESH_NATS_TLS_KEY name one"
        if cert is not None and "ALERT" in reason:
            return f"the broker at {self._at} refuses the certificate of {cert}: {_words(reason)}"
        if self.tls_first and ("WRONG_VERSION" in reason or "RECORD_LAYER" in reason):
            return f"the broker at {self._at} does not begin with TLS, as MESH_NATS_TLS_FIRST has it"
        return f"no TLS with the broker at {self._at}: {_words(reason)}"

    def no_tls(self) -> str:
        """What to say if the broker offers no TLS where it has to."""
        why = next((str(file) for name, file in self._named.items() if name in _TLS_FILES), "its URL")
        return f"the broker at {self._at} offers no TLS, which {why} asks for: nothing is sent to it in the clear"

    def silence(self) -> str:
        """What to say of a broker that takes connections and does not greet."""
        if self.tls_first:
            return f"the broker at {self._at} gives no answer"
        return f"the broker at {self._at} does not greet: if it waits for TLS first, set MESH_NATS_TLS_FIRST=1"

    def _check_one_login(self) -> None:
        kinds = [str(file) for name, file in self._named.items() if name in ("nats_creds", "nats_nkey")]
        if self._user is not None or "nats_password_file" in self._named:
            kinds.append(f"{self._user_variable}={self._user or ''}")
        if file := self._named.get("nats_token_file"):
            kinds.append(str(file))
        if self.url.login.user is not None or self.url.login.token is not None:
            kinds.append(f"MESH_NATS_URL={self._at}")
        if len(kinds) > 1:
            raise LoginUnusable(f"two logins at one broker: {kinds[0]} and {kinds[1]}: unset one of them")

    def _check_pairs(self) -> None:
        pairs = (
            ("nats_tls_cert", "nats_tls_key", "a certificate", "its key"),
            ("nats_tls_key", "nats_tls_cert", "a key", "its certificate"),
        )
        for there, missing, what, other in pairs:
            if there in self._named and missing not in self._named:
                raise LoginUnusable(f"{self._named[there]}: {what} without {other}: set MESH_{missing.upper()}, too")
        password = self._named.get("nats_password_file")
        if self._user is not None and password is None:
            raise LoginUnusable(
                f"{self._user_variable}={self._user}: a user without a password: set MESH_NATS_PASSWORD_FILE, too"
            )
        if self._user is None and password is not None:
            raise LoginUnusable(f"{password}: a password without a user: set MESH_NATS_USER, too")

    def _note(self, file: NamedFile) -> None:
        # Before it is read: what is written meanwhile is then seen as a change.
        self._seen[file] = file.stamp()

    def _of_home(self) -> Shown:
        """What the home holds, if the one server is its embedded broker, and runs. Nobody else is shown it."""
        path = self._home_login()
        if path is None:
            return Shown()
        self._note(NamedFile("MESH_HOME", path))
        found = embedded.read_login(path)
        return Shown(found.user, found.password) if found is not None else Shown()

    def _home_login(self) -> Path | None:
        if len(self.url.servers) == 1 and embedded.is_of_home(self._home, self.url.servers[0]):
            return embedded.login_path(self._home, self._login)
        return None


def _load(context: ssl.SSLContext, cert: NamedFile, key: NamedFile) -> None:
    if "ENCRYPTED" in key.read():
        raise key.unusable("has a passphrase: it has to be without one")
    try:
        # Without a passphrase, since OpenSSL would ask for one on the terminal, and wait.
        context.load_cert_chain(cert.path, key.path, password="")
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason == "KEY_VALUES_MISMATCH":
            raise key.unusable(f"is not the key of {cert}") from None
        for file, mark in ((cert, "-----BEGIN CERTIFICATE-----"), (key, "PRIVATE KEY-----")):
            if mark not in file.read():
                raise file.unusable(f"holds no {'certificate' if file is cert else 'key'} (PEM)") from None
        raise cert.unusable(f"can't be used with {key}: {_words(reason or str(error))}") from None
    except (OSError, ValueError) as error:
        raise cert.unusable(str(error)) from None


def _words(reason: str) -> str:
    """`TLSV1_ALERT_UNKNOWN_CA` as people read it."""
    words = reason.lower().replace("_", " ")
    return words.partition(" alert ")[2] or words


def _why(file: NamedFile) -> str:
    """What is known of why a JWT was refused."""
    try:
        expires_at = read_creds(file).jwt.expires_at
    except LoginUnusable:
        return ""
    if expires_at is None or wall_clock() < expires_at:
        return ""
    return f": its JWT expired on {expires_at:%Y-%m-%d at %H:%M:%S} UTC"


def _whose(file: NamedFile) -> str:
    try:
        return f": its public key is {public_key_of(read_seed(file), file)}"
    except LoginUnusable:
        return ""
