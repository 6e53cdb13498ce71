"""Dropout's statistics, and attention in pieces against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from fl_i2moe.model import cpu_training
from fl_i2moe.model.cpu_training import dropout, self_attention


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_keeps_the_expectation_and_is_independent(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1003)
    y = dropout(x, p, training=True)
    kept = (y != 0).float()
    scales = y[y != 0].unique()
    assert len(scales) == 1
    expected_rate = 1 - round(256 * p) / 256
    deviation = (expected_rate * (1 - expected_rate) / x.numel()) ** 0.5
    assert abs(kept.mean() - expected_rate) < 5 * deviation
    assert scales.item() == pytest.approx(1 / expected_rate, rel=1e-5)
    centred = kept.flatten() - expected_rate
    for lag in (1, 2, 7, 8, 9, 64, 1003):
        correlation = (centred[:-lag] * centred[lag:]).mean() / (expected_rate * (1 - expected_rate))
        assert abs(correlation) < 5e-3, lag


def test_dropout_passes_the_gradient_of_what_it_keeps():
    x = torch.randn(50, 50, requires_grad=True)
    y = dropout(x, 0.5, training=True)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y != 0).float() * 2)
    assert dropout(x, 0.5, training=False) is x


def plain_attention(qkv, attention_mask, num_heads, keep, scale):
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, None], -torch.inf)
    return ((scores.softmax(-1) * keep * scale) @ value).transpose(1, 2).flatten(-2)


@pytest.mark.parametrize("chunk_elements", [1, 100, 2**18], ids=["row by row", "uneven", "at once"])
@pytest.mark.parametrize("masked", ["nothing", "keys", "pairs"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_in_pieces_equals_the_plain_one(monkeypatch, chunk_elements, masked, p):
    monkeypatch.setattr(cpu_training, "CHUNK_ELEMENTS", chunk_elements)
    torch.manual_seed(0)
    num_rows, length, num_heads = 7, 6, 2
    qkv = torch.randn(num_rows, length, 3 * 8, dtype=torch.float64, requires_grad=True)
    mask = None
    if masked == "keys":
        mask = (torch.arange(length) < torch.tensor([6, 1, 3, 6, 2, 5, 4])[:, None]).unsqueeze(1)
    elif masked == "pairs":  # everybody attends to itself at least
        mask = (torch.rand(num_rows, length, length) < 0.4) | torch.eye(length, dtype=torch.bool)
    grad_output = torch.randn(num_rows, length, 8, dtype=torch.float64)

    torch.manual_seed(1)
    output = self_attention(qkv, mask, num_heads, p)
    (gradient,) = torch.autograd.grad(output, qkv, grad_output)

    keep, scale = torch.ones(()), 1.0
    if p:  # what dropout of the same shape keeps after the same seed
        torch.manual_seed(1)
        kept = dropout(torch.ones(num_rows, num_heads, length, length, dtype=torch.float64), p, training=True)
        keep, scale = (kept != 0), kept.max()
    expected = plain_attention(qkv, mask, num_heads, keep, scale)
    (expected_gradient,) = torch.autograd.grad(expected, qkv, grad_output)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_attention_agrees_with_the_fused_kernel_and_in_bfloat16():
    torch.manual_seed(0)
    qkv = torch.randn(5, 40, 3 * 32)
    expected = F.scaled_dot_product_attention(*qkv.unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4))
    expected = expected.transpose(1, 2).flatten(-2)
    torch.testing.assert_close(self_attention(qkv, None, 2), expected)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = self_attention(qkv.bfloat16(), None, 2)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - expected).abs().max() < 0.02 * expected.abs().max()
