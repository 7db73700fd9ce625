"""Pickles as published projects lay them out: fabricated ones of the same shape, with and without a table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.imports.layout import Given
from tests.pipeline.imported import DIM, by_id, pad, rows_of_table, run, write_pickle
from tests.pipeline.made import write_rows

TURNS = {"c0": 3, "c1": 2, "c2": 4, "c3": 1}
TRAIN, VALID, TEST = ["c0", "c1"], ["c2"], ["c3"]


def vectors(dim: int, seed: int, as_lists: bool = False) -> dict[str, Any]:
    """Conversation -> a vector for each turn: a list of arrays, or one array."""
    random = np.random.default_rng(seed)
    made = {name: random.normal(size=(turns, dim)).astype(np.float32) for name, turns in TURNS.items()}
    return {name: list(array) for name, array in made.items()} if as_lists else dict(made)


IDS = {name: [f"Ses_{name}_{turn:03}" for turn in range(turns)] for name, turns in TURNS.items()}
SPEAKERS = {name: ["M" if turn % 2 else "F" for turn in range(turns)] for name, turns in TURNS.items()}
LABELS = {name: [turn % 2 for turn in range(turns)] for name, turns in TURNS.items()}
SENTENCES = {name: ["words"] * turns for name, turns in TURNS.items()}
TEXT, AUDIO, VISUAL = vectors(5, 0, as_lists=True), vectors(3, 1), vectors(2, 2)
HEAD = (IDS, SPEAKERS, LABELS)

TUPLES: dict[str, tuple[Any, ...]] = {
    "IEMOCAP of DialogueRNN, MMGCN, COGMEN": (*HEAD, TEXT, AUDIO, VISUAL, SENTENCES, set(TRAIN + VALID), TEST),
    "MELD of DialogueRNN": (*HEAD, TEXT, AUDIO, SENTENCES, TRAIN + VALID, TEST, LABELS),
    "MELD of MMGCN": (*HEAD, TEXT, AUDIO, VISUAL, SENTENCES, TRAIN + VALID, TEST, {}),
    "IEMOCAP of SDT": (*HEAD, TEXT, TEXT, TEXT, TEXT, AUDIO, VISUAL, SENTENCES, TRAIN + VALID, TEST),
    "MELD of SDT": (*HEAD, TEXT, TEXT, TEXT, TEXT, AUDIO, VISUAL, SENTENCES, TRAIN + VALID, TEST, {}),
}
COSMIC = {
    "IEMOCAP of COSMIC": (SPEAKERS, LABELS, TEXT, AUDIO, TEXT, TEXT, SENTENCES, TRAIN, TEST, VALID),
    "MELD of COSMIC": (SPEAKERS, LABELS, LABELS, TEXT, AUDIO, TEXT, TEXT, SENTENCES, TRAIN, TEST, VALID),
}


def both(path: Path) -> tuple[Given, Given]:
    return Given("audio", str(path)), Given("text", str(path))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", TUPLES)
def test_a_tuple_of_conversations_needs_no_table(tmp_path: Path, name: str, protocol: int) -> None:
    path = write_pickle(tmp_path / "features.pkl", TUPLES[name], protocol)
    imported, features = run(tmp_path, *both(path), label_names=("happy", "sad"))
    table = features.utterances
    assert table.ids == [IDS[name][turn] for name, turn in zip(table.conversations, table.turns, strict=True)]
    splits = dict(zip(table.conversations, table.splits, strict=True))
    assert splits["c3"] == "test"
    assert sorted(splits.values()) == ["test", "train", "train", "validation"]
    assert [features.label_names[label] for label in table.labels] == [
        ("happy", "sad")[turn % 2] for turn in table.turns
    ]
    assert table.speakers == ["FM"[turn % 2] for turn in table.turns]
    for modality, expected in (("audio", AUDIO), ("text", TEXT)):
        found = by_id(features, modality)
        for conversation, identifiers in IDS.items():
            for turn, identifier in enumerate(identifiers):
                np.testing.assert_array_equal(found[identifier], np.asarray(expected[conversation][turn])[None])
    assert "no validation split is given: conversations of train were held out" in imported.summary()


@pytest.mark.parametrize("name", COSMIC)
def test_cosmic_brings_its_validation_split_and_four_kinds_of_text(tmp_path: Path, name: str) -> None:
    path = write_pickle(tmp_path / "features.pkl", COSMIC[name])
    given = Given("audio", f"{path}:roberta2"), Given("text", f"{path}:roberta1")
    _, features = run(tmp_path, *given)
    table = features.utterances
    assert dict(zip(table.conversations, table.splits, strict=True)) == {
        **dict.fromkeys(TRAIN, "train"),
        **dict.fromkeys(VALID, "validation"),
        **dict.fromkeys(TEST, "test"),
    }
    assert table.ids[:2] == ["c0/0", "c0/1"]
    assert features.label_names == ["0", "1"]
    np.testing.assert_array_equal(by_id(features, "audio")["c0/1"], AUDIO["c0"][1][None])


def test_meld_has_numbers_for_conversations_and_one_hot_speakers(tmp_path: Path) -> None:
    def numbered(part: dict[str, Any]) -> dict[int, Any]:
        return {int(name[1]): value for name, value in part.items()}

    speakers = {name: list(np.eye(9)[:turns]) for name, turns in TURNS.items()}
    ids = {name: list(range(turns)) for name, turns in TURNS.items()}
    parts = (ids, speakers, LABELS, TEXT, AUDIO, VISUAL, SENTENCES)
    content = (*map(numbered, parts), [0, 1, 2], [3], {})
    _, features = run(tmp_path, *both(write_pickle(tmp_path / "raw.pkl", content)))
    assert features.utterances.ids[-1] == "3/0"
    assert features.utterances.speakers[:2] == ["0", "1"]


def test_sentiment_is_a_target(tmp_path: Path) -> None:
    sentiment = {name: ["neutral"] * turns for name, turns in TURNS.items()}
    content = (*HEAD, TEXT, AUDIO, SENTENCES, TRAIN + VALID, TEST, sentiment)
    _, features = run(tmp_path, *both(write_pickle(tmp_path / "raw.pkl", content)), target="sentiment")
    assert features.label_names == ["neutral"]


def test_a_layout_names_the_elements_of_an_unknown_tuple(tmp_path: Path) -> None:
    content = (TRAIN, VALID, TEST, LABELS, TEXT)
    path = write_pickle(tmp_path / "own.pkl", content)
    with pytest.raises(DataError, match="--table"):
        run(tmp_path, Given("text", f"{path}:4"))
    _, features = run(tmp_path, Given("text", str(path)), layout=("train", "validation", "test", "labels", "text"))
    assert len(features.utterances) == sum(TURNS.values())
    with pytest.raises(DataError, match=r"has 5 elements, but import\.layout names 1"):
        run(tmp_path, Given("text", str(path)), layout=("train",))


@pytest.mark.parametrize(
    ("elements", "key", "expected"),
    [
        (
            ({"c": [1]}, {"c": [2]}, ["c"]),
            "",
            r"no known layout; .*3 elements \(0: dict of 1, 1: dict of 1, 2: list of 1\)",
        ),
        (
            ({"c": [1]}, {"c": [2]}, ["c"]),
            ":audio",
            r"no 'audio' lies in a tuple \(0: dict of 1, .*name one by its place",
        ),
        (
            (np.zeros((9, 2)), np.zeros((9, 3))),
            "",
            r"if these are no utterances, .*\(0: array \(9, 2\), 1: array \(9, 3\)",
        ),
    ],
)
def test_a_tuple_of_no_known_layout_is_described_with_what_to_do(
    tmp_path: Path, elements: tuple[Any, ...], key: str, expected: str
) -> None:
    path = write_pickle(tmp_path / "x.pkl", elements)
    with pytest.raises(DataError, match=expected) as error:
        run(tmp_path, Given("audio", f"{path}{key}"), rows=rows_of_table())
    assert key or "import.layout=[..]" in str(error.value)


def test_a_table_beside_a_tuple_has_the_last_word(tmp_path: Path) -> None:
    """Labels of the pickle that are no classes are not looked at."""
    labels = {name: [np.zeros(4)] * turns for name, turns in TURNS.items()}
    path = write_pickle(tmp_path / "features.pkl", (IDS, SPEAKERS, labels, TEXT, AUDIO, VISUAL, SENTENCES, TRAIN, TEST))
    splits = dict.fromkeys(TRAIN, "train") | dict.fromkeys(VALID, "validation") | dict.fromkeys(TEST, "test")
    rows = [
        {"conversation": f"other {name}", "id": identifier, "split": splits[name], "label": "joy"}
        for name, identifiers in reversed(IDS.items())
        for identifier in identifiers
    ]
    with pytest.raises(DataError, match=r"label: .* is no name"):
        run(tmp_path, *both(path))
    imported, features = run(tmp_path, *both(path), rows=rows)
    assert "matched by id" in imported.summary()
    np.testing.assert_array_equal(by_id(features)["Ses_c2_003"], AUDIO["c2"][3][None])


def test_conversations_must_have_as_many_turns_as_the_table_says(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "text.pkl", TEXT)
    rows = [
        {"conversation": name, "split": split, "label": "joy"}
        for name, split in (("c0", "train"), ("c2", "validation"), ("c3", "test"))
        for _ in range(TURNS[name])
    ]
    imported, _ = run(tmp_path, Given("text", str(path)), rows=rows)
    assert "2 of its entries are no utterance: 'c1/0', 'c1/1'" in imported.summary()
    with pytest.raises(DataError, match="conversation 'c0' has 3 turns, but 2 in the table; turns would shift"):
        run(tmp_path, Given("text", str(path)), rows=rows[1:])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({2: {**LABELS, "c1": [0]}}, r"conversation 'c1': its elements differ in length \(.*turns would shift"),
        ({2: {**LABELS, "c1": [0, "x", 1]}}, "its elements differ in length"),
        ({2: {**LABELS, "c1": 3}}, "'labels' holds a int"),
        ({2: {**LABELS, "c1": [0, {}]}}, "conversation 'c1', turn 1: label: {} is no name"),
        ({8: ["c0"]}, "conversation 'c0' lies in two splits, train and test"),
        ({8: []}, "has no split"),
        ({4: {"c0": "text"}}, "'audio' holds a str"),
        ({4: {**AUDIO, 1: AUDIO["c1"], "1": AUDIO["c1"]}}, "have the same name once they are written as text"),
        ({4: {**AUDIO, "c0": np.ones((3, 4))}}, r"'Ses_c\d_000' has \d dimensions, but 'Ses_c\d_00\d' has \d"),
    ],
)
def test_a_damaged_tuple_is_named(tmp_path: Path, change: dict[int, Any], expected: str) -> None:
    content = [*HEAD, TEXT, AUDIO, VISUAL, SENTENCES, TRAIN + VALID, TEST]
    for place, element in change.items():
        content[place] = element
    with pytest.raises(DataError, match=expected):
        run(tmp_path, *both(write_pickle(tmp_path / "features.pkl", content)))


def test_a_conversation_without_features_is_kept(tmp_path: Path) -> None:
    audio = {name: array for name, array in AUDIO.items() if name != "c0"}
    content = (*HEAD, TEXT, audio, VISUAL, SENTENCES, TRAIN + VALID, TEST)
    imported, features = run(tmp_path, *both(write_pickle(tmp_path / "features.pkl", content)))
    assert len(features.utterances) == sum(TURNS.values())
    assert "audio: 3 utterances are there with nothing in them" in imported.summary()


def fields(split: str, count: int, seed: int = 0) -> dict[str, Any]:
    """A split as MMSA's unaligned files have it."""
    random = np.random.default_rng(seed)
    audio = [random.normal(size=(random.integers(1, 5), DIM)).astype(np.float32) for _ in range(count)]
    text = [random.normal(size=(random.integers(1, 4), 6)).astype(np.float32) for _ in range(count)]
    (padded_audio, audio_mask), (padded_text, text_mask) = pad(audio), pad(text)
    return {
        "raw_text": np.array(["words"] * count),
        "audio": padded_audio,
        "audio_lengths": audio_mask.sum(1).tolist(),
        "text": padded_text,
        "text_bert": np.stack([text_mask, text_mask, np.zeros_like(text_mask)], 1).astype(np.float32),
        "id": [f"{split}{index // 2}$_${index % 2 + 1}" for index in range(count)],
        "annotations": ["Negative", "Positive"] * (count // 2),
        "classification_labels": np.array([0.0, 2.0] * (count // 2)),
        "regression_labels": np.linspace(-3, 3, count),
    }


MMSA = {"train": fields("a", 6), "valid": fields("b", 4, 1), "test": fields("c", 2, 2)}


def test_a_dict_of_splits_needs_no_table(tmp_path: Path) -> None:
    _, features = run(tmp_path, *both(write_pickle(tmp_path / "unaligned_50.pkl", MMSA)))
    table = features.utterances
    assert table.ids[:3] == ["a0$_$1", "a0$_$2", "a1$_$1"]
    assert (table.conversations[0], table.splits[0], table.splits[-1]) == ("a0", "train", "test")
    assert features.label_names == ["Negative", "Positive"]
    np.testing.assert_allclose(table.scores[:6], np.linspace(-3, 3, 6), rtol=1e-6)
    train = MMSA["train"]
    for index, identifier in enumerate(train["id"]):
        length = train["audio_lengths"][index]
        np.testing.assert_array_equal(by_id(features)[identifier], train["audio"][index, :length])
        real = train["text_bert"][index, 1].astype(bool)
        np.testing.assert_array_equal(by_id(features, "text")[identifier], train["text"][index, real])


def test_the_class_numbers_are_labels_where_they_are_asked_for(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "unaligned_50.pkl", MMSA)
    _, features = run(tmp_path, Given("audio", str(path)), target="classification_labels", label_names=("-", "0", "+"))
    assert features.label_names == ["+", "-"]


def test_padding_that_nothing_describes_is_refused_until_it_is_said_what_it_is(tmp_path: Path) -> None:
    aligned = {
        split: {key: value for key, value in own.items() if key not in ("audio_lengths", "text_bert")}
        for split, own in MMSA.items()
    }
    path = write_pickle(tmp_path / "aligned_50.pkl", aligned)
    with pytest.raises(DataError, match="is padded, and nothing says where utterances end; give a field audio_lengths"):
        run(tmp_path, Given("audio", str(path)))
    _, features = run(tmp_path, Given("audio", str(path)), padding="zeros")
    lengths = [len(array) for array in by_id(features).values()]
    assert lengths == [length for own in MMSA.values() for length in own["audio_lengths"]]


def test_mult_has_rows_for_ids_and_scores_for_labels(tmp_path: Path) -> None:
    content = {
        split: {
            "audio": own["audio"],
            "id": np.array([[name.split("$_$")[0].encode(), b"%d.5" % at, b"9"] for at, name in enumerate(own["id"])]),
            "labels": own["regression_labels"].reshape(-1, 1, 1),
        }
        for split, own in MMSA.items()
    }
    path = write_pickle(tmp_path / "mosi_data.pkl", content)
    _, features = run(tmp_path, Given("audio", str(path)), padding="zeros")
    assert features.utterances.ids[0] == "a0$_$0.5$_$9"
    assert features.label_names == []
    assert features.utterances.scores[0] == -3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"audio_lengths": [1]}, "1 lengths for 6 utterances"),
        ({"audio_lengths": [99] * 6}, "number 1 is 99 long, but there are 4 positions"),
        ({"audio_lengths": [-1] * 6}, "is no length"),
        ({"audio_lengths": None}, "not an array of numbers|expected"),
        ({"id": ["a$_$1"] * 6}, r"id 'a\$_\$1' is given to 6 utterances"),
        ({"id": ["a$_$1"]}, "'id' has not as many entries as 'audio'"),
        ({"audio": np.ones(3)}, r"expected \(utterances, positions, dim\)"),
        ({"annotations": "Negative"}, "expected one entry an utterance, found 'Negative'"),
    ],
)
def test_a_damaged_split_is_named(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    content = {**MMSA, "train": {**MMSA["train"], **change}}
    with pytest.raises(DataError, match=expected):
        run(tmp_path, Given("audio", str(write_pickle(tmp_path / "x.pkl", content))))


def test_splits_without_a_video_in_their_ids_need_a_table(tmp_path: Path) -> None:
    content = {
        split: {
            "audio": own["audio"],
            "audio_lengths": own["audio_lengths"],
            "id": [f"{split}{i}" for i in range(len(own["id"]))],
        }
        for split, own in MMSA.items()
    }
    path = write_pickle(tmp_path / "x.pkl", content)
    with pytest.raises(DataError, match="names no conversations, splits and labels; name a table"):
        run(tmp_path, Given("audio", str(path)))
    rows = [{"id": name, "split": split, "label": "joy"} for split, own in content.items() for name in own["id"]]
    _, features = run(tmp_path, Given("audio", str(path)), rows=rows)
    assert len(features.utterances) == 12


@pytest.mark.parametrize("key", ["labels", "train", "video"])
def test_what_holds_no_features_is_not_taken_for_them(tmp_path: Path, key: str) -> None:
    path = write_pickle(tmp_path / "x.pkl", (*HEAD, TEXT, AUDIO, VISUAL, SENTENCES, TRAIN, TEST))
    with pytest.raises(DataError, match="it has text, audio, visual"):
        run(tmp_path, Given("audio", f"{path}:{key}"))


def test_lengths_beside_a_published_pickle_are_refused(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "x.pkl", MMSA)
    table = write_rows(tmp_path / "t.csv", [{"id": "x"}])
    with pytest.raises(DataError, match="already has lengths and ids; leave --audio-lengths out"):
        run(tmp_path, Given("audio", str(path), lengths=str(table)))
