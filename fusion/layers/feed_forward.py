"""The position-wise network that follows attention."""

from torch import nn

from fusion.layers.dropout import SequenceDropout


def feed_forward(dim: int, dropout: float, expansion: int = 2) -> nn.Sequential:
    """FFN(x) = W2 gelu(W1 x), (utterances, positions, dim) -> the same."""
    return nn.Sequential(
        nn.Linear(dim, expansion * dim),
        nn.GELU(),
        nn.Linear(expansion * dim, dim),
        SequenceDropout(dropout),
    )
