"""Splits of a corpus by whole groups: conversations, or all conversations that share a speaker. Pure.

Groups are dealt out by chance, and then moved and swapped until no further change brings the labels of the parts nearer
to those of the whole (`stratify`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

MISSING = 1e6  # what a label that a part lacks costs, beside what its shares are off by
LEAST = 1e-6  # that a change must gain
STEPS = 1000  # changes, at most
SWAPS = 1_000_000  # pairs of groups that are looked at for a swap; more groups need no swaps, moves will do


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
