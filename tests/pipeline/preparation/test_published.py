"""Counts beside the published ones: every difference is named, with the statuses that account for it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.datasets import Turn
from pipeline.manifest import Utterance
from pipeline.params import DatasetParams
from pipeline.preparation import Prepared, split_warnings, summary
from pipeline.preparation.counts import compare, count, modality_warnings


def utterance(conversation: str, turn: int, **values: Any) -> Utterance:
    given = {"split": "train", "samples": 16_000, "label": "joy"} | values
    return Utterance(id=f"{conversation}/{turn}", conversation=conversation, turn=turn, **given)


CORPUS = [
    utterance("a", 0, speaker="x"),
    utterance("a", 1, samples=0, status="missing-file"),
    utterance("b", 0, label=None, status="other-label"),
    utterance("c", 0, split="test", label="anger"),
]


def test_counts_are_of_each_split_and_all() -> None:
    found = count(CORPUS)
    assert found["utterances"] == {"train": 3, "validation": 0, "test": 1, "all": 4}
    assert found["conversations"] == {"train": 2, "validation": 0, "test": 1, "all": 3}
    assert found["recordings"] == {"train": 2, "validation": 0, "test": 1, "all": 3}
    assert found["labelled"] == {"train": 2, "validation": 0, "test": 1, "all": 3}
    assert found["label joy"] == {"train": 2, "validation": 0, "test": 0, "all": 2}


def test_scores_are_counted_where_there_are_any() -> None:
    """A score of 0 is one."""
    scored = [*CORPUS, utterance("c", 1, split="test", label=None, score=0.0), utterance("d", 0, score=-1.5)]
    assert count(scored)["scored"] == {"train": 1, "validation": 0, "test": 1, "all": 2}
    assert "scored" not in count(CORPUS)


@pytest.mark.parametrize(("names", "lines"), [(10, 10), (11, 1)])
def test_few_differences_are_named_each_and_many_summed_up_with_the_largest(names: int, lines: int) -> None:
    published = {f"label {number}": {"all": number + 1} for number in range(names)}
    prepared = Prepared(CORPUS, Counter(), [], published, compare(CORPUS, published))
    told = [line for line in summary(prepared).splitlines() if line.startswith("differs: ")]
    assert len(told) == lines
    assert told[-1].startswith(
        "differs: label 9, all: 0, published 10 ("
        if lines > 1
        else "differs: 11 counts, as the table shows, most of all label 10, all: 0, published 11 ("
    )


def test_the_warning_of_missing_audio_names_what_is_of_recordings_alone() -> None:
    silent = {"samples": 0, "status": "no-audio+unevaluated+untimed"}
    turns = [utterance("a", 0, audio="a.wav"), utterance("a", 1, **silent), utterance("a", 2, **silent)]
    (warning,) = modality_warnings(turns)
    assert warning.startswith("2 of 3 turns have no audio (no-audio 2); ")


LACKING = [utterance("a", 0), utterance("b", 0, split="validation", label="anger"), utterance("c", 0, split="test")]


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [
        ({"name": "meld", "root": "x"}, True, "; complete the release, if turns of it are missing here, merge or drop"),
        ({"name": "iemocap", "root": "x"}, False, "; take another dataset.split_seed, larger shares, or merge or drop"),
        ({"name": "table", "root": "x"}, True, "; move conversations to it in the table, merge or drop labels"),
        ({"name": "table", "root": "x"}, False, "; take another dataset.split_seed, larger shares, or give the splits"),
        ({"name": "meld", "root": "x", "split": "conversation"}, True, "; take another dataset.split_seed, larger"),
    ],
)
def test_a_split_without_a_label_comes_with_what_changes_such_a_split(
    values: dict[str, Any], given: bool, expected: str
) -> None:
    turns = [Turn("b", 0, split="validation" if given else "train")]
    (warning,) = split_warnings(LACKING, turns, DatasetParams(**values))
    assert warning.startswith(f"validation has no utterance labelled 'joy' (train: 1){expected}")


def test_what_is_as_published_differs_in_nothing() -> None:
    assert compare(CORPUS, count(CORPUS)) == []


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ({"recordings": {"train": 3}}, "recordings, train: 2, published 3 (missing-file 1)"),
        ({"label joy": {"all": 3}}, "label joy, all: 2, published 3 (other-label 1)"),
        ({"label fear": {"test": 1}}, "label fear, test: 0, published 1 (no status says why)"),
        ({"conversations": {"test": 2}}, "conversations, test: 1, published 2 (no status says why)"),
    ],
)
def test_a_difference_names_the_statuses_that_account_for_it(
    published: Mapping[str, Mapping[str, int]], expected: str
) -> None:
    assert [str(difference) for difference in compare(CORPUS, published)] == [expected]
