"""A sweep of ours against the same one as Ray's documentation teaches it.

    pip install -e '.[bench]'
    python benchmarks/sweep.py [--trials 12] [--epochs 6] [--rounds 1]

Both search the learning rate, warm-up and dropout of the same small network on the built-in BBC
news, with the same points, ASHA, batch size, epochs, tokenizer and two trials at a time. Theirs is
Ray Tune's function that runs a Ray Train trainer, in which a Hugging Face Trainer works and
reports each epoch through Ray's own callback. It is given more than its documentation says: its
driver function takes no core, so that two trials fit on two cores, and the texts are tokenised
ahead. It packages and registers nothing, which ours does; ours is the whole `gpt2cls run`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Outcome, Report, median, paired_ratio, run_arm, spread, take_turns

LENGTH, VOCABULARY, BATCH = 400, 8000, 16
LAYERS, WIDTH, HEADS = 2, 64, 2
"""Of the built-in shape gpt2-tiny."""
SPACE: dict[str, Any] = {
    "train.lr": {"log_uniform": [1.0e-4, 1.0e-2]},
    "train.warmup": {"uniform": [0.0, 0.2]},
    "model.dropout": {"uniform": [0.0, 0.3], "step": 0.05},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        spec = json.loads(options.arm)
        print(json.dumps((_ours if spec.pop("side") == "ours" else _documented)(**spec)))
        return
    command = f"python benchmarks/sweep.py --trials {options.trials} --epochs {options.epochs}"
    report = Report("sweep", f"{command} --rounds {options.rounds}")
    report.machine()
    spec = {"trials": options.trials, "epochs": options.epochs}
    arms = {
        side: lambda side=side: run_arm(sys.argv[0], spec | {"side": side})
        for side in ("ours", "documented")
    }
    outcomes = take_turns(arms, options.rounds)
    report.document |= {"spec": spec, "outcomes": outcomes}
    theirs = outcomes["documented"]
    rows = [
        [
            name,
            spread(found, "seconds"),
            f"{paired_ratio(theirs, found, 'seconds'):.2f}",
            str(round(median(found, "epochs_made"))),
            f"{median(found, 'best'):.4f}",
        ]
        for name, found in outcomes.items()
    ]
    head = ("", "seconds", "documented / this", "epochs trained", "best validation accuracy")
    report.table(head, rows)
    report.write()


def _ours(trials: int, epochs: int) -> Outcome:
    job = {
        "kind": "sweep",
        "name": "bench",
        "data": {"train": "bbc-news", "max_length": LENGTH},
        "model": {"backbone": "gpt2-tiny", "pooling": "last", "temperature": 1.0},
        "train": {"epochs": epochs, "batch_size": BATCH, "weight_decay": 0.0},
        "space": SPACE,
        "search": {"trials": trials, "scheduler": "asha", "seed": 0},
        "register": {"model": "bench", "gate": {"min": 0.1}},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_text(json.dumps(job))
        program = [sys.executable, "-m", "jobs"]
        environment = os.environ | {"GPT2CLS_HOME": f"{folder}/home"}
        started_s = time.perf_counter()
        done = subprocess.run(
            [*program, "run", str(path), "--json"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        seconds = time.perf_counter() - started_s
        subprocess.run([*program, "cluster", "down"], env=environment, capture_output=True)
        found = json.loads(done.stdout)["trials"]
    return {
        "seconds": round(seconds, 1),
        "epochs_made": sum(len(trial["curve"]) for trial in found),
        "best": max(trial["metric"] for trial in found),
    }


def _documented(trials: int, epochs: int) -> Outcome:
    import ray
    from ray import tune

    from gpt2cls.config import DataConfig, ModelConfig, TrainedTokenizer
    from gpt2cls.data.prepare import prepare
    from gpt2cls.data.tokenizer_source import get_tokenizer
    from jobs.proposals import Drawn
    from tune_spaces import read_space

    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(DataConfig(train="bbc-news"), base_dir=Path.cwd(), seed=0)
        tokenizer = get_tokenizer(
            ModelConfig(backbone="gpt2-tiny", tokenizer=TrainedTokenizer(train=VOCABULARY)),
            prepared.train,
            cache_dir=Path(folder) / "cache",
            base_dir=Path.cwd(),
        )
        for name in ("train", "validation"):
            split = prepared.splits[name]
            ids, _ = tokenizer.encode(split.texts.to_pylist(), None, LENGTH)
            rows = [
                {"input_ids": one.tolist(), "labels": int(label)}
                for one, label in zip(ids, split.labels, strict=True)
            ]
            Path(folder, f"{name}.json").write_text(json.dumps(rows))
        points = Drawn(read_space(SPACE), {}, 0)
        ray.init(num_cpus=2, resources={"driver": 2}, logging_level="error", log_to_driver=False)
        fixed = {
            "folder": folder,
            "epochs": epochs,
            "vocabulary": tokenizer.vocab_size,
            "pad": tokenizer.pad_id,
            "labels": len(prepared.task.labels),
        }
        asha = tune.schedulers.ASHAScheduler(max_t=epochs, grace_period=1, reduction_factor=3)
        tuner = tune.Tuner(
            tune.with_resources(_driver, {"cpu": 0, "driver": 1}),
            param_space=fixed
            | {"point": tune.grid_search([points.propose(i) for i in range(trials)])},
            tune_config=tune.TuneConfig(
                metric="eval_accuracy", mode="max", scheduler=asha, max_concurrent_trials=2
            ),
            run_config=tune.RunConfig(storage_path=f"{folder}/tune", verbose=0),
        )
        results = tuner.fit()
        found = [result.metrics for result in results if result.metrics]
        ray.shutdown()
    return {
        "seconds": round(time.perf_counter() - started_s, 1),
        "epochs_made": sum(metrics.get("training_iteration", 0) for metrics in found),
        "best": max(metrics.get("eval_accuracy", 0.0) for metrics in found),
    }


def _driver(config: dict[str, Any]) -> None:
    """What Tune runs: a trainer of Ray Train per trial, as the user guide has it."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    name = f"train-{tune.get_context().get_trial_id()}"
    TorchTrainer(
        _train,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=name, storage_path=f"{config['folder']}/train", callbacks=[TuneReportCallback()]
        ),
    ).fit()


