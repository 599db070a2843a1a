"""The reference of the job file, written from its models: `python -m jobs.reference`."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from jobs.explain import allowed_words, schema_of
from jobs.presets import PRESETS
from jobs.spec import KINDS
from tune_spaces import SHIPPED, shipped_document

_BEGINNING = """\
# The job file

Written by `python -m jobs.reference` from the models that check job files: do not edit it by hand.

A job file is YAML (or JSON) with one mapping. What stands here as *required* must be given; all
else has a default. Unknown and doubled keys, wrong types and values out of range are refused, all
at once, with file and line. `gpt2cls validate JOB` shows the file with every default filled in;
`gpt2cls schema` prints a JSON schema for editors.

- `-s train.lr=3e-5` replaces a value before anything is checked, and can be given several times.
- A relative path is taken from the folder of the job file. It may begin with `${GPT2CLS_DATA}`.
- `1e-4` is a number. `yes`, `no`, `on` and `off` are texts: write `true` and `false`.

A source of texts is `bbc-news`, which is built in; a CSV, TSV, JSON, JSONL or Parquet file, each
also with `.gz`; a glob of such files; a folder that holds one folder of text files per class; a
folder that `datasets` saved; or `hf:<dataset>[/<config>]`. Of finetune, sweep and pretrain it may
also lie in object storage: `s3://bucket/train.parquet`, `gs://bucket/train.parquet` or
`abfss://container@account.dfs.core.windows.net/train.parquet`; texts without labels also as a
folder (`s3://bucket/corpus`) or a pattern (`s3://bucket/part-*.txt`). It is copied once into the
cache; credentials come from the environment.
"""
_SPACES = """\
## Search spaces

`space` of a sweep is the name of a shipped space, or a mapping of fields to what they may be. Only
`data.max_length` and the fields of `model` and `train` may vary; what a field may be has to fit it.

- `uniform: [low, high]` is a number between the two.
- `log_uniform: [low, high]` likewise, each order of magnitude with the same chance.
- `integer: [low, high]` is a whole number, both ends included; with `log: true` as above.
- `choice: [value, ...]` is one of the values; null and a block of fields are values too.
- `grid: [value, ...]` likewise, but the values are walked in turn instead of drawn.

Beside it may stand:

- `step: 0.05`, which leaves only `low`, `low` + 0.05, and so on, of a range.
- `when: {model.pooling: attention}`, which lets the field vary only where the job has that value,
  or one of a list of values; of several fields all must have theirs. The field asked about may vary
  itself, with countable values. Elsewhere the field stays as the job has it.
- `why: text`, which `gpt2cls validate` shows and which means nothing else.

With `searcher: grid` every dimension must have countable values, and all points are tried, or the
first `trials`; there may be 10,000. With `scheduler: pbt` only what can change in mid-training may
vary. The searchers with Ray's names know no conditions.

```yaml
space:
  train.lr: {log_uniform: [1.0e-5, 1.0e-2]}
  model.dropout: {uniform: [0.0, 0.3], step: 0.05}
  model.pooling: {choice: [mean, attention]}
  model.heads: {choice: [1, 2, 4, 8], when: {model.pooling: attention}}
```
"""
_PIPELINES = """\
## Stages of a pipeline

A stage holds a job of any kind but sweep and pipeline, as a file of its own would; it is called
after the pipeline and itself, and has no `name`. `file: small.yaml` takes the job from a file, and
what `job` says beside it replaces what the file says.

- `${stages.NAME.model}` stands for the model of a finetune or pretrain stage. It can be
  `model.backbone` or `model.tokenizer` of a stage that trains; that of a finetune stage can also be
  the `model` of one that predicts, evaluates or deploys.
- `${stages.NAME.output}` stands for the file that a predict stage writes. It can be `input`,
  `data.train`, `data.validation` or `data.test`.
- `${stages.NAME.labelled}`, `.unlabelled`, `.texts` and `.test` stand for the files of a prepare
  stage: what to learn labels from, what has none, both without labels, and what is held out. A
  language model learns from the first three, and `input` takes them; `.test` is for `data.test`
  and for nothing else.

Such a reference is the whole of a value, and makes its stage needed; `needs` names stages that
have to be done first for another reason. A cycle, a stage that is not there and a reference that
does not fit are refused before anything starts.

`when: {stage: probe, metric: accuracy, below: 0.9}` lets a stage run only where that stage did not
reach what was asked for, on its validation split. Where it is skipped, what refers to it gets what
`otherwise` names, a stage of the same kind.

