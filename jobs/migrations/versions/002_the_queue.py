"""The queue: requests, attempts, events, leases, access, webhooks."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "002"
down_revision = "001"


def _of_the_queue() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("request", sa.Integer),
        sa.Column("text", sa.Text, nullable=False, server_default=""),
        sa.Column("base_dir", sa.Text, nullable=False, server_default=""),
        sa.Column("user", sa.Text, nullable=False, server_default=""),
        sa.Column("queue", sa.Text, nullable=False, server_default="default"),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("ask", sa.Text, nullable=False, server_default="{}"),
        sa.Column("limits", sa.Text, nullable=False, server_default="{}"),
        sa.Column("after", sa.Text, nullable=False, server_default="[]"),
        sa.Column("origin", sa.Text),
        sa.Column("wish", sa.Text),
        sa.Column("num_lost", sa.Integer, nullable=False, server_default="0"),
        sa.Column("num_passed", sa.Integer, nullable=False, server_default="0"),
        sa.Column("not_before_unix_s", sa.Float),
        sa.Column("unseen_since_unix_s", sa.Float),
    )


def upgrade() -> None:
    """Add what jobs of the queue have, and the tables beside them."""
    for column in _of_the_queue():
        op.add_column("jobs", column)
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_index("ix_jobs_request", "jobs", ["request"])
    op.execute("UPDATE jobs SET state = 'STARTING' WHERE state = 'PENDING'")
    op.create_table(
        "requests",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("at_unix_s", sa.Float, nullable=False),
        sa.UniqueConstraint("user", "key", name="one_job_per_key"),
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("submission_id", sa.Text, nullable=False, unique=True),
        sa.Column("session", sa.Text),
        sa.Column("node", sa.Text),
        sa.Column("cause", sa.Text),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column("started_unix_s", sa.Float, nullable=False),
        sa.Column("ended_unix_s", sa.Float),
        sa.Column("seconds", sa.Float, nullable=False, server_default="0"),
        sa.Column("cpus", sa.Float, nullable=False, server_default="0"),
        sa.Column("gpus", sa.Float, nullable=False, server_default="0"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer),
        sa.Column("at_unix_s", sa.Float, nullable=False),
        sa.Column("old", sa.Text, nullable=False),
        sa.Column("new", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by_whom", sa.Text, nullable=False),
    )
    op.create_index("ix_events_job_id", "events", ["job_id"])
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("beat", sa.Integer, nullable=False),
    )
    _access_and_webhooks()


def _access_and_webhooks() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False, unique=True),
        sa.Column("created_unix_s", sa.Float, nullable=False),
        sa.Column("expires_unix_s", sa.Float),
        sa.Column("revoked_unix_s", sa.Float),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at_unix_s", sa.Float, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False, server_default=""),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret_file", sa.Text, nullable=False),
        sa.Column("states", sa.Text, nullable=False),
        sa.Column("by_whom", sa.Text, nullable=False),
        sa.Column("last_event", sa.Integer, nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("webhook_id", sa.Integer, primary_key=True),
        sa.Column("event_id", sa.Integer, primary_key=True),
        sa.Column("num_tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_unix_s", sa.Float),
        sa.Column("delivered_unix_s", sa.Float),
        sa.Column("last_error", sa.Text, nullable=False, server_default=""),
    )
