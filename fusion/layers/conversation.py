"""Lets the turns of a conversation see each other: all of them, or those around each."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fusion.batch import Turns, take_rows
from fusion.layers import primitives
from fusion.layers.attention import KeyMask, MultiHeadAttention, masked_softmax
from fusion.layers.primitives import Parts
from fusion.layers.recurrent import Direction, SideBySide, TurnGRU


def gather_neighbours(x: Tensor, turns: Turns, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """For each utterance, the vectors of the turns at `offsets` from it in its own conversation, and which exist.

    Shape:
        x: (utterances, dim)
        offsets: (offsets,) int64, in turns, negative for earlier ones
        returns: (utterances, offsets, dim), arbitrary where no such turn exists, and (utterances, offsets) boolean

    >>> x = torch.tensor([[10], [11], [12], [20]])
    >>> turns = Turns.of(torch.tensor([[True, True, True], [True, False, False]]))
    >>> neighbours, mask = gather_neighbours(x, turns, torch.tensor([-1, 1]))
    >>> [row[real].flatten().tolist() for row, real in zip(neighbours, mask)]
    [[11], [10, 12], [11], []]
    """
    target = turns.number[:, None] + offsets
    exists = (target >= 0) & (target < turns.count[:, None])
    index = torch.arange(x.shape[0], device=x.device)[:, None] + offsets
    return take_rows(x, index.clamp(0, x.shape[0] - 1)), exists


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
        return self.add(x, self.gru(x, turns))

    def add(self, x: Tensor, found: Tensor) -> Tensor:
        """What `forward` makes of `x` and what the GRU finds along it."""
        return self.norm(x + self.dropout(found))


class ConversationLayers(nn.ModuleList):
    """Several `ConversationEncoder`, one behind the other."""

    def forward(self, x: Tensor, turns: Turns) -> Tensor:
        for layer in self:
            x = layer(x, turns)
        return x


LAUNCH_BOUND = 128  # width up to which a GPU is busier with launches than with the zeros of a wide GRU; an estimate


class EncodeBoth(nn.Module):
    """Runs the conversation encoders of both modalities; on a GPU all their GRUs in one call. It has no weights.

    Shape:
        a, t: (utterances, dim)
        returns: the same two
    """

    def __init__(self, dim: int, direction: Direction) -> None:
        super().__init__()
        directions = {"past": 1, "both": 2}[direction]
        self.together = SideBySide(2 * directions, dim, dim // directions) if dim <= LAUNCH_BOUND else None

    def forward(self, encoders: Sequence[nn.Module], a: Tensor, t: Tensor, turns: Turns) -> list[Tensor]:
        both = [encoder for encoder in encoders if isinstance(encoder, ConversationEncoder)]
        if not both or self.together is None or not primitives.dominate(a):
            return [encoder(x, turns) for encoder, x in zip(encoders, (a, t), strict=True)]
        ways = list(zip(*(encoder.gru.gru.grus for encoder in both), strict=True))  # of each direction: audio's, text's
        x = torch.cat([a, t], dim=-1)
        grids = [take_rows(x, rows) for rows in (turns.rows, turns.rows_back)[: len(ways)]]
        states = self.together([gru for way in ways for gru in way], torch.cat(grids, dim=-1)).chunk(len(ways), -1)
        places = (turns.places, turns.places_back)
        found = [take_rows(x.flatten(0, 1), to).chunk(2, -1) for x, to in zip(states, places, strict=False)]
        pairs = zip(both, (a, t), zip(*found, strict=True), strict=True)
        return [encoder.add(x, torch.cat(directions, dim=-1)) for encoder, x, directions in pairs]


Among = Literal["all", "own_speaker", "other_speakers", "neighbours"]


def turn_keys(
    present: Tensor, turns: Turns, direction: Direction, among: Among = "all", neighbours: int = 1
) -> KeyMask:
    """Which turns each turn may attend to: those of its conversation that are present, up to itself for `past`.

    Args:
        present: (utterances,) boolean.
        among: all of these, those of the turn's own speaker, of the others, or up to `neighbours` turns away.
    """
    keys = (turns.spread(present) & turns.mask)[:, None, :]  # (conversations, 1, turns)
    if among == "own_speaker":
        keys = keys & turns.same_speaker
    if among == "other_speakers":
        keys = keys & ~turns.same_speaker
    if among == "neighbours":
        keys = keys & (turns.distances.abs() <= neighbours)
    return KeyMask(keys & (turns.distances <= 0) if direction == "past" else keys)


class AttentionAmongTurns(nn.Module):
    """Multi-head attention of each turn to the turns of its conversation: MHA(x; y).

    Each head learns how much it looks at a turn so many turns away, all beyond `REACH` alike: without that, attention
    could not tell the turn before from any other. A turn that has nothing to attend to receives zeros.

    Shape:
        x: (utterances, dim), what asks
        y: (utterances, dim), what is looked up
        y_keys: from `turn_keys`, which of them there are
        returns: (utterances, dim)
    """

    def __init__(self, dim: int, heads: int, width: int | None = None) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, width)
        self.distances = nn.Parameter(torch.zeros(heads, 2 * REACH + 1))  # added to the scores, from -REACH to REACH

    def forward(self, x: Tensor, y: Tensor, y_keys: KeyMask, turns: Turns) -> Tensor:
        return turns.to_flat(self.attention(*self._inputs(x, y, y_keys, turns)))

    def weights(self, x: Tensor, y: Tensor, y_keys: KeyMask, turns: Turns) -> Tensor:
        """(utterances, heads, turns), how much each looks at each turn of its conversation."""
        return turns.to_flat(self.attention.weights(*self._inputs(x, y, y_keys, turns)).transpose(1, 2))

    def _inputs(self, x: Tensor, y: Tensor, y_keys: KeyMask, turns: Turns) -> tuple[Tensor, Tensor, KeyMask, Tensor]:
        """Queries, keys, which turns each turn may attend to, and what is added."""
        places = turns.distances.clamp(-REACH, REACH) + REACH
        bias = take_rows(self.distances.T, places).permute(2, 0, 1)  # (heads, turns, turns)
        queries = turns.spread(x)
        keys = queries if y is x and primitives.dominate(x) else turns.spread(y)
        return queries, keys, y_keys, bias


class TurnAttention(nn.Module):
    """LN(x + MHA(x; y)) among turns; see `AttentionAmongTurns`. A turn with nothing to attend to stays as it is, apart
    from the norm.
    """

    def __init__(self, dim: int, heads: int, dropout: float, width: int | None = None) -> None:
        super().__init__()
        self.attend = AttentionAmongTurns(dim, heads, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor, y_keys: KeyMask, turns: Turns) -> Tensor:
        return self.norm(x + self.dropout(self.attend(x, y, y_keys, turns)))

    def views(self, x: Tensor, y: Tensor, y_keys: KeyMask, turns: Turns) -> dict[str, Tensor]:
        return {"attention": self.attend.weights(x, y, y_keys, turns)}


class MatchingAttention(nn.Module):
    """Attention of each turn to the turns of its conversation by one bilinear score, without values of its own.

        weights_ij = softmax over j of (W x_i + b) . x_j,   z_i = sum over j of weights_ij x_j

    As DialogueRNN and DialogueGCN end (arXiv 1811.00405 and 1908.11540).

    Shape:
        x: (utterances, dim)
        keys: from `turn_keys`
        returns: (utterances, dim)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.transform = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: KeyMask, turns: Turns) -> Tensor:
        return turns.to_flat(self._weights(x, keys, turns) @ turns.spread(x))

    def views(self, x: Tensor, keys: KeyMask, turns: Turns) -> dict[str, Tensor]:
        return {"attention": turns.to_flat(self._weights(x, keys, turns))[:, None]}

    def _weights(self, x: Tensor, keys: KeyMask, turns: Turns) -> Tensor:
        """(conversations, turns, turns)."""
        grid = turns.spread(x)
        return masked_softmax(self.transform(grid) @ grid.transpose(1, 2), keys.by_query)


class BranchedAttention(nn.Module):
    """LN(x + sum over the branches of MHA(x; x)), each among turns of its own kind.

    Shape:
        x: (utterances, dim), given twice, as to `TurnAttention`
        keys, others: from `turn_keys`, of the first branch and of the others
        returns: (utterances, dim)
    """

    def __init__(self, branches: Sequence[Among], dim: int, heads: int, dropout: float, width: int | None) -> None:
        super().__init__()
        self.branches: Parts[AttentionAmongTurns] = Parts(
            {name: AttentionAmongTurns(dim, heads, width) for name in branches}
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, _: Tensor, keys: KeyMask, turns: Turns, *others: KeyMask) -> Tensor:
        pairs = zip(self.branches.values(), (keys, *others), strict=True)
        found = torch.stack([attend(x, x, own, turns) for attend, own in pairs]).sum(dim=0)
        return self.norm(x + self.dropout(found))

    def views(self, x: Tensor, _: Tensor, keys: KeyMask, turns: Turns, *others: KeyMask) -> dict[str, Tensor]:
        pairs = zip(self.branches.items(), (keys, *others), strict=True)
        return {name: attend.weights(x, x, own, turns) for (name, attend), own in pairs}
