"""Train, validation and test splits for corpora that bring none, or no validation split. Pure.

Whole conversations are held out, or whole speakers together with every conversation that they take part in, so that
nothing of a test conversation (or voice) is seen in training. A missing validation split comes out of train, never out
of test. The seed deals the groups out; where there are labels, every split then gets its share of each as far as whole
groups allow (`pipeline.store.splits`).
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.datasets import Turn
from pipeline.errors import DataError
from pipeline.manifest import Split
from pipeline.params import DatasetParams
from pipeline.store import count_labels, stratify, whole_groups


def assign_splits(turns: Sequence[Turn], params: DatasetParams) -> dict[str, Split]:
    """Conversation -> split, as `dataset.split` asks.

    Raises:
        DataError: a split is missing from the table, a conversation lies in two, or there are too few groups to fill
            three splits.
    """
    source = params.source
    if params.split == "given":
        splits = _given_splits(turns, source)
        return splits if "validation" in splits.values() else _hold_out_validation(turns, splits, params)
    speakers = _speakers(turns, source) if params.split == "speaker" else None
    groups = whole_groups([turn.conversation for turn in turns], speakers)
    made = _made_splits(groups, Counter(turn.conversation for turn in turns), params)
    return _balanced(made, groups, turns, params)


def _given_splits(turns: Sequence[Turn], source: str) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for turn in turns:
        if turn.split is None:
            raise DataError(
                f"{source}: {turn.audio or turn.text[:40]!r} of conversation '{turn.conversation}' has no split, and "
                "dataset.split is 'given'; fill the split column, or set dataset.split: conversation (or speaker)"
            )
        known = splits.setdefault(turn.conversation, turn.split)  # type: ignore[arg-type]
        if known != turn.split:
            raise DataError(
                f"{source}: conversation '{turn.conversation}' lies in two splits, {known} and {turn.split}; where "
                f"numbers begin anew in each split, put its name in front of them ({turn.split}_{turn.conversation}); "
                "else keep each conversation in one, or set dataset.split: conversation to have splits made"
            )
    return splits


def _hold_out_validation(turns: Sequence[Turn], splits: Mapping[str, Split], params: DatasetParams) -> dict[str, Split]:
    """Conversations of train, by the seed, as validation; a train split of one conversation keeps it."""
    train = sorted([conversation] for conversation, split in splits.items() if split == "train")
    if len(train) < 2:
        return dict(splits)
    sizes = Counter(turn.conversation for turn in turns)
    left = list(train)
    random.Random(params.split_seed).shuffle(left)
    taken = _hold_out(left, params.validation_share * sum(sizes[name] for (name,) in left), 1, sizes)
    made: dict[str, Split] = {name: "validation" if [name] in taken else "train" for (name,) in train}
    return {**splits, **_balanced(made, train, [turn for turn in turns if turn.conversation in made], params)}


def _balanced(
    splits: Mapping[str, Split], groups: Sequence[list[str]], turns: Sequence[Turn], params: DatasetParams
) -> dict[str, Split]:
    """The splits of `groups`, exchanged among them for the sake of labels; their shares stay about what they are."""
    labels: dict[str, list[str | None]] = defaultdict(list)
    for turn in turns:
        labels[turn.conversation].append(None if turn.label is None else params.labels.get(turn.label, turn.label))
    counts = count_labels(groups, labels)
    if counts.shape[1] < 2:
        return dict(splits)
    sizes = np.array([sum(len(labels[name]) for name in group) for group in groups])
    names = sorted(set(splits.values()))
    parts = np.array([names.index(splits[group[0]]) for group in groups])
    shares = np.bincount(parts, sizes) / sizes.sum()
    found = stratify(counts, sizes, parts, shares)
    return {name: names[part] for group, part in zip(groups, found, strict=True) for name in group}


def _speakers(turns: Sequence[Turn], source: str) -> list[str]:
    for turn in turns:
        if turn.speaker is None:
            raise DataError(
                f"{source}: conversation '{turn.conversation}' has a turn without a speaker, and dataset.split is "
                "'speaker'; fill the speaker column, or set dataset.split: conversation"
            )
    return [str(turn.speaker) for turn in turns]


def _made_splits(groups: list[list[str]], sizes: Counter[str], params: DatasetParams) -> dict[str, Split]:
    """Shuffle the groups by the seed, then fill test and validation up to their shares; the rest is train."""
    if len(groups) < 3:
        what = "groups of speakers that share no conversation" if params.split == "speaker" else "conversations"
        raise DataError(
            f"{params.root}: {len(groups)} {what}, but three splits need at least 3; "
            "set dataset.split to another kind, or give the splits in the table"
        )
    groups = list(groups)
    random.Random(params.split_seed).shuffle(groups)
    total = sum(sizes.values())
    held_out: dict[Split, list[list[str]]] = {
        "test": _hold_out(groups, params.test_share * total, 2, sizes),
        "validation": _hold_out(groups, params.validation_share * total, 1, sizes),
        "train": groups,
    }
    return {name: split for split, members in held_out.items() for group in members for name in group}


def _hold_out(groups: list[list[str]], target: float, reserved: int, sizes: Counter[str]) -> list[list[str]]:
    """Take groups out of `groups`, from its end, up to `target` utterances; `reserved` groups stay behind.

    A group that would overshoot the target by half is passed over: it suits train better.
    """

    def size(group: list[str]) -> int:
        return sum(sizes[conversation] for conversation in group)

    taken: list[list[str]] = []
    filled = 0
    for group in groups[::-1]:
        if filled >= target or len(groups) == reserved:
            break
        if filled + size(group) <= 1.5 * target:
            groups.remove(group)
            taken.append(group)
            filled += size(group)
    if not taken:
        taken.append(min(groups, key=size))
        groups.remove(taken[0])
    return taken
