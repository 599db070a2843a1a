"""The job store's tables on each server that we promise: `from stores import engine`."""

import os
import secrets
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from jobs.schema import META

POSTGRES_URL = os.environ.get(
    "GPT2CLS_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
)
"""A server on which tests may make databases, and drop those that they made."""


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request, tmp_path):
    """A store without rows, of the test alone."""
    if request.param == "sqlite":
        with store_at(f"sqlite:///{tmp_path}/store.db") as made:
            yield made
    else:
        with fresh_postgres_url() as url, store_at(url) as made:
            yield made


@contextmanager
def store_at(url):
    """An engine with the tables made."""
    engine = making_engine(url)
    META.create_all(engine)
    try:
        yield engine
    finally:
        engine.dispose()


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


@contextmanager
def fresh_postgres_url():
    """The address of a database that is empty, and gone afterwards; skips without a server."""
    server = sa.create_engine(
        POSTGRES_URL, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3}
    )
    name = f"gpt2cls_test_{secrets.token_hex(6)}"
    try:
        _run(server, f"CREATE DATABASE {name}")
    except sa.exc.OperationalError as error:
        pytest.skip(f"PostgreSQL does not answer: {str(error.orig).splitlines()[0]}")
    try:
        yield server.url.set(database=name)
    finally:
        _run(server, f"DROP DATABASE {name} WITH (FORCE)")
        server.dispose()


def _run(server, statement):
    with server.connect() as db:
        db.exec_driver_sql(statement)
