"""Networks of two linear maps: the position-wise one that follows attention, and the one that classifies."""

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


def classifier(features: int, dim: int, classes: int, dropout: float) -> nn.Sequential:
    """MLP, (utterances, features) -> (utterances, classes)."""
    return nn.Sequential(
        nn.Dropout(dropout), nn.Linear(features, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, classes)
    )
