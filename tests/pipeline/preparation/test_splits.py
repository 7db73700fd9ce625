"""Splits: whole conversations, whole speakers, the same for the same seed."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets import Turn
from pipeline.errors import DataError
from pipeline.params import DatasetParams
from pipeline.preparation.splits import assign_splits

SPLITS = {"train", "validation", "test"}


def turns_of(conversations: Sequence[Sequence[str]]) -> list[Turn]:
    """One conversation for each list of speakers, a turn a speaker."""
    return [
        Turn(conversation=f"c{number}", order=order, speaker=speaker)
        for number, speakers in enumerate(conversations)
        for order, speaker in enumerate(speakers)
    ]


def params(**values: Any) -> DatasetParams:
    return DatasetParams(root="corpus", **values)


def sizes(turns: Sequence[Turn], splits: dict[str, Any]) -> Counter[str]:
    return Counter(splits[turn.conversation] for turn in turns)


many_conversations = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=9), min_size=3, max_size=60)
shares = st.floats(0.05, 0.45)


@given(conversations=many_conversations, seed=st.integers(0, 99), validation=shares, test=shares)
@settings(max_examples=150, deadline=None)
def test_every_conversation_is_in_one_split_and_no_split_is_empty(
    conversations: list[list[str]], seed: int, validation: float, test: float
) -> None:
    turns = turns_of(conversations)
    made = params(split="conversation", split_seed=seed, validation_share=validation, test_share=test)
    splits = assign_splits(turns, made)
    assert splits.keys() == {turn.conversation for turn in turns}
    assert set(splits.values()) == SPLITS
    assert assign_splits(turns, made) == splits
    assert assign_splits(turns[::-1], made) == splits  # nor does the table's order matter


@given(
    groups=st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=6), min_size=3, max_size=10),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_every_speaker_is_in_one_split(groups: list[list[int]], seed: int) -> None:
    """Each group is a circle of speakers who talk with each other only: lengths of its conversations."""
    conversations = [
        [f"{group}-{(number + turn) % 3}" for turn in range(length)]
        for group, lengths in enumerate(groups)
        for number, length in enumerate(lengths)
    ]
    turns = turns_of(conversations)
    splits = assign_splits(turns, params(split="speaker", split_seed=seed))
    heard = defaultdict(set)
    for turn in turns:
        heard[turn.speaker].add(splits[turn.conversation])
    assert all(len(found) == 1 for found in heard.values())
    assert set(splits.values()) == SPLITS
    assert len(splits) == len(conversations)


def test_a_thousand_conversations_are_shared_as_asked() -> None:
    turns = turns_of([["a"] * (1 + number % 7) for number in range(1_000)])
    counts = sizes(turns, assign_splits(turns, params(split="conversation", validation_share=0.1, test_share=0.25)))
    assert counts["test"] / len(turns) == pytest.approx(0.25, abs=0.01)
    assert counts["validation"] / len(turns) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("seed", range(10))
def test_one_huge_conversation_is_left_to_train(seed: int) -> None:
    turns = turns_of([["a"] * 90, *(["b"] for _ in range(10))])
    splits = assign_splits(turns, params(split="conversation", split_seed=seed))
    assert splits["c0"] == "train"
    assert sizes(turns, splits)["test"] >= 1


def test_another_seed_gives_other_splits() -> None:
    turns = turns_of([["a"]] * 40)
    made = [assign_splits(turns, params(split="conversation", split_seed=seed)) for seed in range(3)]
    assert made[0] != made[1] != made[2]


def test_made_splits_stay_what_they_were() -> None:
    """Results are compared across machines and versions: the same seed must mean the same split for good."""
    turns = turns_of([["a"]] * 10)
    splits = assign_splits(turns, params(split="conversation", split_seed=0))
    assert {name for name, split in splits.items() if split == "test"} == {"c6", "c9"}
    assert {name for name, split in splits.items() if split == "validation"} == {"c0", "c2"}


@pytest.mark.parametrize("split", ["conversation", "speaker", "given"])
@pytest.mark.parametrize("seed", range(5))
def test_labels_are_shared_as_far_as_whole_groups_allow(split: str, seed: int) -> None:
    """Conversations of one label each: four of two labels, three of the third, which is just enough for every split."""
    labels = [*"aaaa", *"bbbb", *"ccc"]
    turns = [
        Turn(conversation=f"c{n:02}", order=order, speaker=f"s{n}", label=label, split="train")
        for n, label in enumerate(labels)
        for order in range(5)
    ]
    made = assign_splits(turns, params(split=split, split_seed=seed, validation_share=0.3, test_share=0.3))
    held = {name: {turn.label for turn in turns if made[turn.conversation] == name} for name in set(made.values())}
    assert set(held) == (SPLITS if split != "given" else {"train", "validation"})
    assert all(found == {"a", "b", "c"} for found in held.values())


def test_shares_of_labels_are_nearer_than_by_chance() -> None:
    chance = random.Random(0)
    turns = [
        Turn(conversation=f"c{n}", order=order, label=chance.choices("abcd", [40, 30, 20, n % 9])[0] or None)
        for n in range(150)
        for order in range(chance.randint(2, 12))
    ]
    totals = Counter(turn.label for turn in turns)
    for seed in range(3):
        splits = assign_splits(turns, params(split="conversation", split_seed=seed))
        found = Counter(turn.label for turn in turns if splits[turn.conversation] == "test")
        whole = sizes(turns, splits)["test"] / len(turns)
        assert whole == pytest.approx(0.2, abs=0.02)
        for label, count in totals.items():
            assert found[label] / count == pytest.approx(whole, abs=0.02)


def test_given_splits_are_taken_as_they_are() -> None:
    turns = [Turn(conversation=name, order=0, split=name) for name in sorted(SPLITS)]
    assert assign_splits(turns, params()) == {name: name for name in SPLITS}


def test_a_conversation_in_two_splits_is_refused() -> None:
    turns = [Turn(conversation="c7", order=0, split="train"), Turn(conversation="c7", order=1, split="test")]
    with pytest.raises(
        DataError, match="conversation 'c7' lies in two splits, train and test; where numbers begin anew"
    ):
        assign_splits(turns, params())


def test_a_turn_without_a_split_is_refused() -> None:
    turns = [Turn(conversation="c7", order=0, text="hello")]
    with pytest.raises(DataError, match=r"'hello' of conversation 'c7' has no split, and dataset\.split is 'given'"):
        assign_splits(turns, params())


def test_a_turn_without_a_speaker_cannot_be_split_by_speaker() -> None:
    with pytest.raises(DataError, match=r"'c7' has a turn without a speaker.*set dataset\.split: conversation"):
        assign_splits([Turn(conversation="c7", order=0)], params(split="speaker"))


def test_speakers_who_all_talk_with_each_other_cannot_be_split() -> None:
    turns = turns_of([["a", "b"], ["b", "c"], ["c", "d"], ["d", "a"]])
    with pytest.raises(DataError, match="1 groups of speakers that share no conversation, but three splits need"):
        assign_splits(turns, params(split="speaker"))


def test_two_conversations_cannot_fill_three_splits() -> None:
    with pytest.raises(DataError, match="2 conversations, but three splits need at least 3"):
        assign_splits(turns_of([["a"], ["b"]]), params(split="conversation"))


def test_validation_comes_out_of_train_where_none_is_given() -> None:
    turns = [Turn(conversation=f"c{n}", order=0, split="test" if n > 7 else "train") for n in range(10)]
    splits = assign_splits(turns, params(validation_share=0.25))
    assert {name for name, split in splits.items() if split == "test"} == {"c8", "c9"}
    assert Counter(splits.values()) == {"train": 6, "validation": 2, "test": 2}
    assert splits != assign_splits(turns, params(validation_share=0.25, split_seed=1))


def test_a_train_split_of_one_conversation_keeps_it() -> None:
    turns = [Turn(conversation="a", order=0, split="train"), Turn(conversation="b", order=0, split="test")]
    assert assign_splits(turns, params()) == {"a": "train", "b": "test"}
