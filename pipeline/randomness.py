"""Random numbers that belong to one utterance: they depend on a seed and its id, not on what else is drawn or where."""

import hashlib

import numpy as np


def generator(purpose: str, seed: int, identifier: str) -> np.random.Generator:
    """The generator of utterance `identifier`; another `purpose` or `seed` gives independent numbers."""
    key = hashlib.sha256(f"{purpose}\0{seed}\0{identifier}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
