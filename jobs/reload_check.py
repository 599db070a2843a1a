"""Load a packaged model as a stranger would, and write down what it predicts.

Run as a file, in a process of its own, with unpickling switched off by the caller's environment:
`python -P reload_check.py MODEL_URI FRAME_JSON OUTPUT_NPY HAS_OWN_CODE`. Imports nothing of this
project, so that what is loaded is the code inside the model, where HAS_OWN_CODE is 1.
"""

import json
import sys
from pathlib import Path

# Not needed, therefore not there: a model that imports them works only on this machine.
for _name in ("ray", "jobs", "cluster", "tune_spaces"):
    sys.modules[_name] = None  # type: ignore[assignment]

import mlflow  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402


def main(model_uri: str, frame_file: Path, output: Path, has_own_code: bool) -> None:
    frame = pd.DataFrame(json.loads(frame_file.read_text()))
    model = mlflow.pyfunc.load_model(model_uri)
    predicted = model.predict(frame)
    home = Path(sys.modules["gpt2cls"].__file__ or "").resolve()
    if has_own_code and home.parent.parent.name != "code":
        raise SystemExit(f"the model used the code in {home.parent}, not its own")
    columns = [name for name in predicted.columns if name == "value" or name.startswith("p_")]
    np.save(output, predicted[columns].to_numpy(np.float64))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "1")
