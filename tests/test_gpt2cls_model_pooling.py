"""Each pooling against a plain loop, and the rule that padding never takes part."""

import pytest
import torch

from gpt2cls.errors import ModelError
from gpt2cls.model.pooling import Pooling

KINDS = ("last", "mean", "max", "concat", "attention")


def hidden_states(padding: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    lengths_B = torch.tensor([3, 1, 5])
    return torch.randn(3, 5 + padding, 8), lengths_B


def pooling(kind: str, heads: int = 2) -> Pooling:
    torch.manual_seed(1)
    return Pooling(kind, width=8, heads=heads)


def attention_by_loops(layer, tokens_TD: torch.Tensor) -> torch.Tensor:
    """Every head reads the whole text on its own; their outputs stand side by side."""
    num_features = 8 // layer.heads
    query_D = layer.query(tokens_TD[-1])
    key_TD, value_TD = layer.key_value(tokens_TD).split(8, dim=1)
    outputs = []
    for head in range(layer.heads):
        part = slice(head * num_features, (head + 1) * num_features)
        scores = [float(query_D[part] @ key_D[part]) / num_features**0.5 for key_D in key_TD]
        weights = torch.tensor(scores).softmax(dim=0)
        pairs = zip(weights, value_TD, strict=True)
        outputs.append(sum(weight * value_D[part] for weight, value_D in pairs))
    return torch.cat(outputs)


def pooled_by_loops(pool: Pooling, tokens_TD: torch.Tensor) -> torch.Tensor:
    last_D = tokens_TD[-1]
    mean_D = sum(tokens_TD) / len(tokens_TD)
    max_D = torch.tensor([max(column) for column in tokens_TD.T.tolist()])
    match pool.kind:
        case "last":
            return last_D
        case "mean":
            return mean_D
        case "max":
            return max_D
        case "concat":
            return torch.cat([last_D, max_D, mean_D])
    return torch.cat([last_D, attention_by_loops(pool.attention, tokens_TD)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_pooling_gives_what_a_plain_loop_gives(kind):
    hidden_BTD, lengths_B = hidden_states()
    pool = pooling(kind)
    with torch.no_grad():
        found = pool(hidden_BTD, lengths_B)
        rows = zip(hidden_BTD, lengths_B, strict=True)
        wanted = torch.stack([pooled_by_loops(pool, row_TD[:n]) for row_TD, n in rows])
    assert found.shape == (3, pool.width)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_even_if_it_holds_infinities(kind):
    hidden_BTD, lengths_B = hidden_states(padding=0)
    rubbish = torch.full((3, 6, 8), torch.inf)
    padded = torch.cat([hidden_BTD, rubbish], dim=1)
    for row, length in enumerate(lengths_B):
        padded[row, length:] = torch.inf
    pool = pooling(kind)
    with torch.no_grad():
        found, wanted = pool(padded, lengths_B), pool(hidden_BTD, lengths_B)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_padding(kind):
    hidden_BTD, lengths_B = hidden_states()
    hidden_BTD.requires_grad_()
    pooling(kind)(hidden_BTD, lengths_B).sum().backward()
    for row_TD, length in zip(hidden_BTD.grad, lengths_B, strict=True):
        assert row_TD[:length].abs().sum() > 0
        assert row_TD[length:].abs().sum() == 0


def test_heads_that_do_not_divide_the_width_are_refused_with_the_allowed_numbers():
    with pytest.raises(ModelError, match=r"model\.heads = 3: .* 8 wide.*allowed: 1, 2, 4, 8"):
        pooling("attention", heads=3)
