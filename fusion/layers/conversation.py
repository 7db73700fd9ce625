"""Lets the turns of a conversation see each other."""

from typing import Literal

import torch
from torch import Tensor, nn

from fusion.batch import to_flat, to_grid
from fusion.layers.attention import MultiHeadAttention
from fusion.layers.recurrent import Direction, TurnGRU

ConversationEncoding = Literal["gru", "none"]
REACH = 8  # turns


class ConversationEncoder(nn.Module):
    """LN(x + GRU(x)) along the turns.

    Shape:
        x: (utterances, dim)
        turn_mask: (conversations, turns)
        returns: (utterances, dim)
    """

    def __init__(self, dim: int, direction: Direction, dropout: float) -> None:
        super().__init__()
        self.gru = TurnGRU(dim, direction)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, turn_mask: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.gru(x, turn_mask)))


class TurnAttention(nn.Module):
    """Multi-head attention of each turn to the turns of its conversation: LN(x + MHA(x; y)).

    Each head learns how much it looks at a turn so many turns away, all beyond `REACH` alike: without that, attention
    could not tell the turn before from any other. With `direction` past, a turn attends to those up to itself. One that
    has nothing to attend to stays as it is, apart from the norm.

    Shape:
        x: (utterances, dim), what asks
        y: (utterances, dim), what is looked up
        y_present: (utterances,) boolean, which of them there are
        turn_mask: (conversations, turns)
        returns: (utterances, dim)
    """

    def __init__(self, dim: int, heads: int, direction: Direction, dropout: float) -> None:
        super().__init__()
        self.direction = direction
        self.attention = MultiHeadAttention(dim, heads)
        self.distances = nn.Parameter(torch.zeros(heads, 2 * REACH + 1))  # added to the scores, from -REACH to REACH
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor, y_present: Tensor, turn_mask: Tensor) -> Tensor:
        attended = self.attention(*self._inputs(x, y, y_present, turn_mask))
        return self.norm(x + self.dropout(to_flat(attended, turn_mask)))

    def views(self, x: Tensor, y: Tensor, y_present: Tensor, turn_mask: Tensor) -> dict[str, Tensor]:
        weights = self.attention.weights(*self._inputs(x, y, y_present, turn_mask))
        return {"attention": to_flat(weights.transpose(1, 2), turn_mask)}  # (utterances, heads, turns)

    def _inputs(
        self, x: Tensor, y: Tensor, y_present: Tensor, turn_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, which turns each turn may attend to (conversations, turns, turns), and what is added."""
        turn = torch.arange(turn_mask.shape[1], device=turn_mask.device)
        distance = turn - turn[:, None]  # (turns, turns), negative for earlier ones
        seen = distance <= 0 if self.direction == "past" else torch.ones_like(distance, dtype=torch.bool)
        keys = to_grid(y_present, turn_mask)[:, None, :] & seen
        bias = self.distances[:, distance.clamp(-REACH, REACH) + REACH]  # (heads, turns, turns)
        return to_grid(x, turn_mask), to_grid(y, turn_mask), keys, bias
