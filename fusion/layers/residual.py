"""Parts that add what they find to what they are given: a GRU, attention, a feed-forward network, a linear map."""

from torch import Tensor, nn

from fusion.layers.attention import MultiHeadAttention
from fusion.layers.primitives import SequenceDropout, feed_forward
from fusion.layers.recurrent import SequenceGRU


class RecurrentLayer(nn.Module):
    """LN(x + GRU(x)) along the frames or tokens, both ways.

    Shape:
        x: (utterances, positions, dim)
        mask: (utterances, positions)
        returns: (utterances, positions, dim)
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.gru = SequenceGRU(dim)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.gru(x, mask)))


class SelfAttention(nn.Module):
    """LN(x + MHA(x; x)) among the frames or tokens of an utterance.

    Shape:
        x: (utterances, positions, dim)
        mask: (utterances, positions)
        returns: (utterances, positions, dim)
    """

    def __init__(self, dim: int, heads: int, dropout: float, width: int | None = None) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, width)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.attention(x, x, mask)))


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
