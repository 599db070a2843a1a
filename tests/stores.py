"""The job store of a test on each server that we promise: `from stores import engine`."""

A test file takes the fixture with `import stores` and `engine = stores.engine`.
"""

import os
import secrets
from contextlib import ExitStack, contextmanager

import pytest
import sqlalchemy as sa

from jobs.schema import META

POSTGRES_URL = os.environ.get(
    "GPT2CLS_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
)
"""A server on which tests may make databases, and drop those that they made."""
_URL, _FAULT = pytest.StashKey(), pytest.StashKey()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request, tmp_path):
    """A store without rows, of the test alone; skips a server that does not answer."""
    is_file = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/store.db" if is_file else _url_of_session(request.config)
    made = making_engine(url)
    META.create_all(made)
    if not is_file:
        names = ", ".join(f'"{name}"' for name in META.tables)
        _run(
            made.execution_options(isolation_level="AUTOCOMMIT"),
            f"TRUNCATE {names} RESTART IDENTITY",
        )
    yield made
    made.dispose()


def making_engine(url):
    """An engine that opens connections and transactions as the job store's own does."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _wait_and_log_ahead)
        sa.event.listen(engine, "begin", _begin)
    return engine


def _wait_and_log_ahead(connection, _record):
    connection.isolation_level = None  # transactions are begun by _begin
    for pragma in ("busy_timeout=20000", "journal_mode=WAL", "synchronous=OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(db):
    is_write = db.get_execution_options().get("writes", False)
    db.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def _url_of_session(config):
    # One for all tests, for making a database takes longer than most of them.
    if _URL not in config.stash and _FAULT not in config.stash:
        stack = ExitStack()
        config.add_cleanup(stack.close)
        try:
            config.stash[_URL] = stack.enter_context(fresh_postgres_url())
        except sa.exc.OperationalError as error:
            config.stash[_FAULT] = str(error.orig).splitlines()[0]
    if _FAULT in config.stash:
        pytest.skip(f"PostgreSQL does not answer: {config.stash[_FAULT]}")
    return config.stash[_URL]


@contextmanager
def fresh_postgres_url():
    """The address of a database that is empty at first, and gone afterwards."""
    server = sa.create_engine(
        POSTGRES_URL, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 5}
    )
    name = f"gpt2cls_test_{secrets.token_hex(6)}"
    _run(server, f"CREATE DATABASE {name}")
    try:
        _run(server, f"ALTER DATABASE {name} SET synchronous_commit = off")
        yield server.url.set(database=name)
    finally:
        _run(server, f"DROP DATABASE {name} WITH (FORCE)")
        server.dispose()


def _run(server, statement):
    with server.connect() as db:
        db.exec_driver_sql(statement)
