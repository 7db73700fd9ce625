"""Which utterances of validation, of test and of other folds are called copies."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inspect import inspect_file
from pipeline.store import (
    Contents,
    Features,
    Identity,
    Utterances,
    as_numbers,
    fold_copies,
    read_features,
    split_copies,
)
from tests.pipeline.made import write_features

TALK = ["Hello.", "Who are you?", "I am your brother."]


def contents_of(
    splits: Sequence[str],
    audio: Sequence[str | None] | None = None,
    texts: Sequence[str | None] | None = None,
    labels: Sequence[str | None] | None = None,
    speakers: Sequence[str] | None = None,
    turns: int = 1,
) -> Contents:
    """Utterances of conversations that have so many `turns` each."""
    nothing = [None] * len(splits)
    return Contents(
        ids=[f"{split}/{place}" for place, split in enumerate(splits)],
        conversations=[f"c{place // turns}" for place in range(len(splits))],
        speakers=speakers or [""] * len(splits),
        told=as_numbers(labels or nothing),
        audio=as_numbers(audio or nothing),
        text=as_numbers(texts or nothing),
    )


def test_the_audio_of_an_utterance_of_train_is_a_copy_and_the_first_pair_is_named() -> None:
    splits = ["train", "train", "validation", "test", "test", "test"]
    assert split_copies(contents_of(splits, ["a", "b", "c", None, "b", "c"]), splits) == [
        "2 of 3 utterances of test are the same as one in train or validation (the same audio), the first 'test/4' as "
        "'train/1': scores on them are not of new data; take them out of train or validation, or put both in the same "
        "split"
    ]


def test_what_is_not_asked_for_is_not_looked_at() -> None:
    splits = ["train", "validation", "test"]
    contents = contents_of(splits, ["a", "a", "a"])
    (said,) = split_copies(contents, splits, ["validation"])
    assert said.startswith("1 of 1 utterances of validation are the same as one in train (the same audio)")
    assert split_copies(contents_of(splits, ["a", "b", "b"]), splits, ["validation"]) == []
    assert len(split_copies(contents, splits)) == 2


def test_audio_of_several_labels_is_a_placeholder_and_that_of_one_label_was_drawn_again() -> None:
    splits = ["train", "train", "train", "test"]
    assert not split_copies(contents_of(splits, ["a"] * 4, labels=["joy", "joy", "anger", "joy"]), splits)
    assert split_copies(contents_of(splits, ["a"] * 4, labels=["joy"] * 4), splits)
    assert split_copies(contents_of(splits, ["a", "b", "c", "a"], labels=["joy", "joy", "joy", "anger"]), splits)


@pytest.mark.parametrize(
    ("texts", "copied"),
    [(TALK, True), (["Yeah.", "No.", "Yeah."], False), (["Hello.", "", "Who?"], False), ([*TALK[:2], "No."], False)],
    ids=["the same", "too few different texts", "an empty one", "another end"],
)
def test_texts_are_copies_where_whole_conversations_of_different_texts_are_the_same(
    texts: list[str], copied: bool
) -> None:
    splits = ["train"] * 3 + ["test"] * 3
    first = TALK if texts[2] == "No." else texts
    found = split_copies(contents_of(splits, texts=[*first, *texts], turns=3), splits)
    assert bool(found) == copied
    for line in found:
        assert line.startswith(
            "3 of 3 utterances of test are the same as one in train (whole conversations of the same texts), the first "
            "'test/3' as 'train/0': "
        )


def test_sentences_that_every_speaker_acts_are_no_copies() -> None:
    splits = ["train"] * 3 + ["test"] * 3
    texts, voices = [*TALK, *TALK], ["A"] * 3 + ["B"] * 3
    assert not split_copies(contents_of(splits, texts=texts), splits)  # each a conversation of its own
    assert not split_copies(contents_of(splits, texts=texts, speakers=voices, turns=3), splits)
    assert not split_copies(contents_of(splits, list("abcdef"), texts, turns=3), splits)


def test_copies_between_folds_are_named_once_and_those_within_a_fold_never() -> None:
    contents = contents_of([""] * 6, ["a", "a", "b", "b", "c", "d"])
    assert fold_copies(contents, [0, 0, 1, 2, 1, 2]) == [
        "2 of 6 utterances are the same as one in another fold (the same audio), the first '/2' as '/3': scores on "
        "them are not of new data; take one of each pair out, or give both the same conversation"
    ]
    assert fold_copies(contents, [0, 0, 1, 1, 1, 2]) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["train", "validation", "test"])), max_size=12))
def test_counts_are_those_of_comparing_every_pair(drawn: list[tuple[int, str]]) -> None:
    drawn = sorted(drawn, key=lambda one: ["train", "validation", "test"].index(one[1]))
    splits = [split for _, split in drawn]
    found = split_copies(contents_of(splits, [str(audio or "") for audio, _ in drawn]), splits)
    expected = []
    for split, known in (("validation", ["train"]), ("test", ["train", "validation"])):
        tested = [audio for audio, own in drawn if own == split]
        copies = sum(any(audio and (audio, other) in drawn for other in known) for audio in tested)
        expected += [f"{copies} of {len(tested)} utterances of {split}"] * bool(copies)
    assert [line.partition(" are ")[0] for line in found] == expected


def with_rows(path: Path, audio: list[np.ndarray]) -> Features:
    """A joint file of train, validation and test, with one utterance each."""
    ids = ["a", "b", "c"]
    unlabelled = np.full(3, -1), np.full(3, np.nan, np.float32)
    table = Utterances(ids, ids, np.zeros(3, int), [""] * 3, ["train", "validation", "test"], *unlabelled)
    texts = [np.ones((1, 2), np.float16)] * 3
    write_features(path, table, ["joy"], (audio, Identity({"model": "made"})), (texts, Identity({"model": "made"})))
    return read_features(path)


def test_the_rows_of_a_feature_file_are_compared_by_their_checksums(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    features = with_rows(tmp_path / "feats.h5", [rows, rows[:2], rows])
    (said,) = split_copies(Contents.of(replace(features, text=None)), features.utterances.splits)
    assert "the first 'c' as 'a'" in said
    report = inspect_file(tmp_path / "feats.h5")
    assert report.copies == [said]
    assert f"\n  warning: {said}\n" in report.to_text()


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 4)])
def test_no_rows_and_zeros_alone_are_no_copies(tmp_path: Path, shape: tuple[int, int]) -> None:
    rows = np.zeros(shape, np.float16)
    features = with_rows(tmp_path / "feats.h5", [rows, np.ones((1, 4), np.float16), rows])
    assert split_copies(Contents.of(features), features.utterances.splits) == []
