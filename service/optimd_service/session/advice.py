"""Advice on which optimizer to take, for whoever asks before there is a session."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from optimd_service.optim.advice.advise import advise
from optimd_service.optim.advice.task import Task
from optimd_service.session.description import invalid_field

__all__ = ["Task", "advice"]


def advice(fields: dict[str, Any]) -> dict[str, Any]:
    """What is recommended for a task, as `POST /v1/advice` gives it.

    Raises: InvalidField naming the first field of the task that is wrong.
    """
    try:
        task = Task.model_validate(fields)
    except ValidationError as error:
        raise invalid_field(error) from None
    return asdict(advise(task))
