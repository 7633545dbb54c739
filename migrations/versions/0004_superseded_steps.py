"""Steps that a session no longer stands on are kept apart from those that it does.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "superseded_steps",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("base_step", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("lr", sa.Double(), nullable=False),
        sa.Column("loss", sa.Double()),
        sa.Column("grad_norm", sa.Double()),
        sa.Column("clip_scale", sa.Double(), nullable=False),
        sa.Column("update_norm", sa.Double()),
        sa.Column("param_norm", sa.Double()),
        sa.Column("durable_step", sa.BigInteger(), nullable=False),
        sa.Column("loss_scale", sa.Double()),
        sa.Column("num_examples", sa.BigInteger()),
        sa.Column("worker", sa.String(200)),
        sa.Column("hyperparameters", sa.JSON()),
        sa.Column("committed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_superseded_steps"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_superseded_steps_session_id_sessions", ondelete="CASCADE"
        ),
    )
    op.create_index(
        "ix_superseded_steps_session_id_step_committed_at",
        "superseded_steps",
        ["session_id", "step", "committed_at"],
        unique=True,
    )


def downgrade() -> None:
    op.drop_table("superseded_steps")
