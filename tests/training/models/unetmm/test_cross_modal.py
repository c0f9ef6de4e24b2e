"""Cross-modal attention against explicit softmax attention, one pair after another."""

import pytest
import torch
from torch.testing import assert_close

from training.models.unetmm.cross_modal import CrossModalAttention, attend_to_others


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return CrossModalAttention(6, dropout=0.5).double().eval()


def attend_by_loops(attention, tokens):
    """Equation 8 as it is printed: every primary, every auxiliary, every position by itself."""
    channels = tokens.shape[-1]
    weight, bias = attention.query_key_value.weight, attention.query_key_value.bias
    to_query, to_key, to_value = weight.split(channels)
    query_bias, key_bias, value_bias = bias.split(channels)
    result = torch.zeros_like(tokens)
    for sample in range(tokens.shape[0]):
        for primary in range(4):
            own = tokens[sample, :, primary]
            found = []
            for auxiliary in range(4):
                if auxiliary == primary:
                    continue
                other = tokens[sample, :, auxiliary]
                keys, values = other @ to_key.T + key_bias, other @ to_value.T + value_bias
                rows = []
                for vector in own:
                    score = keys @ (to_query @ vector + query_bias) / channels**0.5
                    share = score.exp() / score.exp().sum()
                    rows.append(attention.output(share @ values))
                found.append(torch.stack(rows))
            fused = attention.fuse(torch.cat(found, dim=1))
            result[sample, :, primary] = attention.mlp(own + fused)
    return result


def test_attention_equals_explicit_softmax_attention_over_the_twelve_pairs(attention):
    tokens = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    assert_close(attention(tokens), attend_by_loops(attention, tokens), atol=1e-10, rtol=0)


def test_single_precision_attention_is_within_1e_5_of_the_reference(attention):
    tokens = torch.randn(2, 35, 4, 6, dtype=torch.float64)
    expected = attend_by_loops(attention, tokens)
    assert_close(attention.float()(tokens.float()).double(), expected, atol=1e-5, rtol=0)


def test_a_primary_looks_up_each_auxiliary_separately():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 5, 4, 6).unbind(0)
    other = value.clone()
    other[:, :, 2] += 1.0
    changed = attend_to_others(query, key, value) != attend_to_others(query, key, other)
    assert changed.any(dim=-1).any(dim=1)[0].tolist() == [
        [False, True, False],  # T1 looks up T1CE, T2, FLAIR
        [False, True, False],  # T1CE looks up T1, T2, FLAIR
        [False, False, False],  # T2 looks up T1, T1CE, FLAIR
        [False, False, True],  # FLAIR looks up T1, T1CE, T2
    ]


def test_dropout_acts_in_training_only(attention):
    tokens = torch.randn(1, 5, 4, 6, dtype=torch.float64)
    assert torch.equal(attention(tokens), attention(tokens))
    attention.train()
    assert not torch.equal(attention(tokens), attention(tokens))
