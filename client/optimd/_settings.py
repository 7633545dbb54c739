"""Where the server is and how patient to be: from arguments, else from the environment."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from optimd.errors import InvalidSetting, NotConnected

DEFAULT_URL = "http://127.0.0.1:8000"
FLOOR_BYTES_PER_S = 10 * 2**20
"""The slowest network a body is planned for: each 10 MiB sent may take one second more."""
_UNIX = "unix:"
_SOCKET_PATH_BYTES = 107
"""What the kernel's address of a Unix socket has room for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client needs to know before it can talk.

    Attributes:
      url: of the server, `http://` or `https://` without a trailing slash, or `unix:` and the absolute path of its
        Unix socket. Environment: `OPTIMD_URL`.
      api_key: sent as `Authorization: Bearer …`; never shown. Environment: `OPTIMD_API_KEY`.
      timeout_s: longest silence borne for a request without a body. Environment: `OPTIMD_TIMEOUT`.
      retries: attempts after the first. Environment: `OPTIMD_RETRIES`.
      connections: over how many of them a large body travels, 1 or 2. Environment: `OPTIMD_CONNECTIONS`.
    """

    url: str
    api_key: str | None = field(repr=False)
    timeout_s: float
    retries: int
    connections: int = 2

    @classmethod
    def resolve(
        cls,
        url: str | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        environ: Mapping[str, str] = os.environ,
        *,
        connections: int | None = None,
    ) -> Settings:
        """Take each setting from its argument, else from the environment, else its default.

        Raises: InvalidSetting, naming the variable, for anything that cannot be used.
        """
        return cls(
            url=_url(url or environ.get("OPTIMD_URL") or DEFAULT_URL),
            api_key=_api_key(api_key or environ.get("OPTIMD_API_KEY") or None),
            timeout_s=_timeout(environ.get("OPTIMD_TIMEOUT") or 30.0 if timeout is None else timeout),
            retries=_retries(environ.get("OPTIMD_RETRIES") or 5 if retries is None else retries),
            connections=_connections(environ.get("OPTIMD_CONNECTIONS") or 2 if connections is None else connections),
        )

    @property
    def socket_path(self) -> str | None:
        """The Unix socket that the server listens on; None when it listens on a port."""
        return self.url.removeprefix(_UNIX) if self.url.startswith(_UNIX) else None

    @property
    def http_url(self) -> str:
        """What requests are addressed to; a server behind a Unix socket is HTTP's localhost."""
        return self.url if self.socket_path is None else "http://localhost"

    def not_connected(self, reason: str) -> NotConnected:
        """The error for a connection that could not be opened."""
        path = self.socket_path
        advice = "" if path is None else f" A server listens there when it is started with `--uds {path}`."
        return NotConnected(f"No connection to {self.url}: {reason}.{advice}")

    def timeout_for(self, body_bytes: int) -> float:
        """Seconds of silence to bear for a request of this size: the base, plus its bytes at the floor rate."""
        return self.timeout_s + body_bytes / FLOOR_BYTES_PER_S

    def headers(self) -> dict[str, str]:
        """What goes with every request."""
        # Compressing weights costs more than it saves above 1 Gb/s, and would break reading them into place.
        headers = {"user-agent": f"optimd/{version('optimd')}", "accept-encoding": "identity"}
        return headers | ({"authorization": f"Bearer {self.api_key}"} if self.api_key else {})


def _url(url: str) -> str:
    if url.startswith(_UNIX):
        return _UNIX + _socket_path(url)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError as error:
        raise InvalidSetting(f"OPTIMD_URL {url!r} is no URL: {error}.") from error
    if not usable or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise InvalidSetting(f"OPTIMD_URL must look like http://host:port or unix:/path, and is {url!r}.")
    return url.rstrip("/")


def _socket_path(url: str) -> str:
    """The absolute path that a `unix:` URL names: whoever changes directory later still means the same server."""
    rest = url.removeprefix(_UNIX)
    path = rest.removeprefix("//")
    if not path.strip("/") or not path.isprintable() or (path != rest and not path.startswith("/")):
        raise InvalidSetting(f"OPTIMD_URL must look like unix:/path or unix:///path, and is {url!r}.")
    path = str(Path(path).absolute())
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise InvalidSetting(f"OPTIMD_URL names a path above the {_SOCKET_PATH_BYTES} bytes of a socket's: {path}.")
    if not hasattr(socket, "AF_UNIX"):
        raise InvalidSetting(f"OPTIMD_URL is {url!r}, and this Python knows no Unix sockets: use http://host:port.")
    return path


def _api_key(api_key: str | None) -> str | None:
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise InvalidSetting("OPTIMD_API_KEY must be printable ASCII; look for a stray newline.")
    return api_key


def _timeout(value: float | str) -> float:
    try:
        seconds = float(value)
    except ValueError as error:
        raise InvalidSetting(f"OPTIMD_TIMEOUT must be a number of seconds, and is {value!r}.") from error
    if not 0 < seconds < math.inf:
        raise InvalidSetting(f"OPTIMD_TIMEOUT must be positive and finite, and is {value!r}.")
    return seconds


def _retries(value: int | str) -> int:
    try:
        retries = int(value)
    except ValueError as error:
        raise InvalidSetting(f"OPTIMD_RETRIES must be a whole number, and is {value!r}.") from error
    if retries < 0:
        raise InvalidSetting(f"OPTIMD_RETRIES cannot be negative, and is {value!r}.")
    return retries


def _connections(value: int | str) -> int:
    if str(value) not in {"1", "2"}:
        raise InvalidSetting(f"OPTIMD_CONNECTIONS must be 1 or 2, and is {value!r}.")
    return int(value)
