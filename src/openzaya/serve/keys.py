"""Who asks: keys by their hashes, compared in constant time, never logged."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from openzaya.serve.config import Key, ServeConfig
from openzaya.serve.errors import ApiError

ENVIRONMENT_KEY = "OPENZAYA_API_KEY"
"""The environment variable whose value is a key without limits of its own."""


def hashed(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keyring:
    """The keys that are let in; without any, everyone is."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __repr__(self) -> str:
        return f"Keyring({', '.join(key.name for key in self._keys)})"

    def named(self, name: str) -> Key | None:
        """The key of this name, where it still is one."""
        return next((key for key in self._keys if key.name == name), None)

    def holder(self, authorization: str | None) -> Key | None:
        """Whose key an `Authorization` header carries; None where no key is asked for. Raises ApiError (401)."""
        if not self._keys:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        presented = hashed(given.strip()) if scheme.lower() == "bearer" else ""
        found = None
        for key in self._keys:  # every one, so that the time does not tell which
            if hmac.compare_digest(key.sha256, presented):
                found = key
        if found is None:
            said = "the API key is not known here" if presented else "no API key was given"
            raise ApiError(
                401,
                f"{said}; send it as: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return found


def keyring(config: ServeConfig, environment_key: str | None) -> Keyring:
    """The keys of the settings and the environment; raises ValueError for a public address without any."""
    keys = list(config.keys)
    if environment_key:
        keys.append(Key(name=ENVIRONMENT_KEY, sha256=hashed(environment_key)))
    if not keys and not is_loopback(config.host):
        raise ValueError(
            f"host is {config.host!r}, which others can reach, and there is no key: anyone could spend this machine; "
            f"set {ENVIRONMENT_KEY} or give keys in the configuration file, or bind to 127.0.0.1"
        )
    return Keyring(keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
