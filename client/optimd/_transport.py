"""Which transport a blocking client talks over."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from optimd._drive import Transport
from optimd._http1 import TensorTransport
from optimd._httpx import HttpxTransport
from optimd._settings import Settings


def transport_for(settings: Settings, transport: httpx.BaseTransport | None) -> Transport:
    """The transport made for tensors, unless the caller brings one or a proxy stands between."""
    if transport is not None or (settings.socket_path is None and _is_proxied(settings.url)):
        return HttpxTransport(settings, transport)
    return TensorTransport(settings)


def _is_proxied(url: str) -> bool:
    parts = urlsplit(url)
    proxies = getproxies()
    return (parts.scheme in proxies or "all" in proxies) and not proxy_bypass(parts.hostname or "")
