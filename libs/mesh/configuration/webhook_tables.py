"""What the operator says of webhooks in mesh.toml: `[webhooks.<name>]`.

Secrets are never in the file: it names the variables that hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.errors import InvalidPayload
from contracts.fields import Tenant
from contracts.messages.notifications import event_types, secret_key
from contracts.subjects import LANE_NAME_PATTERN
from mesh.configuration.addresses import is_host, is_ip_address, is_public
from mesh.configuration.toml_tables import convert, named_tables
from mesh.configuration.tool_tables import Variable, variable_of
from mesh.errors import SettingsError

WEBHOOKS_MAX = 16
"""Each reads all milestones, and holds deliveries of its own."""
SECRETS_MAX = 4
"""Secrets of one webhook while one takes another's place."""
NAMES_MAX = 64
TENANTS_MAX = 1_000

WebhookName = Annotated[str, exactly(LANE_NAME_PATTERN, 48)]


class WebhookConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint that is told of events."""

    url: Annotated[str, Meta(max_length=2048)]
    """Where notifications are posted. `https`; `http` too with `allow_private`."""
    secret_env: Variable
    """Name of the variable that holds the secret, `whsec_<base64>`, or several of them, separated by spaces."""
    on: Annotated[list[str], Meta(min_length=1, max_length=NAMES_MAX)]
    """Of what: names of groups (`approval`, `question`, `ended`, `dead_letter`) and types of events."""
    tenants: Annotated[list[Tenant], Meta(min_length=1, max_length=TENANTS_MAX)] | None = None
    """Whose tasks; absent: everybody's."""
    allow_private: bool = False
    """Whether the host may have private, loopback or link-local addresses: an intranet."""
    timeout_seconds: Annotated[float, Meta(gt=0, le=60)] = 10.0
    """How long one try may take in all, looking up the name included."""

    @property
    def types(self) -> frozenset[str]:
        """The event types that it is told of."""
        return event_types(self.on)


def parse_webhooks(tables: Mapping[str, Any], source: str) -> dict[str, WebhookConfiguration]:
    """Read `[webhooks.…]`. Raises `SettingsError`: one line, with the source and the key at fault."""
    webhooks: dict[str, WebhookConfiguration] = {}
    for name, table in named_tables(tables, "webhooks", WebhookName, source).items():
        key = f"webhooks.{name}"
        webhook = convert(table, WebhookConfiguration, key, source)
        try:
            event_types(webhook.on)
        except ValueError as error:
            raise SettingsError(f"{source}: {key}.on: {error}") from None
        _check_url(webhook, f"{source}: {key}.url")
        webhooks[name] = webhook
    if len(webhooks) > WEBHOOKS_MAX:
        raise SettingsError(f"{source}: webhooks: more than {WEBHOOKS_MAX}")
    return webhooks


def signing_keys(
    webhooks: Mapping[str, WebhookConfiguration], environment: Mapping[str, str], source: str
) -> dict[str, tuple[bytes, ...]]:
    """The keys that each webhook is signed with. Raises `SettingsError`, which never shows one."""
    keys: dict[str, tuple[bytes, ...]] = {}
    for name, webhook in webhooks.items():
        key = f"{source}: webhooks.{name}.secret_env"
        secrets = variable_of(environment, webhook.secret_env, key).split()
        try:
            keys[name] = tuple(secret_key(secret) for secret in secrets)
        except InvalidPayload as error:
            raise SettingsError(f"{key}: the variable {webhook.secret_env}: {error}") from None
        if len(secrets) > SECRETS_MAX:
            raise SettingsError(f"{key}: the variable {webhook.secret_env} holds more than {SECRETS_MAX} secrets")
    return keys


def _check_url(webhook: WebhookConfiguration, key: str) -> None:
    url = webhook.url
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        usable = parts.scheme in ("http", "https") and is_host(host) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise SettingsError(f"{key}: must be https://<host>[:<port>][/<path>]")
    # What is in a URL may be a secret: of these no more is shown than the host.
    if parts.username is not None or parts.fragment:
        raise SettingsError(f"{key}: takes no user and no fragment")
    if webhook.allow_private:
        return
    if parts.scheme != "https":
        raise SettingsError(f"{key}: must be https; http is for an intranet, with allow_private = true")
    if is_ip_address(host) and not is_public(host):
        raise SettingsError(f"{key}: {host} is not a public address; allow_private = true allows it")
