"""The database of the job store: SQLite in the state folder, or a server that was named."""

import fcntl
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cluster.errors import ClusterError
from cluster.home import Home
from jobs.masking import mask

NEWEST = "003"
"""The last file of `jobs/migrations/versions`."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_PATIENCE_S = 20.0
_LOCK_NUMBER = 0x67703263  # of PostgreSQL's advisory locks; any number that nobody else takes


def open_database(home: Home) -> sa.Engine:
    """Connect, and bring the tables to this version's.

    Raises:
        ClusterError: the server does not answer, or a newer version has changed the tables.
    """
    if home.database_url is None:
        home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = sa.create_engine(f"sqlite:///{home.jobs_db}")
        sa.event.listen(engine, "connect", _set_pragmas)
        sa.event.listen(engine, "begin", _begin)
    else:
        engine = _server(home.database_url)
    try:
        if _version(engine) != NEWEST:
            with _alone(engine, home):
                migrate(engine)
    except sa.exc.DatabaseError as error:
        engine.dispose()
        cause = mask(str(error.orig).strip().splitlines()[0])
        where = "GPT2CLS_DATABASE" if home.database_url else str(home.jobs_db)
        raise ClusterError(f"the job store {where} cannot be used: {cause}") from error
    return engine


def _server(url: str) -> sa.Engine:
    wish = "postgresql+psycopg://user@host/database"
    try:
        address = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ClusterError(f"GPT2CLS_DATABASE is no address of a database; write {wish}") from error
    if address.get_backend_name() != "postgresql":
        raise ClusterError(f"GPT2CLS_DATABASE: PostgreSQL is taken, no other server; write {wish}")
    try:
        return sa.create_engine(
            address.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_size=10,
            max_overflow=30,
            connect_args={"connect_timeout": 5},
        )
    except ModuleNotFoundError as error:
        raise ClusterError("GPT2CLS_DATABASE: pip install 'gpt2cls[postgres]' first") from error


def migrate(engine: sa.Engine) -> None:
    """Bring the tables to this version's, however old they are."""
    from alembic import command
    from alembic.config import Config

    found = _version(engine)
    if found is not None and found > NEWEST:
        raise ClusterError(
            f"the job store was changed by a newer gpt2cls (version {found} of its tables, "
            f"this one knows {NEWEST}); upgrade gpt2cls"
        )
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with engine.connect().execution_options(writes=True) as db, db.begin():
        config.attributes["connection"] = db
        command.upgrade(config, "head")


def _version(engine: sa.Engine) -> str | None:
    with engine.connect() as db:
        if not sa.inspect(db).has_table("alembic_version"):
            return None
        row = db.execute(sa.text("SELECT version_num FROM alembic_version")).first()
        return str(row[0]) if row else None


@contextmanager
def _alone(engine: sa.Engine, home: Home) -> Iterator[None]:
    """One command at a time changes tables."""
    if home.database_url is None:
        with (home.root / "jobs.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    with engine.connect() as db:
        db.execute(sa.text("SELECT pg_advisory_lock(:n)"), {"n": _LOCK_NUMBER})
        try:
            yield
        finally:
            db.execute(sa.text("SELECT pg_advisory_unlock(:n)"), {"n": _LOCK_NUMBER})


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=20000")
    _log_ahead(cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _log_ahead(cursor: Any) -> None:
    """Switch to a write-ahead log; the switch does not wait for others, so it is repeated."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin(db: sa.Connection) -> None:
    # Python's sqlite3 begins late, and a reader that turns writer is refused at once.
    is_write = db.get_execution_options().get("writes", False)
    db.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
