"""What the next loss is to be multiplied by, with every step.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("steps", sa.Column("loss_scale", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("steps", "loss_scale")
