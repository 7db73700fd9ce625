"""What prepare says before anything is encoded, of tables as people really have them."""

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import DataError
from pipeline.manifest import read_manifest
from pipeline.params import DatasetParams
from pipeline.preparation import Prepared, prepare, summary
from tests.pipeline.made import rows_of, sound, write_corpus, write_params, write_rows, write_wav


def found(root: Path, rows: list[dict[str, Any]], **dataset: Any) -> Prepared:
    write_rows(root / "table.csv", rows)
    return prepare(DatasetParams(name="table", root=str(root), table="table.csv", **dataset))


def labelled(*labels: str) -> list[dict[str, Any]]:
    """Every label in every split, and the last one once more."""
    return [
        {"conversation": f"{split}{number}", "split": split, "label": label, "text": "hello"}
        for split in ("train", "dev", "test")
        for number, label in enumerate([*labels, labels[-1]])
    ]


def key_of(prepared: Prepared) -> dict[str, str | None]:
    """What the last warning about labels says to write into params.yaml."""
    (line,) = [line for line in summary(prepared).splitlines() if "dataset.labels: " in line]
    content = yaml.safe_load(line.partition("dataset.labels: ")[2])
    assert isinstance(content, dict)
    return content


SPELLINGS = {
    "case": ("Happy", "happy"),
    "blanks": ("very  happy", "very happy"),
    "no-break space": ("very\u00a0happy", "very happy"),
    "zero-width space": ("happy\u200b", "happy"),
    "soft hyphen": ("hap\u00adpy", "happy"),
    "byte order mark": ("\ufeffhappy", "happy"),
    "decomposed accent": ("ge\u0301ne\u0301", "g\u00e9n\u00e9"),
    "wide letters": ("\uff28appy", "Happy"),
    "drawn as an emoji": ("\u2764\ufe0f", "\u2764"),
    "hyphen": ("very-happy", "very happy"),
    "underscore": ("very_happy", "very happy"),
    "quotes": ('"happy"', "happy"),
    "a number of pandas": ("1.0", "1"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_labels_that_look_alike_are_counted_with_the_key_that_merges_them(tmp_path: Path, name: str) -> None:
    odd, plain = SPELLINGS[name]
    first = found(tmp_path, labelled("sad", odd, plain))
    told = summary(first)
    shown = odd if odd.isascii() or name in ("wide letters", "drawn as an emoji") else ascii(odd)[1:-1]
    assert "labels that differ only in case, blanks, hyphens, quotes, `.0`, Unicode form or invisible" in told
    assert f"'{plain}' 6" in told
    assert all(character.isprintable() for line in told.splitlines() for character in line)
    assert name in ("wide letters", "drawn as an emoji") or f"'{shown.replace(chr(233), 'e')}' 3" in told
    assert key_of(first) == {odd: plain}
    merged = found(tmp_path, labelled("sad", odd, plain), labels=key_of(first))
    assert {utterance.label for utterance in merged.utterances} == {"sad", plain}
    assert not merged.warnings[1:]


@pytest.mark.parametrize(
    "label", ["(null)", "#NV", "nan", "None", "null", "NA", "-", "N/A", "--", "NaN", "<NA>", "\u2014", "#N/A", "\u200b"]
)
def test_labels_that_look_like_nothing_are_counted_with_the_key_that_drops_them(tmp_path: Path, label: str) -> None:
    first = found(tmp_path, labelled("sad", label))
    assert any(
        line.startswith("warning: labels that look like missing values: ") for line in summary(first).splitlines()
    )
    assert key_of(first) == {label: None}
    dropped = found(tmp_path, labelled("sad", label), labels=key_of(first))
    assert {utterance.label for utterance in dropped.utterances} == {"sad", None}
    assert "dataset.labels" not in summary(dropped)


def test_one_key_merges_and_drops_and_keeps_what_was_set(tmp_path: Path) -> None:
    rows = labelled("joy", "Joy", "glad", "NA", "joy")
    assert key_of(found(tmp_path, rows, labels={"glad": "joy"})) == {"glad": "joy", "Joy": "joy", "NA": None}


def test_ordinary_labels_are_left_in_peace(tmp_path: Path) -> None:
    rows = labelled("none of these", "+", "1", "-1", "1.5", "joy", "Zoë", "हिन्दी", "no")
    assert "label" not in " ".join(found(tmp_path, rows).warnings)


@pytest.mark.parametrize(("label", "key"), [("joy\u200b", '{"joy\\u200b": "joy"}'), ("NA", '{"NA": null}')])
def test_a_label_of_test_alone_is_refused_with_the_key(tmp_path: Path, label: str, key: str) -> None:
    rows = [*labelled("joy"), {"conversation": "x", "split": "test", "label": label, "text": "hello"}]
    with pytest.raises(DataError) as error:
        found(tmp_path, rows)
    assert f"set dataset.labels: {key}, fix the label" in str(error.value)


def test_a_key_that_is_no_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no label is 'Joi' \(dataset.labels\); there are Joy, sad; did you mean 'Joy'"
    ):
        found(tmp_path, labelled("sad", "Joy"), labels={"Joi": "joy"})


def test_blanks_around_labels_are_taken_off_and_counted(tmp_path: Path) -> None:
    prepared = found(tmp_path, labelled("joy", "joy "))
    assert "repaired: 6 labels with blanks around them, now without" in summary(prepared)
    assert {utterance.label for utterance in prepared.utterances} == {"joy"}


def test_speakers_and_conversations_that_look_alike_are_named(tmp_path: Path) -> None:
    rows = [row | {"speaker": speaker} for row, speaker in zip(labelled("joy"), ["Ann", "ann"] * 3, strict=True)]
    rows += [rows[0] | {"conversation": "train0\u200b"}]
    told = summary(found(tmp_path, rows))
    assert (
        "note: speakers that differ only in case, blanks, `.0`, Unicode form or invisible characters: 'Ann' 4, 'ann' 3"
        in told
    )
    assert "'train0' 1, 'train0\\u200b' 1; if they are the same, fix the table" in told


def test_speakers_whose_numbers_pandas_wrote_are_named(tmp_path: Path) -> None:
    rows = [row | {"speaker": speaker} for row, speaker in zip(labelled("joy"), ["2", "2.0"] * 3, strict=True)]
    assert "invisible characters: '2' 3, '2.0' 3; if they are" in summary(found(tmp_path, rows))


def test_turns_whose_order_is_in_doubt_are_named(tmp_path: Path) -> None:
    first, *rows = labelled("joy")
    write_wav(tmp_path / "a.wav", sound(3.0, 16_000), 16_000)
    speech = first | {"audio": "a.wav", "end": 3}
    told = summary(found(tmp_path, [speech | {"start": 2}, speech | {"start": 1}, *rows]))
    assert (
        "note: turns that begin before the turn in front of them: 1, such as 'train0/1' at 1 s; sort the rows" in told
    )
    told = summary(found(tmp_path, [row | {"turn": 1} for row in [first, first, *rows]]))
    assert "note: conversations with two turns of one number: 1, such as 'train0'; these keep the order" in told
    assert "begin before" not in told


def test_a_rare_label_that_is_nearly_another_is_named_with_the_key(tmp_path: Path) -> None:
    rows = labelled("anger", "happiness")
    rows[1]["label"] = "hapiness"
    told = summary(found(tmp_path, rows))
    assert "labels spelled nearly as another: 'hapiness' (1) as 'happiness' (5); if it is the same" in told
    assert 'dataset.labels: {"hapiness": "happiness"}' in told


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Gespräche/Zoë 1.wav") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("told", "there"),
    [
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        ("Audio/A 1.WAV", "audio/a 1.wav"),
        ("audio/a 1.wav", "audio/a\u00a01.wav"),
        ("audio/\ufb01le.wav", "audio/file.wav"),
    ],
)
def test_recordings_are_found_in_another_spelling(tmp_path: Path, told: str, there: str) -> None:
    (tmp_path / there).parent.mkdir()
    write_wav(tmp_path / there, sound(0.2, 16_000), 16_000)
    rows = [row | {"audio": told} for row in rows_of()]
    prepared = found(tmp_path, rows)
    assert {(utterance.status, utterance.audio) for utterance in prepared.utterances} == {("ok", there)}


