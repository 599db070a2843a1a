"""What the frozen layers make of every text: computed once and kept on disk, not every epoch.

Pooled vectors [N, F] in fp32 where nothing below the head learns; else the hidden states of all
tokens [tokens, D] at the place up to which nothing learns, in the precision of the job.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt2cls.data.batches import (
    Batch,
    FeatureRows,
    HiddenRows,
    RowSource,
    SequenceRows,
    TokenRows,
    as_tensor,
    read_lengths,
)
from gpt2cls.model.auto import AutoBackbone
from gpt2cls.model.choice_head import ChoiceHead
from gpt2cls.model.gpt2 import GPT2Backbone
from gpt2cls.model.pooling import token_mask
from gpt2cls.training.compute import Compute
from gpt2cls.training.evaluating import for_each_batch
from gpt2cls.training.freezing import Depth, blocks_of
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.precision import Name
from gpt2cls.training.shelf import (
    ArraySpec,
    limit_bytes,
    make_room,
    new_array,
    open_array,
    publish,
    reserve,
    why_refused,
)

TELL_EVERY_S = 10.0
CHECKED_TEXTS = 4
TOLERANCES: dict[Name, float] = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.05}
"""By how much a value that is found and one that is computed again may differ, relative to the
length of the vector. Batches of another shape may round otherwise: in fp32 7e-7 was seen; one
rounding to bf16 is up to 0.004. Values of other weights or texts differ by far more."""


@dataclass(frozen=True)
class Kept:
    """What is kept of which texts."""

    source: TokenRows | SequenceRows
    depth: Depth
    spec: ArraySpec
    offsets: NDArray[np.int64]
    """Of row i (pooled) or of text i of the source: the vectors offsets[i] to offsets[i + 1]."""

    def rows(self, values: NDArray[Any]) -> FeatureRows | HiddenRows:
        if self.depth == "pooled":
            return FeatureRows(self.source, values)
        block = None if self.depth == "final" else self.depth
        return HiddenRows(self.source, values, self.offsets, block)

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the vectors of these rows are, one row after another."""
        of = rows if self.depth == "pooled" else self.source.texts(rows)
        pieces = zip(self.offsets[of].tolist(), self.offsets[of + 1].tolist(), strict=True)
        return np.concatenate([np.arange(start, end) for start, end in pieces])


def kept_features(
    model: nn.Module,
    source: TokenRows | SequenceRows,
    cache_dir: Path,
    compute: Compute,
    *,
    job: str,
    tell: Callable[[str], None],
    depth: Depth = "pooled",
) -> RowSource:
    """The rows of `source` with what stands at `depth`, from the cache or computed by all ranks.

    Every rank calls it at the same time. Where it cannot be kept, the rows are given back as they
    are, and `tell` gets the reason: all is computed as if there were no cache.

    Args:
        model: what is below `depth` must not change any more.
        source: the rows.
        cache_dir: on storage that all ranks share.
        compute: each rank computes its share.
        job: keeps two jobs that compute the same at once out of each other's way.
        tell: takes words about the progress.
        depth: where the network is cut.
    """
    if isinstance(depth, int) and not _can_be_cut(model, source, depth, compute):
        tell("this backbone cannot be cut at a block: what is frozen is computed in every step")
        return source
    if (
        isinstance(source, SequenceRows)
        and depth == "pooled"
        and isinstance(model.head, ChoiceHead)
    ):
        tell("rows of several answers: what is frozen is computed in every step")
        return source
    kept, ranks = _kept(model, source, depth, compute.precision), compute.ranks
    key = features_key(model, source, depth, compute.precision)
    values = open_array(cache_dir / key, kept.spec)
    # All ranks take the same branch: no rank can make the folder before the others have looked.
    if ranks.total(float(values is not None)) == ranks.world and values is not None:
        is_right = _is_right(model, kept, values, compute)
        if ranks.total(float(is_right)) == ranks.world:
            return kept.rows(values)
        tell("kept features are not those that the model computes: computing them anew")
    values = None  # of a torn or wrong file
    aside = cache_dir / f".{key}.{job}.writing"
    refused = _reserved(cache_dir, aside, kept.spec) if ranks.is_first else None
    if ranks.total(float(refused is not None)):
        tell(f"no room for features: {refused}; what is frozen is computed in every step")
        return source
    _compute(model, kept, new_array(aside, kept.spec), compute, tell)
    if ranks.is_first:
        publish(aside, cache_dir / key)
    ranks.total(0)  # published
    values = open_array(cache_dir / key, kept.spec)
    # Nobody makes room, and so removes it, before all have opened it.
    if ranks.total(float(values is not None)) < ranks.world or values is None:
        tell("the features were removed at once: what is frozen is computed in every step")
        return source
    return kept.rows(values)


