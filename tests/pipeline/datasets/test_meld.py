"""MELD: a fabricated release with every known fault, and the real CSVs where they are available."""

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import repairs
from pipeline.datasets.meld import PUBLISHED, PUBLISHED_LABELS
from pipeline.errors import DataError
from pipeline.manifest import Utterance, check_utterances, read_manifest, write_manifest
from pipeline.media.decoding import decode
from pipeline.params import DatasetParams
from pipeline.preparation import check_published, prepare, summary
from pipeline.preparation.stage import Prepared
from pipeline.settings import SettingsError
from tests.conftest import shared_data
from tests.pipeline.made import write_wav
from tests.pipeline.releases.meld import FOLDERS, LINES, sound_of, write_release, write_table


def prepared(root: Path, **values: Any) -> Prepared:
    return prepare(DatasetParams(name="meld", root=str(root), **values))


def by_id(found: Prepared) -> dict[str, Utterance]:
    return {utterance.id: utterance for utterance in found.utterances}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("meld"))


@pytest.fixture(scope="module")
def found(release: Path) -> Prepared:
    return prepared(release)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """The CSVs alone."""
    for split in FOLDERS:
        write_table(tmp_path / f"{split}_sent_emo.csv", [line for line in LINES if line.split == split])
    return tmp_path


def test_every_line_is_a_turn_with_its_own_id(found: Prepared) -> None:
    splits = {"train": "train", "dev": "validation", "test": "test"}
    assert set(by_id(found)) == {f"{splits[line.split]}/{line.dialogue}/{line.utterance}" for line in LINES}
    assert len(found.utterances) == len(LINES)
    check_utterances(found.utterances, "manifest")


def test_gaps_and_disorder_are_closed_by_order(found: Prepared) -> None:
    turns = {identifier: utterance.turn for identifier, utterance in by_id(found).items()}
    assert [turns[f"train/0/{number}"] for number in (0, 1, 3)] == [0, 1, 2]
    assert [turns[f"train/125/{number}"] for number in (0, 1, 3)] == [0, 1, 2]
    assert [turns[f"validation/110/{number}"] for number in (7, 8)] == [0, 1]


def test_clips_that_cannot_be_used_keep_their_turn(found: Prepared) -> None:
    odd = {u.id: (u.status, u.samples) for u in found.utterances if u.status != "ok"}
    assert odd == {"train/125/3": ("undecodable", 0), "validation/110/7": ("missing-file", 0)}


def test_samples_and_channels_are_those_of_the_clips(found: Prepared) -> None:
    for line in LINES:
        utterance = by_id(found)[f"{line.split.replace('dev', 'validation')}/{line.dialogue}/{line.utterance}"]
        if line.clip in ("5.1", "stereo", "film"):
            channels = {"5.1": 6, "stereo": 2, "film": 1}[line.clip]
            assert (utterance.samples, utterance.sample_rate, utterance.channels) == (line.samples, 48_000, channels)


def test_files_without_annotation_are_ignored_and_counted(found: Prepared, release: Path) -> None:
    assert found.notes == ["2 files final_videos_test* have no annotation, as in the release: ignored"]
    assert "note: 2 files final_videos_test* have no annotation" in summary(found)
    spare = release / FOLDERS["dev"] / "dia7_utt7.mp4"
    spare.write_text("spare")
    notes = prepared(release).notes
    spare.unlink()
    assert notes[1] == "1 other clips have no annotation, such as dev_splits_complete/dia7_utt7.mp4: ignored"


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        (None, Counter(line.emotion for line in LINES)),
        ("emotion", Counter(line.emotion for line in LINES)),
        ("sentiment", Counter(line.sentiment for line in LINES)),
    ],
)
def test_the_target_chooses_the_label(release: Path, target: str | None, labels: Counter[str]) -> None:
    utterances = prepared(release, target=target).utterances
    assert Counter(utterance.label for utterance in utterances) == labels


