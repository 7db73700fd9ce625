"""Lengths -> deterministic batches under a frame budget. Pure.

Batches are a function of the lengths and the budget alone, so that an interrupted run and its continuation put the
same clips together. Clips of like length share a batch, which keeps padding low; the longest come first, so that a
budget too large for the memory shows at once.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Rows = Callable[[], list[np.ndarray]]  # waits for the device; one array an input


POOL = 8  # batches of shuffled items among which items of like length are put together


def batches_under_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of the items with a length above 0, in batches whose padded size (items x longest) fits `budget`.

    An item longer than the budget is a batch of its own.

    >>> batches_under_budget([3, 9, 4, 0, 4], budget=12)
    [[1], [2, 4, 0]]
    """
    batches: list[list[int]] = []
    order = sorted((index for index, length in enumerate(lengths) if length > 0), key=lambda index: -lengths[index])
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def cut(count: int, pieces: int) -> list[range]:
    """Positions 0 .. `count` in `pieces` parts of like size; empty parts are left out.

    Every boundary stays when `pieces` is doubled, so halving all parts is the same as cutting anew.

    >>> cut(5, 2)
    [range(0, 2), range(2, 5)]
    >>> cut(5, 4)
    [range(0, 1), range(1, 2), range(2, 3), range(3, 5)]
    """
    edges = [piece * count // pieces for piece in range(pieces + 1)]
    return [range(first, last) for first, last in itertools.pairwise(edges) if first < last]


def shuffled_batches(lengths: Sequence[int], size: int, seed: Sequence[int]) -> list[list[int]]:
    """Indices in random batches of `size` (the last may be smaller) for training; a function of its arguments.

    Items of like length meet, within pools that are small enough to keep batches random.

    >>> shuffled_batches([3, 9, 4, 8, 4], size=2, seed=[0, 1])
    [[4, 2], [1, 3], [0]]
    """
    random = np.random.default_rng(list(seed))
    order = random.permutation(len(lengths)).tolist()
    pools = [sorted(pool, key=lambda index: -lengths[index]) for pool in _pieces(order, POOL * size)]
    batches = [batch for pool in pools for batch in _pieces(pool, size)]
    whole = [batch for batch in batches if len(batch) == size]
    rest = [batch for batch in batches if len(batch) < size]  # of the last pool
    return [whole[position] for position in random.permutation(len(whole))] + rest


def _pieces(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


@dataclass(frozen=True)
class Window:
    """A stretch of a long sequence: positions `start` .. `end` are encoded, `keep_start` .. `keep_end` kept."""

    start: int
    end: int
    keep_start: int
    keep_end: int


def windows(length: int, size: int, overlap: int) -> list[Window]:
    """Windows of at most `size` positions that overlap by `overlap`, and whose kept stretches tile the sequence.

    Inside an overlap the seam lies in the middle, so that every kept position has context on both sides.

    >>> [(w.start, w.end, w.keep_start, w.keep_end) for w in windows(10, size=6, overlap=2)]
    [(0, 6, 0, 5), (4, 10, 5, 10)]
    >>> [(w.start, w.end) for w in windows(5, size=6, overlap=2)]
    [(0, 5)]

    Raises:
        ValueError: the overlap is not smaller than the window.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"the overlap ({overlap}) must be smaller than the window ({size})")
    if length <= size:
        return [Window(0, length, 0, length)]
    starts = [*list(range(0, length - size, size - overlap)), length - size]
    seams = [0, *((start + before + size) // 2 for before, start in itertools.pairwise(starts)), length]
    return [
        Window(start, start + size, seam, next_seam)
        for start, seam, next_seam in zip(starts, seams, seams[1:], strict=False)
    ]
