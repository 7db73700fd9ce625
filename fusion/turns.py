"""Where utterances stand in their conversations: flat, one behind the other, and laid out on a grid.

Nothing here asks the device for a number, so that a step of training never waits for it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
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

    def to_flat(self, grid: Tensor) -> Tensor:
        """The inverse: (conversations, turns, ...) -> (utterances, ...)."""
        return grid.flatten(0, 1).index_select(0, self.places)

    @cached_property
    def number(self) -> Tensor:
        """(utterances,) int64, from 0 in each conversation."""
        return self.places % self.mask.shape[1]

    @cached_property
    def count(self) -> Tensor:
        """(utterances,) int64, how many turns the conversation of each has."""
        return self.mask.sum(dim=1)[self.places // self.mask.shape[1]]
