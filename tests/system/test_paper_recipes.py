"""The recipe of the paper's size: it is built, takes a step, and says how large it is."""

import json
import os
from pathlib import Path

import pytest
from commands import Commands

RECIPES = Path(__file__).parents[2] / "recipes"
SETS = Path(os.environ.get("GPT2CLS_DATA") or Path(__file__).parents[3] / "shared" / "data")
SMALLER = {  # what takes minutes beside the step: evaluations, and a tokenizer of 30,000 entries
    "train.max_steps": 1,
    "data.max_length": 8,
    "data.validation": 0.005,
    "data.test": 0.005,
    "model.tokenizer": "{train: 1000}",
}

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not (SETS / "ag_news").is_dir(), reason=f"no ag_news in {SETS}"),
]


def test_the_paper_s_size_is_built_takes_a_step_and_says_how_large_it_is(tmp_path):
    here = Commands(tmp_path / "home", tmp_path, {"GPT2CLS_DATA": str(SETS)})
    settings = [word for key, value in SMALLER.items() for word in ("-s", f"{key}={value}")]
    done = here.run("run", str(RECIPES / "paper-paper.yaml"), "--json", *settings, timeout_s=560)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)["parameters"]
    block = 12 * 768 * 768 + 13 * 768  # as Radford et al. 2019 have it: weights, biases, norms
    assert sizes["backbone"] == (1_000 + 8) * 768 + 12 * block + 2 * 768
    assert sizes["pooling"] == 3 * (768 * 768 + 768)  # query, key and value of all heads
    assert sizes["head"] == 4 * 2 * 768 + 4
    assert sizes["total"] == sizes["backbone"] + sizes["pooling"] + sizes["head"]
    assert "warm-up scaled" in done.stderr
