"""One modality of a split: rows of features, ragged, from which padded groups of utterances are gathered.

`Resident` rows lie on the training device, `Mapped` ones stay in the feature file, or beside a GPU in the memory of the
machine, and are read when they are needed. Both give the same bits. Features keep the precision of the file and become
float32 when gathered.

Axes: utterances, frames (audio) or tokens (text), layers, dim; rows are the frames or tokens of all utterances.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.settings import Threads, count_cores
from pipeline.store import Columns, Guard, Part, join_columns, measure_columns, robust_scale

MEASURED_ROWS = 512  # measured at a time; another number gives other roundings
SAMPLED_ROWS = 10_000  # of which quantiles are taken, about, where there are more
POOLED_ROWS = 4096  # pooled or copied at a time: their float32 copy stays in the cache; 65,536 took four times as long


@dataclass(frozen=True)
class Chosen:
    """Utterances of a split, where Python looks at them and where arithmetic is."""

    host: Tensor  # (n,) int64
    here: Tensor  # (n,) int64, on the training device


class _Rows:
    @property
    def shape(self) -> tuple[int, ...]:
        """(dim,) or (layers, dim)."""
        raise NotImplementedError

    @cached_property
    def columns(self) -> Columns:
        """Of all rows as they are gathered, the same for `Resident` and `Mapped`; computed once, on the CPU."""
        return reduce(join_columns, map(measure_columns, _blocks(cast("Ragged", self))))

    @cached_property
    def robust_columns(self) -> Columns:
        """The same with a robust scale: of about 10,000 rows, drawn at random with a fixed seed, or of all if fewer."""
        rows = cast("Ragged", self)
        total = int(rows.lengths.sum())
        if not total:
            return self.columns
        random, share = np.random.default_rng(0), min(1, SAMPLED_ROWS / total)
        # a number for every row in order: the same rows however they come in blocks
        sample = [block[random.random(len(block)) < share] for block in _blocks(rows)]
        return replace(self.columns, robust=robust_scale(np.concatenate(sample), self.columns.deviation))

    @property
    def dim(self) -> int:
        """Width of a feature."""
        return self.shape[-1]

    @property
    def layers(self) -> int:
        """Encoder layers of a feature; 1 where there is no such axis."""
        return self.shape[0] if len(self.shape) == 2 else 1


@dataclass(frozen=True, eq=False)
class Resident(_Rows):
    """Rows on the training device."""

    values: Tensor  # (rows, dim) or (rows, layers, dim), float16 or float32
    starts: Tensor  # (utterances,) int64, on the CPU
    lengths: Tensor  # (utterances,) int64, on the CPU: utterance i owns rows starts[i] .. starts[i] + lengths[i]

    @classmethod
    def packed(cls, values: Tensor, lengths: Tensor) -> "Resident":
        """Utterances that lie one behind the other."""
        return cls(values, lengths.cumsum(0) - lengths, lengths)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape[1:])

    @property
    def stored(self) -> Tensor:
        """As `lengths`: these rows were pooled before."""
        return self.lengths

    @property
    def device(self) -> torch.device:
        """Where batches are gathered."""
        return self.values.device

    def gather(self, chosen: Chosen, width: int) -> tuple[Tensor, Tensor]:
        """Padded features (n, width, [layers,] dim) in float32, zero at padding, and their mask (n, width)."""
        starts, lengths = self._table.index_select(1, chosen.here)[:, :, None]
        position = torch.arange(width, device=self.device)
        mask = position < lengths
        if not len(self.values):
            return torch.zeros(*mask.shape, *self.shape, device=self.device), mask
        rows = (starts + position).clamp_max(len(self.values) - 1)  # at padding: any row
        padded = self.values.index_select(0, rows.flatten()).unflatten(0, mask.shape).float()
        if padded.is_cuda:
            return padded.masked_fill_(~mask.view(*mask.shape, *[1] * len(self.shape)), 0.0), mask
        padding = torch.from_numpy(np.flatnonzero(~mask.numpy()))  # by index: on a CPU ten times as fast
        padded.flatten(0, 1).index_fill_(0, padding, 0.0)
        return padded, mask

    def read(self, utterances: Tensor) -> "Resident":
        """The rows of some utterances, where they are."""
        owned = [
            self.values[start : start + length]
            for start, length in zip(self.starts[utterances].tolist(), self.lengths[utterances].tolist(), strict=True)
        ]
        return Resident.packed(torch.cat([self.values[:0], *owned]), self.lengths[utterances])

    def without(self, missing: Tensor) -> "Resident":
        """The same rows, of which the utterances that `missing` (utterances,) marks own none."""
        return replace(self, lengths=self.lengths.where(~missing, 0))

    def move(self, device: torch.device | str) -> "Resident":
        """The same on `device`."""
        return replace(self, values=self.values.to(device))

    def leave(self, device: torch.device | str) -> "Mapped":
        """The same, whose rows stay in the memory of the machine and are gathered on `device`."""
        return Mapped(self.values.numpy(), self.starts, self.lengths, None, torch.device(device))

    @cached_property
    def _table(self) -> Tensor:
        """(2, utterances): starts and lengths, where arithmetic is."""
        return torch.stack([self.starts, self.lengths]).to(self.device)


@dataclass(frozen=True, eq=False)
class Mapped(_Rows):
    """Rows that stay in the file, pooled when they are gathered."""

    file: np.ndarray  # (rows, dim) or (rows, layers, dim), float16 or float32, a memory map
    starts: Tensor  # (utterances,) int64
    stored: Tensor  # (utterances,) int64: rows of each in the file
    limit: int | None  # rows that an utterance may have; longer ones are average-pooled to so many
    device: torch.device  # where batches are gathered
    guard: Guard | None = None  # of the file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.shape[1:]

    @cached_property
    def lengths(self) -> Tensor:
        """(utterances,) int64, as gathered."""
        return self.stored if self.limit is None else self.stored.clamp(max=self.limit)

    def gather(self, chosen: Chosen, width: int) -> tuple[Tensor, Tensor]:
        """As `Resident.gather`, to the bit."""
        rows = self.read(chosen.host).move(self.device)
        everyone = torch.arange(len(chosen.host))
        return rows.gather(Chosen(everyone, everyone.to(self.device)), width)

    def read(self, utterances: Tensor) -> Resident:
        """The rows of some utterances, on the CPU; raises StoreError where they are damaged."""
        starts, stored = self.starts[utterances], self.stored[utterances]
        if self.guard:
            self.guard.check(self.guard.places(starts[stored > 0].numpy()))
        owned = [self.file[start : start + rows] for start, rows in zip(starts.tolist(), stored.tolist(), strict=True)]
        return pool(np.concatenate([self.file[:0], *owned]), stored, self.limit)

    def without(self, missing: Tensor) -> "Mapped":
        """The same rows, of which the utterances that `missing` (utterances,) marks own none."""
        return replace(self, stored=self.stored.where(~missing, 0))

    def move(self, device: torch.device | str) -> "Mapped":
        """The same, gathered on `device`."""
        return replace(self, device=torch.device(device))


Ragged = Resident | Mapped


def map_rows(part: Part, first: int, last: int, limit: int | None, device: torch.device | str) -> Mapped:
    """Utterances `first` .. `last` of `part`, those of more than `limit` rows average-pooled to it."""
    starts = torch.from_numpy(part.starts[first:last].astype(np.int64))
    stored = torch.from_numpy(np.diff(part.offsets[first : last + 1]).astype(np.int64))
    return Mapped(part.values, starts, stored, limit, torch.device(device), part.guard)


def resident_bytes(mapped: Sequence[Mapped]) -> int:
    """What `load_together` takes of the device's memory."""
    return sum(
        int(rows.lengths.sum()) * int(np.prod(rows.shape)) * rows.file.dtype.itemsize for rows, _ in _distinct(mapped)
    )


