"""Who may do what: users' tokens, their roles, and the list of what was done.

A token is shown once, when it is made; the store holds only its SHA-256 digest. 256 random bits
need no slow hash: there is nothing to guess.
"""

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from gpt2cls.errors import RequestError
from jobs.faults import shown
from jobs.masking import mask
from jobs.schema import AUDIT, TOKENS

TOKEN_PREFIX = "g2c_"
_USER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_AUDIT_CHARACTERS = 2000


class Role(StrEnum):
    """What a user is trusted with; each role may do all that the one before it may."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    ADMIN = "admin"

    # Without these four, text would be compared: "viewer" is after "admin" in the alphabet.
    def __lt__(self, other: str) -> bool:
        return _rank(self) < _rank(other)

    def __le__(self, other: str) -> bool:
        return _rank(self) <= _rank(other)

    def __gt__(self, other: str) -> bool:
        return _rank(self) > _rank(other)

    def __ge__(self, other: str) -> bool:
        return _rank(self) >= _rank(other)


def _rank(role: str) -> int:
    return [*Role].index(Role(role))


class Act(StrEnum):
    READ = "read"
    SUBMIT = "submit"
    CHANGE = "change"
    """Stop, resume, delete or reorder a job that is there."""
    ADMINISTRATE = "administrate"


_LEAST_ROLE = {
    Act.READ: Role.VIEWER,
    Act.SUBMIT: Role.SUBMITTER,
    Act.CHANGE: Role.SUBMITTER,
    Act.ADMINISTRATE: Role.ADMIN,
}


@dataclass(frozen=True)
class User:
    """Whose token came with a request."""

    name: str
    role: Role


def may(user: User, act: Act | str, owner: str | None = None) -> bool:
    """Whether the user may do this, to a job of `owner` where it is done to a job."""
    act = Act(act)
    if user.role < _LEAST_ROLE[act]:
        return False
    return act is not Act.CHANGE or user.role is Role.ADMIN or owner == user.name


def new_token(
    engine: sa.Engine, *, user: str, role: Role, expires_unix_s: float | None = None
) -> str:
    """A new token of a user; this is the only time that anybody sees it.

    Raises:
        RequestError: the user's name is not one, or the token would be expired already.
    """
    now = time.time()
    if not _USER_NAME.fullmatch(user):
        raise RequestError(
            f"user = {shown(user)}: must be 1 to 63 lower-case letters, digits, dots, dashes and "
            "underscores, starting with a letter or digit"
        )
    if expires_unix_s is not None and not now < expires_unix_s < float("inf"):
        raise RequestError(
            f"expires_unix_s = {expires_unix_s}: must be after now ({now:.0f}), or null for never"
        )
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    row: dict[str, Any] = {"user": user, "role": Role(role).value, "digest": _digest(token)}
    row |= {"created_unix_s": now, "expires_unix_s": expires_unix_s}
    with engine.begin() as db:
        db.execute(TOKENS.insert().values(**row))
    return token


def find_user(engine: sa.Engine, token: str) -> User | None:
    """Whose token this is; None if it is unknown, expired or revoked.

    One query by the digest whatever is wrong with the token, and who does not know the token cannot
    choose its digest: the time that it takes tells nothing.
    """
    unexpired = TOKENS.c.expires_unix_s.is_(None) | (TOKENS.c.expires_unix_s > time.time())
    query = sa.select(TOKENS.c.user, TOKENS.c.role).where(
        TOKENS.c.digest == _digest(token), TOKENS.c.revoked_unix_s.is_(None), unexpired
    )
    with engine.connect() as db:
        row = db.execute(query).one_or_none()
    return User(row.user, Role(row.role)) if row is not None else None


def revoke(engine: sa.Engine, token_id: int) -> bool:
    """End a token for good; False if there is no such token, or it was revoked before."""
    is_it = (TOKENS.c.id == token_id) & TOKENS.c.revoked_unix_s.is_(None)
    with engine.begin() as db:
        done = db.execute(TOKENS.update().where(is_it).values(revoked_unix_s=time.time()))
    return done.rowcount == 1


def tokens(engine: sa.Engine) -> list[dict[str, Any]]:
    """All tokens ever made, oldest first, without what would let anybody use or find them."""
    columns = [column for column in TOKENS.c if column.name != "digest"]
    return _rows(engine, sa.select(*columns).order_by(TOKENS.c.id))


def note(engine: sa.Engine, user: str, action: str, target: str, detail: str = "") -> None:
    """Write down who did what, or who was refused."""
    texts = {"user": user, "action": action, "target": target, "detail": detail}
    row = {name: _storable(text) for name, text in texts.items()}
    with engine.begin() as db:
        db.execute(AUDIT.insert().values(at_unix_s=time.time(), **row))


def audit(engine: sa.Engine, limit: int = 100) -> list[dict[str, Any]]:
    """What was done, newest first."""
    return _rows(engine, sa.select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _storable(text: str) -> str:
    """Text that every database takes: PostgreSQL has no NUL, and no encoding has half a character.

    What somebody tried must not go unwritten because of how it was spelled.
    """
    whole = mask(text).encode("utf-8", "backslashreplace").decode()
    return whole.replace("\0", r"\0")[:_AUDIT_CHARACTERS]


def _rows(engine: sa.Engine, query: sa.Select[Any]) -> list[dict[str, Any]]:
    with engine.connect() as db:
        return [dict(row) for row in db.execute(query).mappings()]
