"""Where utterances stand in their conversations: flat, one behind the other, and laid out on a grid.

Nothing here asks the device for a number, so that a step of training never waits for it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Turns:
    """The conversations of a batch.

    Attributes:
        mask: (conversations, turns) boolean, with as many true as there are utterances; every conversation fills its
            row from the left.
        places: (utterances,) int64, where each stands in `mask` when that is laid flat.

    >>> turns = Turns.of(torch.tensor([[True, False], [True, True]]))
    >>> turns.to_grid(torch.tensor([1, 2, 3])).tolist()
    [[1, 0], [2, 3]]
    >>> turns.number.tolist(), turns.count.tolist()
    ([0, 0, 1], [1, 2, 2])
    >>> turns.rows_back.tolist(), turns.places_back.tolist()
    ([[0, 0], [2, 1]], [0, 3, 2])
    """

    mask: Tensor
    places: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "Turns":
        """Those of `mask`; on a GPU this waits for it."""
        return cls(mask, mask.flatten().nonzero().squeeze(1))

    def to(self, device: torch.device | str) -> "Turns":
        """The same on `device`."""
        return Turns(self.mask.to(device), self.places.to(device))

    def to_grid(self, flat: Tensor) -> Tensor:
        """(utterances, ...) -> (conversations, turns, ...), zeros where no turn exists."""
        grid = flat.new_zeros(self.mask.numel(), *flat.shape[1:])
        return grid.index_copy(0, self.places, flat).unflatten(0, tuple(self.mask.shape))

    def spread(self, flat: Tensor) -> Tensor:
        """The same in one operation, with an utterance of the batch, whichever, where no turn exists."""
        return take_rows(flat, self.rows)

    def to_flat(self, grid: Tensor) -> Tensor:
        """The inverse of both: (conversations, turns, ...) -> (utterances, ...)."""
        return take_rows(grid.flatten(0, 1), self.places)

    @cached_property
    def number(self) -> Tensor:
        """(utterances,) int64, from 0 in each conversation."""
        return self.places % self.mask.shape[1]

    @cached_property
    def count(self) -> Tensor:
        """(utterances,) int64, how many turns the conversation of each has."""
        return self._counts.index_select(0, self.places // self.mask.shape[1])

    @cached_property
    def rows(self) -> Tensor:
        """(conversations, turns) int64, the utterance of each; of the batch, whichever, where no turn exists."""
        ends = self._counts.cumsum(0)
        return ((ends - self._counts)[:, None] + self._turn).clamp_max(len(self.places) - 1)

    @cached_property
    def rows_back(self) -> Tensor:
        """`rows` with the turns of each conversation from last to first; what does not exist stays behind them."""
        return (self._counts.cumsum(0)[:, None] - 1 - self._turn).clamp_min(0)

    @cached_property
    def places_back(self) -> Tensor:
        """(utterances,) int64, where each stands in `rows_back` when that is laid flat."""
        return self.places + self.count - 1 - 2 * self.number

    @cached_property
    def distances(self) -> Tensor:
        """(turns, turns) int64, from the turn of the row to that of the column; negative for earlier ones."""
        return self._turn - self._turn[:, None]

    @cached_property
    def _counts(self) -> Tensor:
        """(conversations,) int64, turns of each."""
        return self.mask.sum(dim=1)

    @cached_property
    def _turn(self) -> Tensor:
        return torch.arange(self.mask.shape[1], device=self.mask.device)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] along the first axis: x (n, ...), rows (...) int64.

    Of vectors as an embedding: on a GPU its way back adds up rows in a fixed order without sorting, for up to 3,072 of
    them, where that of an index sorts.
    """
    if x.dim() == 2 and x.is_floating_point():
        return F.embedding(rows, x)
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape)
