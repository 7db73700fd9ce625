"""Train, validation and test splits for corpora that bring none, or no validation split. Pure.

Whole conversations are held out, or whole speakers together with every conversation that they take part in, so that
nothing of a test conversation (or voice) is seen in training. A missing validation split comes out of train, never out
of test.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.datasets import Turn
from pipeline.errors import DataError
from pipeline.manifest import Split
from pipeline.params import DatasetParams


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
    groups = _groups(turns, params.split == "speaker", source)
    return _made_splits(groups, Counter(turn.conversation for turn in turns), params)


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
                f"{source}: conversation '{turn.conversation}' lies in two splits, {known} and {turn.split}; keep each "
                "conversation in one, or set dataset.split: conversation to have them made"
            )
    return splits


def _hold_out_validation(turns: Sequence[Turn], splits: Mapping[str, Split], params: DatasetParams) -> dict[str, Split]:
    """Conversations of train, by the seed, as validation; a train split of one conversation keeps it."""
    train = sorted([conversation] for conversation, split in splits.items() if split == "train")
    if len(train) < 2:
        return dict(splits)
    sizes = Counter(turn.conversation for turn in turns)
    random.Random(params.split_seed).shuffle(train)
    taken = _hold_out(train, params.validation_share * sum(sizes[name] for (name,) in train), 1, sizes)
    return {**splits, **{name: "validation" for (name,) in taken}}


def _groups(turns: Sequence[Turn], by_speaker: bool, source: str) -> list[list[str]]:
    """Conversations that must share a split: each alone, or all that are connected by a speaker."""
    group: dict[str, str] = {turn.conversation: turn.conversation for turn in turns}

    def root(conversation: str) -> str:
        while group[conversation] != conversation:
            group[conversation] = group[group[conversation]]
            conversation = group[conversation]
        return conversation

    if by_speaker:
        first_of: dict[str, str] = {}
        for turn in turns:
            if turn.speaker is None:
                raise DataError(
                    f"{source}: conversation '{turn.conversation}' has a turn without a speaker, and dataset.split is "
                    "'speaker'; fill the speaker column, or set dataset.split: conversation"
                )
            group[root(turn.conversation)] = root(first_of.setdefault(turn.speaker, turn.conversation))
    members: dict[str, list[str]] = {}
    for conversation in group:
        members.setdefault(root(conversation), []).append(conversation)
    return sorted(sorted(conversations) for conversations in members.values())


def _made_splits(groups: list[list[str]], sizes: Counter[str], params: DatasetParams) -> dict[str, Split]:
    """Shuffle the groups by the seed, then fill test and validation up to their shares; the rest is train."""
    if len(groups) < 3:
        what = "groups of speakers that share no conversation" if params.split == "speaker" else "conversations"
        raise DataError(
            f"{params.root}: {len(groups)} {what}, but three splits need at least 3; "
            "set dataset.split to another kind, or give the splits in the table"
        )
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
