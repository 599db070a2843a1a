"""What the form of a job's rows asks of its other settings."""

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
