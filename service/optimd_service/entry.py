"""What the command `optimd-server` starts: the server, or a word on what is not installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; without the extra `server` there is nothing to run."""
    try:
        from optimd_service.cli import app  # noqa: PLC0415  it may fail, and is to fail here
    except ModuleNotFoundError as error:
        sys.exit(f"optimd-server needs {error.name}, which is not installed: pip install 'optimd[server]'")
    app()
