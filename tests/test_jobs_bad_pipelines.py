"""Pipelines that are refused: every fault with its place, and nothing is made."""

import json
from pathlib import Path

import pytest
from refusing import refused

from gpt2cls.errors import RequestError
from jobs.cli import main
from jobs.read import read_job
from jobs.spec import PipelineJob, dump

HEAD = "kind: pipeline\nname: news\nstages:\n"
SMALL = "  small: {job: {kind: finetune, data: {train: bbc-news}}}\n"
GOOD = (
    SMALL
    + '  check: {job: {kind: evaluate, model: "${stages.small.model}", data: {test: bbc-news}}}\n'
)
LANGUAGE = "  lm: {job: {kind: pretrain, data: {train: bbc-news}}}\n"
PREPARE = "  p: {job: {kind: prepare, input: bbc-news}}\n"
WHEN = SMALL + "  b: {when: {stage: small, metric: accuracy, below: 0.9}, otherwise: small, job: "
WHEN += "{kind: finetune, data: {train: bbc-news}}}\n"
USES = '  c: {job: {kind: evaluate, model: "${stages.b.model}", data: {test: bbc-news}}}\n'
TABLE = [
    # id, stages, field, line, value, word of the message
    ("no stage", "  {}", "stages", 3, {}, "a mapping of names"),
    ("a stage that is a word", SMALL + "  b: x", "stages.b", 5, "x", "a block of fields"),
    ("a stage without a job", SMALL + "  b: {}", "stages.b.job", 5, None, "missing: give the"),
    ("a job that is a word", "  b: {job: x}", "stages.b.job", 4, "x", "a block of fields"),
    ("a job that is null", "  b: {job: null}", "stages.b.job", 4, None, "a block of fields"),
    ("a field like another", SMALL + "  b: {job: {kind: evaluate, model: '.', data: {test: "
     "bbc-news}}, neds: [small]}", "stages.b.neds", 5, ["small"], "did you mean 'stages.b.needs'"),
    ("a need that is a word", SMALL.replace("{job", "{needs: x, job"), "stages.small.needs", 4, "x",
     "a list"),
    ("a need that is a number", SMALL.replace("{job", "{needs: [1], job"), "stages.small.needs[0]",
     4, 1, "text"),
    ("itself", SMALL.replace("{job", "{needs: [small], job"), "stages.small.needs[0]", 4, "small",
     "small -> small"),
    ("a stage that is not there", SMALL.replace("{job", "{needs: [check], job"),
     "stages.small.needs[0]", 4, "check", "a stage of this pipeline: small"),
    ("a cycle", GOOD.replace("{job", "{needs: [check], job", 1), "stages.small.needs[0]", 4,
     "check", "small -> check -> small"),
    ("a name of capitals", SMALL.replace("small", "Small"), "stages.Small", 4, "Small",
     "lower-case letters"),
    ("a name too long", SMALL.replace("small", "s" * 59), f"stages.{'s' * 59}", 4, "s" * 59,
     "at most 58 letters"),
    ("a job with a name", SMALL.replace("{kind", "{name: x, kind"), "stages.small.job.name", 4, "x",
     "left out"),
    ("a sweep", "  b: {job: {kind: sweep, data: {train: bbc-news}}}", "stages.b.job.kind", 4,
     "sweep", "one of prepare, finetune, pretrain, ensemble, predict, evaluate, deploy"),
    ("a pipeline", "  b: {job: {kind: pipeline}}", "stages.b.job.kind", 4, "pipeline",
     "one of prepare, finetune, pretrain, ensemble, predict, evaluate, deploy"),
    ("no kind", "  b: {job: {}}", "stages.b.job.kind", 4, None, "kind is missing"),
    ("a field of the job", SMALL.replace("}}}", "}, train: {epohs: 1}}}"),
     "stages.small.job.train.epohs", 4, 1, "did you mean 'stages.small.job.train.epochs'"),
    ("a value of the job", SMALL.replace("}}}", "}, train: {lr: -1}}}"),
     "stages.small.job.train.lr", 4, -1, "above 0"),
    ("fields that do not fit", SMALL.replace("}}}", ", text: a, label: a}}}"),
     "stages.small.job.data.label", 4, "a", "not also data.text"),
    ("a head that is none", SMALL.replace("}}}", "}, model: {head: deep}}}"),
     "stages.small.job.model.head", 4, "deep", "linear"),
    ("data that is not there", "  b: {job: {kind: finetune, data: {train: no.csv}}}",
     "stages.b.job.data.train", 4, "no.csv", "no such file"),
    ("a model that is not there", SMALL.replace("small", "b") + "  c: {job: {kind: evaluate, "
     "model: none, data: {test: bbc-news}}}", "stages.c.job.model", 5, "none", "no folder"),
    ("a reference in a text", GOOD.replace('"$', '"x$'), "stages.check.job.model", 5,
     "x${stages.small.model}", "the whole of a reference"),
    ("a reference to another thing", GOOD.replace("l.model", "l.metrics"),
     "stages.check.job.model", 5, "${stages.small.metrics}", "such as ${stages.NAME.model}"),
    ("a reference of another field", GOOD.replace("l.model", "l.output"),
     "stages.check.job.model", 5, "${stages.small.output}", "${stages.small.model}"),
    ("a reference to no stage", GOOD.replace("s.small", "s.smal"), "stages.check.job.model", 5,
     "${stages.smal.model}", "did you mean 'small'"),
    ("a reference to what is not made", GOOD + '  b: {job: {kind: predict, model: "${stages.check'
     '.model}", input: job.yaml, output: o.csv}}', "stages.b.job.model", 6,
     "${stages.check.model}", "check is of kind evaluate"),
    ("a language model that is to predict", LANGUAGE + '  b: {job: {kind: evaluate, model: '
     '"${stages.lm.model}", data: {test: bbc-news}}}',
     "stages.b.job.model", 5, "${stages.lm.model}",
     "of a stage of kind finetune, ensemble; lm is of kind"),
    ("a language model in an ensemble", LANGUAGE + '  b: {job: {kind: ensemble, models: '
     '["${stages.lm.model}", "models:/news/1"], data: {test: bbc-news}}}',
     "stages.b.job.models[0]", 5, "${stages.lm.model}",
     "of a stage of kind finetune, ensemble; lm is of kind"),
    ("texts that are a model", LANGUAGE + '  b: {job: {kind: finetune, data: {train: '
     '"${stages.lm.model}"}}}', "stages.b.job.data.train", 5, "${stages.lm.model}",
     "of a stage of kind predict, prepare; lm is"),
    ("learning from what is held out", PREPARE + '  b: {job: {kind: finetune, data: {train: '
     '"${stages.p.test}"}}}', "stages.b.job.data.train", 5, "${stages.p.test}",
     "${stages.p.labelled}"),
    ("labels where there are none", PREPARE + '  b: {job: {kind: finetune, data: {train: '
     '"${stages.p.texts}"}}}', "stages.b.job.data.train", 5, "${stages.p.texts}",
     "${stages.p.labelled}"),
    ("the language of what is held out", PREPARE + '  b: {job: {kind: pretrain, data: {train: '
     '"${stages.p.test}"}}}', "stages.b.job.data.train", 5, "${stages.p.test}",
     "${stages.p.texts} or ${stages.p.unlabelled}"),
    ("a condition on a stage that is not there", WHEN.replace("stage: small", "stage: smal"),
     "stages.b.when.stage", 5, "smal", "did you mean 'small'"),
    ("a condition on itself", WHEN.replace("stage: small", "stage: b"), "stages.b.when.stage", 5,
     "b", "b -> b"),
    ("a metric that is not measured", WHEN.replace("accuracy", "loss"), "stages.b.when.metric", 5,
     "loss", "what small measures: accuracy, macro_f1"),
    ("a condition on what measures nothing", WHEN.replace("stage: small", "stage: p") + PREPARE,
     "stages.b.when.stage", 5, "p", "p is of kind prepare"),
    ("a condition without a limit", WHEN.replace(", below: 0.9", ""), "stages.b.when", 5,
     {"stage": "small", "metric": "accuracy"}, "one of below and above"),
    ("a condition with two limits", WHEN.replace("below: 0.9", "below: 0.9, above: 0.1"),
     "stages.b.when", 5, {"stage": "small", "metric": "accuracy", "below": 0.9, "above": 0.1},
     "one of below and above"),
    ("a limit that is a word", WHEN.replace("0.9", "high"), "stages.b.when.below", 5, "high",
     "a number"),
    ("a condition that is a word", WHEN.replace("{stage: small, metric: accuracy, below: 0.9}",
     "always"), "stages.b.when", 5, "always", "a block of fields or null"),
    ("a stage that may be skipped and is used", WHEN.replace(" otherwise: small,", "") + USES,
     "stages.b.otherwise", 5, None, "c needs one"),
    ("another kind that stands for it", WHEN.replace("ise: small", "ise: lm") + LANGUAGE,
     "stages.b.otherwise", 5, "lm", "a stage of kind finetune; lm is of kind pretrain"),
    ("one that stands for it in no case", WHEN.replace("when: {stage: small, metric: accuracy, "
     "below: 0.9}, ", ""), "stages.b.otherwise", 5, "small", "left out"),
    ("two files of one stage and another", PREPARE + '  b: {job: {kind: predict, model: ".", '
     'input: job.yaml, output: o.csv}}\n  c: {job: {kind: predict, model: ".", input: job.yaml, '
     "output: p.csv, low_confidence: {output: o.csv}}}", "stages.c.job.low_confidence.output", 6,
     "o.csv", "than that of stage b"),
    ("a model to deploy without a name", SMALL + '  b: {job: {kind: deploy, model: "${stages.small'
     '.model}", data: {test: bbc-news}, register: {}}}', "stages.b.job.register.model", 5, None,
     "missing"),
    ("a stage that is given a folder", "  p: {job: {kind: prepare, input: bbc-news, output: x}}",
     "stages.p.job.output", 4, "x", "no such field"),
    ("one column for both", "  p: {job: {kind: prepare, input: bbc-news, label: text}}",
     "stages.p.job.label", 4, "text", "not also text"),
    ("an input that is not there", "  p: {job: {kind: prepare, input: no.csv}}",
     "stages.p.job.input", 4, "no.csv", "no such file"),
    ("a reference where none may be", SMALL + '  b: {job: {kind: predict, model: "${stages.small.'
     'model}", input: job.yaml, output: "${stages.small.model}"}}', "stages.b.job.output", 5,
     "${stages.small.model}", "a plain value"),
    ("an output that cannot be written", SMALL + '  b: {job: {kind: predict, model: "${stages.'
     'small.model}", input: job.yaml, output: no/o.csv}}', "stages.b.job.output", 5, "no/o.csv",
     "no folder"),
    (
        "one file of two stages",
        SMALL + '  b: {job: {kind: predict, model: ".", input: job.yaml, output: o.csv}}\n'
        '  c: {job: {kind: predict, model: ".", input: job.yaml, output: ./o.csv}}',
        "stages.c.job.output", 6, "./o.csv", "than that of stage b",
    ),
    ("a file that is not there", "  b: {file: no.yaml}", "stages.b.file", 4, "no.yaml",
     "No such file"),
    ("a file and a folder", "  b: {file: job.yaml, folder: x}", "stages.b.folder", 4, "x",
     "left out"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "field", "line", "value", "word"),
    [row[1:] for row in TABLE],
    ids=[r[0] for r in TABLE],
)
def test_a_fault_is_named_with_line_field_value_and_what_is_allowed(
    place, capfd, stages, field, line, value, word
):
    problems = refused(capfd, HEAD + stages + "\n")["problems"]
    (problem,) = [p for p in problems if p["field"] == field]
    assert (problem["file"], problem["line"], problem["value"]) == ("job.yaml", line, value)
    assert word in problem["message"]
    if "file" not in field and "folder" not in field:
        assert len(problems) == 1