def features_key(
    model: nn.Module, source: TokenRows | SequenceRows, depth: Depth, precision: Name
) -> str:
    """A fingerprint of all that the values depend on: content, not names or times of files."""
    digest = hashlib.blake2b(f"3 {precision} {depth}".encode(), digest_size=16)
    below = _tensors_below(model, depth)
    for name, tensor in sorted(model.state_dict().items()):
        if name in below:
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    digest.update(_shape(model.backbone).encode())
    # The limit too: which padded shapes there are decides the last bits of a sum.
    pooling: Any = model.pooling
    shapes = (source.max_length, source.pad_to, source.pad_id)
    digest.update(f"{pooling.kind} {shapes}".encode())
    starts = [source.starts] if isinstance(source, SequenceRows) else []
    for array in (source.data.offsets, source.data.tokens, *starts):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Progress:
    """Says now and then how much of a long work is done."""

    def __init__(self, num_rows: int, tell: Callable[[str], None]) -> None:
        self.num_rows, self.tell = num_rows, tell
        self.done, self.told_s = 0, time.monotonic()

    def add(self, num_rows: int) -> None:
        self.done += num_rows
        if time.monotonic() - self.told_s > TELL_EVERY_S:
            self.told_s = time.monotonic()
            self.tell(f"features: {self.done / self.num_rows:.0%} of the texts")


def _kept(
    model: nn.Module, source: TokenRows | SequenceRows, depth: Depth, precision: Name
) -> Kept:
    is_pooled = depth == "pooled"
    of_each = (
        np.ones(len(source.lengths), np.int64) if is_pooled else read_lengths(source.data.lengths)
    )
    backbone: Any = model.backbone
    pooling: Any = model.pooling
    width = backbone.width_below(depth) if isinstance(depth, int) else backbone.width
    width = pooling.width if is_pooled else width
    is_exact = is_pooled or precision == "fp32"
    offsets = np.concatenate([[0], np.cumsum(of_each)])
    spec = ArraySpec((int(offsets[-1]), width), np.float32 if is_exact else np.int16)
    return Kept(source, depth, spec, offsets)


def _tensors_below(model: nn.Module, depth: Depth) -> set[str]:
    """The names of all tensors that the values depend on: what is not surely above."""
    named = model.state_dict(keep_vars=True)
    parts = ("backbone.", "pooling.") if depth == "pooled" else ("backbone.",)
    above: set[int] = set()
    if isinstance(depth, int):
        modules = [module for block in blocks_of(model)[depth + 1 :] for module in block]
        above = {id(t) for module in modules for t in module.state_dict(keep_vars=True).values()}
    return {n for n, tensor in named.items() if n.startswith(parts) and id(tensor) not in above}


def _shape(backbone: Any) -> str:
    """What shows in no tensor, such as the number of heads."""
    if isinstance(backbone, AutoBackbone):
        return backbone.shape
    if isinstance(backbone, GPT2Backbone):
        return repr(replace(backbone.config, raw={}))
    return repr(getattr(backbone, "config", None))


