"""Lets the turns of a conversation see each other."""

from typing import Literal

import torch
from torch import Tensor, nn

from fusion.layers.attention import MultiHeadAttention
from fusion.layers.recurrent import Direction, TurnGRU
from fusion.turns import Turns

ConversationEncoding = Literal["gru", "none"]
REACH = 8  # turns


class ConversationEncoder(nn.Module):
    """LN(x + GRU(x)) along the turns.

    Shape:
        x: (utterances, dim)
        returns: (utterances, dim)
    """

    def __init__(self, dim: int, direction: Direction, dropout: float) -> None:
        super().__init__()
        self.gru = TurnGRU(dim, direction)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, turns: Turns) -> Tensor:
        return self.norm(x + self.dropout(self.gru(x, turns)))


class TurnAttention(nn.Module):
    """Multi-head attention of each turn to the turns of its conversation: LN(x + MHA(x; y)).

    Each head learns how much it looks at a turn so many turns away, all beyond `REACH` alike: without that, attention
    could not tell the turn before from any other. With `direction` past, a turn attends to those up to itself. One that
    has nothing to attend to stays as it is, apart from the norm.

    Shape:
        x: (utterances, dim), what asks
        y: (utterances, dim), what is looked up
        y_present: (utterances,) boolean, which of them there are
        returns: (utterances, dim)
    """

    def __init__(self, dim: int, heads: int, direction: Direction, dropout: float) -> None:
        super().__init__()
        self.direction = direction
        self.attention = MultiHeadAttention(dim, heads)
        self.distances = nn.Parameter(torch.zeros(heads, 2 * REACH + 1))  # added to the scores, from -REACH to REACH
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor, y_present: Tensor, turns: Turns) -> Tensor:
        attended = self.attention(*self._inputs(x, y, y_present, turns))
        return self.norm(x + self.dropout(turns.to_flat(attended)))

    def views(self, x: Tensor, y: Tensor, y_present: Tensor, turns: Turns) -> dict[str, Tensor]:
        weights = self.attention.weights(*self._inputs(x, y, y_present, turns))
        return {"attention": turns.to_flat(weights.transpose(1, 2))}  # (utterances, heads, turns)

    def _inputs(self, x: Tensor, y: Tensor, y_present: Tensor, turns: Turns) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, which turns each turn may attend to (conversations, turns, turns), and what is added."""
        turn = torch.arange(turns.mask.shape[1], device=turns.mask.device)
        distance = turn - turn[:, None]  # (turns, turns), negative for earlier ones
        seen = distance <= 0 if self.direction == "past" else torch.ones_like(distance, dtype=torch.bool)
        keys = turns.to_grid(y_present)[:, None, :] & seen
        bias = self.distances[:, distance.clamp(-REACH, REACH) + REACH]  # (heads, turns, turns)
        return turns.to_grid(x), turns.to_grid(y), keys, bias
