"""Stored features to a model's width."""

from torch import Tensor, nn

from fusion.layers.dropout import SequenceDropout
from fusion.layers.mix import WeightedMix
from fusion.layers.stand_ins import Unchanged


class InputProjection(nn.Module):
    """LN(W x), after a learned mix of the encoder's layers when several are stored.

    Shape:
        x: (utterances, positions, features), or (utterances, positions, layers, features)
        returns: (utterances, positions, dim)
    """

    def __init__(self, features: int, layers: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.stored = (layers, features)
        self.mix = WeightedMix(layers) if layers > 1 else Unchanged()
        self.linear = nn.Linear(features, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = SequenceDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        layers = x.reshape(*x.shape[:2], *self.stored).unbind(2)
        return self.dropout(self.norm(self.linear(self.mix(*layers))))
