"""The faults of this library that a caller may want to tell apart."""


class RequestError(ValueError):
    """What was asked for cannot be done as asked; the text says what to change."""


class DataError(RequestError):
    """A source of texts cannot be used: missing, unreadable, or senseless to train on."""


class ModelError(RequestError):
    """A model folder, name or tokenizer cannot be used."""


class CheckpointError(RuntimeError):
    """A checkpoint is torn, damaged, or belongs to another job."""


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; training on would destroy the weights."""

    def __init__(self, step: int, loss: float, precision: str) -> None:
        super().__init__(step, loss, precision)  # so that pickle can rebuild it
        self.step, self.loss, self.precision = step, loss, precision

    def __str__(self) -> str:
        way_out = "Lower train.lr"
        if self.precision == "fp16":
            way_out += ", or set train.precision to bf16 or fp32"
        return (
            f"train.precision = {self.precision}: the loss became {self.loss} at step {self.step}; "
            f"the weights were left as they were and the last checkpoint is kept. {way_out}."
        )
