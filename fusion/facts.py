"""What a model card tells of the data behind a model: what its splits hold, and how sure scores on them are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.data import Split
from fusion.predict import split_tallies
from fusion.statistics import Interval, bootstrap, percentile_interval
from fusion.tasks import Task

RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0  # of conversations; for a card alone, section `evaluate` is for results


@dataclass(frozen=True)
class SplitCounts:
    """What a split holds, as the model was given it."""

    conversations: int
    utterances: int
    audio: int  # utterances that have it
    text: int
    counted: int  # utterances with a label, or a score, whichever is learned
    labels: Mapping[str, int]  # utterances by label; none where scores are learned


def count_split(split: Split, task: Task, labels: Sequence[str]) -> SplitCounts:
    """The counts of `split`, whose classes are called `labels`."""
    truth = task.truth(split)
    counted = truth[task.counted(truth)]
    by_label = np.bincount(counted, minlength=len(labels)).tolist() if task.target == "label" else []
    return SplitCounts(
        conversations=len(split.conversations) - 1,
        utterances=len(split.ids),
        audio=int((split.audio.lengths > 0).sum()),
        text=int((split.text.lengths > 0).sum()),
        counted=len(counted),
        labels=dict(zip(labels, by_label, strict=True)) if by_label else {},
    )


def score_intervals(task: Task, split: Split, answers: Mapping[str, np.ndarray]) -> dict[str, dict[str, Interval]]:
    """Percentile intervals over whole conversations of every metric of what every head answers, by head and metric."""

    def interval(tallies: np.ndarray, metric: str) -> Interval:
        return percentile_interval(bootstrap(tallies, task.metrics[metric], RESAMPLES, SEED), CONFIDENCE)

    tallies = {head: split_tallies(task, split, answer) for head, answer in answers.items()}
    return {head: {metric: interval(sums, metric) for metric in task.metrics} for head, sums in tallies.items()}
