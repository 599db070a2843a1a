"""Vectors of tokens from the texts they occur in: what a new embedding may begin with."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2cls.data.encode import TokenSet

MOST_TEXTS, MOST_TOKENS = 20_000, 10_000_000
"""Of more, evenly spaced texts are read: time and memory would go on to grow."""
IN_TEXTS = 2
"""A token of one text alone would only stand for that text."""
_ITERATIONS = 2
_SEED = 0x6C7361
"""Of the decomposition, whatever the seed of the job: it only approximates one result."""


@dataclass(frozen=True)
class LatentVectors:
    """One vector for each of M tokens."""

    num_texts: int
    """That were read."""
    tokens_M: NDArray[np.int64]
    vectors_MD: NDArray[np.float32]


def latent_vectors(sets: list[TokenSet], width: int) -> LatentVectors:
    """Latent semantic analysis of the texts of `sets`: tokens of the same texts are alike.

    The matrix of texts and tokens, weighted with (1 + log tf) idf and each text of length 1, is
    factored by a truncated singular value decomposition of at most `width` values; a token is its
    right singular vector, times the square roots of the singular values, turned at random so that
    each of the `width` dimensions has its share. No token: `tokens_M` is empty.

    Source: Deerwester et al. 1990, "Indexing by latent semantic analysis"; the square root as in
        Levy, Goldberg and Dagan 2015, "Improving distributional similarity", section 3.3.
    """
    tokens, offsets = _some_texts(sets)
    found, columns = np.unique(tokens, return_inverse=True)
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    cells, counts = np.unique(rows * max(len(found), 1) + columns, return_counts=True)
    rows, columns = np.divmod(cells, max(len(found), 1))
    in_texts = np.bincount(columns, minlength=len(found))
    is_kept = in_texts[columns] >= IN_TEXTS
    kept = np.flatnonzero(in_texts >= IN_TEXTS)
    shape = (len(offsets) - 1, len(kept))
    num_values = min(width, *shape)
    if num_values == 0:
        return LatentVectors(shape[0], np.empty(0, np.int64), np.empty((0, width), np.float32))
    idf = np.log(shape[0] / in_texts) + 1
    weights = ((1 + np.log(counts)) * idf[columns])[is_kept]
    rows, columns = rows[is_kept], np.searchsorted(kept, columns[is_kept])
    weights /= np.sqrt(np.bincount(rows, weights**2))[rows]
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([rows, columns])),
        torch.from_numpy(weights.astype(np.float32)),
        shape,
        check_invariants=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        _, values, vectors = torch.svd_lowrank(matrix, q=num_values, niter=_ITERATIONS)
        rotation = torch.linalg.qr(torch.randn(width, width))[0]
    turned = (vectors * values.sqrt()) @ rotation[:num_values]
    return LatentVectors(shape[0], found[kept], turned.numpy())


def _some_texts(sets: list[TokenSet]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and offsets of the texts that are read; of rows of several, each is a text."""
    num_texts = sum(len(of_set.offsets) - 1 for of_set in sets)
    num_tokens = sum(int(of_set.offsets[-1]) for of_set in sets)
    every = max(1, -(-num_texts // MOST_TEXTS), -(-num_tokens // MOST_TOKENS))
    parts, lengths = [], []
    for of_set in sets:
        for i in range(0, len(of_set.offsets) - 1, every):
            start, end = of_set.offsets[i : i + 2]
            parts.append(np.asarray(of_set.tokens[start:end], np.int64))
            lengths.append(end - start)
    tokens = np.concatenate([np.empty(0, np.int64), *parts])
    return tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


@torch.no_grad()
def begin_with(table: Tensor, latent: LatentVectors) -> None:
    """Put the vectors into their rows of an embedding [V, D], as widely spread as it is drawn."""
    if not len(latent.tokens_M):
        return
    vectors_MD = torch.from_numpy(latent.vectors_MD).to(table.device)
    scale = table.std() / vectors_MD.square().mean().sqrt().clamp(min=1e-12)
    table[torch.from_numpy(latent.tokens_M).to(table.device)] = vectors_MD * scale
