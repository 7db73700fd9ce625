"""What a linear model looks at: a few numbers of each utterance, standardised and limited by the train split alone.

Axes: utterances, columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fusion.data import Chosen, Ragged, Split
from fusion.params import Recipe
from pipeline.store import plain_scale, robust_scale

GATHERED = 1024  # rows of frames or tokens, as stored, at a time
CONSTANT = 1e-6  # of the largest number in a column: one that varies less is constant but for rounding


@dataclass(frozen=True, eq=False)
class Pooled:
    """Mean and standard deviation over the rows of each utterance of one split, by modality."""

    present: Mapping[str, np.ndarray]  # (utterances,) boolean
    means: Mapping[str, np.ndarray]  # (utterances, dim) float32, 0 where it is not present
    deviations: Mapping[str, np.ndarray]
    conversations: np.ndarray  # (conversations + 1,): conversation i owns the utterances [i] .. [i + 1]


@dataclass(frozen=True)
class Variant:
    """What a linear model looks at."""

    modalities: tuple[str, ...]
    neighbours: bool

    @property
    def name(self) -> str:
        """In tables."""
        looked_at = " + ".join(self.modalities)
        return f"{looked_at}, with neighbours" if self.neighbours else looked_at


def pool_split(split: Split) -> Pooled:
    """Mean and standard deviation of what each utterance of `split` has, in memory of (utterances, dim) numbers."""
    present, means, deviations = {}, {}, {}
    for name, rows in (("audio", split.audio), ("text", split.text)):
        present[name] = (rows.lengths > 0).numpy()
        means[name], deviations[name] = _moments(rows)
    return Pooled(present, means, deviations, split.conversations.numpy())


@torch.no_grad()
def _moments(rows: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the rows of each utterance, (utterances, dim) each; of encoder layers, the mean.

    Utterances of like length are padded together, so that padding costs little.
    """
    found = torch.zeros(2, len(rows.lengths), rows.dim)
    order = rows.lengths.argsort(stable=True)
    order = order[rows.lengths[order] > 0]
    for piece in _pieces(order, rows.stored):
        lengths = rows.lengths[piece].to(rows.device)[:, None, None]
        values, mask = rows.gather(Chosen(piece, piece.to(rows.device)), int(lengths.max()))
        values = values.mean(2) if values.dim() == 4 else values
        mean = values.sum(1, keepdim=True) / lengths
        square = ((values - mean) ** 2 * mask[:, :, None]).sum(1) / lengths[:, 0]
        found[:, piece] = torch.stack([mean[:, 0], square.sqrt()]).cpu()
    return found[0].numpy(), found[1].numpy()


def _pieces(order: torch.Tensor, lengths: torch.Tensor) -> Iterator[torch.Tensor]:
    """Utterances in `order` of their lengths, about `GATHERED` rows together."""
    piece = lengths[order].cumsum(0) // GATHERED
    if len(order):
        yield from order.split(piece.unique_consecutive(return_counts=True)[1].tolist())


class LinearColumns:
    """What the linear model of one variant is given, standardised by the utterances of train that have it."""

    def __init__(self, variant: Variant, train: Pooled, direction: str, robust: bool) -> None:
        self.variant, self.both_sides = variant, direction == "both"
        self.scales = {
            name: tuple(_Scale(found[name][train.present[name]], robust) for found in (train.means, train.deviations))
            for name in variant.modalities
        }

    @property
    def neighbours(self) -> int:
        """On how many sides it looks at the next turn."""
        return (1 + self.both_sides) * self.variant.neighbours

    def of(self, pooled: Pooled) -> np.ndarray:
        """(utterances, columns) float32, 0 where there is nothing."""
        blocks = []
        for name, (of_means, of_deviations) in self.scales.items():
            means = of_means(pooled.means[name], pooled.present[name])
            blocks += [means, of_deviations(pooled.deviations[name], pooled.present[name])]
            if self.variant.neighbours:
                blocks += _neighbours(means, pooled.conversations, self.both_sides)
        columns = np.concatenate(blocks, axis=1)
        return columns if columns.shape[1] else np.zeros((len(columns), 1), np.float32)


class _Scale:
    """Columns (utterances, dim) of train to mean 0 and deviation 1; those that are constant there are left out.

    Elsewhere, what lies far beyond train is put on a limit; if it is to be `robust`, in train as well. A number that is
    not finite counts as missing.
    """

    def __init__(self, train: np.ndarray, robust: bool) -> None:
        finite = np.isfinite(train)
        values = np.where(finite, train, 0).astype(np.float64)
        count = np.maximum(finite.sum(0), 1)
        mean = values.sum(0) / count
        spread = np.sqrt((np.where(finite, values - mean, 0) ** 2).sum(0) / count)
        self.kept = spread > CONSTANT * np.abs(values).max(0, initial=0)
        least = np.where(finite, train, np.inf).min(0, initial=np.inf)
        most = np.where(finite, train, -np.inf).max(0, initial=-np.inf)
        found = plain_scale(mean, spread, least, most)
        if robust and len(train):
            found = robust_scale(np.where(finite, train, mean), spread)
        self.mean, self.spread = found.centre[self.kept], found.spread[self.kept]
        self.limits = found.low[self.kept], found.high[self.kept]

    def __call__(self, values: np.ndarray, present: np.ndarray) -> np.ndarray:
        own = values[:, self.kept]
        scaled = (np.clip(own, *self.limits) - self.mean) / self.spread
        return np.where(present[:, None] & np.isfinite(own), scaled, 0).astype(np.float32)


def _neighbours(means: np.ndarray, conversations: np.ndarray, both_sides: bool) -> list[np.ndarray]:
    """`means` of the turn before and, with `both_sides`, of the turn after; 0 where there is none."""
    before, after = np.zeros_like(means), np.zeros_like(means)
    follows = np.ones(len(means), bool)
    follows[conversations[:-1]] = False  # the first turns
    turns = np.flatnonzero(follows)
    before[turns], after[turns - 1] = means[turns - 1], means[turns]
    return [before, after] if both_sides else [before]


def linear_variants(train: Pooled, recipe: Recipe) -> list[Variant]:
    """From the simplest on: what the model looks at and some utterance of train has, each alone and together."""
    seen = [name for name in recipe.model.looks_at if train.present[name].any()] or [recipe.model.looks_at[0]]
    several = bool((np.diff(train.conversations) > 1).any())
    sets = [(name,) for name in seen] + ([tuple(seen)] if len(seen) > 1 else [])
    return [Variant(looked_at, neighbours) for looked_at in sets for neighbours in (False, True)[: 1 + several]]
