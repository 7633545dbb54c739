"""The tables of the history database, as the newest migration leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Double, ForeignKey, Index, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from optimd_service.types import Outcome


class UtcDateTime(TypeDecorator[datetime]):
    """An aware moment, given back in UTC also by databases that keep no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the base class's signature
        if value is not None and value.tzinfo is None:
            raise ValueError("history keeps aware times only")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the base class's signature
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a plain class attribute
        int: BigInteger(),
        float: Double(),
        datetime: UtcDateTime(),
        Mapping[str, Any]: JSON(none_as_null=True),
    }


class SessionRecord(Base):
    """A session, live or past, and the server that holds its weights."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    server_id: Mapped[str] = mapped_column(String(255))
    status: Mapped[Literal["live", "lost"]] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(200))
    optimizer: Mapped[str] = mapped_column(String(64))
    spec: Mapped[Mapping[str, Any]]
    created_at: Mapped[datetime]

    __table_args__ = (Index(None, "status", "id"),)


class StepColumns:
    """A committed step: its receipt, and what the push said of itself."""

    base_step: Mapped[int]
    outcome: Mapped[Outcome] = mapped_column(String(32))
    lr: Mapped[float]
    loss: Mapped[float | None]
    grad_norm: Mapped[float | None]
    clip_scale: Mapped[float]
    update_norm: Mapped[float | None]
    param_norm: Mapped[float | None]
    durable_step: Mapped[int]
    loss_scale: Mapped[float | None]
    num_examples: Mapped[int | None]
    worker: Mapped[str | None] = mapped_column(String(200))
    hyperparameters: Mapped[Mapping[str, Any] | None]
    committed_at: Mapped[datetime]


class StepRecord(StepColumns, Base):
    """A step of where its session stands now."""

    __tablename__ = "steps"

    session_id: Mapped[str] = mapped_column(ForeignKey(SessionRecord.id, ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class SupersededStepRecord(StepColumns, Base):
    """A step that its session no longer stands on: it was rolled back, or did not outlive a crash."""

    __tablename__ = "superseded_steps"

    # SQLite numbers rows by itself only where the primary key is called INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey(SessionRecord.id, ondelete="CASCADE"))
    step: Mapped[int]

    # The moment tells steps of one number apart, and lets one that is moved again stay one.
    __table_args__ = (Index(None, "session_id", "step", "committed_at", unique=True),)


class EventRecord(Base):
    """Something that happened to a session between steps."""

    __tablename__ = "events"

    # SQLite numbers rows by itself only where the primary key is called INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey(SessionRecord.id, ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(64))
    step: Mapped[int]
    detail: Mapped[Mapping[str, Any]]
    at: Mapped[datetime]

    __table_args__ = (
        Index(None, "session_id", "id"),
        Index(None, "session_id", "step", "kind", "at", unique=True),  # so that one written again stays one
    )
