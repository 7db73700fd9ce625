"""Scores of groups of the test split's utterances: by who speaks, by how long a turn is, and by every column that the
corpus' table carries along, such as gender.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fusion.evaluation import Record, sample_std
from fusion.objective import METRICS, Task
from fusion.report.results import Results
from fusion.tables import mean_std
from pipeline.store import Features

SMALLEST = 10  # scored turns of a group that is shown by itself
MOST = 12  # groups of a table
SHARES = (0.25, 0.5, 0.75)  # of turns, where groups by length end


@dataclass(frozen=True, eq=False)
class Answered:
    """What the models answer for the utterances that count, of the result files."""

    ids: Sequence[str]
    true: np.ndarray  # (utterances,), as `Task.truth`
    answers: np.ndarray  # (seeds, utterances, outputs)


def read_answers(results: Results, task: Task, labels: Sequence[str]) -> Answered:
    """The rows of predictions.csv that have a truth."""
    rows = [row for row in results.predictions if row["true"]]
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    by_seed = [[row for row in rows if row["seed"] == seed] for seed in seeds]
    ids = [row["utterance"] for row in by_seed[0]] if by_seed else []
    if task.target == "score":
        true = np.array([float(row["true"]) for row in by_seed[0]], np.float32)
        answers = np.array([[[float(row["predicted"])] for row in own] for own in by_seed])
        return Answered(ids, true, answers)
    number = {label: index for index, label in enumerate(labels)}
    true = np.array([number[row["true"]] for row in by_seed[0]])
    answers = np.stack([np.eye(len(labels))[[number[row["predicted"]] for row in own]] for own in by_seed])
    return Answered(ids, true, answers)


def group_tables(
    results: Results, features: Features, records: Mapping[str, Record], task: Task, metric: str
) -> list[dict[str, Any]]:
    """Tables of the page, `metric` of each group; none of what all utterances share."""
    answered = read_answers(results, task, features.label_names)
    place = {name: index for index, name in enumerate(features.utterances.ids)}
    rows = [place[name] for name in answered.ids]
    here = [records.get(name) for name in answered.ids]
    groupings = {"speaker": _by_value([features.utterances.speakers[row] for row in rows])}
    groupings["length"] = by_length(rows, features, here)
    for name in dict.fromkeys(name for one in here if one for name in one.extra):
        own = f"{name} (column)" if name in groupings else name
        groupings[own] = _by_value([one.extra.get(name, "") if one else "" for one in here])
    title = METRICS[metric].title
    return [
        {
            "header": [name, "turns", title],
            "rows": [[group, str(len(members)), _score(answered, task, metric, members)] for group, members in found],
            "caption": f"{title} by {name}, mean and standard deviation over seeds",
        }
        for name, grouping in groupings.items()
        if len(found := list(grouping.items())) > 1
    ]


def _score(answered: Answered, task: Task, metric: str, members: Sequence[int]) -> str:
    true, whole = answered.true[members], np.array([0, len(members)])
    scores = [float(task.metrics[metric](task.tally(true, one[members], whole))[0]) for one in answered.answers]
    return mean_std(float(np.mean(scores)), sample_std(scores))


def _by_value(values: Sequence[str]) -> dict[str, list[int]]:
    """The largest groups first; small ones and those beyond `MOST` as one. None where no group would be left."""
    counts = Counter(values)
    kept = [value for value, count in counts.most_common(MOST) if count >= SMALLEST]
    groups: dict[str, list[int]] = {value or "(none)": [] for value in kept}
    for index, value in enumerate(values):
        name = (value or "(none)") if value in kept else f"{len(counts) - len(kept)} others"
        groups.setdefault(name, []).append(index)
    return groups if kept else {}


def by_length(rows: Sequence[int], features: Features, records: Sequence[Record | None]) -> dict[str, list[int]]:
    """About as many turns in each group: by seconds, else by tokens, else by frames, whichever is known and differs."""
    seconds = [one.seconds for one in records if one and one.seconds]
    known = [("s", np.array(seconds))] if len(seconds) == len(rows) else []
    parts = [("tokens", features.text), ("frames", features.audio)]
    known += [(unit, np.diff(part.offsets)[rows]) for unit, part in parts if part is not None]
    for unit, values in known:
        if len(values) and values.min() < values.max():
            style = ".2f" if unit == "s" else ".0f"
            bounds = np.quantile(values, SHARES)  # as they are printed, so that each group is what its name says
            bounds = np.unique(bounds.round(2) if unit == "s" else np.floor(bounds))
            ends = [f"{bound:{style}}" for bound in bounds]
            names = [f"up to {ends[0]} {unit}", *(f"{low} to {high} {unit}" for low, high in pairwise(ends))]
            names.append(f"over {ends[-1]} {unit}")
            of = np.searchsorted(bounds, values)
            return {
                name: np.flatnonzero(of == index).tolist() for index, name in enumerate(names) if (of == index).any()
            }
    return {}
