"""Every setting: a field here, `OPTIMD_<NAME>` in the environment, and where it makes sense an option of `run`."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

# What a container may use, as Linux tells it of control groups of version 2 and of version 1; "max" for no limit.
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def _most_of_memory() -> int:
    """Four fifths of the memory that the machine has, or that the container may use, in bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = [path.read_text().strip() for path in CONTAINER_LIMITS if path.exists()]
    return min([machine, *(int(limit) for limit in told if limit.isdigit())]) * 4 // 5


class Settings(BaseSettings):
    """The server's settings; the defaults need nothing installed or configured."""

    model_config = SettingsConfigDict(env_prefix="OPTIMD_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    uds: Path | None = Field(None, description="Unix socket to listen on in place of host and port.")
    data: Path = Field(Path("optimd-data"), description="Folder for the database and whatever else is kept.")
    database_url: str | None = Field(
        None, description="Where the history is kept, postgresql://… or sqlite:///…; SQLite in `data` by default."
    )
    redis_url: str | None = Field(
        None, pattern=r"^(rediss?|unix)://", description="Redis that holds sessions of the backend `redis`."
    )
    redis_require_durable: bool = Field(
        default=False, description="Take no sessions into a Redis that may lose what it has acknowledged."
    )
    memory_limit_bytes: int = Field(
        default_factory=_most_of_memory, ge=0, description="What all sessions may hold; default 4/5 of the memory."
    )
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="Sessions that may compute at once."
    )
    idle_timeout_s: float = Field(60, gt=0, description="Silence in the middle of a body after which it is given up.")
    log_level: str = Field("info", description="critical, error, warning, info, debug or trace.")