def test_a_recording_with_two_other_spellings_or_the_same_letters_in_other_words_is_missing(tmp_path: Path) -> None:
    for name in ("a.wav", "A.wav", "11 1.wav"):
        write_wav(tmp_path / name, sound(0.2, 16_000), 16_000)
    rows = [
        row | {"audio": name} for row, name in zip(rows_of(), ["a.wav", "A.wav", "A.WAV", "1 11.wav"] * 3, strict=True)
    ]
    statuses = {utterance.audio: utterance.status for utterance in found(tmp_path, rows).utterances}
    assert statuses == {"a.wav": "ok", "A.wav": "ok", "A.WAV": "missing-file", "1 11.wav": "missing-file"}


ANSWERS = {
    "a word of the name": ({"emotion_label": "joy"}, r"dataset\.columns: \{label: emotion_label\}"),
    "another name": ({"Emotion": "joy"}, r"no turn has a label or a score.*dataset\.columns: \{label: Emotion\}"),
    "no such column": ({"place": "home"}, r"dataset\.columns: \{label: your_column\} \(not used are place\)"),
    "empty": ({"label": ""}, r"no turn has a label or a score"),
    "scores": ({"score": "1.5"}, r"no turn has a label, so only the scores can be learned \(train\.target: score\)"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_table_without_labels_ends_with_a_warning(tmp_path: Path, name: str) -> None:
    cells, expected = ANSWERS[name]
    rows = [{key: value for key, value in row.items() if key != "label"} | cells for row in labelled("joy")]
    last = summary(found(tmp_path, rows)).splitlines()[-1]
    assert last.startswith("warning: ")
    assert re.search(expected, last)


def test_more_than_a_tenth_without_a_modality_is_a_warning_with_the_reasons(tmp_path: Path) -> None:
    rows = rows_of(10, 2)
    write_corpus(tmp_path, rows)
    for row in rows[:2]:
        row["audio"] = "gone.wav"
    assert not found(tmp_path, rows).warnings  # two of twenty
    rows[2] |= {"audio": "", "text": ""}
    for row in rows[3:5]:
        row["text"] = " "
    audio, text = found(tmp_path, rows).warnings
    assert audio.startswith("3 of 20 turns have no audio (missing-file 2, no-audio 1); ")
    assert text.startswith("3 of 20 turns have no text (no-text 3); ")


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_a_modality_that_the_corpus_does_not_have_is_no_warning(tmp_path: Path, modality: str) -> None:
    rows = rows_of(10, 2)
    write_corpus(tmp_path, rows)
    for row in rows:
        row[modality] = ""
    assert not found(tmp_path, rows).warnings


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_letter_costs_nothing(tmp_path: Path, encoding: str) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    write_rows(root / "table.csv", labelled("žal", "радость"))
    write_params(tmp_path / "params.yaml", dataset={"name": "table", "root": str(root), "table": "table.csv"})
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import prepare_app; prepare_app()", "--output", "m.jsonl"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"label \\u0440\\u0430" in done.stdout
    assert [utterance.label for utterance in read_manifest(tmp_path / "m.jsonl")].count("žal") == 3


def test_a_recording_of_one_turn_is_not_taken_for_that_of_another(tmp_path: Path) -> None:
    write_wav(tmp_path / "a0.wav", sound(0.2, 16_000), 16_000)
    write_wav(tmp_path / "b0.wav", sound(0.2, 16_000), 16_000)
    first, second, third, *rows = labelled("joy")
    rows = [first | {"audio": "a0.wav"}, second | {"audio": "A0.wav"}, third | {"audio": "B0.wav"}, *rows]
    prepared = found(tmp_path, rows)
    assert {one.audio: one.status for one in prepared.utterances if one.audio} == {
        "a0.wav": "ok",
        "A0.wav": "missing-file",
        "b0.wav": "ok",
    }
    told = "note: recordings that the disk spells in another way: 1, such as 'B0.wav', taken to be 'b0.wav'"
    assert told in summary(prepared)


def one_recording(root: Path, **times: list[float]) -> list[dict[str, Any]]:
    """Two turns of train in one recording of 4 s."""
    write_wav(root / "long.wav", sound(4.0, 16_000), 16_000)
    first, *rows = labelled("joy")
    speech = [first | {"text": text, "audio": "long.wav"} for text in ("hello", "again")]
    return [row | {name: of[index] for name, of in times.items()} for index, row in enumerate(speech)] + rows


def test_turns_that_share_their_sound_are_named(tmp_path: Path) -> None:
    told = summary(found(tmp_path, one_recording(tmp_path)))
    assert (
        "warning: 2 turns have the very same sound as another one, such as 'train0/0' and 'train0/1' (long.wav); in a "
        "table, give each its seconds: dataset.columns: {start: your_column, end: your_column}"
    ) in told
    told = summary(found(tmp_path, one_recording(tmp_path, start=[0, 2])))
    assert "warning: 2 turns have a start and no end, so they last to the end of their recording" in told
    told = summary(found(tmp_path, one_recording(tmp_path, start=[0, 2], end=[2, 4])))
    assert "warning: 2 turns" not in told


def test_conversations_and_recordings_of_train_in_other_splits_are_named(tmp_path: Path) -> None:
    rows = [
        {"conversation": name, "split": split, "label": "joy", "text": text}
        for name, split in (("a", "train"), ("b", "dev"), ("c", "test"))
        for text in ("hello", "who is there", "it is me" if split != "dev" else "nobody")
    ]
    told = summary(found(tmp_path, rows))
    assert (
        "warning: 3 of 3 utterances of test are the same as one in train (whole conversations of the same texts), the "
        "first 'c/0' as 'a/0': "
    ) in told
    assert "utterances of validation are the same" not in told
    write_wav(tmp_path / "one.wav", sound(0.5, 16_000), 16_000)
    write_wav(tmp_path / "same.wav", sound(0.5, 16_000), 16_000)
    rows[0] |= {"audio": "one.wav"}
    rows[3] |= {"audio": "same.wav"}
    told = summary(found(tmp_path, rows))
    assert "warning: 1 of 3 utterances of validation are the same as one in train (the same audio), the first" in told
    assert "utterances of test are the same" not in told  # which has no sound where train has


def test_rows_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    rows = one_recording(tmp_path, start=[0, 2], end=[2, 4])
    told = summary(found(tmp_path, [rows[0], *rows]))
    assert "note: rows that repeat another one (the same conversation, speaker, text, recording and label): 1;" in told
    assert "repeat another" not in summary(found(tmp_path, rows))


def test_turns_of_a_recording_for_each_speaker_are_held_to_one_clock(tmp_path: Path) -> None:
    first, *rows = labelled("joy")
    for name in ("A.wav", "B.wav"):
        write_wav(tmp_path / name, sound(5.0, 16_000), 16_000)
    speech = [
        first | {"audio": name, "speaker": name[0], "start": start + later, "end": start + later + 1}
        for name, later in (("A.wav", 0), ("B.wav", 1))
        for start in (0, 2)
    ]
    assert "begin before the turn in front of them: 1, such as 'train0/2' at 1 s" in summary(
        found(tmp_path, [*speech, *rows])
    )
    ordered = sorted(speech, key=lambda row: row["start"])
    assert "begin before" not in summary(found(tmp_path, [*ordered, *rows]))


def test_texts_and_speakers_that_look_like_missing_values_are_named(tmp_path: Path) -> None:
    rows = [row | {"text": "NA", "speaker": "nan"} for row in labelled("joy")]
    told = summary(found(tmp_path, rows))
    for field, value in (("text", "NA"), ("speaker", "nan")):
        assert f"warning: {field} that looks like a missing value, and is taken as it is written: '{value}' 6" in told
    rows[0] |= {"text": "hello", "speaker": "Ann"}
    for row in rows[1:]:
        row |= {"text": "...", "speaker": "Ann"}  # silence, and no missing value
    assert "missing value" not in summary(found(tmp_path, rows))


def test_keys_of_other_corpora_are_named(tmp_path: Path) -> None:
    told = summary(found(tmp_path, labelled("joy"), fold=3, protocol="62-31"))
    assert "warning: dataset.fold is set and changes nothing for table: it is a key of iemocap" in told
    assert "warning: dataset.protocol is set and changes nothing for table: it is a key of mosi" in told
    assert "changes nothing" not in summary(found(tmp_path, labelled("joy")))


def test_many_silent_recordings_are_a_warning(tmp_path: Path) -> None:
    for name, level in (("a.wav", 0.5), ("b.wav", 0.0)):
        write_wav(tmp_path / name, sound(0.2, 16_000, level=level), 16_000)
    rows = [row | {"audio": name} for row, name in zip(labelled("joy"), ["a.wav", "b.wav"] * 3, strict=True)]
    told = summary(found(tmp_path, rows))
    assert "warning: 3 of 6 turns are silent, such as 'train1/0': every sample is zero" in told
    assert "have no audio" not in told


def test_splits_are_made_by_the_labels_that_are_learned(tmp_path: Path) -> None:
    rows = [
        {"conversation": f"c{number}", "label": label, "text": "hello"}
        for number in range(20)
        for label in (f"mixed {number}", "joy", "sad", "joy")
    ]
    dropped = {f"mixed {number}": None for number in range(20)}
    mapped = found(tmp_path, rows, split="conversation", labels=dropped)
    emptied = [row | {"label": ""} if row["label"] in dropped else row for row in rows]
    empty = found(tmp_path, emptied, split="conversation")
    assert [one.split for one in mapped.utterances] == [one.split for one in empty.utterances]
    assert "_share is" not in summary(mapped)
    rows = [{"conversation": name, "label": "joy", "text": "hello"} for name in ["a"] * 20 + ["b", "c"]]
    told = summary(found(tmp_path, rows, split="conversation"))
    assert re.search(
        r"warning: validation has \d% of the turns, and dataset.validation_share is 0.15: whole groups", told
    )


def test_conversations_whose_numbers_begin_anew_in_each_split_are_named(tmp_path: Path) -> None:
    rows = [row | {"conversation": f"{number % 2}"} for number, row in enumerate(labelled("joy"))]
    rows += [{"conversation": f"x{number}", "label": "joy", "text": "hello"} for number in range(4)]
    told = summary(found(tmp_path, rows, split="conversation"))
    assert "note: conversations with turns of several splits: 2, such as '0'; if their numbers begin anew" in told


def test_yes_and_no_without_quotes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no label is 'True'.* YAML takes yes, no, on and off without quotes"):
        found(tmp_path, labelled("yes", "no"), labels={"True": "pos"})


def test_what_dvc_does_not_see_is_named(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    (elsewhere / "audio").mkdir(parents=True)
    root.mkdir()
    (elsewhere / "audio" / "deeper").mkdir()
    write_wav(elsewhere / "audio" / "deeper" / "a.wav", sound(0.2, 16_000), 16_000)
    (root / "linked").symlink_to(elsewhere / "audio")
    rows = [row | {"audio": "linked/deeper/a.wav"} for row in labelled("joy")]
    told = summary(found(root, rows))
    assert "note: linked lies outside dataset.root, so DVC does not notice" in told
    assert told.count("lies outside") == 1  # not of each folder in it
    write_rows(elsewhere / "table.csv", labelled("joy"))
    params = DatasetParams(name="table", root=str(root), table=str(elsewhere / "table.csv"))
    assert f"note: {params.table} lies outside dataset.root" in summary(prepare(params))
    assert "lies outside" not in summary(found(root, labelled("joy")))


def test_parts_of_a_conversation_whose_clocks_begin_anew_are_in_order(tmp_path: Path) -> None:
    first, *rows = labelled("joy")
    for name in ("p1.wav", "p2.wav"):
        write_wav(tmp_path / name, sound(4.0, 16_000), 16_000)
    speech = [
        first | {"audio": name, "speaker": speaker, "start": start, "end": start + 1}
        for name in ("p1.wav", "p2.wav")
        for start, speaker in enumerate(("Ann", "Ben", "Ann"))
    ]
    assert "begin before" not in summary(found(tmp_path, [*speech, *rows]))


def test_turns_of_one_recording_may_spell_it_in_several_ways(tmp_path: Path) -> None:
    rows = one_recording(tmp_path, start=[0, 2], end=[2, 4])
    rows[1]["audio"] = "Long.wav"
    assert {one.status for one in found(tmp_path, rows).utterances if one.audio} == {"ok"}
