"""Documents of sweeps as a driver would leave them, made from a formula that is known."""

import math
import random

HOSTILE = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)> $x^2$ \x1b[31m\u202e"


def dimension(field, kind, values, *, step=None, when=None):
    return {"field": field, "kind": kind, "range": values, "step": step, "when": when}


SPACE = (
    dimension("train.lr", "log_uniform", "1e-05 to 0.01"),
    dimension("model.dropout", "uniform", "0.0 to 0.3", step=0.05),
    dimension("train.schedule", "choice", "linear, slanted_triangular"),
    dimension(
        "train.layer_decay", "choice", "1.0, 2.6", when="train.schedule = slanted_triangular"
    ),
    dimension("train.batch_size", "choice", "8, 16, 32"),
)


def sample(space, rng):
    """Settings of one trial; a dimension whose condition does not hold is absent."""
    params = {}
    for one in space:
        field, (low, _, high) = one["field"], one["range"].partition(" to ")
        if one["kind"] == "log_uniform":
            params[field] = math.exp(rng.uniform(math.log(float(low)), math.log(float(high))))
        elif one["kind"] == "uniform":
            params[field] = rng.uniform(float(low), float(high))
        elif not one["when"] or one["when"].endswith(params["train.schedule"]):
            value = rng.choice(one["range"].split(", "))
            params[field] = float(value) if value[0].isdigit() else value
    return params


def quality(params):
    """Decided by the learning rate, which is best near 5e-4, and by nothing else."""
    return 0.95 - 0.05 * (math.log10(params["train.lr"]) + 3.3) ** 2


def trial_document(number, params, rng, *, value, seeds=1, **changes):
    """A trial under successive halving: the bad ones end at step 60."""
    steps = 60 if value < 0.85 else 180
    curve = [
        [s, value * (1 - math.exp(-s / 30)) + rng.gauss(0, 0.002)] for s in range(10, steps + 1, 10)
    ]
    return {
        "trial": number, "run_id": f"{number:032x}", "status": "FINISHED", "params": params,
        "metric": max(value for _, value in curve), "pruned": steps == 60, "cause": None,
        "step": steps, "seconds": steps * 0.3 + rng.random(), "curve": curve,
        "seed": number % seeds, "configuration": number // seeds,
    } | changes  # fmt: skip


def sweep_document(num_trials=16, *, space=SPACE, seeds=1, measure=quality, **changes):
    """A sweep that ended; every ninth trial failed."""
    rng = random.Random(7)
    trials, params = [], {}
    for number in range(num_trials):
        if number % seeds == 0:
            params = sample(space, rng)
        value = measure(params) + rng.gauss(0, 0.003)
        trials.append(trial_document(number, params, rng, value=value, seeds=seeds))
    for trial in trials[4::9]:
        cause = "loss became nan at step 12 on rank 0; lower train.lr"
        trial |= {"status": "FAILED", "metric": None, "curve": [], "pruned": False, "cause": cause}
    scored = [trial for trial in trials if trial["metric"] is not None]
    best = max(scored, key=lambda trial: trial["metric"])["trial"] if scored else None
    return {
        "job_id": "topics-1", "name": "topics", "state": "SUCCEEDED", "metric": "accuracy",
        "mode": "max", "space": list(space), "best": best, "started_unix_s": 1.7e9,
        "seconds": 612.0, "trials": trials,
        "search": {"trials": num_trials, "scheduler": "asha", "searcher": "random", "seeds": seeds},
    } | changes  # fmt: skip


def unscored_document():
    """A sweep in which nothing was measured: one failed, one runs, one waits."""
    document = sweep_document(3, state="RUNNING", best=None)
    for trial, status in zip(document["trials"], ("FAILED", "RUNNING", "PENDING"), strict=True):
        trial |= {"status": status, "metric": None, "curve": [], "pruned": False}
    document["trials"][2] |= {"params": {}, "step": None, "seconds": None}
    return document


def identical_document():
    """Ten trials with the same metric."""
    document = sweep_document(10)
    for trial in document["trials"]:
        trial |= {"status": "FINISHED", "metric": 0.9, "curve": [[10, 0.9]]}
    return document


def wide_document(num_trials=200):
    """Twelve dimensions with long names."""
    more = [
        dimension(f"model.a_rather_long_block.dimension_number_{i}", "uniform", "0 to 1")
        for i in range(7)
    ]
    return sweep_document(num_trials, space=(*SPACE, *more))


def hostile_document():
    """Markup, control characters and other scripts wherever a text can stand."""
    name = "train.\u5b66\u4e60\u7387"
    space = [
        dimension(HOSTILE, "choice", HOSTILE, when=HOSTILE),
        dimension(name, "uniform", "0 to 1"),
    ]
    document = sweep_document(12)
    for trial in document["trials"]:
        text = f"{HOSTILE}{trial['trial'] % 3}"
        trial["params"] = {HOSTILE: text, name: trial["trial"] / 12}
        trial["cause"] = HOSTILE + "x" * 10_000
    document["trials"][0]["status"] = HOSTILE
    texts = {name: HOSTILE for name in ("name", "job_id", "state", "metric")}
    return document | texts | {"space": space, "search": {HOSTILE: HOSTILE}}


def pbt_document():
    """Population-based training: settings change while a trial trains, and leave the range."""
    document = sweep_document(8)
    for trial in document["trials"]:
        trial["changes"] = [[60, {"train.lr": 0.02}], [120, {"train.lr": 0.004}]]
        trial["params"]["train.lr"] *= 4
    return document


DOCUMENTS = {
    "ordinary": sweep_document,
    "one trial": lambda: sweep_document(1),
    "two hundred trials and twelve dimensions": wide_document,
    "nothing measured": unscored_document,
    "no trial": lambda: sweep_document(0, state="PENDING"),
    "all the same": identical_document,
    "hostile texts": hostile_document,
    "lower is better": lambda: sweep_document(mode="min", metric="log_loss"),
    "several seeds": lambda: sweep_document(12, seeds=3),
    "settings that change": pbt_document,
    "no space": lambda: sweep_document(12, space=SPACE[:1]) | {"space": []},
}
