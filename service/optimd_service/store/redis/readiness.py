"""Whether Redis keeps what it acknowledges, as far as it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis, exceptions

from optimd_service.errors import RedisNotDurable
from optimd_service.store.redis.server import RedisServer

# What a machine that loses power takes with it, by how the append-only file is synced.
_SYNCED_LATE = {
    "everysec": "syncs its append-only file once a second (appendfsync everysec): when its machine fails, the steps of "
    "the last second or two are lost, although they were acknowledged; `appendfsync always` keeps them",
    "no": "leaves the syncing of its append-only file to the kernel (appendfsync no): when its machine fails, half a "
    "minute of acknowledged steps is lost; `appendfsync always` keeps them",
    "unknown": "does not tell how it syncs its append-only file (CONFIG is not allowed here): unless by `appendfsync "
    "always`, acknowledged steps are lost when its machine fails",
}


@dataclass(frozen=True, slots=True)
class RedisReadiness:
    """Looks at how Redis is set up.

    Attributes:
      required: whether one that may lose acknowledged steps is refused.
    """

    server: RedisServer
    required: bool = False

    def warnings(self) -> list[str]:
        """What may be lost, and why; empty for a Redis that keeps what it acknowledges. Raises: RedisUnavailable."""
        with self.server.every_node() as nodes:
            found = [f"Redis {loss}." for node in nodes for loss in _losses(node)]
        return list(dict.fromkeys(found))

    def require(self) -> list[str]:
        """The warnings. Raises: RedisNotDurable, if there is one and none is allowed; RedisUnavailable."""
        found = self.warnings()
        if found and self.required:
            raise RedisNotDurable(
                "Redis may lose steps that were acknowledged, and OPTIMD_REDIS_REQUIRE_DURABLE refuses that: "
                + " ".join(found),
                warnings=found,
            )
        return found


def _losses(node: Redis) -> Iterator[str]:
    info: Mapping[str, Any] = node.info()
    if info["role"] != "master":
        yield "is a replica, and takes no writes"
    if not info["aof_enabled"]:
        saves = _setting(node, "save")
        yield (
            "keeps nothing on disk: when it ends, every session is lost; set `appendonly yes` and `appendfsync always`"
            if saves == ""
            else "writes snapshots alone: when it crashes, all steps since the last one are lost, although they were "
            "acknowledged; set `appendonly yes` and `appendfsync always`"
        )
    elif (synced := _setting(node, "appendfsync")) != "always":
        yield _SYNCED_LATE.get(synced, _SYNCED_LATE["unknown"])
    if info["aof_enabled"] and info["aof_last_write_status"] != "ok":
        yield "cannot write its append-only file"
    if info["maxmemory_policy"].startswith("allkeys"):
        yield f"may drop sessions when it is full (maxmemory-policy {info['maxmemory_policy']}); set `noeviction`"


def _setting(node: Redis, name: str) -> str:
    try:
        return node.config_get(name).get(name) or ""
    except exceptions.ResponseError:
        return "unknown"
