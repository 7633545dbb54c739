"""An event that is written again stays one: its session, step, kind and moment tell it from every other.

Revision ID: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DELETE FROM events WHERE id NOT IN (SELECT min(id) FROM events GROUP BY session_id, step, kind, at)")
    op.create_index("ix_events_session_id_step_kind_at", "events", ["session_id", "step", "kind", "at"], unique=True)


def downgrade() -> None:
    op.drop_index("ix_events_session_id_step_kind_at", "events")