def test_a_good_condition_is_accepted_and_shown(place, capfd):
    Path("job.yaml").write_text(HEAD + WHEN + USES)
    assert main(["validate", "job.yaml", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["stages"][1] == {
        "stage": "b", "kind": "finetune", "needs": ["small"],
        "when": "accuracy of small is below 0.9", "otherwise": "small",
    }  # fmt: skip
    assert main(["validate", "job.yaml"]) == 0
    assert "accuracy of small is below 0.9" in capfd.readouterr().out
    job = PipelineJob.model_validate(document["job"])
    assert job.needs["b"] == ("small",)
    assert job.inputs == {"small": (), "b": (), "c": ("b",)}


def test_the_faults_of_all_stages_come_together(place, capfd):
    text = HEAD + GOOD.replace("bbc-news}}}", "no.csv}, train: {lr: 0}}}", 1) + "  c: {need: []}\n"
    fields = {p["field"] for p in refused(capfd, text)["problems"]}
    assert fields == {
        "stages.small.job.data.train",
        "stages.small.job.train.lr",
        "stages.c.need",
        "stages.c.job",
    }


def test_a_pipeline_whose_every_stage_needs_the_next_of_ten_thousand_is_refused(place, capfd):
    job = 'job: {kind: evaluate, model: ".", data: {test: bbc-news}}'
    lines = [f"  s{i}: {{needs: [s{(i + 1) % 10_000}], {job}}}" for i in range(10_000)]
    Path("job.yaml").write_text(HEAD + "\n".join(lines) + "\n")
    assert main(["validate", "job.yaml", "--json"]) == 2
    (problem,) = json.loads(capfd.readouterr().out)["error"]["problems"]
    assert problem["field"] == "stages.s0.needs[0]"
    assert "s0 -> s1 -> s2" in problem["message"]


def test_validate_lists_the_stages_in_the_order_they_run(place, capfd):
    check, small = GOOD.splitlines()[1], GOOD.splitlines()[0]
    Path("job.yaml").write_text(HEAD + check + "\n" + small + "\n")
    assert main(["validate", "job.yaml", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["stages"] == [
        {"stage": "small", "kind": "finetune", "needs": []},
        {"stage": "check", "kind": "evaluate", "needs": ["small"]},
    ]
    assert main(["validate", "job.yaml"]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["1", "small", "finetune", "-"] in rows
    assert ["2", "check", "evaluate", "small"] in rows


def test_a_job_from_a_file_is_changed_by_what_stands_beside_it(place):
    Path("jobs").mkdir()
    Path("jobs/one.yaml").write_text(
        "kind: finetune\nname: one\ndata: {train: bbc-news, max_length: 9}\ntrain: {lr: 1e-3}\n"
    )
    stages = "  a: {file: jobs/one.yaml}\n  b: {file: jobs/one.yaml, job: {train: {epochs: 7}}}\n"
    Path("job.yaml").write_text(HEAD + stages)
    job = read_job(Path("job.yaml"), ["stages.a.job.data.max_length=5"], data_dir=None).job
    assert isinstance(job, PipelineJob)
    one, other = job.stages["a"], job.stages["b"]
    assert (one.job.name, other.job.name) == ("news-a", "news-b")
    assert (one.job.data.max_length, other.job.data.max_length) == (5, 9)
    assert (one.job.train.epochs, other.job.train.epochs, other.job.train.lr) == (3, 7, 1e-3)
    assert one.folder == "jobs"


def test_a_fault_in_the_file_of_a_stage_is_placed_there(place):
    Path("one.yaml").write_text("kind: finetune\ndata: {train: bbc-news}\ntrain: {lr: -1}\n")
    Path("job.yaml").write_text(HEAD + "  a: {file: one.yaml}\n")
    with pytest.raises(RequestError, match=r"one\.yaml:3: stages\.a\.job\.train\.lr = -1"):
        read_job(Path("job.yaml"), data_dir=None)


def test_a_resolved_pipeline_is_itself_a_job_file(place):
    Path("job.yaml").write_text(HEAD + GOOD)
    job = read_job(Path("job.yaml"), data_dir=None).job
    Path("again.yaml").write_text(json.dumps(dump(job)))
    again = read_job(Path("again.yaml"), ["name=other"], data_dir=None).job
    assert again.stages["check"].job.name == "other-check"
    assert dump(again) == dump(job) | {"name": "other"}


def test_a_pipeline_that_comes_without_its_file_is_checked_alike(place):
    Path("job.yaml").write_text(HEAD + GOOD)
    spec = dump(read_job(Path("job.yaml"), data_dir=None).job)
    spec["stages"]["small"]["needs"] = ["check"]
    with pytest.raises(ValueError, match="small -> check -> small"):
        PipelineJob.model_validate(spec)
