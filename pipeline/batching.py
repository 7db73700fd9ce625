"""Lengths -> deterministic batches under a frame budget. Pure.

Batches are a function of the lengths and the budget alone, so that an interrupted run and its continuation put the
same clips together. Clips of like length share a batch, which keeps padding low; the longest come first, so that a
budget too large for the memory shows at once.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


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