def load_together(mapped: Sequence[Mapped]) -> dict[int, Resident]:
    """Each of `mapped` on the device, by its `id`; rows that several of them have, as folds do, are there once."""
    found = {}
    for rows, members in _distinct(mapped):
        loaded = load_rows(rows)
        for member, places in members:
            found[id(member)] = Resident(loaded.values, loaded.starts[places], loaded.lengths[places])
    return found


def _distinct(mapped: Sequence[Mapped]) -> Iterator[tuple[Mapped, list[tuple[Mapped, Tensor]]]]:
    """Rows that are loaded together, and where the utterances of each member are among them."""
    alike: dict[tuple[object, ...], list[Mapped]] = defaultdict(list)
    for rows in mapped:
        key = rows.file.__array_interface__["data"][0], rows.limit, rows.device
        alike[key].append(rows)
    for group in alike.values():
        spans = torch.cat([torch.stack([rows.starts, rows.stored], 1) for rows in group])
        distinct, places = spans.unique(dim=0, return_inverse=True)
        if (distinct[:, 1] > 0).sum() == (spans[:, 1] > 0).sum():  # nothing is shared: each in its own order
            yield from ((rows, [(rows, torch.arange(len(rows.starts)))]) for rows in group)
            continue
        union = replace(group[0], starts=distinct[:, 0], stored=distinct[:, 1])
        yield union, list(zip(group, places.split([len(rows.starts) for rows in group]), strict=True))


