"""Any text model of transformers as a backbone, also cut in two at one of its layers.

Letters in tensor names: B rows, T tokens, D features.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

DROPOUTS = (  # what configurations of transformers call it
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_dropout",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "embed_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_dropout",
    "resid_pdrop",
    "residual_dropout",
)


class AutoBackbone(nn.Module):
    """Any text model that transformers.AutoModel reads from safetensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def width(self) -> int:
        return int(text_config(self.model.config).hidden_size)

    @property
    def wte(self) -> nn.Module:
        """The token embedding, under the name that it has in our own backbones."""
        return cast(nn.Module, self.model.get_input_embeddings())

    def width_below(self, block: int) -> int:
        """Features of the hidden states that enter `block`, if it is like most models."""
        del block
        return self.width

    @property
    def blocks(self) -> list[list[nn.Module]]:
        """The layers of the model, bottom to top; what stands before and after joins them."""
        path, layers = self._path, self._layers
        if not layers:
            return [[self.model]]
        below: list[nn.Module] = []
        above: list[nn.Module] = []
        holder = self.model
        for name in path:
            is_before = True
            for child_name, child in holder.named_children():
                if child_name == name:
                    is_before = False
                else:
                    (below if is_before or _has_embedding(child) else above).append(child)
            holder = getattr(holder, name)
        return [below, *([layer] for layer in layers[:-1]), [layers[-1], *above]]

    @property
    def _path(self) -> list[str]:
        """The attributes that lead to the longest list of modules; empty: there is none."""
        lists = [(n, m) for n, m in self.model.named_modules() if isinstance(m, nn.ModuleList)]
        return max(lists, key=lambda found: len(found[1]))[0].split(".") if lists else []

    @property
    def _layers(self) -> list[nn.Module]:
        found = self.model
        for name in self._path:
            found = getattr(found, name)
        return list(found) if self._path else []

    @property
    def shape(self) -> str:
        """All of its configuration that decides what it computes, as text."""
        config = self.model.config.to_dict()
        idle = {*DROPOUTS, "_name_or_path", "transformers_version", "dtype"}
        return repr(sorted((name, value) for name, value in config.items() if name not in idle))

    def computes_above(self, tokens_BT: Tensor, lengths_B: Tensor, first: int) -> bool:
        """Whether what stands above the cut, and may learn, has a part in what stands below."""
        _, *blocks = self.blocks
        above = [m for block in blocks[first:] for m in block if m is not blocks[first][0]]
        used: list[nn.Module] = []
        handles = [
            module.register_forward_pre_hook(lambda module, _: used.append(module))
            for module in above
            if any(True for _ in module.parameters())
        ]
        try:
            self.up_to_block(tokens_BT, lengths_B, first)
        finally:
            for handle in handles:
                handle.remove()
        return bool(used)

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Hidden states [B, T, D]; those of padding mean nothing."""
        places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        mask_BT = (places_T < lengths_B[:, None]).long()
        kwargs: dict[str, Any] = {}
        if getattr(self.model.config, "is_decoder", True) or hasattr(
            self.model.config, "use_cache"
        ):
            kwargs["use_cache"] = False
        output = self.model(input_ids=tokens_BT, attention_mask=mask_BT, **kwargs)
        return cast(Tensor, output.last_hidden_state)

    def up_to_block(self, tokens_BT: Tensor, lengths_B: Tensor, first: int) -> Tensor:
        """The hidden states [B, T, D] that enter layer `first`; nothing above it is computed.

        Whether this and `from_block` are together what `forward` is, nobody knows of a model that
        was never seen: it has to be tried.
        """
        entered: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])
            raise _Entered

        with self._before_layer(first, stop):
            try:
                self(tokens_BT, lengths_B)
            except _Entered:
                return entered[0]
        raise RuntimeError(f"layer {first} is never entered")

    def from_block(self, x_BTD: Tensor, lengths_B: Tensor, first: int) -> Tensor:
        """What `forward` gives, from the hidden states that enter layer `first`.

        The model runs as it always does, on tokens that do not matter: the layers below pass on
        what they get, and this layer is given `x_BTD`. So masks and positions are the model's own.
        """

        def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (x_BTD, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": x_BTD}

        tokens_BT = lengths_B.new_zeros(x_BTD.shape[:2])
        with self._before_layer(first, give), ExitStack() as skipped:
            for layer in self._layers[:first]:
                skipped.enter_context(_passing_on(layer))
            return self(tokens_BT, lengths_B)  # type: ignore[no-any-return]

    @contextmanager
    def _before_layer(self, place: int, hook: Any) -> Iterator[None]:
        handle = self._layers[place].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class HalfAutoBackbone(AutoBackbone):
    """A copy of another one with weights in bf16, to be asked only.

    Its buffers, which positions are made of, and the hidden states that leave it are float32.
    """

    def __init__(self, backbone: AutoBackbone) -> None:
        # Copied as what they become: a second copy in fp32 may not fit.
        halves: dict[int, Any] = {
            id(parameter): nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
            for parameter in backbone.model.parameters()
        }
        super().__init__(deepcopy(backbone.model, halves).eval())

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        return super().forward(tokens_BT, lengths_B).float()


class _Entered(Exception):
    """All that is asked for is known."""


@contextmanager
def _passing_on(layer: nn.Module) -> Iterator[None]:
    def forward(*args: Any, **_: Any) -> tuple[Any, ...]:
        # Some models take a layer's output as it is, some its first part: both go on with this.
        return args[:1]

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def text_config(config: Any) -> Any:
    """The part of a configuration that is about texts."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _has_embedding(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Embedding) for part in module.modules())
