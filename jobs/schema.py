"""The tables of the job store. Changes of them are migrations (`jobs/migrations`)."""

import sqlalchemy as sa

META = sa.MetaData()

JOBS = sa.Table(
    "jobs",
    META,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("created_unix_s", sa.Float, nullable=False, index=True),
    sa.Column("started_unix_s", sa.Float),
    sa.Column("ended_unix_s", sa.Float),
    sa.Column("owner_pid", sa.Integer),
    sa.Column("owner_birth", sa.Text),
    sa.Column("owner_host", sa.Text),
    sa.Column("run_id", sa.Text),
    sa.Column("num_attempts", sa.Integer, nullable=False, default=0),
    sa.Column("spec", sa.Text, nullable=False),
    # What only jobs of the queue have; `run` leaves `request` empty.
    sa.Column("request", sa.Integer, index=True),
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
"""`request`: number of the request that made it, the order of the queue. `text`: the job file as it
was given; `base_dir`: whence its paths are taken. `ask`: what it needs of
the cluster. `wish`: stop, preempt or null, what the controller is to bring about. `num_lost`:
attempts and workers that were lost, of the budget `cluster.retries`. `num_passed`: jobs that were
let past it."""

REQUESTS = sa.Table(
    "requests",
    META,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("at_unix_s", sa.Float, nullable=False),
    sa.UniqueConstraint("user", "key", name="one_job_per_key"),
)

ATTEMPTS = sa.Table(
    "attempts",
    META,
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
"""`session`: of Ray, in which it was started. `seconds`: that it held its CPUs and GPUs, by a clock
that nobody sets. `ended_unix_s` is empty while it lives."""

EVENTS = sa.Table(
    "events",
    META,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.Text, nullable=False, index=True),
    sa.Column("attempt", sa.Integer),
    sa.Column("at_unix_s", sa.Float, nullable=False),
    sa.Column("old", sa.Text, nullable=False),
    sa.Column("new", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by_whom", sa.Text, nullable=False),
)
"""Every change of a job's state, and every act of the controller on it."""

LEASES = sa.Table(
    "leases",
    META,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("beat", sa.Integer, nullable=False),
)
"""`number` grows with each holder, `beat` with each renewal."""

TOKENS = sa.Table(
    "tokens",
    META,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("created_unix_s", sa.Float, nullable=False),
    sa.Column("expires_unix_s", sa.Float),
    sa.Column("revoked_unix_s", sa.Float),
)

AUDIT = sa.Table(
    "audit",
    META,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at_unix_s", sa.Float, nullable=False),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
)
"""Who did what, refused attempts among it."""

WEBHOOKS = sa.Table(
    "webhooks",
    META,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret_file", sa.Text, nullable=False),
    sa.Column("states", sa.Text, nullable=False),
    sa.Column("by_whom", sa.Text, nullable=False),
    sa.Column("last_event", sa.Integer, nullable=False),
)
"""`states`: a JSON list, of the states whose beginning is told. `last_event`: up to which event
there are deliveries."""

DELIVERIES = sa.Table(
    "deliveries",
    META,
    sa.Column("webhook_id", sa.Integer, primary_key=True),
    sa.Column("event_id", sa.Integer, primary_key=True),
    sa.Column("num_tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_unix_s", sa.Float),
    sa.Column("delivered_unix_s", sa.Float),
    sa.Column("last_error", sa.Text, nullable=False, server_default=""),
)
"""`next_unix_s` is empty when it is delivered or given up."""

PROMOTIONS = sa.Table(
    "promotions",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("registry", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False, index=True),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("old_version", sa.Integer),
    sa.Column("new_version", sa.Integer),
    sa.Column("by_whom", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at_unix_s", sa.Float, nullable=False),
)
