"""What happened in every session: recorded behind the hot path, and read back."""

from optimd_service.errors import HistoryUnavailable
from optimd_service.history.engine import DatabaseUnusable
from optimd_service.history.history import History
from optimd_service.history.migrations import is_current, upgrade
from optimd_service.history.recorder import HistoryHealth

__all__ = ["DatabaseUnusable", "History", "HistoryHealth", "HistoryUnavailable", "is_current", "upgrade"]