def load_rows(mapped: Mapped) -> Resident:
    """The same rows on the device, copied and pooled a piece at a time."""
    dtype = torch.from_numpy(np.zeros(0, mapped.file.dtype)).dtype
    values = torch.empty(int(mapped.lengths.sum()), *mapped.shape, dtype=dtype, device=mapped.device)
    loaded = Resident.packed(values, mapped.lengths)

    def load(utterances: Tensor) -> None:
        rows = mapped.read(utterances).values
        first = int(loaded.starts[utterances[0]])
        values[first : first + len(rows)] = rows

    with Threads(count_cores()) as threads:
        list(threads.map(load, _pieces(mapped.stored, POOLED_ROWS)))
    return loaded


def _blocks(rows: Ragged) -> Iterator[np.ndarray]:
    """All rows in their order, some utterances at a time, as float32, which numpy takes longer for."""
    for utterances in _pieces(rows.lengths, MEASURED_ROWS):
        parts = [rows.read(utterances[part]).values for part in _pieces(rows.stored[utterances], MEASURED_ROWS)]
        yield torch.cat(parts).float().cpu().numpy()


def _pieces(lengths: Tensor, rows: int) -> Iterator[Tensor]:
    """Neighbouring utterances of about so many `rows` together."""
    piece = lengths.cumsum(0) // rows
    counts = piece.unique_consecutive(return_counts=True)[1]
    yield from torch.arange(len(lengths)).split(counts.tolist())


def pool(values: np.ndarray, lengths: Tensor, limit: int | None) -> Resident:
    """Average-pool utterances of more than `limit` rows to `limit`; shorter ones stay as they are.

    An utterance of n rows is cut at floor(j n / limit) into contiguous segments whose lengths differ by at most one,
    and every row is in exactly one of them.

    Args:
        values: (rows, dim) or (rows, layers, dim), float16 or float32.
        lengths: (utterances,) rows of each utterance.
        limit: most rows an utterance may have afterwards; None: as many as it has.
    """
    if limit is None or not bool((lengths > limit).any()):
        return Resident.packed(torch.from_numpy(values), lengths)
    pooled = lengths.clamp(max=limit)
    utterance = torch.repeat_interleave(torch.arange(len(lengths)), pooled)
    segment = torch.arange(len(utterance)) - (pooled.cumsum(0) - pooled)[utterance]
    starts = (lengths.cumsum(0) - lengths)[utterance] + segment * lengths[utterance] // pooled[utterance]
    bounds = torch.cat([starts, torch.tensor([len(values)])])
    chunks = [
        _segment_means(values, bounds[first : first + POOLED_ROWS + 1]) for first in range(0, len(starts), POOLED_ROWS)
    ]
    return Resident.packed(torch.cat(chunks), pooled)


def _segment_means(values: np.ndarray, bounds: Tensor) -> Tensor:
    """Means of the rows between neighbouring `bounds` (segments + 1,): (segments, dim) or (segments, layers, dim)."""
    rows = torch.from_numpy(values[int(bounds[0]) : int(bounds[-1])])
    flat = rows.flatten(1).float()
    # a bag of embeddings is torch's fastest mean over contiguous rows, 20 times faster than numpy's reduceat
    means = F.embedding_bag(torch.arange(len(flat)), flat, bounds[:-1] - bounds[0], mode="mean")
    return means.view(-1, *rows.shape[1:]).to(rows.dtype)