def _train(config: dict[str, Any]) -> None:
    """What a worker runs: the Hugging Face Trainer with Ray's callback and wrapper."""
    import numpy as np
    from datasets import Dataset
    from ray.train.huggingface.transformers import RayTrainReportCallback, prepare_trainer
    from transformers import (
        DataCollatorWithPadding,
        GPT2Config,
        GPT2ForSequenceClassification,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
    )

    folder, point = Path(config["folder"]), config["point"]
    drop = point["model.dropout"]
    model = GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=config["vocabulary"],
            n_positions=LENGTH,
            n_layer=LAYERS,
            n_embd=WIDTH,
            n_head=HEADS,
            attn_pdrop=drop,
            embd_pdrop=drop,
            resid_pdrop=drop,
            num_labels=config["labels"],
            pad_token_id=config["pad"],
        )
    )
    rows = {
        name: Dataset.from_list(json.loads((folder / f"{name}.json").read_text()))
        for name in ("train", "validation")
    }
    blank = PreTrainedTokenizerFast(tokenizer_object=_blank_tokenizer(config["pad"]), pad_token="p")
    blank.pad_token_id = config["pad"]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            f"{folder}/hf",
            num_train_epochs=config["epochs"],
            per_device_train_batch_size=BATCH,
            learning_rate=point["train.lr"],
            warmup_steps=point["train.warmup"],
            eval_strategy="epoch",
            save_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorWithPadding(blank),
        compute_metrics=lambda p: {
            "accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())
        },
    )
    trainer.add_callback(RayTrainReportCallback())
    prepare_trainer(trainer).train()


def _blank_tokenizer(pad: int) -> Any:
    """Only pads: the texts are tokens already."""
    from tokenizers import Tokenizer, models

    vocabulary = {str(i): i for i in range(pad)} | {"p": pad}
    return Tokenizer(models.WordLevel(vocabulary, unk_token="p"))


if __name__ == "__main__":
    main()
