"""Jobs and promotions: the tables that the first version made without migrations."""

import sqlalchemy as sa
from alembic import op

revision = "001"
down_revision = None


def upgrade() -> None:
    """Make the tables where they are not there yet."""
    if sa.inspect(op.get_bind()).has_table("jobs"):
        return
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_unix_s", sa.Float, nullable=False),
        sa.Column("started_unix_s", sa.Float),
        sa.Column("ended_unix_s", sa.Float),
        sa.Column("owner_pid", sa.Integer),
        sa.Column("owner_started_unix_s", sa.Float),
        sa.Column("owner_host", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("num_attempts", sa.Integer, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
    )
    op.create_index("ix_jobs_created_unix_s", "jobs", ["created_unix_s"])
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("registry", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("old_version", sa.Integer),
        sa.Column("new_version", sa.Integer),
        sa.Column("by_whom", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at_unix_s", sa.Float, nullable=False),
    )
    op.create_index("ix_promotions_model", "promotions", ["model"])
