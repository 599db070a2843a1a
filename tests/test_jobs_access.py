"""Tokens, roles and the list of what was done, on every database that we take."""

import hashlib
import re
import time

import pytest
import sqlalchemy as sa
from stores import fresh_postgres_url, store_at

from gpt2cls.errors import RequestError
from jobs.access import (
    Act,
    Role,
    User,
    audit,
    find_user,
    may,
    new_token,
    note,
    revoke,
    tokens,
)
from jobs.schema import AUDIT, TOKENS


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request, tmp_path_factory):
    """One for all tests of this file: to make one on the server takes a second."""
    if request.param == "sqlite":
        with store_at(f"sqlite:///{tmp_path_factory.mktemp('access')}/store.db") as made:
            yield made
        return
    hasty = {"options": "-csynchronous_commit=off"}  # nothing here is about power cuts
    with fresh_postgres_url() as url, store_at(url.update_query_dict(hasty)) as made:
        yield made


@pytest.fixture
def engine(database):
    """A database without tokens or acts."""
    for table in (TOKENS, AUDIT):
        execute(database, table.delete())
    return database


def execute(engine, statement):
    with engine.begin() as db:
        db.execute(statement)


def everything_in(engine, table):
    with engine.connect() as db:
        return [dict(row) for row in db.execute(sa.select(table)).mappings()]


@pytest.mark.parametrize("role", [*Role])
def test_a_new_token_is_its_users(engine, role):
    token = new_token(engine, user="anna.b-1_c", role=role)
    assert re.fullmatch(r"g2c_[A-Za-z0-9_-]{43}", token)
    assert find_user(engine, token) == User("anna.b-1_c", role)


def test_tokens_of_one_user_differ_and_all_work(engine):
    made = [new_token(engine, user="anna", role=Role.VIEWER) for _ in range(5)]
    assert len(set(made)) == 5
    assert {find_user(engine, token) for token in made} == {User("anna", Role.VIEWER)}


def test_only_the_digest_of_a_token_is_stored(engine):
    token = new_token(engine, user="anna", role=Role.ADMIN)
    [row] = everything_in(engine, TOKENS)
    assert row["digest"] == hashlib.sha256(token.encode()).hexdigest()
    assert token not in str(row) and token.removeprefix("g2c_") not in str(row)


def test_an_unknown_token_is_nobodys(engine):
    token = new_token(engine, user="anna", role=Role.ADMIN)
    near = token[:-1] + ("A" if token[-1] != "A" else "B")
    digest = hashlib.sha256(token.encode()).hexdigest()
    for wrong in ("", near, token.upper(), token + " ", digest, "%", "' OR 1=1 --", "x" * 100_000):
        assert find_user(engine, wrong) is None


def test_an_expired_token_is_nobodys(engine):
    token = new_token(engine, user="anna", role=Role.ADMIN, expires_unix_s=time.time() + 60)
    assert find_user(engine, token) is not None
    execute(engine, TOKENS.update().values(expires_unix_s=time.time() - 0.01))
    assert find_user(engine, token) is None


def test_a_revoked_token_is_nobodys_and_the_users_other_one_works(engine):
    one, other = (new_token(engine, user="anna", role=Role.SUBMITTER) for _ in range(2))
    token_id = tokens(engine)[0]["id"]
    assert revoke(engine, token_id) is True
    assert find_user(engine, one) is None
    assert find_user(engine, other) == User("anna", Role.SUBMITTER)


def test_a_token_is_revoked_once_and_an_unknown_one_never(engine):
    new_token(engine, user="anna", role=Role.VIEWER)
    [token] = tokens(engine)
    assert [revoke(engine, token["id"]), revoke(engine, token["id"])] == [True, False]
    revoked_unix_s = tokens(engine)[0]["revoked_unix_s"]
    assert revoked_unix_s == pytest.approx(time.time(), abs=60)
    assert revoke(engine, token["id"] + 1) is False


def test_the_list_of_tokens_holds_neither_token_nor_digest(engine):
    made = [new_token(engine, user=name, role=Role.VIEWER) for name in ("anna", "ben")]
    listed = tokens(engine)
    assert [(row["user"], row["role"]) for row in listed] == [
        ("anna", "viewer"),
        ("ben", "viewer"),
    ]
    digests = [row["digest"] for row in everything_in(engine, TOKENS)]
    assert not [secret for secret in (*made, *digests) if secret in str(listed)]


@pytest.mark.parametrize(
    "name", ["", "Anna", "-anna", ".anna", "an na", "anna\n", "ännä", "a" * 64, "a/b", "' --"]
)
def test_what_is_no_user_name_gets_no_token(engine, name):
    with pytest.raises(RequestError, match=r"user = .*: must be 1 to 63 lower-case"):
        new_token(engine, user=name, role=Role.VIEWER)
    assert tokens(engine) == []


