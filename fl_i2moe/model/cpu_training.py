"""
Dropout and attention as CPUs train them fast: the random numbers and the passes over T × T probabilities, not the
matrix products, are what a plain step waits for.

Shapes: R rows (experts × views × samples) · A attention heads · T features of the joint sequence · H hidden width.
"""

import torch
import torch.nn.functional as F

CHUNK_ELEMENTS = 2**18
"""Attention probabilities that are worked on at a time: few enough to stay in a core's cache."""


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """
    Dropout with one random byte an element: on CPUs the draws of `F.dropout` cost more than the products around it.

    `p` is rounded to 1/256 (and is at least that), and the scale is that of the rounded value, so the expectation is
    exact.
    """
    if not training or p == 0.0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    keep, scale = _draw(x.shape, p)
    return x * keep.to(x.dtype).mul_(scale)


def _draw(shape: torch.Size | tuple[int, ...], p: float) -> tuple[torch.Tensor, float]:
    """What dropout keeps, as bytes 1 and 0 (booleans are slow to compute with), and the scale of what it keeps."""
    dropped = min(max(round(256 * p), 1), 255)
    count = torch.Size(shape).numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)  # all 64 bits are random
    return words.view(torch.uint8)[:count].view(shape).ge_(dropped), 256 / (256 - dropped)


def self_attention(
    qkv: torch.Tensor, attention_mask: torch.Tensor | None, num_heads: int, dropout: float = 0.0
) -> torch.Tensor:
    """
    `dropout(softmax(q·kᵀ / √(H/A))) · v` of every head, forward and backward in pieces that fit a core's cache.

    Args:
        qkv: (R, T, 3·H), queries, keys and values side by side, as one linear layer gives them.
        attention_mask: (R, 1, T) or (R, T, T), true where to attend, which must be somewhere in every row; `None` for
            everywhere.
        dropout: share of the probabilities to drop.

    Returns:
        (R, T, H), the heads side by side.
    """
    return _SelfAttention.apply(qkv, attention_mask, num_heads, dropout)


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, attention_mask, num_heads, p):
        num_rows, length, width = qkv.shape
        hidden_size = width // 3
        scaling = (hidden_size // num_heads) ** -0.5
        keep, scale = (None, 1.0) if p == 0.0 else _draw((num_rows, num_heads, length, length), p)
        weights = qkv.new_empty(num_heads, num_rows, length, length)
        bias = None
        if attention_mask is not None:
            bias = qkv.new_zeros(attention_mask.shape).masked_fill_(~attention_mask, torch.finfo(qkv.dtype).min)
        output = qkv.new_empty(num_rows, length, hidden_size)
        with torch.autocast("cpu", enabled=False):
            for rows, scratch in _chunks(qkv, num_rows, length):
                parts = qkv[rows].unflatten(-1, (3, num_heads, -1))
                heads = output[rows].unflatten(-1, (num_heads, -1))
                for head in range(num_heads):
                    query, key, value = parts[:, :, :, head].unbind(2)
                    torch.bmm(query * scaling, key.mT, out=scratch)
                    if bias is not None:
                        scratch.add_(bias[rows])
                    kept = torch.softmax(scratch, -1, out=weights[head, rows])
                    if keep is not None:
                        kept = scratch.copy_(keep[rows, head]).mul_(kept)
                    heads[:, :, head] = torch.bmm(kept, value)
            if keep is not None:
                output.mul_(scale)
        ctx.save_for_backward(qkv, weights, keep)
        ctx.num_heads, ctx.scaling, ctx.scale = num_heads, scaling, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        qkv, weights, keep = ctx.saved_tensors
        num_rows, length, _ = qkv.shape
        grad = torch.empty_like(qkv)
        with torch.autocast("cpu", enabled=False):
            for rows, scratch in _chunks(qkv, num_rows, length):
                parts, grad_parts = (x[rows].unflatten(-1, (3, ctx.num_heads, -1)) for x in (qkv, grad))
                grad_heads = grad_output[rows].unflatten(-1, (ctx.num_heads, -1)) * ctx.scale
                for head in range(ctx.num_heads):
                    query, key, value = parts[:, :, :, head].unbind(2)
                    grad_query, grad_key, grad_value = grad_parts[:, :, :, head].unbind(2)
                    grad_head, weight = grad_heads[:, :, head], weights[head, rows]
                    kept = weight
                    if keep is not None:
                        mask = torch.empty_like(scratch).copy_(keep[rows, head])
                        kept = torch.mul(weight, mask, out=scratch)
                    grad_value.copy_(torch.bmm(kept.mT, grad_head))
                    torch.bmm(grad_head, value.mT, out=scratch)
                    if keep is not None:
                        scratch.mul_(mask)
                    torch._softmax_backward_data(scratch, weight, -1, scratch.dtype, grad_input=scratch)
                    scratch.mul_(ctx.scaling)
                    grad_query.copy_(torch.bmm(scratch, key))
                    grad_key.copy_(torch.bmm(scratch.mT, query))
        return grad, None, None, None


def _chunks(x: torch.Tensor, num_rows: int, length: int):
    """Slices of the rows, each with a scratch tensor (rows of it, T, T)."""
    size = max(1, CHUNK_ELEMENTS // length**2)
    scratch = x.new_empty(min(size, num_rows), length, length)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        yield rows, scratch[: rows.stop - start]
