"""Step rows into SQLite, hundreds in one call.

Python's driver gives the interpreter up and asks for it back around every row of an executemany, and whoever computes a
step waits with it. One statement with many rows gives it up once, and SQLite works while steps are taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC
from functools import cache
from itertools import chain
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from optimd_service.history.models import StepRecord
from optimd_service.types import StepRow

MOST_ROWS = 1024
_COLUMNS = [
    *("session_id", "step", "base_step", "outcome", "lr", "loss", "grad_norm", "clip_scale", "update_norm"),
    *("param_norm", "durable_step", "loss_scale", "num_examples", "worker", "hyperparameters", "committed_at"),
]


async def insert_new(connection: AsyncConnection, rows: Sequence[StepRow]) -> None:
    """Insert rows, leaving what is there; in a transaction of the caller's."""
    for start in range(0, len(rows), MOST_ROWS):
        values = [_values(row) for row in rows[start : start + MOST_ROWS]]
        # There are as few statements as powers of two, which the driver keeps compiled; the last row, given again,
        # fills one up, and is there already.
        count = 1 << (len(values) - 1).bit_length()
        values += values[-1:] * (count - len(values))
        await connection.exec_driver_sql(_statement(count), tuple(chain.from_iterable(values)))


@cache
def _statement(count: int) -> str:
    row = f"({', '.join('?' * len(_COLUMNS))})"
    rows = ", ".join([row] * count)
    return f"INSERT INTO {StepRecord.__tablename__} ({', '.join(_COLUMNS)}) VALUES {rows} ON CONFLICT DO NOTHING"  # noqa: S608  of names alone


def _values(row: StepRow) -> tuple[Any, ...]:
    """In the order of the columns, as SQLAlchemy's types for SQLite write them."""
    receipt, hyperparameters = row.receipt, row.hyperparameters
    return (
        *receipt[: _COLUMNS.index("num_examples")],  # a receipt has its fields in this order
        row.num_examples,
        row.worker,
        None if hyperparameters is None else json.dumps(hyperparameters),
        row.committed_at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds"),
    )
