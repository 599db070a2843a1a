"""A softmax over thousands of labels, clustered by frequency: what is rare costs little.

The frequent labels stand in the root, with one more entry for each cluster of rarer ones. A
cluster is a softmax of its own behind a narrower layer, and a label in it has the probability of
the cluster's entry times its own within the cluster. Training computes the root, and of a
cluster only the rows whose label is in it.

Source: Grave et al. 2017, "Efficient softmax approximation for GPUs", sections 4.2 and 4.3. The
computation is that of torch.nn.AdaptiveLogSoftmaxWithLoss with a bias in the root; that class has
no temperature.

Letters in tensor names: B rows, F features, C labels, R entries of the root, S labels of a
cluster.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

NARROWER = 4
"""Each cluster's layer is so many times narrower than that of the cluster before it."""
NARROWEST = 16
"""Features that a cluster is left with at least, where there are as many."""


def cutoffs_of(num_labels: int) -> list[int]:
    """Where the root ends and where each cluster does, in labels from the most frequent on.

    A sixteenth of the labels in the root, then up to a quarter, then the rest: where a label's
    frequency goes like 1 / rank, as that of words does, about 70, 15 and 15% of the rows.
    """
    return [max(num_labels // 16, 1), max(num_labels // 4, 2), num_labels]


def places_by_frequency(counts: NDArray[Any]) -> NDArray[np.int64]:
    """The place of each label, 0 for the most frequent; of equals the first label goes first."""
    places = np.empty(len(counts), np.int64)
    places[np.argsort(-counts.astype(np.int64), kind="stable")] = np.arange(len(counts))
    return places


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities of labels that are numbered by their place, the most frequent first."""

    def __init__(self, num_features: int, cutoffs: Sequence[int]) -> None:
        super().__init__()
        self.cutoffs = list(cutoffs)
        self.root = nn.Linear(num_features, cutoffs[0] + len(cutoffs) - 1)
        nn.init.normal_(self.root.weight, std=0.02)
        nn.init.zeros_(self.root.bias)
        sizes = np.diff(self.cutoffs).tolist()
        self.clusters = nn.ModuleList(
            _cluster(num_features, _width(num_features, i), size)
            for i, size in enumerate(sizes, start=1)
        )

    def weigh_clusters(self, temperature: float) -> None:
        """Let all labels begin as likely as each other, at this temperature.

        Without it a cluster of thousands begins with the probability of one frequent label, and
        the first hundreds of steps go into the entries of the clusters.
        """
        sizes = torch.tensor(np.diff(self.cutoffs), dtype=torch.float32)
        with torch.no_grad():
            self.root.bias[self.cutoffs[0] :] = temperature * sizes.log()

    def log_probabilities(self, features_BF: Tensor, heat_B1: Tensor) -> Tensor:
        """Of all labels, [B, C]; each softmax divides its logits by `heat_B1`."""
        root_BR = (self.root(features_BF) / heat_B1).log_softmax(dim=1)
        first = self.cutoffs[0]
        parts = [root_BR[:, :first]]
        for i, cluster in enumerate(self.clusters):
            within_BS = (cluster(features_BF) / heat_B1).log_softmax(dim=1)
            parts.append(within_BS + root_BR[:, first + i, None])
        return torch.cat(parts, dim=1)

    def log_probability(self, features_BF: Tensor, heat_B1: Tensor, places_B: Tensor) -> Tensor:
        """Of one label per row, [B]: what `log_probabilities` has there, for less."""
        first = self.cutoffs[0]
        cluster_B = torch.zeros_like(places_B)  # 0: the root
        for end in self.cutoffs[:-1]:
            cluster_B += places_B >= end
        entry_B = torch.where(cluster_B == 0, places_B, first - 1 + cluster_B)
        root_BR = (self.root(features_BF) / heat_B1).log_softmax(dim=1)
        found_B: Tensor = root_BR.gather(1, entry_B[:, None]).squeeze(1)
        for i, cluster in enumerate(self.clusters):
            rows = (cluster_B == i + 1).nonzero().squeeze(1)
            if len(rows):
                within = (cluster(features_BF[rows]) / heat_B1[rows]).log_softmax(dim=1)
                at = (places_B[rows] - self.cutoffs[i])[:, None]
                found_B = found_B.index_add(0, rows, within.gather(1, at).squeeze(1))
        return found_B


def _width(num_features: int, cluster: int) -> int:
    """Features of a cluster (1 is the most frequent one)."""
    return max(num_features // int(NARROWER**cluster), min(num_features, NARROWEST))


def _cluster(num_features: int, width: int, size: int) -> nn.Sequential:
    narrow = nn.Linear(num_features, width, bias=False)
    wide = nn.Linear(width, size, bias=False)
    nn.init.normal_(wide.weight, std=0.02)
    return nn.Sequential(narrow, wide)
