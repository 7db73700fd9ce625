"""`prepare`: a corpus as people have it becomes a manifest; what is odd is named, what is contradictory refused."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.extraction import extract_audio
from pipeline.manifest import Utterance, check_utterances, manifest_order, read_manifest, write_manifest
from pipeline.media import Decoders
from pipeline.params import AudioParams, Columns, DatasetParams
from pipeline.preparation import prepare, summary
from pipeline.recordings import relative_path
from tests.pipeline.made import cut, rows_of, sound, write_corpus, write_encoded, write_film, write_rows, write_wav

RATE = 16_000


def params(root: Path, table: str = "table.csv", **values: Any) -> DatasetParams:
    return DatasetParams(name="table", root=str(root), table=table, **values)


def prepared(root: Path, rows: Sequence[dict[str, Any]], **values: Any) -> dict[str, Utterance]:
    """The utterances of a corpus of `rows`, by id."""
    utterances = prepare(params(write_corpus(root, rows), **values)).utterances
    return {utterance.id: utterance for utterance in utterances}


def refusal(root: Path, rows: Sequence[dict[str, Any]], **values: Any) -> str:
    with pytest.raises(DataError) as error:
        prepared(root, rows, **values)
    message = str(error.value)
    assert "\n" not in message
    return message


def row(conversation: str, split: str = "train", **cells: Any) -> dict[str, Any]:
    return {"conversation": conversation, "split": split, "text": "hello", "audio": f"{conversation}.wav"} | cells


def three_splits(**cells: Any) -> list[dict[str, Any]]:
    """A conversation for each split; `cells` change the one of train."""
    return [row("a", **cells), row("b", "validation"), row("c", "test")]


def test_a_sound_corpus_is_all_ok(tmp_path: Path) -> None:
    utterances = prepare(params(write_corpus(tmp_path))).utterances
    assert {utterance.status for utterance in utterances} == {"ok"}
    assert len(utterances) == len(rows_of())
    first = utterances[0]
    assert (first.id, first.audio, first.samples, first.sample_rate, first.channels) == (
        "c0/0",
        "c0-0.wav",
        3_200,
        RATE,
        1,
    )
    check_utterances(utterances, "manifest")
    assert utterances == sorted(utterances, key=manifest_order)


def test_the_same_corpus_gives_the_same_manifest(tmp_path: Path) -> None:
    root = write_corpus(tmp_path)
    assert prepare(params(root)) == prepare(params(root))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Utterance]:
    """One conversation with every oddity that a manifest names, and two plain ones; by text."""
    root = tmp_path_factory.mktemp("odd")
    second = sound(1.0, RATE)
    broken = second.copy()
    broken[5] = np.nan
    write_wav(root / "silent.wav", np.zeros((RATE, 1)), RATE)
    write_wav(root / "one.wav", np.full((1, 1), 0.5), RATE)
    write_wav(root / "none.wav", np.zeros((0, 1)), RATE)
    write_wav(root / "nan.wav", broken, RATE, "f32")
    write_wav(root / "clipped.wav", sound(1.0, RATE, level=4), RATE)
    cut(write_wav(root / "cut.wav", second, RATE), 0.5)
    cut(write_encoded(root / "cut.flac", second, RATE, "flac"), 0.7)
    cut(write_encoded(root / "cut.mp4", sound(1.0, 48_000), 48_000, "aac"), 0.7)
    write_film(root / "mute.mp4")
    (root / "text.wav").write_text("no recording")
    (root / "empty.wav").write_bytes(b"")
    (root / "folder.wav").mkdir()
    names = [
        *("silent.wav", "one.wav", "none.wav", "nan.wav", "clipped.wav", "cut.wav", "cut.flac", "cut.mp4"),
        *("mute.mp4", "text.wav", "empty.wav", "folder.wav", "missing.mp3", ""),
    ]
    rows = [row("odd", turn=turn, text=name or "no name", audio=name) for turn, name in enumerate(names)]
    rows += [
        row("odd", turn=len(names), text="", audio="plain.wav"),
        row("odd", turn=len(names) + 1, text="", audio=""),
    ]
    plain = [row("b", "validation", turn=0, audio="plain.wav"), row("c", "test", turn=0, audio="plain.wav")]
    write_wav(root / "plain.wav", second, RATE)
    utterances = prepare(params(write_corpus(root, rows + plain))).utterances
    return {utterance.text or f"turn {utterance.turn}": utterance for utterance in utterances}


@pytest.mark.parametrize(
    ("name", "status", "samples"),
    [
        ("silent.wav", "silent", RATE),
        ("one.wav", "short", 1),
        ("none.wav", "empty-audio", 0),
        ("nan.wav", "not-finite", 0),
        ("clipped.wav", "clipped", RATE),
        ("cut.mp4", "undecodable", 0),
        ("mute.mp4", "no-sound-stream", 0),
        ("text.wav", "undecodable", 0),
        ("empty.wav", "undecodable", 0),
        ("folder.wav", "missing-file", 0),
        ("missing.mp3", "missing-file", 0),
        ("no name", "no-audio", 0),
        ("turn 14", "no-text", RATE),
        ("turn 15", "no-audio+no-text", 0),
    ],
)
def test_an_odd_turn_stays_with_its_reason(odd: dict[str, Utterance], name: str, status: str, samples: int) -> None:
    assert (odd[name].status, odd[name].samples) == (status, samples)


@pytest.mark.parametrize("name", ["cut.wav", "cut.flac"])
def test_a_truncated_recording_keeps_what_is_there(odd: dict[str, Utterance], name: str) -> None:
    assert odd[name].status == "truncated"
    assert 0 < odd[name].samples < RATE


def test_no_turn_is_dropped(odd: dict[str, Utterance]) -> None:
    turns = [utterance.turn for utterance in odd.values() if utterance.conversation == "odd"]
    assert turns == list(range(16))


def test_a_split_without_one_of_the_labels_is_a_warning(tmp_path: Path) -> None:
    labelled = [cells | {"label": "joy"} for cells in three_splits()]
    rows = [*labelled, row("d", label="fear"), row("e", "test", label="fear")]
    assert prepare(params(write_corpus(tmp_path, rows))).warnings == [
        "validation has no utterance labelled 'fear' (train: 1); move conversations to it in the table, merge or drop "
        "labels (dataset.labels), or have splits made (dataset.split: conversation)"
    ]


def test_the_summary_counts_every_status_and_split(tmp_path: Path) -> None:
    rows = [*three_splits(label="joy"), row("d", label="joy", audio="gone.mp3"), row("e", text="", audio="gone.mp3")]
    write_corpus(tmp_path, rows)
    lines = {line[:24].strip(): line[24:].split() for line in summary(prepare(params(tmp_path))).splitlines()}
    assert lines["utterances"] == ["3", "1", "1", "5"]
    assert lines["conversations"] == ["3", "1", "1", "5"]
    assert lines["label joy"] == ["2", "0", "0", "2"]
    assert lines["labelled"] == ["2", "0", "0", "2"]
    assert lines["status ok"] == ["1", "1", "1", "3"]
    assert lines["status missing-file"] == ["2", "0", "0", "2"]
    assert lines["status no-text"] == ["1", "0", "0", "1"]


def test_the_published_counts_lie_under_the_ones_that_were_found(tmp_path: Path) -> None:
    """Also those of a label that the corpus here lacks; cells of which nothing is published stay empty."""
    found = prepare(params(write_corpus(tmp_path, three_splits(label="joy"))))
    published = {
        "utterances": {"train": 10, "validation": 20, "test": 30, "all": 60},
        "speakers": {"test": 7},
        "label fear": {"all": 4},
    }
    lines = summary(replace(found, published=published)).splitlines()

    def told(what: str) -> list[str]:
        return lines[next(number for number, line in enumerate(lines) if line.startswith(what)) :][:2]

    assert [line.split() for line in told("utterances")] == [
        ["utterances", "1", "1", "1", "3"],
        ["published", "10", "20", "30", "60"],
    ]
    assert [line.split() for line in told("label fear")] == [["label", "fear", "0", "0", "0", "0"], ["published", "4"]]
    assert told("speakers")[1].split() == ["published", "7"]
    assert len(told("speakers")[1]) == lines[0].index("test") + len("test")  # in its column
    assert sum("published" in line for line in lines) == len(published) + 1  # and the line that counts them


def test_what_was_repaired_is_counted_in_the_summary(tmp_path: Path) -> None:
    write_corpus(tmp_path, three_splits())
    content = (tmp_path / "table.csv").read_bytes()
    (tmp_path / "table.csv").write_bytes(content.replace(b"hello", b"it\x92s", 1))
    assert "repaired: 1 lines that were not UTF-8, read as cp1252" in summary(prepare(params(tmp_path)))


def test_recordings_that_cannot_be_used_are_named_in_the_summary(tmp_path: Path) -> None:
    write_corpus(tmp_path, three_splits())
    (tmp_path / "b.wav").unlink()
    (tmp_path / "c.wav").write_text("no sound")
    lines = summary(prepare(params(tmp_path))).splitlines()
    assert "status missing-file: 'b/0', b.wav" in lines
    assert "status undecodable: 'c/0', c.wav" in lines


def test_seconds_of_a_status_are_in_the_manifest_and_its_reason_is_counted_in_the_summary(tmp_path: Path) -> None:
    times = {"start": "", "end": ""}
    rows = [row("a", turn=turn, audio="a.m4a", start=4 * turn, end=4 * turn + 4) for turn in range(2)]
    write_encoded(tmp_path / "a.m4a", sound(10.0, RATE), RATE, "aac")
    content = bytearray((tmp_path / "a.m4a").read_bytes())
    place = len(content) // 10
    content[place : place + 300] = np.random.default_rng(0).bytes(300)
    (tmp_path / "a.m4a").write_bytes(content)
    others = [cells | {"turn": 0} | times for cells in three_splits()[1:]]
    found = prepare(params(write_corpus(tmp_path, [*rows, *others])))
    assert [u.status for u in found.utterances if u.conversation == "a"] == ["damaged 1.0-1.1 s", "ok"]
    assert next(line for line in summary(found).splitlines() if "damaged" in line).split() == [
        *("status", "damaged", "1", "0", "0", "1")
    ]


def test_a_name_that_is_too_long_and_a_pipe_are_no_files_from_prepare_to_the_features(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    rows = [row("a", turn=turn, audio=name) for turn, name in enumerate(["x" * 300 + ".wav", "pipe.wav", "ok.wav"])]
    write_wav(tmp_path / "ok.wav", sound(0.5, RATE), RATE)
    for cells in three_splits()[1:]:
        write_wav(tmp_path / cells["audio"], sound(0.5, RATE), RATE)
    write_rows(tmp_path / "table.csv", [*rows, *(cells | {"turn": 0} for cells in three_splits()[1:])])
    found = prepare(params(tmp_path)).utterances
    assert [u.status for u in found if u.conversation == "a"] == ["missing-file", "missing-file", "ok"]
    write_manifest(tmp_path / "manifest.jsonl", found)
    outcome = extract_audio(
        tmp_path / "manifest.jsonl", tmp_path / "audio.h5", AudioParams(batch=10.0), tmp_path, "downmix", "cpu"
    )
    assert (outcome.encoded, outcome.failures) == (1, {})  # the three that are heard are alike, and encoded once


def test_a_column_that_nothing_reads_is_told(tmp_path: Path) -> None:
    rows = [{"dialogue": cells.pop("conversation")} | cells for cells in three_splits()]
    notes = prepare(params(write_corpus(tmp_path, rows))).notes
    assert notes[0] == "columns that are not used, only carried along: dialogue"
    assert notes[1].startswith(
        "no conversation column (dataset.columns.conversation): every row is a separate conversation"
    )
    columns = Columns(conversation="dialogue")
    assert prepare(params(tmp_path, columns=columns)).notes == []


def test_turns_out_of_order_and_with_gaps_are_closed_by_order(tmp_path: Path) -> None:
    rows = [row("a", turn=turn, text=f"t{turn}", audio="") for turn in (7, 2, 30, 2.5)]
    utterances = prepared(tmp_path, [*rows, *(cells | {"turn": 0} for cells in three_splits()[1:])])
    turns = {u.turn: u.text for u in utterances.values() if u.conversation == "a"}
    assert turns == {0: "t2", 1: "t2.5", 2: "t7", 3: "t30"}


def test_conversations_may_be_interleaved_in_the_table(tmp_path: Path) -> None:
    rows = rows_of()
    straight = prepared(tmp_path / "a", rows)
    mixed = prepared(tmp_path / "a", rows[::2] + rows[1::2])
    assert straight == mixed


def test_text_alone_is_a_corpus(tmp_path: Path) -> None:
    utterances = prepared(tmp_path, rows_of(audio=False))
    assert {utterance.status for utterance in utterances.values()} == {"no-audio"}


def test_recordings_alone_are_a_corpus(tmp_path: Path) -> None:
    rows = [{key: value for key, value in cells.items() if key != "text"} for cells in three_splits()]
    assert {utterance.status for utterance in prepared(tmp_path, rows).values()} == {"no-text"}


@pytest.mark.parametrize("text", ["", "   ", "\u200b\ufeff", "\u00a0\u2028"])
def test_a_text_with_nothing_to_see_is_no_text(tmp_path: Path, text: str) -> None:
    utterance = prepared(tmp_path, three_splits(text=text))["a/0"]
    assert (utterance.text, utterance.status) == ("", "no-text")


@pytest.mark.parametrize("text", ["😀👍🏽", "…", "日本語", "word " * 1_999 + "word"])
def test_any_visible_text_is_kept_whole(tmp_path: Path, text: str) -> None:
    utterance = prepared(tmp_path, three_splits(text=text))["a/0"]
    assert (utterance.text, utterance.status) == (text, "ok")


def test_turns_may_be_stretches_of_one_recording(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", sound(2.0, RATE), RATE)
    rows = [
        row("a", audio="long.wav", start=0, end=0.5),
        row("a", audio="long.wav", start=0.5, end=2.0),
        row("b", "validation", audio="long.wav", start=1.5, end=3.0),
        row("c", "test", audio="long.wav", start=2.5, end=3.0),
    ]
    found = [(u.samples, u.status) for u in prepared(tmp_path, rows).values()]
    assert found == [(8_000, "ok"), (24_000, "ok"), (8_000, "truncated"), (0, "empty-audio")]


def test_some_missing_recordings_are_a_status_and_all_an_error(tmp_path: Path) -> None:
    rows = three_splits(audio="gone.mp3")
    assert prepared(tmp_path, rows)["a/0"].status == "missing-file"
    gone = [cells | {"audio": "gone.mp3"} for cells in rows]
    message = refusal(tmp_path, gone)
    assert f"none of the 3 recordings under {tmp_path} can be used; the first, gone.mp3: missing-file; fix" in message
    write_wav(tmp_path / "long.wav", sound(0.5, RATE), RATE)
    message = refusal(tmp_path, [cells | {"audio": "long.wav", "start": 1000, "end": 2000} for cells in rows])
    assert message.endswith("empty-audio; fix start and end, which are seconds of a recording (here from 1000)")


def test_a_mistaken_audio_column_is_all_missing_files(tmp_path: Path) -> None:
    long = " ".join(["a sentence that is longer than any file name may be"] * 8)
    rows = [cells | {"text": long} for cells in three_splits()]
    assert "missing-file; fix dataset.root or dataset.columns.audio" in refusal(
        tmp_path, rows, columns={"audio": "text"}
    )


@pytest.mark.parametrize("audio", ["../x.wav", "/etc/passwd", "sub/../../x.wav", "..\\x.wav", ".."])
def test_a_recording_outside_the_root_is_refused(tmp_path: Path, audio: str) -> None:
    message = refusal(tmp_path, three_splits(audio=audio))
    assert f"'a/0': recording {audio!r} lies outside dataset.root ({tmp_path}); set dataset.root to" in message


def test_a_recording_with_a_zero_byte_in_its_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: recording 'a\\x00\.wav' has a zero byte in its name"):
        relative_path("a\0.wav", "line 3", str(tmp_path))


def test_an_absolute_path_inside_the_root_becomes_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "corpus"
    write_wav(root / "sub" / "x.wav", sound(0.1, RATE), RATE)
    rows = [*three_splits(audio=str(root / "sub" / "x.wav")), row("d", audio="sub\\x.wav")]
    write_corpus(root, rows)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for given in (root, Path("../corpus")):
        utterances = {utterance.id: utterance for utterance in prepare(params(given)).utterances}
        assert (utterances["a/0"].audio, utterances["d/0"].audio) == ("sub/x.wav", "sub/x.wav")
        assert utterances["a/0"].status == "ok"


def test_recordings_may_lie_behind_a_link(tmp_path: Path) -> None:
    write_wav(tmp_path / "disk" / "x.wav", sound(0.1, RATE), RATE)
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "wav").symlink_to(tmp_path / "disk")
    assert prepared(root, three_splits(audio="wav/x.wav"))["a/0"].status == "ok"


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "repeated id": ([cells | {"id": "x"} for cells in three_splits()], "id 'x' is given to 3 utterances"),
    "label only in test": (
        [cells | {"label": label} for cells, label in zip(three_splits(), ["joy", "joy", "jooy"], strict=True)],
        "label 'jooy' (1 utterances, such as 'c/0' of the test split) does not occur in train (joy); fix the label",
    ),
    "no label in train": (
        [cells | {"label": label} for cells, label in zip(three_splits(), ["", "joy", "joy"], strict=True)],
        "does not occur in train (no labels)",
    ),
    "two splits": ([*three_splits(), row("a", "test")], "conversation 'a' lies in two splits, train and test"),
    "no validation": (
        [row("a"), row("c", "test")],
        "split 'validation' has no utterance (found train 1, test 1); fill the split column, or set dataset.split",
    ),
    "no train": ([row("b", "validation"), row("c", "test")], "split 'train' has no utterance"),
    "end before start": (three_splits(start=2, end=1), "'a/0': ends at 1.0 s, before its start at 2.0 s"),
    "negative start": (three_splits(start=-1), "'a/0': start -1.0 s is negative"),
    "negative end": (three_splits(end=-1), "'a/0': end -1.0 s is negative"),
    "control character": (three_splits(speaker="A\x07nn"), "speaker 'A\\x07nn' holds control characters"),
    "label of two lines": (three_splits(label="joy\nor not"), "label 'joy\\nor not' holds control characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradictory_corpus_is_refused_before_hours_of_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    decoded: list[Path] = []
    monkeypatch.setattr(Decoders, "decode_stretches", lambda _, path, *__: decoded.append(path))
    rows, expected = REFUSED[name]
    cells = {key: "" for given in rows for key in given}
    assert expected in refusal(tmp_path, [cells | given for given in rows])
    assert not decoded


@pytest.mark.parametrize(
    "name", ["end before start", "negative start", "negative end", "control character", "recording elsewhere"]
)
def test_a_contradiction_inside_a_row_is_told_with_its_file_and_line(tmp_path: Path, name: str) -> None:
    (first, *rest), _ = REFUSED[name] if name in REFUSED else (three_splits(audio="../x.wav"), "")
    rows = [*rest, first]  # its header is line 1
    cells = {key: "" for given in rows for key in given}
    message = refusal(tmp_path, [cells | given for given in rows])
    assert message.startswith(f"{tmp_path / 'table.csv'}, line 4: ")


@pytest.mark.parametrize("name", ["Zoë\u00a0B", "👩‍👩‍👧", "李"])
def test_names_of_any_script_are_kept(tmp_path: Path, name: str) -> None:
    assert prepared(tmp_path, three_splits(speaker=name, label=name))["a/0"].speaker == name


@pytest.mark.parametrize("split", ["conversation", "speaker"])
def test_splits_are_made_where_the_table_has_none(tmp_path: Path, split: str) -> None:
    rows = [
        {"conversation": f"c{number}", "speaker": f"s{number % 5}", "label": "joy", "text": f"{number}"}
        for number in range(40)
    ]
    write_rows(tmp_path / "table.csv", rows)
    utterances = prepare(params(tmp_path, split=split, split_seed=3)).utterances
    assert len(utterances) == 40
    assert {utterance.split for utterance in utterances} == {"train", "validation", "test"}
    if split == "speaker":
        assert len({(utterance.speaker, utterance.split) for utterance in utterances}) == 5


def test_conversations_called_like_turns_of_others_do_not_clash(tmp_path: Path) -> None:
    rows = [row("a", audio=""), row("a", audio=""), row("a/1", "validation", audio=""), row("a/0", "test")]
    assert set(prepared(tmp_path, [cells | {"audio": "x.wav"} for cells in rows])) == {"a/0", "a/1", "a/1/0", "a/0/0"}


def test_what_a_recogniser_wrote_is_kept_beside_the_transcript(tmp_path: Path) -> None:
    """Under the user's name for the column; "" where it heard nothing."""
    rows = rows_of(6, 2, audio=False)
    for number, row in enumerate(rows):
        row["asr"] = "" if number == 3 else f"  heard {number}\u2028 "
    utterances = list(prepared(tmp_path, rows, columns=Columns(recognised="asr")).values())
    write_manifest(tmp_path / "manifest.jsonl", utterances)
    assert read_manifest(tmp_path / "manifest.jsonl") == utterances
    assert {u.recognised for u in utterances} == {"", *(f"heard {number}" for number in range(12) if number != 3)}
    assert all(u.text.startswith("turn") for u in utterances)
