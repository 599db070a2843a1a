"""A job's process is known by its birth, which setting the machine's clock does not change."""

import sqlalchemy as sa
from alembic import op

revision = "003"
down_revision = "002"


def upgrade() -> None:
    """Forget when owners started; one that lives through the upgrade counts as gone."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("owner_started_unix_s")
        jobs.add_column(sa.Column("owner_birth", sa.Text))