def _reserved(cache_dir: Path, aside: Path, spec: ArraySpec) -> str | None:
    """Make room and reserve it; the reason if that cannot be."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        limit = limit_bytes(cache_dir)
        if refused := why_refused(spec.size_bytes, limit):
            return refused
        make_room(cache_dir, spec.size_bytes, limit)
        reserve(aside, spec)
    except OSError as error:
        return str(error)
    return None


def _compute(
    model: nn.Module, kept: Kept, out: NDArray[Any], compute: Compute, tell: Callable[[str], None]
) -> None:
    ranks, lengths = compute.ranks, kept.source.lengths
    size_mb = kept.spec.size_bytes / 1e6
    tell(f"{_what(kept.depth)} of {len(lengths):,} texts, once ({size_mb:,.1f} MB)")
    progress = Progress(-(-len(lengths) // ranks.world), tell)

    def keep(rows: NDArray[np.int64], batch: Batch) -> None:
        out[kept.places(rows)] = _stored(_values(model, kept.depth, batch), kept.spec)
        progress.add(len(rows))

    # Batches of one size, dealt whole: the last bits of a value do not depend on how many ranks
    # compute it, nor on a larger budget.
    width: int = model.backbone.width  # type: ignore[union-attr, assignment]
    cpu = torch.device("cpu")
    budget = TokenBudget.for_device(cpu, width, precision=compute.precision)
    chunks = list(kept.source.cut(np.argsort(lengths, kind="stable"), budget.tokens))
    for_each_batch(model, kept.source, chunks[ranks.rank :: ranks.world], keep, compute)
    out.flush()  # type: ignore[attr-defined]
    ranks.total(0)  # every rank has written its rows


def _can_be_cut(
    model: nn.Module, source: TokenRows | SequenceRows, block: int, compute: Compute
) -> bool:
    """Whether a network's two parts, one after the other, are what it is whole.

    Of ours that is so. Of another it is tried, on a handful of texts in fp32.
    """
    backbone, whole = model.backbone, cast(Any, model)
    if not isinstance(backbone, AutoBackbone):
        return True
    answers = []

    def check(_: NDArray[np.int64], batch: Batch) -> None:
        tokens, lengths = batch.tokens_BT, batch.lengths_B
        hidden_BTD = whole.hidden_below(tokens, lengths, block)
        expected = whole.features(tokens, lengths)
        difference = whole.features_above(hidden_BTD, lengths, block) - expected
        is_right = (difference.norm(dim=-1) <= TOLERANCES["fp32"] * expected.norm(dim=-1)).all()
        tokens_NT, lengths_N = tokens.flatten(0, -2), lengths.flatten().clamp(min=1)
        answers.append(
            bool(is_right)
            and hidden_BTD.shape[2] == backbone.width_below(block)
            and not backbone.computes_above(tokens_NT, lengths_N, block)
        )

    rows, ranks = np.arange(min(CHECKED_TEXTS, len(source.lengths))), compute.ranks
    try:
        for_each_batch(model, source, [rows], check, replace(compute, precision="fp32"))
    except Exception:  # a library of hundreds of architectures raises anything
        answers.append(False)
    return ranks.total(float(all(answers))) == ranks.world


def _is_right(model: nn.Module, kept: Kept, values: NDArray[Any], compute: Compute) -> bool:
    """Whether a handful of texts, others on each rank, have the values that the model computes."""
    num_texts, ranks = len(kept.source.lengths), compute.ranks
    chosen = np.linspace(0, num_texts - 1, CHECKED_TEXTS * ranks.world).astype(np.int64)
    rows = np.unique(chosen[ranks.rank :: ranks.world])
    answers = [True]

    def check(rows: NDArray[np.int64], batch: Batch) -> None:
        found = as_tensor(np.array(values[kept.places(rows)])).float()
        expected = _values(model, kept.depth, batch)
        allowed = TOLERANCES[compute.precision] * expected.norm(dim=1)
        # all() of "small enough", not any() of "too large": NaN is neither.
        answers.append(bool(((found - expected).norm(dim=1) <= allowed).all()))

    for_each_batch(model, kept.source, [rows], check, compute)
    return all(answers)


def _values(model: nn.Module, depth: Depth, batch: Batch) -> Tensor:
    """The vectors at `depth` of all texts of a batch, one text after another; fp32."""
    if depth == "pooled":
        return model.features(batch.tokens_BT, batch.lengths_B).float().cpu()  # type: ignore[operator, no-any-return]
    block = None if depth == "final" else depth
    hidden_BTD: Tensor = model.hidden_below(batch.tokens_BT, batch.lengths_B, block)  # type: ignore[operator]
    lengths_N = batch.lengths_B[batch.lengths_B > 0]
    return hidden_BTD[token_mask(lengths_N, hidden_BTD.shape[1])].float().cpu()


def _stored(values: Tensor, spec: ArraySpec) -> NDArray[Any]:
    if spec.dtype == np.int16:
        return values.bfloat16().view(torch.int16).numpy()
    return values.numpy()


def _what(depth: Depth) -> str:
    if isinstance(depth, int):
        blocks = "the lowest block" if depth == 1 else f"the lowest {depth} blocks"
        return f"{blocks} and the embeddings are frozen: computing the hidden states above them"
    which = "features" if depth == "pooled" else "hidden states"
    return f"the backbone is frozen: computing its {which}"
