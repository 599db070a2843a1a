"""The job store on each server that we promise: `from stores import engine`, or `home`, `store`."""

import os
import secrets
from contextlib import ExitStack, contextmanager

import pytest
import sqlalchemy as sa

from cluster.home import Home
from jobs.schema import META
from jobs.store import Store

POSTGRES_URL = os.environ.get(
    "GPT2CLS_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
)
"""A server on which tests may make databases, and drop those that they made."""
SERVERS = ("sqlite", "postgresql")
_URL, _MIGRATED_URL = pytest.StashKey(), pytest.StashKey()


@pytest.fixture(params=SERVERS)
def engine(request, tmp_path):
    """The tables without rows, of the test alone."""
    is_file = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/store.db" if is_file else _url_of_session(request.config)
    with store_at(url) as made:
        if not is_file:
            _empty(made)
        yield made


@pytest.fixture(params=SERVERS)
def home(request, tmp_path):
    """A state folder whose job store nobody has opened yet."""
    if request.param == "sqlite":
        yield Home(tmp_path / "home")
    else:
        with fresh_postgres_url() as url:
            yield Home(tmp_path / "home", url.render_as_string(hide_password=False))


@pytest.fixture(params=SERVERS)
def store(request, tmp_path):
    """The job store as commands open it, without jobs."""
    is_file = request.param == "sqlite"
    url = None if is_file else _url_of_session(request.config, _MIGRATED_URL)
    made = Store(Home(tmp_path / "home", url and url.render_as_string(hide_password=False)))
    if not is_file:
        _empty(made.engine())
    yield made
    made.engine().dispose()


def _empty(engine):
    names = ", ".join(f'"{name}"' for name in META.tables)
    with engine.begin() as db:
        db.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")


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


def _url_of_session(config, key=_URL):
    # One for all tests, for making a database takes longer than most of them.
    if key not in config.stash:
        stack = ExitStack()
        config.stash[key] = stack.enter_context(fresh_postgres_url())
        config.add_cleanup(stack.close)
    return config.stash[key]


@contextmanager
def fresh_postgres_url():
    """The address of a database that is empty, and gone afterwards; skips without a server."""
    server = sa.create_engine(
        POSTGRES_URL, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 5}
    )
    name = f"gpt2cls_test_{secrets.token_hex(6)}"
    try:
        _run(server, f"CREATE DATABASE {name}")
    except sa.exc.OperationalError as error:
        pytest.skip(f"PostgreSQL does not answer: {str(error.orig).splitlines()[0]}")
    try:
        _run(server, f"ALTER DATABASE {name} SET synchronous_commit = off")
        yield server.url.set(database=name)
    finally:
        _run(server, f"DROP DATABASE {name} WITH (FORCE)")
        server.dispose()


def _run(server, statement):
    with server.connect() as db:
        db.exec_driver_sql(statement)
