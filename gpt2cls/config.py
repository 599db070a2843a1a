"""What can be set about the data, the model and the training of one classifier.

The job file embeds these models, so there is one definition of a learning rate. Light on
purpose: importing this file imports pydantic and nothing heavier.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema

BUILTIN_SHAPES = ("gpt2-tiny", "gpt2-mini", "gpt2-small", "awd-lstm-tiny", "awd-lstm")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _number_from_text(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; give the number it stands for."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value


Number = Annotated[float, BeforeValidator(_number_from_text), Field(allow_inf_nan=False)]
Rhythm = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8} (epoch|epochs|step|steps)$")]
Share = Annotated[Number, Field(gt=0, lt=1)]
Pair = Annotated[tuple[str, str], Strict(False)]
_Beta = Annotated[Number, Field(ge=0, lt=1)]


class Block(BaseModel):
    """A part of a job file: an unknown key is an error, a value never changes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class DataConfig(Block):
    """Where texts and labels come from."""

    train: str = Field(min_length=1)
    """A built-in name, a file, a glob, a directory, or hf:<dataset>[/<config>]."""
    validation: Share | str = 0.1
    """A share of train (stratified, seeded), or a source of its own."""
    test: Share | str | None = None
    """Likewise; None: the test split that comes with the source, if it has one."""
    text: str | Pair = "text"
    """The column of the text, or the two columns of a pair."""
    pair: Literal["ordered", "both_orders"] = "ordered"
    """Whether the order of a pair says something. both_orders: it does not, as in similarity: the
    model reads a pair in both, which takes twice the time, and adds up what it made of them."""
    choices: str | None = Field(None, min_length=1)
    """The column of the answers to choose from, a list of two texts or more; data.text is then the
    context, or [context, question], and the label is the number of the right answer, from 0. None:
    there is nothing to choose from."""
    special_tokens: Literal["none", "gpt1"] = "none"
    """What stands around texts. none: what the tokenizer itself puts there, which of GPT-2's is
    nothing. gpt1: three new tokens that learn, [start] text [extract] and [start] first [delimiter]
    second [extract]; pooling last reads the third."""
    label: str = "label"
    """The column of the label; one that holds lists makes the task multi-label."""
    task: Literal["classes", "regression"] = "classes"
    """What a label is: the name of a class, or (regression) a number that is to be predicted."""
    separator: str | None = Field(None, min_length=1)
    """Splits the label column into several labels; a list column needs none."""
    labelled: int | None = Field(None, ge=2, le=1_000_000_000)
    """Rows of train whose labels are used (of every class its share, seeded); the texts of the
    others are left to train.lm_epochs. None: all."""
    max_length: int = Field(512, ge=1, le=131_072)
    """Tokens; the rest of a text is cut off."""


_Source = Annotated[str, Field(min_length=1)]
Sources = _Source | Annotated[tuple[_Source, ...], Strict(False), Field(min_length=1)]


class CorpusConfig(Block):
    """Where texts without labels come from."""

    train: Sources
    """Text files (a .txt file, a glob, a folder of them: each file is one text, or several if it is
    very long), or a source as finetune has it, whose labels are not read; or a list of sources."""
    validation: Share | Sources = 0.1
    """A share of the texts of train (seeded), or sources of their own."""
    text: str = Field("text", min_length=1)
    """The column of the text; text files have none."""
    max_length: int = Field(512, ge=2, le=131_072)
    """Tokens of a block, and positions of a new network. Nothing is cut off."""


class TrainedTokenizer(Block):
    """A byte-level BPE trained on the training texts."""

    train: int = Field(8000, ge=260, le=500_000)
    """Size of the vocabulary."""


