"""Parts that add what they find to what they are given: a GRU, attention, a feed-forward network, a linear map."""

from collections.abc import Sequence

from torch import Tensor, nn

from fusion.batch import pad_together, take_apart
from fusion.layers.attention import MultiHeadAttention
from fusion.layers.primitives import SequenceDropout, feed_forward
from fusion.layers.recurrent import SequenceGRU


class RecurrentLayer(nn.Module):
    """LN(x + GRU(x)) along the frames or tokens, both ways.

    Groups of utterances share the GRU's steps, as a step takes hardly longer for many sequences than for few.

    Shape:
        xs: of each group, (utterances, positions, dim)
        masks: of each group, (utterances, positions)
        returns: as xs
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.gru = SequenceGRU(dim)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, xs: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        found = take_apart(self.gru(pad_together(xs), pad_together(masks)), xs)
        return [self.norm(x + self.dropout(own)) for x, own in zip(xs, found, strict=True)]


class SelfAttention(nn.Module):
    """LN(x + MHA(x; x)) among the frames or tokens of an utterance. Shape as `RecurrentLayer`."""

    def __init__(self, dim: int, heads: int, dropout: float, width: int | None = None) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, width)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, xs: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        return [self.norm(x + self.dropout(self.attention(x, x, mask))) for x, mask in zip(xs, masks, strict=True)]


class FeedForward(nn.Module):
    """LN(x + FFN(x)), (utterances, dim) -> the same."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.network = feed_forward(dim, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.network(x[:, None])[:, 0])


class LinearSkip(nn.Module):
    """found + W given, (utterances, dim) twice -> the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, found: Tensor, given: Tensor) -> Tensor:
        return found + self.linear(given)
