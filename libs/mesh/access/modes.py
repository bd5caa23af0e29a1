"""How callers of a service are told apart, by where it listens. Pure."""

from __future__ import annotations

from mesh.configuration.access_tables import AuthConfiguration, Mode
from mesh.configuration.addresses import is_ip_address, is_loopback
from mesh.configuration.settings import Address, Settings
from mesh.errors import SettingsError


def mode_of(auth: AuthConfiguration, address: Address, variable: str, source: str) -> Mode:
    """The mode of a service that listens at an address, which `variable` names.

    Raises `SettingsError` if anybody could come in from elsewhere.
    """
    at_home = is_loopback(address.host)
    if auth.mode == "open" and not at_home:
        raise SettingsError(
            f'{source}: auth.mode: "open" lets anybody in, and {variable}={address} is no loopback address: set'
            ' "keys" or "jwt", or listen on 127.0.0.1'
        )
    return auth.mode or ("open" if at_home else "keys")


def check_mode(settings: Settings, address: Address, variable: str) -> None:
    """Refuse to listen where anybody could come in from elsewhere. Raises `SettingsError`.

    A name may be that of any address: of those it is seen once the socket is there.
    """
    if is_ip_address(address.host):
        mode_of(settings.configuration.auth, address, variable, settings.configuration.source)