class ModelConfig(Block):
    """The network."""

    backbone: str = Field("gpt2", min_length=1)
    """A Hugging Face name or folder, a registered model (models:/name@champion, models:/name/3), or
    gpt2-tiny, gpt2-mini, gpt2-small, awd-lstm-tiny, awd-lstm with random weights."""
    tokenizer: str | TrainedTokenizer | None = None
    """A Hugging Face name or folder; None: the backbone's own, or 8,000 entries are trained."""
    embedding_init: Literal["random", "lsa"] = "random"
    """What the token embedding of a backbone with random weights begins with. lsa: latent semantic
    analysis of the training texts, with and without labels, so that words of the same texts are
    alike."""
    pooling: Literal["last", "mean", "max", "concat", "attention"] = "last"
    """From the tokens to one vector; concat is last, max and mean, attention has weights."""
    head: Literal["linear", "adaptive", "encdec"] = "linear"
    """From the vector to the classes; adaptive clusters 1,000 labels and more by frequency. encdec
    takes the place of pooling and the backbone's layers: an encoder reads the text both ways, and
    a decoder has a query for each label."""
    heads: int = Field(4, ge=1, le=256)
    """Heads of the attention pooling, and of the layers of encdec."""
    hidden: int = Field(0, ge=0, le=65_536)
    """Features of a layer between the vector and the classes, with ReLU and batch norm; 0: none."""
    dropout: Number = Field(0.2, ge=0, lt=1)
    """In the blocks, on the embeddings and before the head; only while training. In an AWD-LSTM 0.4
    gives the published rates, and other values all of them in proportion."""
    temperature: Number = Field(0.5, gt=0, le=1000)
    """Divides the logits."""
    truncation_smoothing: Annotated[Number, Field(ge=0, le=1000)] | Literal["learned"] = 0.0
    """Temperature of a text of which the share s was cut off: temperature * (1 + this * s)."""
    prob_floor: Number = Field(0.0, ge=0, lt=1)
    """No class gets a probability below this."""


class LanguageModelConfig(Block):
    """The network of a language model; its output is its token embedding."""

    backbone: str = Field("gpt2", min_length=1)
    """gpt2-tiny, gpt2-mini, gpt2-small, awd-lstm-tiny, awd-lstm with random weights, or a GPT-2 or
    AWD-LSTM that learns on: a Hugging Face name or folder, or a registered model."""
    tokenizer: str | TrainedTokenizer | None = None
    """A Hugging Face name or folder; None: the backbone's own, or 8,000 entries are trained."""
    dropout: Number = Field(0.1, ge=0, lt=1)
    """In the blocks and on the embeddings; only while training. In an AWD-LSTM 0.4 gives the
    published rates, and other values all of them in proportion."""

    def as_model(self) -> ModelConfig:
        """As what builds a backbone takes it."""
        return ModelConfig(backbone=self.backbone, tokenizer=self.tokenizer, dropout=self.dropout)


class EarlyStopping(Block):
    """Stop when validation has not improved for a while."""

    metric: str = "macro_f1"
    """On the validation split: accuracy, macro_f1, micro_f1, exact_match, log_loss or ece; of
    regression pearson (which it is then unless given), spearman or mse."""
    patience: int = Field(2, ge=1, le=1_000_000)
    """Evaluations without improvement."""


