"""What the form of a job's rows asks of its other settings."""

from jobs.plan import plan_warnings
from jobs.read import read_job
from jobs.spec import dump


def test_a_job_of_regression_is_judged_by_correlation_unless_it_says_otherwise(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,1.5\n")
    job = tmp_path / "job.yaml"
    head = "name: x\ndata: {train: t.csv, task: regression}\n"
    job.write_text(f"kind: finetune\n{head}train: {{early_stopping: {{patience: 3}}}}\n")
    found = read_job(job, data_dir=None).job
    assert found.registration.gate.metric == found.train.early_stopping.metric == "pearson"
    assert type(found).model_validate(dump(found)) == found
    job.write_text(f"kind: finetune\n{head}register: {{gate: {{metric: spearman}}}}\n")
    assert read_job(job, data_dir=None).job.registration.gate.metric == "spearman"
    space = "space: {train.lr: {uniform: [1e-5, 1e-3]}}\n"
    job.write_text(f"kind: sweep\n{head}{space}")
    sweep = read_job(job, data_dir=None).job
    assert (sweep.search.metric, sweep.search.best_mode) == ("pearson", "max")
    job.write_text(f"kind: sweep\n{head}{space}search: {{metric: mse}}\n")
    assert read_job(job, data_dir=None).job.search.best_mode == "min"


def test_the_gpt1_preset_is_that_of_the_paper_and_gives_way_to_the_job(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("kind: finetune\nname: x\npreset: gpt1\ndata: {train: bbc-news}\n")
    found = read_job(job, data_dir=None).job
    assert found.data.special_tokens == "gpt1"
    assert (found.model.pooling, found.model.dropout, found.model.temperature) == ("last", 0.1, 1)
    train = found.train
    assert (train.lr, train.batch_size, train.epochs) == (6.25e-5, 32, 3)
    assert (train.warmup, train.schedule, train.weight_decay) == (0.002, "linear", 0.01)
    assert train.lm_weight == 0.5
    with_own = read_job(job, ["data.special_tokens=none", "train.lr=1e-4"], data_dir=None).job
    assert (with_own.data.special_tokens, with_own.train.lr) == ("none", 1e-4)


def test_a_frozen_embedding_is_warned_of_where_its_new_tokens_would_not_learn(tmp_path):
    job = tmp_path / "job.yaml"
    data = "data: {train: bbc-news, special_tokens: gpt1}\n"
    job.write_text(f"kind: finetune\nname: x\n{data}train: {{freeze: head_only}}\n")
    (words,) = plan_warnings(read_job(job, data_dir=None).job, cores=64)
    assert "data.special_tokens do not learn" in words


def test_a_rate_for_an_embedding_that_does_not_learn_is_warned_of(tmp_path):
    job = tmp_path / "job.yaml"
    head = "kind: finetune\nname: x\ndata: {train: bbc-news}\n"
    job.write_text(head + "train: {embedding_lr: 1e-2, freeze: top:2}\n")
    (words,) = plan_warnings(read_job(job, data_dir=None).job, cores=64)
    assert words.startswith("train.embedding_lr = 0.01 is not used: train.freeze = top:2 keeps")
    job.write_text(head + "train: {embedding_lr: 1e-2, freeze: gradual}\n")
    assert plan_warnings(read_job(job, data_dir=None).job, cores=64) == []
