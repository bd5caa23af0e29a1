"""What the operator says of webhooks in mesh.toml: `[webhooks.<name>]`.

Secrets are never in the file: it names the variables or the files that hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.fields import Tenant
from contracts.messages.notifications import event_types
from contracts.subjects import LANE_NAME_PATTERN
from mesh.configuration.addresses import is_host, is_ip_address, is_public
from mesh.configuration.secret_files import SecretPath, check_one
from mesh.configuration.toml_tables import convert, named_tables
from mesh.configuration.tool_tables import Variable
from mesh.errors import SettingsError

WEBHOOKS_MAX = 16
"""Each reads all milestones, and holds deliveries of its own."""
SECRETS_MAX = 4
"""Secrets of one webhook while one takes another's place."""
NAMES_MAX = 64
TENANTS_MAX = 1_000

WebhookName = Annotated[str, exactly(LANE_NAME_PATTERN, 48)]


class WebhookConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint that is told of events by a signed POST (Standard Webhooks). The table's name is yours."""

    url: Annotated[str, Meta(max_length=2048)]
    """Where notifications are posted: `https`, or `http` too with `allow_private`. It holds no user and no fragment."""
    on: Annotated[list[str], Meta(min_length=1, max_length=NAMES_MAX)]
    """The events: groups (`approval`, `question`, `ended`, `dead_letter`), and types such as `task.failed`."""
    secret_env: Variable | None = None
    """Name of the variable that holds the secret, `whsec_<base64>`. While one replaces another: up to 4, by spaces."""
    secret_file: SecretPath | None = None
    """A file that holds the secret, or up to 4 of them. One of the two has to be there."""
    tenants: Annotated[list[Tenant], Meta(min_length=1, max_length=TENANTS_MAX)] | None = None
    """The tenants whose tasks count. Unset: all."""
    allow_private: bool = False
    """Whether the host may have private, loopback or link-local addresses."""
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
        if webhook.secret_env is None and webhook.secret_file is None:
            raise SettingsError(f"{source}: {key}: missing required field `secret_env`, or `secret_file` in its place")
        try:
            event_types(webhook.on)
        except ValueError as error:
            raise SettingsError(f"{source}: {key}.on: {error}") from None
        _check_url(webhook, f"{source}: {key}.url")
        check_one(("secret_env", webhook.secret_env), ("secret_file", webhook.secret_file), f"{source}: {key}")
        webhooks[name] = webhook
    if len(webhooks) > WEBHOOKS_MAX:
        raise SettingsError(f"{source}: webhooks: more than {WEBHOOKS_MAX}")
    return webhooks


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
