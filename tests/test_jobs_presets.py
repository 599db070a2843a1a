"""What a preset fills, and what it leaves to the rest of the job."""

from jobs.presets import fill

PAPER = {"kind": "finetune", "name": "x", "preset": "paper", "data": {"train": "bbc-news"}}


def test_the_preset_paper_has_the_published_settings():
    filled = fill(PAPER)
    assert filled["model"] == {
        "backbone": "gpt2",
        "pooling": "attention",
        "head": "adaptive",
        "heads": 4,
        "dropout": 0.2,
        "temperature": 0.5,
    }
    assert filled["train"] == {
        "epochs": 100,
        "batch_size": 16,
        "lr": 1.0e-4,
        "warmup": 10_000,
        "weight_decay": 0.1,
    }


def test_on_gpus_it_computes_in_fp16_unless_the_job_says_otherwise():
    on_gpus = PAPER | {"cluster": {"gpus_per_worker": 1}}
    assert fill(on_gpus)["train"]["precision"] == "fp16"
    assert fill(on_gpus | {"train": {"precision": "bf16"}})["train"]["precision"] == "bf16"
    assert "precision" not in fill(PAPER | {"cluster": {"gpus_per_worker": 0}})["train"]


def test_the_encoder_decoder_form_gets_no_pooling_from_a_preset():
    filled = fill(PAPER | {"model": {"head": "encdec"}})
    assert "pooling" not in filled["model"]
    assert (filled["model"]["head"], filled["model"]["heads"]) == ("encdec", 4)
    assert fill(PAPER | {"preset": "ulmfit", "model": {"head": "encdec"}})["model"] == {
        "head": "encdec",
        "dropout": 0.1,
        "temperature": 1.0,
    }
    for_many = fill(PAPER | {"preset": "ulmfit", "model": {"head": "adaptive"}})["model"]
    assert "hidden" not in for_many and for_many["pooling"] == "concat"
    assert "pooling" in fill(PAPER)["model"]  # what was left out once is there again


def test_values_that_are_no_blocks_are_left_to_the_check():
    assert fill(PAPER | {"model": 3, "cluster": None})["model"] == 3
