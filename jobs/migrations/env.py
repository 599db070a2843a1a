"""How Alembic runs the migrations: on the connection that `jobs.database` gives it."""

from alembic import context

from jobs.schema import META

context.configure(connection=context.config.attributes["connection"], target_metadata=META)
with context.begin_transaction():
    context.run_migrations()
