"""Splits of a corpus by whole groups: conversations, or all conversations that share a speaker. Pure.

Groups are dealt out by chance, and then moved and swapped until no further change brings the labels of the parts nearer
to those of the whole (`stratify`).

And copies: utterances that are the same in two splits, or two folds, so that scores on them are not of new data.
Contents are compared by checksums or keys; no values are read. What counts as a copy of an utterance elsewhere:

audio   it has the same audio, unless that is ordinary: zeros alone, which stand for audio that is missing, or what at
        least `FEW` utterances of different labels or scores have, as placeholders do.
text    'Yeah.' is said in every corpus, and acted sentences by every speaker. So only whole conversations count:
        text, audio and speaker are the same turn by turn, and at least `DIFFERENT` of their texts differ.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.store.guard import checksum

if TYPE_CHECKING:
    from pipeline.store.reader import Features, Part

MISSING = 1e6  # what a label that a part lacks costs, beside what its shares are off by
LEAST = 1e-6  # that a change must gain
STEPS = 1000  # changes, at most
SWAPS = 1_000_000  # pairs of groups that are looked at for a swap; more groups need no swaps, moves will do
FEW = 3  # utterances
DIFFERENT = 3  # texts of a conversation
KNOWN = {"validation": ["train"], "test": ["train", "validation"]}  # what scores on a split were made to fit
COPIED = "the same as one in"  # of every sentence


def whole_groups(conversations: Sequence[str], speakers: Sequence[str] | None = None) -> list[list[str]]:
    """Conversations that must stay together, sorted: each alone, or all that are connected by speakers.

    Args:
        conversations, speakers: of each utterance.
    """
    group = {name: name for name in conversations}

    def root(name: str) -> str:
        while group[name] != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    first_of: dict[str, str] = {}
    for name, speaker in zip(conversations, speakers or (), strict=bool(speakers)):
        group[root(name)] = root(first_of.setdefault(speaker, name))
    members: dict[str, list[str]] = {}
    for name in group:
        members.setdefault(root(name), []).append(name)
    return sorted(sorted(names) for names in members.values())


def count_labels(groups: Sequence[Sequence[str]], labels: Mapping[str, Sequence[object]]) -> np.ndarray:
    """(groups, labels) int64: utterances of each group by label; `labels` by conversation, None is none."""
    names = {label: None for found in labels.values() for label in found if label is not None}
    columns = {label: number for number, label in enumerate(sorted(names, key=str))}
    counts = np.zeros((len(groups), len(columns)), np.int64)
    for row, conversations in enumerate(groups):
        for label in (label for name in conversations for label in labels[name] if label is not None):
            counts[row, columns[label]] += 1
    return counts


def stratify(counts: np.ndarray, sizes: np.ndarray, parts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """`parts` (groups,) changed until no move and no swap of groups brings each part nearer to its share of each label.

    A part that lacks a label weighs more than any share; no part becomes empty. The distance is the sum over labels and
    the number of utterances of (found - due)² / due.

    Args:
        counts: (groups, labels), see `count_labels`.
        sizes: (groups,) utterances.
        parts: (groups,) the part of each group, to begin with.
        shares: (parts,) of all utterances that each part is to have; they sum to 1.
    """
    held = np.column_stack([counts[:, counts.any(0)], sizes]).astype(float)  # a label that nobody has is no one's due
    due = shares[:, None] * held.sum(0)
    parts = parts.copy()

    def distance(part: int, found: np.ndarray) -> np.ndarray:
        """Of a part that holds `found` (..., columns)."""
        off = np.square(found - due[part]) / due[part]
        return off.sum(-1) + MISSING * (1 + 10 * shares[part]) * (found == 0).sum(-1)

    def best_change(one: int, other: int) -> tuple[float, dict[int, int]]:
        """What a move or swap between two parts takes off the distance, at most, and the new parts of its groups."""
        here, there = np.flatnonzero(parts == one), np.flatnonzero(parts == other)
        sums = held[here].sum(0), held[there].sum(0)
        flows = {}  # what leaves `one` for `other`, (.., columns)
        if len(here) > 1:
            flows["give"] = held[here][:, None]
        if len(there) > 1:
            flows["take"] = -held[there][None]
        if len(here) * len(there) <= SWAPS:
            flows["swap"] = held[here][:, None] - held[there][None]
        best: tuple[float, dict[int, int]] = (0.0, {})
        for kind, flow in flows.items():
            distances = distance(one, sums[0] - flow) + distance(other, sums[1] + flow)
            row, column = np.unravel_index(distances.argmin(), distances.shape)
            gain = float(distance(one, sums[0]) + distance(other, sums[1]) - distances[row, column])
            if gain > best[0]:
                given = {} if kind == "take" else {int(here[row]): other}
                best = gain, given | ({} if kind == "give" else {int(there[column]): one})
        return best

    pairs = [(one, other) for one in range(len(shares)) for other in range(one)]
    for _ in range(STEPS):
        gain, change = max((best_change(*pair) for pair in pairs), key=lambda found: found[0])
        if gain < LEAST:
            break
        parts[list(change)] = list(change.values())
    return parts


@dataclass(frozen=True, eq=False)
class Contents:
    """What utterances hold, in the order of a table, in which turns of a conversation lie side by side.

    Shape:
        audio, text: (utterances,) integers, the same for the same content; 0: there is none
        told: (utterances,) int64, the same for the same label and score
    """

    ids: Sequence[str]
    conversations: Sequence[str]
    speakers: Sequence[str | None]
    told: np.ndarray
    audio: np.ndarray
    text: np.ndarray

    @classmethod
    def of(cls, features: "Features") -> "Contents":
        """Those of a joint file."""
        table = features.utterances
        scores = np.where(np.isnan(table.scores), np.inf, table.scores)
        told = as_numbers(zip(table.labels.tolist(), scores.tolist(), strict=True))
        audio, text = (_checksums(part, len(table)) for part in (features.audio, features.text))
        return cls(table.ids, table.conversations, table.speakers, told, audio, text)

    @cached_property
    def whole_conversations(self) -> np.ndarray:
        """(utterances,) int64: the same for turns at one place of conversations that are the same; 0 in all that are
        too short to say so.
        """
        names, texts = np.array(self.conversations), self.text.tolist()
        bounds = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
        found, known = np.zeros(len(names), np.int64), dict[tuple[object, ...], int]()
        for start, end in pairwise(bounds):
            if end - start >= DIFFERENT and len({*texts[start:end]} - {0}) >= DIFFERENT:
                turns = self.text[start:end].tobytes(), self.audio[start:end].tobytes(), *self.speakers[start:end]
                first = known.setdefault(turns, start)
                found[start:end] = np.arange(first, first + end - start) + 1
        return found


def as_numbers(values: Iterable[Hashable]) -> np.ndarray:
    """(values,) int64: the same number for the same value, 0 for None and ""."""
    known: dict[Hashable, int] = {None: 0, "": 0}
    return np.array([known.setdefault(value, len(known)) for value in values], np.int64)


def split_copies(
    contents: Contents, splits: Sequence[str], tested: Sequence[str] = ("validation", "test")
) -> list[str]:
    """A sentence for each split of `tested` with copies of train, or, of test, of validation.

    Args:
        splits: of each utterance; nothing else than a tested split and those before it is looked at.
    """
    found = []
    for name in tested:
        sides = np.array([1 if split == name else 0 if split in KNOWN[name] else -1 for split in splits])
        twins, kinds = _find(contents, sides)
        copies = np.flatnonzero((twins >= 0) & (sides == 1))
        if len(copies):
            others = " or ".join(sorted({splits[twin] for twin in twins[copies]}))
            found.append(
                f"{len(copies)} of {(sides == 1).sum()} utterances of {name} are {COPIED} {others} ({kinds}), the "
                f"first '{contents.ids[copies[0]]}' as '{contents.ids[twins[copies[0]]]}': scores on them are not of "
                f"new data; take them out of {others}, or put both in the same split"
            )
    return found


def fold_copies(contents: Contents, folds: Sequence[int]) -> list[str]:
    """A sentence if utterances of one fold are the same as those of another; `folds` (utterances,), from 0."""
    twins, kinds = _find(contents, np.array(folds))
    copies = np.flatnonzero(twins >= 0)
    return [
        f"{len(copies)} of {len(twins)} utterances are {COPIED} another fold ({kinds}), the first "
        f"'{contents.ids[first]}' as '{contents.ids[twins[first]]}': scores on them are not of new data; take one of "
        "each pair out, or give both the same conversation"
        for first in copies[:1]
    ]


def _checksums(part: "Part | None", count: int) -> np.ndarray:
    """(utterances,) uint64: 0 where there are no rows, or zeros alone that come again."""
    if part is None:
        return np.zeros(count, np.uint64)
    rows = np.diff(part.offsets)
    _, where, counts = np.unique(part.checksums, return_inverse=True, return_counts=True)
    shape = part.values.shape[1:]
    again = np.unique(rows[counts[where] > 1]).tolist()
    nothing = np.array([checksum(np.zeros((length, *shape), part.values.dtype)) for length in again], np.uint64)
    return np.where((rows == 0) | np.isin(part.checksums, nothing), np.uint64(0), part.checksums)


def _find(contents: Contents, sides: np.ndarray) -> tuple[np.ndarray, str]:
    """(utterances,) int64: a copy of each on another side, -1 where there is none; and in what they are the same.

    Args:
        sides: (utterances,) int64; -1: not looked at.
    """
    audio = _twins(contents.audio, sides, contents.told)
    whole = _twins(contents.whole_conversations, sides, np.zeros(len(sides)))
    kinds = {"the same audio": audio, "whole conversations of the same texts": whole}
    return np.where(audio >= 0, audio, whole), ", ".join(kind for kind, one in kinds.items() if (one >= 0).any())


def _twins(contents: np.ndarray, sides: np.ndarray, told: np.ndarray) -> np.ndarray:
    """(utterances,) int64: the first utterance of another side with the same content that is not ordinary, or -1."""
    found = np.full(len(sides), -1)
    here = np.flatnonzero((contents != 0) & (sides >= 0))
    _, first, where, counts = np.unique(contents[here], return_index=True, return_inverse=True, return_counts=True)
    varied = np.bincount(where, told[here] != told[here][first[where]], len(first)) > 0
    away = sides[here] != sides[here][first[where]]  # on another side than the first with this content
    other = np.full(len(first), -1)
    other[where[away][::-1]] = np.flatnonzero(away)[::-1]  # of several the last that is written: the first of them
    twin = np.where(away, first[where], other[where])
    kept = (twin >= 0) & ~(varied & (counts >= FEW))[where]
    found[here[kept]] = here[twin[kept]]
    return found