def test_the_other_annotations_are_carried_along(found: Prepared, tmp_path: Path) -> None:
    assert by_id(found)["test/155/3"].extra == {
        "Sr No.": "3",
        "Emotion": "joy",
        "Sentiment": "positive",
        "Season": "8",
        "Episode": "21",
        "StartTime": "00:16:16,059",
        "EndTime": "00:16:16,059",
    }
    write_manifest(tmp_path / "manifest.jsonl", found.utterances)
    assert read_manifest(tmp_path / "manifest.jsonl") == found.utterances


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ("center", lambda sound: sound[:, 2]),
        ("first", lambda sound: sound[:, 0]),
        ("downmix", lambda sound: sound.mean(axis=1)),
    ],
)
def test_the_channels_of_a_clip_become_one_as_asked(
    tmp_path: Path, channels: Any, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    first = by_id(prepared(write_release(tmp_path, LINES, "wav"), channels=channels))["train/0/0"]
    heard = decode(tmp_path / str(first.audio), channels).samples
    np.testing.assert_allclose(heard, expected(sound_of(LINES[0], 0)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_converted_clips_are_found_by_their_stems(tmp_path: Path, kind: str) -> None:
    utterances = by_id(prepared(write_release(tmp_path, LINES, kind)))
    first, broken = utterances["train/0/0"], utterances["train/125/3"]
    assert (first.audio, first.samples, first.status) == (f"train_splits/dia0_utt0.{kind}", LINES[0].samples, "ok")
    assert (broken.samples, broken.status) == (0, {"wav": "undecodable", "flac": "empty-audio"}[kind])


def test_of_a_clip_and_its_conversion_the_conversion_is_taken(tmp_path: Path) -> None:
    lines = [line for line in LINES if line.emotion != "fear"]
    write_release(write_release(tmp_path, lines), lines[1:], "flac")
    for split in FOLDERS:
        write_table(tmp_path / f"{split}_sent_emo.csv", [line for line in lines if line.split == split])
    utterances = by_id(prepared(tmp_path))
    assert utterances["train/0/0"].audio == "train_splits/dia0_utt0.mp4"
    assert utterances["test/38/4"].audio == "output_repeated_splits_test/dia38_utt4.flac"


def test_the_folders_of_the_archives_are_found(tmp_path: Path, release: Path, found: Prepared) -> None:
    for split, folder in FOLDERS.items():
        (tmp_path / split).mkdir()
        (tmp_path / split / folder).symlink_to(release / folder)
        (tmp_path / split / f"{split}_sent_emo.csv").symlink_to(release / f"{split}_sent_emo.csv")
    utterances = by_id(prepared(tmp_path))
    assert utterances["train/0/0"].audio == "train/train_splits/dia0_utt0.mp4"
    assert {u.id: u.samples for u in utterances.values()} == {u.id: u.samples for u in found.utterances}


def test_cp1252_leftovers_are_repaired_and_reported(tables: Path) -> None:
    path = tables / "train_sent_emo.csv"
    content = path.read_bytes().replace("You’re".encode(), b"You\x92re")
    path.write_bytes(content.replace("things…".encode(), "things\x85".encode()))
    found = prepared(tables)
    assert (by_id(found)["train/0/0"].text, by_id(found)["train/0/3"].text) == (LINES[0].text, LINES[2].text)
    assert found.repaired == {repairs.BYTES: 1, repairs.CONTROLS: 1}


def test_the_csvs_alone_are_a_corpus_of_texts_and_that_is_said(tables: Path) -> None:
    found = prepared(tables)
    assert {utterance.status for utterance in found.utterances} == {"no-audio"}
    assert found.notes[0].startswith("no clips in train_splits, dev_splits_complete, output_repeated_splits_test")
    assert found.notes[0].endswith("every turn is its text alone")


def test_folders_of_another_case_are_found_and_named(tables: Path, release: Path, found: Prepared) -> None:
    spelled = {"train": "Train_Splits", "dev": "Dev_splits_complete", "test": "Output_Repeated_Splits_Test"}
    for split, folder in FOLDERS.items():
        (tables / spelled[split]).symlink_to(release / folder)
    utterances, notes = by_id(prepared(tables)), prepared(tables).notes
    assert {u.id: (u.samples, u.status) for u in utterances.values()} == {
        u.id: (u.samples, u.status) for u in found.utterances
    }
    assert utterances["train/0/0"].audio == "Train_Splits/dia0_utt0.mp4"
    assert notes[0].startswith("folders that the disk spells in another way than the release: 'Train_Splits' for")


def test_clips_in_another_place_are_named_where_none_is_found(tables: Path) -> None:
    (tables / "clips" / "train").mkdir(parents=True)
    write_wav(tables / "clips" / "train" / "dia0_utt0.wav", np.zeros((800, 1)), 16_000)
    found = prepared(tables)
    assert not found.notes
    (warning,) = [one for one in found.warnings if "every turn is its text alone" in one]
    assert "there are recordings in another place, such as clips/train/dia0_utt0.wav; lay them out as" in warning


def test_a_split_without_clips_is_missing_files(tables: Path, release: Path) -> None:
    (tables / FOLDERS["test"]).symlink_to(release / FOLDERS["test"])
    statuses = Counter((u.split, u.status) for u in prepared(tables).utterances)
    assert statuses == {("train", "missing-file"): 7, ("validation", "missing-file"): 3, ("test", "ok"): 3}


def test_differences_to_the_published_counts_are_named(found: Prepared) -> None:
    told = [str(difference) for difference in found.differences]
    assert "recordings, train: 6, published 9988 (undecodable 1)" in told
    assert "recordings, validation: 2, published 1108 (missing-file 1)" in told
    with pytest.raises(DataError, match="43 counts differ from the published ones, such as utterances, train: 7"):
        check_published(found)


@pytest.mark.parametrize("target", PUBLISHED_LABELS)
def test_the_published_labels_add_up_to_the_utterances(target: str) -> None:
    for split, utterances in PUBLISHED["utterances"].items():
        assert sum(counts[split] for counts in PUBLISHED_LABELS[target].values()) == utterances


def test_a_missing_csv_says_what_the_root_must_be(tables: Path) -> None:
    (tables / "dev_sent_emo.csv").unlink()
    with pytest.raises(DataError, match=r"dev_sent_emo\.csv: no such file, nor dev/dev_sent_emo\.csv; set dataset\.ro"):
        prepared(tables)


MALFORMED = {
    "column": ("Dialogue_ID", "Dialogue", "no column 'Dialogue_ID'; it has Sr No., Utterance, Speaker, Emotion"),
    "number": (",125,3,", ",125,3.0,", "train_sent_emo.csv, line 7: Utterance_ID '3.0' is not a number"),
    "huge number": (",125,3,", f",125,{'3' * 5_000},", "line 7: Utterance_ID '333"),
    "label": ("disgust", "digsust", "line 7: emotion 'digsust' is none of anger, disgust, fear"),
    "repeated": (",125,1,", ",125,3,", "id 'train/125/3' is given to 2 utterances"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_csv_is_refused(tables: Path, name: str) -> None:
    old, new, expected = MALFORMED[name]
    path = tables / "train_sent_emo.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError) as error:
        prepared(tables)
    assert expected in str(error.value)


def test_a_turn_without_a_label_stays_as_context(tables: Path) -> None:
    write_table(
        tables / "test_sent_emo.csv",
        [replace(line, emotion="" if line.dialogue else "Neutral ") for line in LINES if line.split == "test"],
    )
    labels = [u.label for u in prepared(tables).utterances if u.split == "test"]
    assert sorted(labels, key=str) == [None, None, "neutral"]


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("meld", "emotions", "'dataset.target' is 'emotions'; meld accepts emotion | sentiment"),
        ("table", "emotion", "'dataset.target' is 'emotion'; table accepts null only: its label is the column"),
    ],
)
def test_a_target_that_the_corpus_lacks_is_refused(tables: Path, name: Any, target: str, expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        prepare(DatasetParams(name=name, root=str(tables), target=target))
    assert expected in str(error.value)


@pytest.mark.parametrize("target", ["emotion", "sentiment"])
def test_the_real_csvs_have_the_published_counts(target: str) -> None:
    """And the gaps, repeated numbers and absent dialogue that FIELD knows of."""
    meld = shared_data("meld")
    found = prepared(meld, target=target)
    assert {difference.what for difference in found.differences} == {"recordings"}
    check_utterances(found.utterances, "manifest")
    assert {utterance.status for utterance in found.utterances} == {"no-audio"}
    assert not found.repaired
    texts = {utterance.id: utterance.text for utterance in found.utterances}
    for name, split in (("train", "train"), ("dev", "validation"), ("test", "test")):
        with (meld / f"{name}_sent_emo.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                assert texts.pop(f"{split}/{row['Dialogue_ID']}/{row['Utterance_ID']}") == row["Utterance"]
    assert not texts


def test_splits_of_another_kind_are_held_to_the_whole_numbers_alone(release: Path) -> None:
    assert {column for counts in prepared(release, split="conversation").published.values() for column in counts} == {
        "all"
    }


def test_files_of_another_system_are_no_clips_and_counted(tables: Path) -> None:
    (tables / FOLDERS["train"]).mkdir()
    (tables / FOLDERS["train"] / "._dia0_utt0.mp4").touch()
    told = summary(prepared(tables))
    assert "repaired: 1 files of another system (._*), left out" in told
    assert "every turn is its text alone" in told


def test_one_excerpt_is_enough_for_the_encoding_of_many_files(tmp_path: Path) -> None:
    repaired = repairs.Repairs()
    for text in ("caf\xe9", "na\xefve", "\xe0 bient\xf4t"):
        repairs.decode(tmp_path, "\n".join([text] * 2).encode("cp1252"), repaired)
    assert list(repaired.values()) == [6]
