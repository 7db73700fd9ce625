"""How far features agree: across precisions, and with the model as transformers gives it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from measures.corpora import Corpus
from measures.encoding import EXACT, NAIVE, REDUCED, SINGLE, Variant, extractor, make_variants

NATIVE_SECONDS, EMULATED_SECONDS = 60, 12  # bfloat16 takes long where the processor has none


@dataclass(frozen=True)
class Agreement:
    """Features `of` one variant held to those of another, frame by frame."""

    of: str
    to: str
    corpus: str
    frames: int
    lowest_cosine: float
    mean_cosine: float
    largest_difference: float  # of one value
    largest_value: float  # of the features, to hold the difference to


def measure_agreement(corpus: Corpus, location: str, device: str) -> list[Agreement]:
    """The extractor and naive batches against single clips, bfloat16 against float32."""
    variants = {variant.name: variant for variant in make_variants(location, device)}
    reduced = variants.get(REDUCED) or extractor(location, REDUCED, device)
    native = REDUCED in variants
    clips = corpus.sample(NATIVE_SECONDS if native else EMULATED_SECONDS).clips()
    features = {name: encoded(variants[name], clips) for name in (SINGLE, NAIVE, EXACT)}
    features[REDUCED] = encoded(reduced, clips)
    pairs = [(EXACT, SINGLE), (NAIVE, SINGLE), (REDUCED, EXACT)]
    return [compare(of, to, corpus.name, features[of], features[to]) for of, to in pairs]


def encoded(variant: Variant, clips: Sequence[Tensor]) -> list[np.ndarray]:
    """Features (frames, dim) of each clip, in the order of the clips."""
    batches = variant.batches([len(clip) for clip in clips])
    found: dict[int, np.ndarray] = {}
    for batch in batches:
        found.update(zip(batch, variant.encode([clips[index] for index in batch]), strict=True))
    return [found[index] for index in range(len(clips))]


def compare(of: str, to: str, corpus: str, left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> Agreement:
    """Of features (frames, dim) of each clip; raises ValueError where the frames differ in number."""
    first, second = (np.concatenate(arrays).astype(np.float64) for arrays in (left, right))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / lengths
    return Agreement(
        of=of,
        to=to,
        corpus=corpus,
        frames=len(cosines),
        lowest_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        largest_difference=float(np.abs(first - second).max()),
        largest_value=float(np.abs(second).max()),
    )
