"""Multi-head attention of one sequence to another, MHA(queries; keys)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.layers.softmax import masked_softmax


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention. An utterance without a single real key attends to nothing and receives zeros.

    Keys have no bias: the softmax over keys cancels it, so it would never learn.

    Shape:
        queries: (utterances, queries, dim)
        keys: (utterances, keys, dim)
        key_mask: (utterances, keys), or (utterances, queries, keys) where each query has keys of its own
        bias: (heads, queries, keys), added to the scores
        returns: (utterances, queries, dim)
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor, bias: Tensor | None = None) -> Tensor:
        key_mask = key_mask if key_mask.dim() == 3 else key_mask[:, None, :]  # (utterances, queries or 1, keys)
        present = key_mask.any(dim=2, keepdim=True)
        attended = F.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(self.key(keys)),
            self._split(self.value(keys)),
            # not every kernel is defined where all keys are masked: let it attend to padding there, and drop the result
            attn_mask=_scores_to_add((key_mask | ~present)[:, None], bias),
        )  # (utterances, heads, queries, dim / heads)
        return self.out(attended.transpose(1, 2).flatten(2)) * present

    def weights(self, queries: Tensor, keys: Tensor, key_mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """How much each query attends to each key, which `forward` never holds: (utterances, heads, queries, keys)."""
        query, key = self._split(self.query(queries)), self._split(self.key(keys))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        scores = scores if bias is None else scores + bias
        return masked_softmax(scores, (key_mask if key_mask.dim() == 3 else key_mask[:, None, :])[:, None])

    def _split(self, x: Tensor) -> Tensor:
        """(utterances, positions, dim) -> (utterances, heads, positions, dim / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _scores_to_add(mask: Tensor, bias: Tensor | None) -> Tensor:
    """What scaled dot-product attention takes as a mask: booleans, or numbers to add."""
    return mask if bias is None else torch.where(mask, bias, float("-inf"))