What a stage makes is kept in `$GPT2CLS_HOME/cache/stages/` under the hash of its settings, of what
its inputs hold, of the stages it needs and of the version of this program. A stage that would make
the same again is not run: what was made is checked and used. `cluster`, names and paths are no
part of the hash; `register` is, where it names a model. An alias in `model.backbone` is the version
that it means when the stage is begun, and stays that one when the stage goes on after a kill.

```yaml
kind: pipeline
name: news
stages:
  small: {job: {kind: finetune, data: {train: bbc-news}, model: {backbone: gpt2-tiny}}}
  check: {job: {kind: evaluate, model: "${stages.small.model}", data: {test: bbc-news}}}
  label:
    needs: [check]
    job: {kind: predict, model: "${stages.small.model}", input: texts.csv, output: labelled.csv}
  again: {file: large.yaml, job: {data: {train: "${stages.label.output}"}}}
```
"""
_HEADER = "| field | takes | default | meaning |\n| --- | --- | --- | --- |"

Row = tuple[str, str, str, str]


def reference() -> str:
    """The page, in Markdown."""
    parts = [_BEGINNING]
    shown: dict[str, Any] = {}
    for kind, model in KINDS.items():
        schema = _inlined(schema_of(model), {})
        parts.append(f"## {kind}\n\n{schema['description']}\n")
        blocks = {k: v for k, v in schema["properties"].items() if _fields_of(v)}
        alone = {k: v for k, v in schema["properties"].items() if k not in blocks}
        parts.append(_table(_rows(schema | {"properties": alone}, ())))
        if known := [name for name, block in blocks.items() if shown.get(name) == block]:
            parts.append(f"The blocks {', '.join(known)} are those of finetune.\n")
        for name, block in blocks.items():
            if name in known:
                continue
            shown.setdefault(name, block)
            parts.append(f"### {name}\n\n{block.get('description', '')}\n")
            parts.append(_table(_rows(_fields_of(block) or {}, (name,))))
    parts += [_PIPELINES, _SPACES]
    for name in SHIPPED:
        text = yaml.safe_dump(
            {"space": shipped_document(name)}, sort_keys=False, width=100, default_flow_style=None
        )
        parts.append(f"### {name}\n\n```yaml\n{text.rstrip()}\n```\n")
    presets = yaml.safe_dump(PRESETS, sort_keys=False).rstrip()
    parts.append(
        f"## Presets\n\nWhat they fill in where the file is silent.\n\n```yaml\n{presets}\n```\n"
    )
    return "\n".join(parts)


def _rows(block: dict[str, Any], path: tuple[str, ...]) -> Iterator[Row]:
    """One row per field; the fields of a block inside follow it."""
    required = block.get("required", [])
    for name, field in block["properties"].items():
        at = (*path, name)
        inner = _fields_of(field)
        default = "*required*" if name in required else _value(field.get("default"))
        if inner and "default" in field and field["default"] is not None:
            default = ""  # that of each of its fields
        meaning = re.sub(r"\bNone\b", "null", field.get("description", ""))
        yield ".".join(at), allowed_words(field), default, meaning
        if inner:
            yield from _rows(inner, at)
        if named := _named(field):
            yield from _rows(named, (*at, "NAME"))


def _named(field: dict[str, Any]) -> dict[str, Any] | None:
    """The block behind each name of a mapping that the user chooses the names of."""
    inner = field.get("additionalProperties")
    return inner if isinstance(inner, dict) and "properties" in inner else None


def _fields_of(field: dict[str, Any]) -> dict[str, Any] | None:
    """The block that a field takes, alone or among other things."""
    branches = [field, *field.get("anyOf", [])]
    return next((branch for branch in branches if "properties" in branch), None)


def _value(default: Any) -> str:
    words = yaml.safe_dump(default, default_flow_style=True).removesuffix("\n...\n").strip()
    return f"`{words}`"


def _table(rows: Iterator[Row]) -> str:
    lines = []
    for field, *cells in rows:
        shown = (" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        lines.append(f"| `{field}` | " + " | ".join(shown) + " |")
    return "\n".join([_HEADER, *lines, ""])


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """The schema with every reference replaced by what it means; words beside one are kept."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    parts = parts | schema.get("$defs", {})
    own = {k: _inlined(v, parts) for k, v in schema.items() if k not in ("$defs", "$ref")}
    if name := schema.get("$ref"):
        return _inlined(parts[name.rpartition("/")[2]], parts) | own
    return own


if __name__ == "__main__":
    print(reference(), end="")
