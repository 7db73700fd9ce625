"""The embedded corpus keeps what its README promises."""

import csv
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import av
import pytest

DEMO = Path(__file__).parents[1] / "data" / "demo"
LABELS = {"neutral", "joy", "anger", "sadness"}
SPLITS = {"train", "validation", "test"}
CUES = {"words", "prosody", "context"}

Row = dict[str, str]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    with (DEMO / "utterances.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def conversations(rows: list[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["conversation"]].append(row)
    return grouped


def test_the_corpus_takes_at_most_four_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 4_000_000


def test_columns_are_the_documented_ones(rows: list[Row]) -> None:
    assert list(rows[0]) == ["conversation", "turn", "speaker", "split", "label", "text", "audio", "cue"]


def test_conversations_have_four_to_ten_gapless_turns_of_two_speakers(conversations: dict[str, list[Row]]) -> None:
    assert len(conversations) >= 100
    for turns in conversations.values():
        assert 4 <= len(turns) <= 10
        assert [int(row["turn"]) for row in turns] == list(range(len(turns)))
        assert len({row["speaker"] for row in turns}) <= 2


def test_every_conversation_lies_in_one_split(conversations: dict[str, list[Row]]) -> None:
    assert all(len({row["split"] for row in turns}) == 1 for turns in conversations.values())


def test_every_split_has_every_label_by_every_cue(rows: list[Row]) -> None:
    counts = Counter((row["split"], row["label"], row["cue"]) for row in rows)
    assert set(counts) == {(split, label, cue) for split in SPLITS for label in LABELS for cue in CUES}


def test_labels_and_cues_are_spread_as_documented(rows: list[Row]) -> None:
    labels, cues = (Counter(row[column] for row in rows) for column in ("label", "cue"))
    assert all(count == pytest.approx(len(rows) / 4, rel=0.15) for count in labels.values())
    assert cues["words"] == pytest.approx(0.4 * len(rows), rel=0.15)
    assert cues["prosody"] == pytest.approx(0.4 * len(rows), rel=0.15)
    assert cues["context"] == pytest.approx(0.2 * len(rows), rel=0.15)


def test_a_context_turn_shares_the_emotion_of_the_other_speakers_turn_before(
    conversations: dict[str, list[Row]],
) -> None:
    for turns in conversations.values():
        assert turns[0]["cue"] != "context"
        for before, row in itertools.pairwise(turns):
            if row["cue"] == "context":
                assert row["label"] == before["label"]
                assert row["speaker"] != before["speaker"]


def test_sentences_of_prosody_and_context_turns_come_with_every_label(rows: list[Row]) -> None:
    """A crude check that those texts carry no label: the same openings are said in all emotions."""
    for cue in ("prosody", "context"):
        openings = Counter((" ".join(row["text"].split()[:2]), row["label"]) for row in rows if row["cue"] == cue)
        common = [opening for opening, _ in Counter(o for o, _ in openings.elements()).most_common(5)]
        assert all((opening, label) in openings for opening in common for label in LABELS)


def test_test_sentences_with_emotional_words_are_mostly_new(rows: list[Row]) -> None:
    words = [row for row in rows if row["cue"] == "words"]
    known = {row["text"] for row in words if row["split"] == "train"}
    seen = [row["text"] in known for row in words if row["split"] == "test"]
    assert sum(seen) < 0.25 * len(seen)


@pytest.mark.soak
def test_every_recording_decodes_and_none_is_left_over(rows: list[Row]) -> None:
    assert {row["audio"] for row in rows} == {str(path.relative_to(DEMO)) for path in DEMO.rglob("*.ogg")}
    assert len({row["audio"] for row in rows}) == len(rows)
    for row in rows:
        with av.open(str(DEMO / row["audio"])) as container:
            assert container.streams.audio[0].codec_context.channels == 1
            frames = [(frame.samples, frame.sample_rate) for frame in container.decode(audio=0)]
        seconds = sum(samples / rate for samples, rate in frames)
        assert 0.4 < seconds < 6
