"""Multi-head attention of one sequence to another, MHA(queries; keys), and the softmax over what is real."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.layers import primitives
from fusion.layers.primitives import SequenceDropout, feed_forward


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis in which padding weighs exactly zero, and everything does where nothing is real.

    Shape:
        scores: (..., positions)
        mask: boolean, broadcastable to scores
        returns: (..., positions), each row summing to 1, or to 0 where nothing is real

    >>> masked_softmax(torch.zeros(2, 3), torch.tensor([[True, True, False], [False, False, False]])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    # the lowest number instead of -inf: a row with nothing real stays finite, and so does its gradient
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(dim=-1) * mask


@dataclass(frozen=True, eq=False)
class KeyMask:
    """Which keys may be attended to, with what attention makes of it: once for all attentions that share the keys.

    Shape:
        real: (utterances, keys), or (utterances, queries, keys) where each query has keys of its own
    """

    real: Tensor

    @cached_property
    def queries(self) -> Tensor:
        """(utterances, 1, keys, 1), of attention weights which of the rows are real where the keys are what asks."""
        return self.real[:, None, :, None]

    @cached_property
    def by_query(self) -> Tensor:
        """(utterances, queries or 1, keys)."""
        return self.real if self.real.dim() == 3 else self.real[:, None, :]

    @cached_property
    def present(self) -> Tensor:
        """(utterances, queries or 1, 1), whether there is any key."""
        return self.by_query.any(dim=2, keepdim=True)

    @cached_property
    def scores(self) -> Tensor:
        """What to add to scores, float32 (utterances, 1, queries or 1, keys): -inf at keys not to be attended to.

        Not every kernel is defined where these are all keys. Nothing is added there: a query attends to padding, and
        the result is dropped.
        """
        allowed = (self.by_query | ~self.present)[:, None]
        return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, float("-inf"))


FEW_KEYS = 32  # up to which `_FewKeys` is faster, if there are as many queries


def attend(query: Tensor, key: Tensor, value: Tensor, scores: Tensor) -> Tensor:
    """softmax(q k / sqrt(width) + scores) v, on a CPU by a way of our own where there are few keys.

    Shape:
        query: (utterances, heads, queries, width)
        key, value: (utterances, heads, keys, width)
        scores: (utterances or 1, heads or 1, queries or 1, keys)
        returns: (utterances, heads, queries, width)
    """
    if torch.compiler.is_compiling() or primitives.dominate(query):  # first: a graph must not depend on how many keys
        return F.scaled_dot_product_attention(query, key, value, attn_mask=scores)
    if 0 < key.shape[2] <= min(FEW_KEYS, query.shape[2]) and scores.shape[1] == scores.shape[2] == 1:
        attended: Tensor = _FewKeys.apply(query, key, value, scores)
        return attended
    return F.scaled_dot_product_attention(query, key, value, attn_mask=scores)


class _FewKeys(torch.autograd.Function):
    """The same by plain products; weights, (utterances * heads, keys, queries), are kept for the way back.

    torch's kernel for a CPU goes along the keys of each query, and a dozen of them don't fill its registers. Here it is
    queries that lie side by side.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scores: Tensor) -> Tensor:
        q, k, v = (x.flatten(0, 1) for x in (query, key, value))
        added = scores.expand(*key.shape[:2], 1, key.shape[2]).flatten(0, 1).transpose(1, 2)
        weights = torch.baddbmm(added, k, q.transpose(1, 2), alpha=query.shape[3] ** -0.5).softmax(dim=1)
        ctx.save_for_backward(q, k, v, weights)
        return (weights.transpose(1, 2) @ v).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        gradient = gradients[0].flatten(0, 1)
        pulled = weights * (v @ gradient.transpose(1, 2))
        pulled = pulled.addcmul_(weights, pulled.sum(dim=1, keepdim=True), value=-1).mul_(q.shape[2] ** -0.5)
        found = pulled.transpose(1, 2) @ k, pulled @ q, weights @ gradient
        query, key, value = (x.unflatten(0, gradients[0].shape[:2]) for x in found)
        return query, key, value, None


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention. An utterance without a single real key attends to nothing and receives zeros.

    Keys have no bias: the softmax over keys cancels it, so it would never learn. `width` is that of all heads together;
    None: dim.

    Shape:
        queries: (utterances, queries, dim)
        keys: (utterances, keys, dim)
        key_mask: (utterances, keys), or (utterances, queries, keys), alone or as a `KeyMask`
        bias: (heads, queries, keys), added to the scores
        returns: (utterances, queries, dim)
    """

    no_bias: Tensor

    def __init__(self, dim: int, heads: int, width: int | None = None) -> None:
        super().__init__()
        width = width or dim
        self.heads = heads
        self.query = nn.Linear(dim, width)
        self.key = nn.Linear(dim, width, bias=False)
        self.value = nn.Linear(dim, width)
        self.out = nn.Linear(width, dim)
        self.register_buffer("no_bias", torch.zeros(width), persistent=False)

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor | KeyMask, bias: Tensor | None = None) -> Tensor:
        mask = key_mask if isinstance(key_mask, KeyMask) else KeyMask(key_mask)
        query, key, value = (self._split(x) for x in self._project(queries, keys))
        scores = mask.scores if bias is None else mask.scores + bias
        attended = attend(query, key, value, scores.to(query.dtype))  # (utterances, heads, queries, width / heads)
        return self.out(attended.transpose(1, 2).flatten(2)) * mask.present

    def weights(self, queries: Tensor, keys: Tensor, key_mask: Tensor | KeyMask, bias: Tensor | None = None) -> Tensor:
        """How much each query attends to each key, which `forward` never holds: (utterances, heads, queries, keys)."""
        mask = key_mask if isinstance(key_mask, KeyMask) else KeyMask(key_mask)
        query, key = self._split(self.query(queries)), self._split(self.key(keys))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        return masked_softmax(scores if bias is None else scores + bias, mask.by_query[:, None])

    def _project(self, queries: Tensor, keys: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values; in one product for each source where that is what costs."""
        if not primitives.dominate(queries):
            return self.query(queries), self.key(keys), self.value(keys)
        if queries is keys:
            return self._in_one(queries, [self.query, self.key, self.value])
        return self.query(queries), *self._in_one(keys, [self.key, self.value])

    def _in_one(self, x: Tensor, maps: Sequence[nn.Linear]) -> Sequence[Tensor]:
        weight = torch.cat([one.weight for one in maps])
        bias = torch.cat([self.no_bias if one.bias is None else one.bias for one in maps])
        return F.linear(x, weight, bias).chunk(len(maps), dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        """(utterances, positions, width) -> (utterances, heads, positions, width / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class TransformerLayer(nn.Module):
    """x = LN(x + MHA(x; y)), x = LN(x + FFN(x)).

    Shape:
        x: (utterances, positions, dim)
        y: (utterances, others, dim)
        y_mask: of (utterances, others)
        returns: (utterances, positions, dim)
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = feed_forward(dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor, y_mask: KeyMask) -> Tensor:
        x = self.norm(x + self.dropout(self.attention(x, y, y_mask)))
        return self.feed_forward_norm(x + self.feed_forward(x))

    def views(self, x: Tensor, y: Tensor, y_mask: KeyMask) -> dict[str, Tensor]:
        return {"attention": self.attention.weights(x, y, y_mask)}
