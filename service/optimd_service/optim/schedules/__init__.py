"""Learning-rate schedules that the server runs: functions of an update's position, pure and exact at any of them."""

from optimd_service.optim.schedules.schedule import SCHEDULES, Schedule, advance, overrides

__all__ = ["SCHEDULES", "Schedule", "advance", "overrides"]
