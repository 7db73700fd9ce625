"""Counts beside the published ones: every difference is named, with the statuses that account for it."""

from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.manifest import Utterance
from pipeline.preparation.counts import compare, count


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
