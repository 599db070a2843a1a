"""A classifier and its labelled texts, as the session of a rank asks for them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpt2cls.config import ModelConfig
from gpt2cls.data.batches import RowSource, SequenceRows, TokenRows
from gpt2cls.data.encode import open_tokens
from gpt2cls.data.tasks import Task
from gpt2cls.errors import RequestError
from gpt2cls.model.backbone import OurBackbone
from gpt2cls.model.classifier import Classifier, build_classifier
from gpt2cls.model.head import AdaptiveHead
from gpt2cls.model.head_rules import CLUSTERS_FROM, check_head, has_clusters
from gpt2cls.model.latent import begin_with, latent_vectors
from gpt2cls.model.vocabulary import keep_used_rows, used_tokens
from gpt2cls.training.auxiliary import joint_loss
from gpt2cls.training.classification import open_classification, selecting_metric
from gpt2cls.training.compute import Compute
from gpt2cls.training.features import kept_features
from gpt2cls.training.freezing import Depth, ever_trainable
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.optim import token_table
from gpt2cls.training.payload import RankPayload
from gpt2cls.training.phases import Phases
from gpt2cls.training.precision import Name
from gpt2cls.training.ranks import Ranks
from gpt2cls.training.subject import Subject


def learn_labels(
    payload: RankPayload, ranks: Ranks, precision: Name, tell: Callable[[str], None]
) -> Subject:
    """What a finetune job learns; `tell` is given words about what is kept of frozen layers.

    Raises:
        RequestError: the settings do not fit the data.
    """
    config, task = payload.train, Task.from_json(payload.task)
    model = new_model(payload, task, ranks)
    notes = _notes(model, payload.model, task)
    if payload.model.embedding_init == "lsa" and ranks.is_first:  # the others get its weights
        notes = (*notes, _begin_with_texts(model, payload))
    budget = TokenBudget.for_device(
        ranks.device, model.backbone.width, payload.tokens_per_micro_batch, precision
    )
    names = ever_trainable(model, config.freeze, config.epochs)
    # The loss of a text is over the whole vocabulary.
    may_shrink = "backbone.wte.weight" in names and not config.lm_weight
    if may_shrink and isinstance(model.backbone, OurBackbone):
        keep_used_rows(model.backbone, _used_tokens(payload))
    data = open_classification(payload, task, Compute(ranks, precision, budget))

    def keep(rows: TokenRows | SequenceRows, depth: Depth) -> RowSource:
        cache_dir = (payload.cache_dir or payload.job_dir) / "features"
        name = payload.job_dir.name
        return kept_features(model, rows, cache_dir, data.compute, job=name, tell=tell, depth=depth)

    loss_sum = data.objective.loss_sum
    if config.lm_weight:
        loss_sum = joint_loss(model, data.objective.loss_of_features, config.lm_weight)
    phases = Phases(data, model, config.freeze, keep)
    return Subject(
        model=model,
        names=names,
        steps_per_epoch=data.plan.steps_per_epoch,
        select_metric=selecting_metric(payload),
        compute=data.compute,
        data_of_step=phases.data_of_step,
        loss_sum=loss_sum,
        evaluate=phases.evaluate,
        notes=notes,
    )


def _notes(model: Classifier, config: ModelConfig, task: Task) -> tuple[str, ...]:
    if config.head != "adaptive":
        return ()
    labels = f"model.head = adaptive: {len(task.labels):,} labels"
    if not isinstance(model.head, AdaptiveHead):
        return (
            f"{labels}, so one output for each; from {CLUSTERS_FROM:,} on they are clustered by "
            "frequency",
        )
    first, *ends = model.head.softmax.cutoffs
    sizes = ", ".join(f"{size:,}" for size in np.diff([first, *ends]))
    return (f"{labels}: the {first:,} most frequent in the root, the rest in clusters of {sizes}",)


def new_model(payload: RankPayload, task: Task, ranks: Ranks) -> Classifier:
    if payload.train.lm_epochs:
        raise RequestError(
            f"train.lm_epochs = {payload.train.lm_epochs}: a payload of its own fine-tunes the "
            "language model, before this one; set it to 0 here"
        )
    check_head(payload.model, task, label_smoothing=payload.train.label_smoothing)
    model = build_classifier(
        payload.model,
        task,
        vocab_size=payload.vocab_size,
        num_new=payload.num_new,
        pad_id=payload.pad_id,
        max_length=payload.max_length,
        seed=payload.train.seed,
        base_dir=payload.base_dir,
        label_counts_C=_label_counts(payload, task),
    )
    return model.to(ranks.device)


def _begin_with_texts(model: Classifier, payload: RankPayload) -> str:
    """Give the token embedding what the texts say; a sentence on it."""
    paths = [payload.train_tokens, payload.unlabelled_tokens]
    sets = [open_tokens(path) for path in paths if path is not None]
    latent = latent_vectors(sets, model.backbone.width)
    begin_with(token_table(model), latent)
    return (
        f"model.embedding_init = lsa: {len(latent.tokens_M):,} of {payload.vocab_size:,} tokens "
        f"begin with what {latent.num_texts:,} texts say of them"
    )


def _label_counts(payload: RankPayload, task: Task) -> NDArray[np.int64] | None:
    """The training rows of each label, where the head asks for them."""
    if not has_clusters(payload.model, task) or payload.train_labels is None:
        return None
    labels_N = np.load(payload.train_labels, allow_pickle=False)
    return np.bincount(labels_N, minlength=len(task.labels))


def _used_tokens(payload: RankPayload) -> NDArray[np.int64]:
    splits = [
        open_tokens(path).tokens for path in (payload.train_tokens, payload.validation_tokens)
    ]
    return used_tokens(splits, payload.vocab_size, payload.pad_id)