class TrainConfig(Block):
    """The optimisation."""

    epochs: int = Field(3, ge=1, le=100_000)
    """Times that every training row is seen."""
    max_steps: int | None = Field(None, ge=1, le=1_000_000_000)
    """Optimizer steps after which to stop, whatever `epochs` says."""
    batch_size: int = Field(16, ge=1, le=1_000_000)
    """Rows the model sees per optimizer step, over all workers."""
    lr: Number = Field(1.0e-4, gt=0, le=100)
    """The highest learning rate, after the warm-up."""
    embedding_lr: Number | None = Field(None, gt=0, le=100)
    """The highest learning rate of the token embedding; None: that of its layer group. A network
    that begins from random weights may need fewer epochs with 10 to 30 times lr."""
    layer_decay: Number = Field(1.0, ge=1, le=100)
    """Each group of layers learns this many times slower than the group above it."""
    warmup: Annotated[Number, Field(ge=0, lt=1)] | Annotated[int, Field(ge=0)] = 0.1
    """Below 1: a share of the steps; an integer: that many steps."""
    schedule: Literal["linear", "cosine", "slanted_triangular", "noam", "constant"] = "linear"
    """How the learning rate goes on after the warm-up."""
    weight_decay: Number = Field(0.1, ge=0, le=10)
    """Decoupled (AdamW); not on norms and biases."""
    betas: Annotated[tuple[_Beta, _Beta], Strict(False)] = (0.9, 0.999)
    """How long AdamW remembers gradients, and their squares."""
    clip: Number | None = Field(1.0, gt=0)
    """Largest norm of the gradient; None: no clipping."""
    freeze: str = Field(
        "none", pattern=r"^(none|head_only|last_layer|gradual|chain_thaw|top:[1-9][0-9]{0,3})$"
    )
    """What stays as it is: all but pooling and head (head_only), all but the head (last_layer),
    all below the k highest blocks (top:k); gradual thaws one group of layers more per epoch, from
    the top; chain_thaw trains one group per epoch (the top, then from the bottom up), then all."""
    class_weights: (
        Literal["none", "balanced"] | dict[str, Annotated[Number, Field(ge=0, le=1e6)]]
    ) = "none"
    """What a row of a class counts in the loss; a label that a mapping leaves out counts 1."""
    label_smoothing: Number = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    lm_epochs: int = Field(0, ge=0, le=100_000)
    """Epochs of language-model fine-tuning on the training texts, before the classifier."""
    lm_lr: Number | None = Field(None, gt=0, le=100)
    """The highest learning rate of that; None: lr. All other settings are those of train."""
    lm_weight: Number = Field(0.0, ge=0, le=100)
    """What predicting a text's own tokens counts in the loss, beside its label (GPT's lambda)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the matrix products; weights stay fp32. auto: what the hardware computes natively."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the split, the new weights, the order of rows and the dropout."""
    eval_every: Rhythm = "1 epoch"
    """How often the validation split is measured; the best weights are kept."""
    checkpoint_every: Rhythm = "1 epoch"
    """How often the state is written from which a killed job goes on."""
    early_stopping: EarlyStopping | None = None
    """None: train to the end."""


class LanguageStopping(EarlyStopping):
    """Stop when the held-out texts have not been predicted better for a while."""

    metric: Literal["loss"] = "loss"
    """On the held-out texts."""


class PretrainConfig(TrainConfig):
    """The optimisation of a language model: that of a classifier, less what is about labels."""

    objective: Annotated[
        Literal["causal", "backward", "masked", "joint"],
        WithJsonSchema({"enum": ["causal", "backward"], "type": "string"}),
    ] = "causal"
    """What is learned: the next token (causal), or the one before it, reading from right to left
    (backward)."""
    epochs: int = Field(3, ge=1, le=100_000)
    """Times that every block of tokens is seen."""
    batch_size: int = Field(16, ge=1, le=1_000_000)
    """Blocks the model sees per optimizer step, over all workers."""
    freeze: Literal["none"] = "none"
    """All weights learn."""
    class_weights: Literal["none"] = "none"
    """There are no classes."""
    label_smoothing: Number = Field(0.0, ge=0, le=0)
    """There are no labels."""
    lm_epochs: int = Field(0, ge=0, le=0)
    """All epochs are of the language model."""
    lm_lr: None = None
    """The learning rate is lr."""
    lm_weight: Number = Field(0.0, ge=0, le=0)
    """There are no labels beside the texts."""
    early_stopping: LanguageStopping | None = None
    """None: train to the end."""

    def as_train(self) -> TrainConfig:
        """As the loop takes it."""
        return TrainConfig.model_validate(self.model_dump(exclude={"objective"}))
