"""Which head serves which labels; what can be said of a head before any weight is made.

Imports nothing heavy, so that a job can be refused before torch is there.
"""

from gpt2cls.config import ModelConfig
from gpt2cls.data.tasks import Task
from gpt2cls.errors import ModelError

CLUSTERS_FROM = 1_000
"""Labels. With fewer the whole softmax costs less than a text's way through the backbone."""
MOST_QUERIES = 1_000
"""Labels of a decoder: all of them see each other, for every text."""


def has_clusters(model: ModelConfig, task: Task) -> bool:
    """Whether the labels are clustered by frequency; else the head has one softmax over all."""
    return model.head == "adaptive" and len(task.labels) >= CLUSTERS_FROM


def check_head(model: ModelConfig, task: Task, *, label_smoothing: float = 0.0) -> None:
    """Refuse a head that cannot do what the job asks for with these labels.

    Raises:
        ModelError: names the field and the way out.
    """
    num_labels = len(task.labels)
    if model.head == "encdec" and num_labels > MOST_QUERIES:
        way_out = "adaptive" if task.kind == "single_label" else "linear"
        raise ModelError(
            f"model.head = encdec: {num_labels:,} labels would be as many queries for every text; "
            f"at most {MOST_QUERIES:,}; set model.head to {way_out}"
        )
    if not has_clusters(model, task):
        return
    clusters = f"{num_labels:,} labels are clustered by model.head = adaptive"
    if model.hidden:
        raise ModelError(
            f"model.hidden = {model.hidden}: {clusters}, each cluster with a layer of its own; set "
            "model.hidden to 0, or model.head to linear"
        )
    if task.kind == "multi_label":
        raise ModelError(
            f"{clusters}, and a text has several: clusters part one softmax, and several labels "
            "have none; set model.head to linear"
        )
    if label_smoothing:
        raise ModelError(
            f"train.label_smoothing = {label_smoothing}: {clusters}, whose training computes "
            "only the clusters that it needs, and smoothing needs all of them; set it to 0, or "
            "set model.head to linear"
        )
