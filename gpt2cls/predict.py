"""A trained classifier ready to be asked.

Letters in array names: N rows, C classes, B rows of a batch, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gpt2cls.data.batches import Batch, padded_length, rows_of_tokens
from gpt2cls.data.encode import encode_rows
from gpt2cls.data.forms import as_answers, is_choice_of, rows_of
from gpt2cls.data.tasks import VALUE
from gpt2cls.data.tokenizer import TextTokenizer
from gpt2cls.errors import RequestError
from gpt2cls.metrics import predictions
from gpt2cls.model.auto import AutoBackbone, HalfAutoBackbone
from gpt2cls.model.backbone import Backbone
from gpt2cls.model.classifier import Classifier
from gpt2cls.model.folder import ModelInfo, load_classifier, members_of
from gpt2cls.model.packed import AGREES_WITHIN, WORTH_IT_FROM, PackedGPT2, can_pack
from gpt2cls.training.allocator import keep_freed_memory
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.objectives import logits
from gpt2cls.training.precision import pick_precision

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

TOKENS_PER_BATCH_ON_GPU = 131_072
PAD_TO = {"cpu": 1, "cuda": 8}
"""Matrix units like multiples of 8; a processor just works through the padding."""
ROWS_ENCODED_AT_ONCE = 10_000
COMPANY_MATTERS_BY = 0.02
"""In bf16: what else is asked decides how sums are rounded."""
PROBE_ROWS, PROBE_TOKENS = 16, 32


@dataclass(frozen=True)
class Predictor:
    """The model of a folder, and what is needed to ask it."""

    model: Classifier
    tokenizer: TextTokenizer
    info: ModelInfo
    device: torch.device
    others: tuple["Predictor", ...] = ()
    """Models that are asked too, whose answers are averaged with this one's."""

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto", threads: int | None = None) -> "Predictor":
        """Read a model folder; `auto` takes the GPU when there is one.

        Raises:
            ModelError: a file is missing, changed or malformed.
            RequestError: there is no such device.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        keep_freed_memory()
        place = _device(device)
        first, *others = [
            cls.of(*load_classifier(member), place) for member in members_of(folder) or [folder]
        ]
        return replace(first, others=tuple(others))

    @classmethod
    def of(
        cls, model: Classifier, tokenizer: TextTokenizer, info: ModelInfo, device: torch.device
    ) -> "Predictor":
        """Ask `model`, in bf16 where the processor has it and the answers agree."""
        return cls(fastest_that_agrees(model.to(device).eval(), info), tokenizer, info, device)

    @property
    def tolerance(self) -> float:
        """By how much a probability, or a value, may differ when other texts are asked with it."""
        is_half = isinstance(self.model.backbone, PackedGPT2 | HalfAutoBackbone)
        return (COMPANY_MATTERS_BY if is_half else 1e-4) * self.info.task.std

    @property
    def needs_transformers(self) -> bool:
        """Whether a backbone is none of our own."""
        return any(isinstance(one.model.backbone, AutoBackbone) for one in (self, *self.others))

    @property
    def labels(self) -> tuple[str, ...]:
        return self.info.task.labels

    @property
    def text_columns(self) -> tuple[str, ...]:
        """One column of texts, or the two of pairs; last that of the answers to choose from."""
        return self.info.text_columns

    def ask(self, columns: Sequence[Sequence[Any]]) -> NDArray[np.float32]:
        """As `probabilities`, of the values of `text_columns`."""
        return self.probabilities(*rows_of(columns, self.info.task))

    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[Any] | None = None
    ) -> NDArray[np.float32]:
        """Probabilities [N, C], or values [N, 1] of regression.

        They are in the order of the texts, whatever order they were computed in.
        """
        answers_NC = self.of_each(texts, pairs)
        return answers_NC[0] if len(answers_NC) == 1 else np.mean(answers_NC, axis=0)

    def of_each(
        self, texts: Sequence[str], pairs: Sequence[Any] | None = None
    ) -> list[NDArray[np.float32]]:
        """What each model of an ensemble answers, its probabilities [N, C]."""
        return [one._own(texts, pairs) for one in (self, *self.others)]

    def _own(self, texts: Sequence[str], pairs: Sequence[Any] | None) -> NDArray[np.float32]:
        probs_NC = np.empty((len(texts), len(self.labels)), np.float32)
        for first in range(0, len(texts), ROWS_ENCODED_AT_ONCE):
            some = slice(first, first + ROWS_ENCODED_AT_ONCE)
            some_pairs = None if pairs is None else pairs[some]
            self._fill(probs_NC[some], texts[some], some_pairs)
        return probs_NC

    def _fill(
        self, probs_NC: NDArray[np.float32], texts: Sequence[str], pairs: Sequence[Any] | None
    ) -> None:
        task, max_length = self.info.task, self.info.max_length
        rows = rows_of_tokens(
            encode_rows(texts, pairs, self.tokenizer, max_length, task),
            np.zeros(len(texts), np.int64),  # nobody asks for their labels
            pad_id=self.info.pad_id,
            max_length=max_length,
            pad_to=PAD_TO[self.device.type],
            num_sequences=task.num_sequences,
        )

        def ask(some: NDArray[np.int64]) -> None:
            probs_NC[some] = self._answer(rows.batch(some))

        batches = list(self._batches(rows.lengths))
        if len(batches) > 1 and isinstance(self.model.backbone, PackedGPT2):
            _by_threads(ask, batches)
        else:
            for batch in batches:
                ask(batch)

    def _batches(self, lengths: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
        """Rows of about equal length together, so that little of a batch is padding."""
        width = self.model.backbone.width
        on_gpu = TOKENS_PER_BATCH_ON_GPU if self.device.type == "cuda" else None
        budget = TokenBudget.for_device(self.device, width, on_gpu).tokens
        most = self.info.max_length * self.info.task.num_sequences
        order = np.argsort(-lengths, kind="stable")
        first = 0
        while first < len(order):
            width = padded_length(int(lengths[order[first]]), PAD_TO[self.device.type], most)
            end = first + max(1, budget // width)
            yield order[first:end]
            first = end

    @torch.inference_mode()
    def _answer(self, batch: Batch) -> NDArray[np.float32]:
        logits_BC = logits(self.model, batch.to(self.device))
        return self.model.probabilities(logits_BC).float().cpu().numpy()

    def columns(self, probs_NC: NDArray[np.float32]) -> dict[str, Sequence[Any]]:
        """The predicted columns: `label`, `score`, and `p_<label>` for each label.

        Several labels are joined by `|` and may be none; the score is the highest probability. Of
        regression there is one column, `value`.
        """
        if self.info.task.kind == "regression":
            return {VALUE: probs_NC[:, 0]}  # type: ignore[dict-item]
        thresholds = self.info.thresholds
        if self.info.task.kind == "multi_label":
            chosen_NC = predictions(probs_NC, 2, thresholds)
            names = ["|".join(self.labels[c] for c in np.flatnonzero(row)) for row in chosen_NC]
        else:
            names = [self.labels[c] for c in predictions(probs_NC, 1, None)]
        columns: dict[str, Any] = {"label": names, "score": probs_NC.max(axis=1)}
        return columns | {f"p_{name}": probs_NC[:, c] for c, name in enumerate(self.labels)}

    def confidence(self, probs_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        """How likely each row's labels are right: of several, the one that is least likely so."""
        if self.info.task.kind == "multi_label":
            chosen_NC = predictions(probs_NC, 2, self.info.thresholds)
            probs_NC = np.where(chosen_NC, probs_NC, 1 - probs_NC)
            return np.asarray(probs_NC.min(axis=1))
        return np.asarray(probs_NC.max(axis=1))

    def predict_frame(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The predicted columns for a frame that has the text columns; its index is kept.

        Raises:
            RequestError: a column is missing, or holds something that is not a text.
        """
        import pandas as pd

        num_answers = None
        read = []
        for name in self.text_columns:
            num_answers = len(self.labels) if name == self.info.choices else None
            read.append(_texts(frame, name, num_answers))
        columns = self.columns(self.ask(read))
        found = pd.DataFrame(columns, index=frame.index)
        return found.astype({name: np.float64 for name in found.columns if name != "label"})


def fastest_that_agrees(model: Classifier, info: ModelInfo) -> Classifier:
    """`model` in bf16, or `model` itself where that would not be faster or would not agree.

    To agree is to give probabilities within `AGREES_WITHIN` of those in fp32 (of values: that many
    standard deviations), for every label of
    every text of a probe: so a label can change only where two were as likely, but for twice that.
    The probe depends on nothing but the sizes, so each process decides alike for one model.
    """
    place = next(model.parameters()).device
    if place.type != "cpu" or pick_precision("auto", place)[0] != "bf16":
        return model
    if isinstance(model.backbone, AutoBackbone):
        try:
            return _in_half(model, info)
        except Exception:  # a library of hundreds of architectures raises anything
            return model
    if not can_pack(model.backbone):
        return model
    return _if_it_agrees(PackedGPT2(model.backbone), model, info)


def _in_half(model: Classifier, info: ModelInfo) -> Classifier:
    backbone = cast(AutoBackbone, model.backbone)
    if backbone.width < WORTH_IT_FROM:
        return model
    return _if_it_agrees(HalfAutoBackbone(backbone), model, info)


def _if_it_agrees(backbone: nn.Module, model: Classifier, info: ModelInfo) -> Classifier:
    # It is no backbone that could be trained or saved, but it can be asked like one.
    fast = Classifier(cast(Backbone, backbone), model.pooling, model.head).eval()
    return fast if _largest_difference(model, fast, info) <= AGREES_WITHIN else model


@torch.inference_mode()
def _largest_difference(one: Classifier, other: Classifier, info: ModelInfo) -> float:
    draw = torch.Generator().manual_seed(0)
    T = min(PROBE_TOKENS, info.max_length)
    # Both orders of a pair are read as texts are; only answers need others beside them.
    is_choice = info.task.kind == "multiple_choice"
    shape = (PROBE_ROWS, info.task.num_sequences) if is_choice else (PROBE_ROWS,)
    tokens_BT = torch.randint(info.vocab_size, (*shape, T), generator=draw)
    lengths_B = torch.randint(1, T + 1, shape, generator=draw)
    batch = (tokens_BT, lengths_B, torch.zeros(PROBE_ROWS))
    probs_BC = one.probabilities(one(*batch))
    difference_BC = (probs_BC - other.probabilities(other(*batch))) / info.task.std
    return float(difference_BC.abs().max().nan_to_num(torch.inf))


def _by_threads(work: Callable[[T], None], items: Sequence[T]) -> None:
    """Each item by one thread, beside the others: threads that share one wait for each other."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, items):  # raises what `work` raised
                pass
    finally:
        torch.set_num_threads(threads)  # the last call says what a new thread begins with


def _texts(frame: "pd.DataFrame", name: str, num_answers: int | None = None) -> list[Any]:
    if name not in frame.columns:
        there = ", ".join(repr(str(column)) for column in frame.columns[:20]) or "none"
        raise RequestError(f"no column {name!r}, which the model reads; there are: {there}")
    values = frame[name].tolist()
    if num_answers is not None:
        values = [as_answers(value) for value in values]
        for row, value in enumerate(values):
            if not is_choice_of(value, num_answers):
                words = f"where a list of 2 to {num_answers} texts is due"
                raise RequestError(f"row {row}, column {name!r}: {value!r:.60} {words}")
        return values
    for row, value in enumerate(values):
        if not isinstance(value, str):
            found = f"{value!r:.40} ({type(value).__name__})"
            raise RequestError(f"row {row}, column {name!r}: {found} where a text is due")
    return values


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in PAD_TO:
        raise RequestError(f"device = {name!r}: must be auto, {', '.join(PAD_TO)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("device = 'cuda': this machine shows no GPU to PyTorch; use cpu or auto")
    return torch.device(name)
