"""Scaled dot-product attention, and positions as rotations."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.tracing import call, deferred, example

RAW, CAPPED, BIASED, PROBABILITIES = range(4)
"""What the fourth output shows of the scores: `qk_matmul_output_mode`."""


class Style(NamedTuple):
    """What becomes of the products of queries and keys.

    Attributes:
        scale: the factor of the products; by default one over the root of the number of features.
        left, right: how far a query sees in each direction; -1 is without an end.
        precision: the type in which the softmax is calculated; by default that of the products.
        shown: what the fourth output shows.
    """

    scale: float | None
    causal: bool
    softcap: float = 0.0
    left: int = -1
    right: int = -1
    precision: torch.dtype | None = None
    shown: int = RAW


def attention(node: NodeView, query: Tensor, key: Tensor, value: Tensor, *others: Tensor | None) -> Any:
    """`others` are the mask, the past keys, the past values, and the lengths of samples that are padded."""
    mask = others[0] if others else None
    heads, kv_heads = node.attribute("q_num_heads", 0), node.attribute("kv_num_heads", 0)
    style = Style(
        node.attribute("scale", None),
        node.attribute("is_causal", False),
        node.attribute("softcap", 0.0),
        node.attribute("left_window_size", -1),
        node.attribute("right_window_size", -1),
        node.dtype("softmax_precision"),
        node.attribute("qk_matmul_output_mode", RAW),
    )
    joined = heads > 0  # (N, L, heads x features) in place of (N, heads, L, features)
    if joined:
        query, key, value = _split(query, heads), _split(key, kv_heads), _split(value, kv_heads)
    plain = style == Style(style.scale, style.causal) and all(other is None for other in others[1:])
    simple = mask is None or (not style.causal and _fits(mask, query, key))
    if plain and simple and len(node.outputs) == 1:
        a, b = example(query), example(key)
        result = call(
            F.scaled_dot_product_attention,
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=style.causal,
            scale=style.scale,
            enable_gqa=a is None or b is None or a.shape[1] != b.shape[1],  # several heads of queries for one of keys
        )
        return _join(result) if joined else result
    found = _attention(query, key, value, [*others, None, None, None, None][:4], style)
    return (_join(found[0]) if joined else found[0]), found[1], found[2], found[3]


def _fits(mask: Tensor, query: Tensor, key: Tensor) -> bool:
    """Whether torch takes a mask as it is: of the same type or of truth values, and as long as the keys."""
    found, a, b = example(mask), example(query), example(key)
    if found is None or a is None or b is None or found.dim() < 2:
        return False
    return found.dtype in (torch.bool, a.dtype) and found.shape[-1] == b.shape[2]


def _split(x: Tensor, heads: int) -> Tensor:
    return call(Tensor.transpose, call(Tensor.unflatten, x, 2, [heads, -1]), 1, 2)


def _join(x: Tensor) -> Tensor:
    return call(Tensor.flatten, call(Tensor.transpose, x, 1, 2), 2)


@deferred
def _attention(
    query: Tensor, key: Tensor, value: Tensor, others: list[Tensor | None], style: Style
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All of it: with a past, padding, windows and a cap. Gives the keys, values and scores as well."""
    mask, past_key, past_value, lengths = others
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    groups = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    root = math.sqrt(1 / math.sqrt(query.shape[-1]) if style.scale is None else style.scale)
    scores = raw = torch.matmul(query * root, keys.mT * root)
    if style.softcap:
        scores = style.softcap * torch.tanh(scores / style.softcap)
    capped = scores
    allowed = _visible(query.shape[2], key.shape[2], past, lengths, style, query.device)
    if mask is not None:
        short = key.shape[2] - mask.shape[-1]
        if mask.dtype is torch.bool:
            allowed = allowed & F.pad(mask, [0, short])
        else:
            scores = scores + F.pad(mask, [0, short], value=-math.inf).to(scores.dtype)
    scores = biased = scores.masked_fill(~allowed, -math.inf)
    probabilities = torch.softmax(scores if style.precision is None else scores.to(style.precision), -1)
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    probabilities = probabilities.masked_fill(nothing, 0).to(query.dtype)
    shown = (raw, capped, biased, probabilities)[style.shown]
    return torch.matmul(probabilities, values), key, value, shown


def _visible(queries: int, keys: int, past: int, lengths: Tensor | None, style: Style, device: torch.device) -> Tensor:
    """Which keys a query may see: `(queries, keys)`, or `(N, 1, queries, keys)` where samples have lengths."""
    place = torch.arange(queries, device=device)[:, None] + past
    column = torch.arange(keys, device=device)
    visible = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if lengths is not None:
        ends = lengths.reshape(-1, 1, 1, 1)
        place = place + ends - queries
        visible = visible & (column < ends)
    if style.causal:
        visible = visible & (column <= place)
    if style.left >= 0:
        visible = visible & (column >= place - style.left)
    if style.right >= 0:
        visible = visible & (column <= place + style.right)
    return visible


@deferred
def _rotate(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    positions: Tensor | None = None,
    *,
    rotary_embedding_dim: int,
    num_heads: int,
    interleaved: bool,
) -> Tensor:
    """Pairs of the first features of each head, turned by the angle of their position."""
    joined = x.dim() == 3
    per_head = torch.unflatten(x, 2, [num_heads, -1]) if joined else x.transpose(1, 2)  # (N, L, heads, features)
    if positions is not None:
        cosine, sine = cosine[positions], sine[positions]
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    width = rotary_embedding_dim or per_head.shape[-1]
    turned, rest = torch.split(per_head, [width, per_head.shape[-1] - width], -1)
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    a, b = cosine * a - sine * b, sine * a + cosine * b
    turned = torch.stack([a, b], -1).flatten(-2) if interleaved else torch.cat([a, b], -1)
    result = torch.cat([turned, rest], -1)
    return result.flatten(2) if joined else result.transpose(1, 2)


OPERATORS: dict[str, Operator] = {
    "Attention": attention,
    "RotaryEmbedding": row(_rotate, rotary_embedding_dim=0, num_heads=0, interleaved=False),
}