@pytest.mark.parametrize("ago_s", [0.0, 10.0, float("-inf"), float("nan")])
def test_a_token_that_has_expired_already_is_not_made(engine, ago_s):
    with pytest.raises(RequestError, match="must be after now"):
        new_token(engine, user="anna", role=Role.ADMIN, expires_unix_s=time.time() - ago_s)
    assert tokens(engine) == []


VIEWER, SUBMITTER, ADMIN = (User("anna", role) for role in Role)


@pytest.mark.parametrize(
    ("user", "act", "owner", "allowed"),
    [
        pytest.param(VIEWER, Act.READ, "ben", True, id="a viewer reads what others own"),
        pytest.param(VIEWER, Act.SUBMIT, None, False, id="a viewer submits nothing"),
        pytest.param(VIEWER, Act.CHANGE, "anna", False, id="a viewer changes not even their own"),
        pytest.param(VIEWER, Act.ADMINISTRATE, None, False, id="a viewer does not administrate"),
        pytest.param(SUBMITTER, Act.READ, "ben", True, id="a submitter reads what others own"),
        pytest.param(SUBMITTER, Act.SUBMIT, None, True, id="a submitter submits"),
        pytest.param(SUBMITTER, Act.CHANGE, "anna", True, id="a submitter changes their own"),
        pytest.param(SUBMITTER, Act.CHANGE, "ben", False, id="a submitter changes no other's"),
        pytest.param(SUBMITTER, Act.CHANGE, None, False, id="a submitter changes no one's"),
        pytest.param(SUBMITTER, Act.CHANGE, "", False, id="a submitter changes no unnamed one's"),
        pytest.param(SUBMITTER, Act.ADMINISTRATE, "anna", False, id="a submitter is no admin"),
        pytest.param(ADMIN, Act.READ, "ben", True, id="an admin reads"),
        pytest.param(ADMIN, Act.SUBMIT, None, True, id="an admin submits"),
        pytest.param(ADMIN, Act.CHANGE, "ben", True, id="an admin changes what others own"),
        pytest.param(ADMIN, Act.CHANGE, None, True, id="an admin changes what nobody owns"),
        pytest.param(ADMIN, Act.ADMINISTRATE, None, True, id="an admin administrates"),
    ],
)
def test_who_may_do_what(user, act, owner, allowed):
    assert may(user, act, owner) is allowed
    assert may(user, act.value, owner) is allowed


def test_an_act_that_is_not_known_is_an_error_and_not_allowed_to_anybody():
    with pytest.raises(ValueError, match="fly"):
        may(ADMIN, "fly", None)


def test_roles_are_ordered_by_trust_and_not_by_the_alphabet():
    assert sorted([Role.ADMIN, Role.VIEWER, Role.SUBMITTER]) == [*Role]
    assert Role.VIEWER < Role.SUBMITTER < Role.ADMIN
    assert Role.ADMIN >= Role.ADMIN > Role.SUBMITTER
    assert not Role.VIEWER >= Role.ADMIN and not Role.VIEWER > Role.SUBMITTER
    assert Role.VIEWER <= Role.VIEWER <= Role.ADMIN
    assert not Role.ADMIN <= Role.SUBMITTER and Role.VIEWER < "admin"


def test_what_was_done_is_listed_newest_first(engine):
    for number in range(4):
        note(engine, "anna", "stop", f"job-{number}", "refused")
    newest = audit(engine, limit=3)
    assert [row["target"] for row in newest] == ["job-3", "job-2", "job-1"]
    assert (newest[0]["user"], newest[0]["action"], newest[0]["detail"]) == (
        "anna",
        "stop",
        "refused",
    )
    assert newest[0]["at_unix_s"] == pytest.approx(time.time(), abs=60)


def test_secrets_do_not_reach_the_list_of_what_was_done(engine):
    note(engine, "anna", "submit", "https://me:hunter2@host/x", "password=hunter2 hf_" + "a" * 30)
    stored = str(everything_in(engine, AUDIT))
    assert "hunter2" not in stored and "aaaa" not in stored
    assert "***" in stored


@pytest.mark.parametrize("text", ["a\0b", "half \ud800 of one", "x" * 100_000, "'; DROP TABLE"])
def test_odd_text_is_written_down_too(engine, text):
    note(engine, "anna", "submit", text, text)
    [row] = audit(engine)
    assert row["target"][:4].isprintable()
    assert 0 < len(row["detail"]) <= 2000
