"""Cross-validation: the folds of one feature file, and their results as one.

Whole conversations, or whole speakers with all of their conversations, are held out: each is tested in one fold, by
models that never saw it. Validation is taken out of what a fold trains on. Both are stratified as far as whole groups
allow (`pipeline.store.splits`). The splits that the file came with make no difference.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fusion.ablation.single_run import Result
from fusion.data import Split, withhold
from fusion.errors import FeatureError
from fusion.objective import Target
from fusion.params import FoldParams
from pipeline.store import UNLABELLED, Features, count_labels, stratify, whole_groups

log = logging.getLogger(__name__)


def make_folds(features: Features, params: FoldParams, target: Target = "label") -> list[Features]:
    """The features once for each fold, with its splits; the same for the same conversations, labels and `params`.

    What is stratified are labels; where scores are the `target`, which utterances have one.

    Raises:
        FeatureError: there are too few conversations, or groups of speakers, or speakers are not known.
    """
    table = features.utterances
    if params.hold_out == "speaker" and not all(table.speakers):
        raise FeatureError(
            f"{features.path}: utterance '{table.ids[table.speakers.index('')]}' has no speaker, and folds.hold_out is "
            "'speaker'; name the column of speakers in the data set, or set folds.hold_out to conversation"
        )
    groups = whole_groups(table.conversations, table.speakers if params.hold_out == "speaker" else None)
    count = len(groups) if params.count == "all" else params.count
    if len(groups) < max(count, 3):
        what = "conversations" if params.hold_out == "conversation" else "groups of speakers that share no conversation"
        raise FeatureError(
            f"{features.path}: {len(groups)} {what}, too few for {max(count, 3)} folds with a validation split each; "
            "lower folds.count, or hold out the other kind (folds.hold_out)"
        )
    found: list[int] = (np.where(np.isnan(table.scores), UNLABELLED, 0) if target == "score" else table.labels).tolist()
    labels: dict[str, list[int | None]] = {}
    for conversation, label in zip(table.conversations, found, strict=True):
        labels.setdefault(conversation, []).append(None if label == UNLABELLED else label)
    known = {label for own in labels.values() for label in own}
    counts = count_labels(groups, labels)
    sizes = np.array([sum(len(labels[name]) for name in group) for group in groups])
    tested = deal(counts, sizes, np.full(count, 1 / count), params.seed)
    for fold in range(count) if target == "label" else ():
        learned = {
            label for number in np.flatnonzero(tested != fold) for one in groups[number] for label in labels[one]
        }
        alone = [name for label, name in enumerate(features.label_names) if label in known - learned]
        if alone:
            log.warning("fold %d tests all turns labelled %s: its models cannot learn it", fold + 1, ", ".join(alone))
    return [_make_fold(features, groups, counts, sizes, tested == fold, params, fold) for fold in range(count)]


def _make_fold(
    features: Features,
    groups: Sequence[Sequence[str]],
    counts: np.ndarray,
    sizes: np.ndarray,
    tested: np.ndarray,
    params: FoldParams,
    fold: int,
) -> Features:
    """The fold that tests the groups marked in `tested`, with validation out of the others."""
    rest = np.flatnonzero(~tested)
    share = params.validation
    validated = deal(counts[rest], sizes[rest], np.array([1 - share, share]), params.seed + 1 + fold) == 1
    names = np.where(tested, "test", "train").astype(object)
    names[rest[validated]] = "validation"
    splits = {name: str(split) for group, split in zip(groups, names, strict=True) for name in group}
    return features.resplit(splits)


def deal(counts: np.ndarray, sizes: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """(groups,) the part of each group, none empty: dealt out by `seed`, the largest first, then stratified."""
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -int(sizes[group]))
    parts, filled = np.zeros(len(sizes), np.int64), np.zeros(len(shares))
    for place, group in enumerate(order):
        empty = np.flatnonzero(filled == 0)
        due = filled / shares
        if len(empty) >= len(order) - place:  # the last ones go where nothing is yet
            due = np.where(filled == 0, due, np.inf)
        parts[group] = due.argmin()
        filled[parts[group]] += sizes[group]
    return stratify(counts, sizes, parts, shares) if counts.any() else parts


def pool_splits(tests: Sequence[Split]) -> Split:
    """The test splits of all folds one behind the other, without their features: what answers are compared with."""
    first = withhold(tests[0], "both")
    if len(tests) == 1:
        return first
    ends = np.cumsum([0, *(len(test.ids) for test in tests)])
    starts = [test.conversations[:-1] + int(end) for test, end in zip(tests, ends, strict=False)]
    return replace(
        first,
        ids=[name for test in tests for name in test.ids],
        conversation_ids=[name for test in tests for name in test.conversation_ids],
        labels=torch.cat([test.labels for test in tests]),
        scores=torch.cat([test.scores for test in tests]),
        conversations=torch.cat([*starts, torch.tensor([int(ends[-1])])]),
    )


def number_units(features: Features, test: Split, params: FoldParams | None) -> np.ndarray:
    """(conversations of `test`,) what intervals and tests draw each with: alone, or with all of its group of speakers.

    Turns of one speaker depend on each other over conversations, too. Where whole speakers are held out, what is asked
    for is the score of other speakers, so they are what is drawn.
    """
    names = [test.conversation_ids[start] for start in test.conversations[:-1].tolist()]
    if params is None or params.hold_out == "conversation":
        return np.arange(len(names))
    groups = whole_groups(features.utterances.conversations, features.utterances.speakers)
    unit_of = {name: number for number, group in enumerate(groups) for name in group}
    return np.array([unit_of[name] for name in names])


def pool_results(results: Sequence[Result]) -> Result:
    """What the models of all folds say, as of one model: answers behind each other, the rest by its mean."""
    seconds = [one.seconds for one in results]
    return Result(
        answers=np.concatenate([one.answers for one in results]),
        validation={name: float(np.mean([one.validation[name] for one in results])) for name in results[0].validation},
        parameters=results[0].parameters,
        epochs=round(float(np.mean([one.epochs for one in results]))),
        seconds=None if None in seconds else float(np.mean([one for one in seconds if one is not None])),
        unlearned=[
            f"fold {number}: {'; '.join(one.unlearned)}" for number, one in enumerate(results, 1) if one.unlearned
        ]
        if len(results) > 1
        else results[0].unlearned,
    )
