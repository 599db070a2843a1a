"""The file that MLflow runs when a packaged model is loaded. It travels with the model.

Needs what lies beside it (`code/gpt2cls`, `artifacts/model`) and the packages named in its
requirements; nothing of the other rooms, no Ray, and nothing is unpickled.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class PackagedClassifier(PythonModel):  # type: ignore[misc]
    """Texts in a DataFrame to `label`, `score` and one `p_<label>` column per label, or `value`."""

    def load_context(self, context: Any) -> None:  # MLflow finds the parameter by this name
        from gpt2cls.predict import Predictor

        self.predictor = Predictor.load(Path(context.artifacts["model"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        return self.predictor.predict_frame(model_input)


set_model(PackagedClassifier())
