"""Opening the socket of a connection: to a port, with TLS on top, or to a Unix socket."""

from __future__ import annotations

import socket
from ssl import SSLContext
from urllib.parse import urlsplit

from optimd._settings import Settings

_PORTS = {"http": 80, "https": 443}
_UNIX_BUFFER_BYTES = 2**20
"""Asked of the kernel, whose own 208 KiB cost a Unix socket half its speed. TCP's grow, and better if left alone."""
_SHARED_BUFFER_BYTES = 2**18
_UNIX_FAMILY = getattr(socket, "AF_UNIX", None)


def opened(settings: Settings, tls: SSLContext | None) -> socket.socket:
    """A connected socket, patient for the settings' base timeout. Raises: OSError."""
    path = settings.socket_path
    return _to_port(settings, tls) if path is None else _to_unix_socket(path, settings.timeout_s)


def _to_port(settings: Settings, tls: SSLContext | None) -> socket.socket:
    parts = urlsplit(settings.url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    connection = socket.create_connection((host, port), settings.timeout_s)
    # A body's last segment must not wait for the acknowledgement of the one before.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection if tls is None else tls.wrap_socket(connection, server_hostname=host)


def share(connection: socket.socket) -> bool:
    """Give a TCP connection inside one machine the buffers that suit two that carry one body; whether it is one."""
    local = connection.family != _UNIX_FAMILY and connection.getpeername()[0] == connection.getsockname()[0]
    if local:
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, buffer, _SHARED_BUFFER_BYTES)
    return local


def _to_unix_socket(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, buffer, _UNIX_BUFFER_BYTES)
        connection.settimeout(timeout_s)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
