"""The wiring: settings in, application out. Nothing imports this but the command."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from optimd_service import __version__
from optimd_service.api.app import build
from optimd_service.api.services import Services
from optimd_service.config import Settings
from optimd_service.datadir import DataDirectory
from optimd_service.history import History, is_current, upgrade
from optimd_service.session.arithmetic import Arithmetic
from optimd_service.session.sessions import Sessions
from optimd_service.store.device import DeviceStore
from optimd_service.store.durable_store import DurableStore
from optimd_service.store.redis.server import RedisServer
from optimd_service.store.redis.store import RedisStore


class SchemaBehind(RuntimeError):
    """The history database has not been migrated to this release."""


def prepare_database(settings: Settings, directory: DataDirectory) -> str:
    """The history's URL, its schema current: the embedded database is upgraded here, one that was configured is not.

    Raises: SchemaBehind, DatabaseUnusable.
    """
    if settings.database_url is None:
        upgrade(directory.database_url)
        return directory.database_url
    if not is_current(settings.database_url):
        raise SchemaBehind("The history database's schema is not this release's; run `optimd-server migrate` first.")
    return settings.database_url


def create_app(settings: Settings, *, database_url: str, server_id: str) -> FastAPI:
    """The application; its history is opened at start-up and written out at shutdown."""
    history = History(database_url, server_id=server_id)
    arithmetic = Arithmetic(settings.threads)
    memory = DeviceStore(settings.memory_limit_bytes)
    store = DurableStore(memory, settings.data.expanduser().resolve() / "sessions")
    sessions = Sessions(store, arithmetic, history, _redis(settings, memory))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await sessions.recover()
        await history.start(sessions.kept)
        await sessions.warn_of_redis()
        # What is here now stays for good; without it a collection would stop every step for tens of milliseconds.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            await sessions.close()
            arithmetic.close()
            await history.stop()

    services = Services(sessions, history, settings.idle_timeout_s)
    return build(services, version=__version__, lifespan=lifespan)


def _redis(settings: Settings, memory: DeviceStore) -> RedisStore | None:
    if settings.redis_url is None:
        return None
    return RedisStore(RedisServer(settings.redis_url), memory, require_durable=settings.redis_require_durable)
