"""The command `optimd-server`."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from pydantic import ValidationError

from optimd_service import __version__
from optimd_service.api.direct import DirectProtocol
from optimd_service.api.front import Front
from optimd_service.config import Settings
from optimd_service.datadir import DataDirectory, DirectoryInUse
from optimd_service.history import DatabaseUnusable, upgrade
from optimd_service.main import SchemaBehind, create_app, prepare_database
from optimd_service.session.catalogue import page

app = typer.Typer(no_args_is_help=True, help="The optimd server: a remote optimizer.", add_completion=False)

# For how long the thread that writes the history may keep a step waiting; Python's own 5 ms are ten small steps.
SWITCH_S = 0.0005
DRAIN_S = 20  # with the history's ten, what process supervisors grant before they kill


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"optimd-server {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """The optimd server: a remote optimizer. Every option is also a setting OPTIMD_<NAME> in the environment."""


@app.command()
def run(
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one (default: 8000).")] = None,
    uds: Annotated[Path | None, typer.Option(help="Unix socket in place of host and port.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for what is kept (default: ./optimd-data).")] = None,
) -> None:
    """Serve until interrupted."""
    settings = _settings(host=host, port=port, uds=uds, data=data)
    directory = DataDirectory(settings.data)
    try:
        with directory:
            if settings.uds is not None:
                _check_socket(settings.uds)
            url = prepare_database(settings, directory)
            _serve(settings, Front(create_app(settings, database_url=url, server_id=directory.server_id)))
    except (DirectoryInUse, DatabaseUnusable, SchemaBehind) as error:
        raise _failure(str(error)) from None


@app.command()
def migrate(
    data: Annotated[Path | None, typer.Option(help="Folder of the embedded database.")] = None,
) -> None:
    """Create the history database's schema, or bring it to this release."""
    settings = _settings(data=data)
    url = settings.database_url or DataDirectory(settings.data).database_url
    try:
        upgrade(url)
    except DatabaseUnusable as error:
        raise _failure(str(error)) from None
    typer.echo("The history database is up to date.")


@app.command()
def optimizers() -> None:
    """Print the catalogue of optimizers as a page of Markdown."""
    typer.echo(page(), nl=False)


def _settings(**options: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise _failure(f"{first['loc'][0]}: {first['msg']}") from None


class _Server(uvicorn.Server):
    """Waits at its end for requests that do something, and not for those that wait themselves."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        application: Front = self.config.app  # type: ignore[assignment]  # set so in _serve
        application.stop_waiting()
        await super().shutdown(sockets)


def _check_socket(path: Path) -> None:
    """Refuse a path that no socket can be made at. One that nobody answers on is left of a server that died."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            refused = path.exists() and not path.is_socket()
            reason = f"{path} is there and is no socket" if refused else f"there is no folder {path.parent}"
            if not refused and path.parent.is_dir():
                return
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            reason = f"another server listens on {path}"
    raise _failure(f"--uds: {reason}; give a path of at most 107 bytes in a folder of yours.")


def _serve(settings: Settings, application: Front) -> None:
    place: dict[str, Any] = (
        {"uds": str(settings.uds)} if settings.uds else {"host": settings.host, "port": settings.port}
    )
    # uvicorn raises the signal again when it has drained: to end as asked is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        application,
        **place,
        loop="uvloop",
        http=DirectProtocol,
        log_level=settings.log_level,
        access_log=False,  # a line for each step would cost more than a small step
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is
        timeout_graceful_shutdown=DRAIN_S,
    )
    sys.setswitchinterval(SWITCH_S)
    server = _Server(config)
    try:
        server.run()
    finally:
        if settings.uds:
            settings.uds.unlink(missing_ok=True)
    if not server.started:
        raise typer.Exit(1)  # uvicorn has said why


def _failure(reason: str) -> typer.Exit:
    typer.echo(f"optimd-server: {reason}", err=True)
    return typer.Exit(1)
