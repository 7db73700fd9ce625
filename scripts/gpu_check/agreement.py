"""How far apart two computations of the same are."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

EXACT = 1e-4  # DESIGN 3.3: of float32, where values are about 1; TF32 would be several times that
COSINE = 0.999  # DESIGN 3.3: of every frame in reduced precision


def largest_difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest difference of arrays (rows, ...), relative to the largest value where that is above 1; nan of nan."""
    scale = max(1.0, *(float(np.abs(one).max(initial=0)) for one in expected))
    differences = [np.abs(left - right).max(initial=0) for left, right in zip(found, expected, strict=True)]
    return float(np.max(differences)) / scale


def lowest_cosine(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Of all frames of arrays (frames, dim); nan of nan."""
    return float(np.min([_cosines(left, right).min() for left, right in zip(found, expected, strict=True)]))


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return (left * right).sum(axis=-1) / np.maximum(lengths, 1e-12)


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Distance of two vectors of any shape, relative to the length of the expected one."""
    left, right = found.detach().double().cpu().flatten(), expected.detach().double().cpu().flatten()
    return float(torch.linalg.vector_norm(left - right) / torch.linalg.vector_norm(right).clamp_min(1e-12))
