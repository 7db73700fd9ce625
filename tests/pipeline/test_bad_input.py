"""The commands on bad input: one clear line on stderr and exit status 2, or a status in the manifest."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import audio_app, import_app, inspect_app, join_app, prepare_app, text_app
from pipeline.errors import StoreError
from pipeline.manifest import read_manifest, sole_manifest, write_manifest
from pipeline.store import Identity, Utterances, read_features, read_part
from tests.forked import at_most, exit_status, fork
from tests.pipeline.made import (
    cut,
    rows_of,
    sound,
    write_corpus,
    write_features,
    write_film,
    write_params,
    write_rows,
    write_wav,
)

RATE = 16_000
LONG = " ".join(f"word{number % 50}" for number in range(2_000))


@pytest.fixture(scope="module", autouse=True)
def _whole_transformers() -> None:
    """Commands run here in the process of all tests, of which others train."""
    import transformers.modeling_utils  # noqa: F401


@dataclass(frozen=True)
class Project:
    """A user's folder: a corpus, params.yaml and, after a while, a manifest and features."""

    root: Path

    def file(self, name: str) -> Path:
        return self.root / name

    @property
    def paths(self) -> list[str]:
        """Where every command finds and leaves things."""
        return ["--params", str(self.file("params.yaml"))]

    @property
    def manifest(self) -> list[str]:
        return ["--manifest", str(self.file("manifest.jsonl"))]

    def prepare(self, *arguments: str) -> list[str]:
        return [*self.paths, "--output", str(self.file("manifest.jsonl")), *arguments]

    def audio(self, *arguments: str) -> list[str]:
        return [*self.paths, *self.manifest, "--output", str(self.file("audio.h5")), "--device", "cpu", *arguments]

    def text(self, *arguments: str) -> list[str]:
        return [*self.paths, *self.manifest, "--output", str(self.file("text.h5")), "--device", "cpu", *arguments]

    def join(self, *arguments: str) -> list[str]:
        parts = ["--audio", str(self.file("audio.h5")), "--text", str(self.file("text.h5"))]
        return [*self.paths, *self.manifest, *parts, "--output", str(self.file("feats.h5")), *arguments]


def project(root: Path, rows: Sequence[dict[str, Any]] | None = None, table: str = "table.csv") -> Project:
    write_corpus(root / "corpus", rows, table)
    dataset = {"name": "table", "root": str(root / "corpus"), "table": table}
    write_params(root / "params.yaml", dataset=dataset, audio={}, text={})
    return Project(root)


def done(app: typer.Typer, arguments: list[str]) -> str:
    """What a command that succeeds prints."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refusal(app: typer.Typer, arguments: list[str]) -> str:
    """The one line of a command that refuses its input."""
    result = CliRunner().invoke(app, arguments)
    return one_line(result.exit_code, result.stderr)


def one_line(status: int, stderr: str) -> str:
    lines = stderr.splitlines()
    assert (status, len(lines)) == (2, 1), stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in stderr
    return lines[0]


def script(name: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The console script itself, run in `folder`."""
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def changed(rows: list[dict[str, Any]], index: int, **cells: Any) -> list[dict[str, Any]]:
    return [row | cells if number == index else row for number, row in enumerate(rows)]


BAD_ROWS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "duplicated id": (
        [row | {"id": f"u{min(number, 10)}"} for number, row in enumerate(rows_of())],
        "id 'u10' is given to 2 utterances; ids must be unique",
    ),
    "label only in test": (
        changed(rows_of(), 6, label="fear"),
        "label 'fear' (1 utterances, such as 'c3/0' of the test split) does not occur in train (anger, joy)",
    ),
    "two splits": (changed(rows_of(), 1, split="test"), "conversation 'c0' lies in two splits, train and test"),
    "no test": (rows_of(3), "split 'test' has no utterance (found train 4, validation 2)"),
    "no split": (changed(rows_of(), 2, split=""), "conversation 'c1' has no split, and dataset.split is 'given'"),
    "unknown split": (changed(rows_of(), 2, split="tset"), "line 4: split 'tset' is none of train, validation"),
    "bad number": (changed(rows_of(), 3, turn="second"), "line 5: turn 'second' is not a number"),
    "no conversation": (changed(rows_of(), 3, conversation=" "), "line 5: the conversation is empty"),
    "outside": (changed(rows_of(), 3, audio="../x.mp3"), "recording '../x.mp3' lies outside dataset.root"),
    "absolute": (changed(rows_of(), 3, audio="/etc/x.mp3"), "recording '/etc/x.mp3' lies outside dataset.root"),
    "no recordings": ([row | {"audio": "gone.mp3"} for row in rows_of()], "none of the 12 recordings under"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_prepare_refuses_a_bad_table_and_leaves_no_manifest(tmp_path: Path, name: str) -> None:
    rows, expected = BAD_ROWS[name]
    made = project(tmp_path, rows)
    assert expected in refusal(prepare_app, made.prepare())
    assert not made.file("manifest.jsonl").exists()


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.csv", b"", "a.csv: holds no rows"),
    "ragged": ("a.csv", b"id,text\n1,a,b\n", "a.csv, line 2: 3 cells, expected 2 as in the header"),
    "repeated column": ("a.csv", b"id,id,text\n1,2,a\n", "column name 'id' is given twice in the header"),
    "NUL": ("a.csv", b"id,text\n1,a\0\n", "holds NUL bytes; save it as UTF-8 text"),
    "UTF-16": ("a.tsv", "id\ttext\n1\ta\n".encode("utf-16"), "UTF-16 is read with dataset.encoding"),
    "nested JSON": ("a.jsonl", b'{"text": ["a"]}\n', "line 1: 'text' is a list; expected a text, a number or null"),
    "no JSON": ("a.jsonl", b"id,text\n1,a\n", "a.jsonl, line 1: not JSON"),
    "spreadsheet": ("a.xlsx", b"PK", "a table must end in .csv, .tsv, .jsonl, .parquet; convert it"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_prepare_refuses_what_is_no_table(tmp_path: Path, name: str) -> None:
    table, content, expected = BAD_FILES[name]
    made = project(tmp_path)
    (made.root / "corpus" / table).write_bytes(content)
    assert expected in refusal(prepare_app, made.prepare("--set", f"dataset.table={table}"))


@pytest.mark.parametrize("name", ["corpus/table.csv", "params.yaml", "texts.jsonl", "rows.jsonl"])
def test_prepare_takes_the_place_of_no_other_file(tmp_path: Path, name: str) -> None:
    made = project(tmp_path)
    made.file("rows.jsonl").write_text('{"id":"a","conversation":"a","text":"of somebody"}\n')
    before = made.file(name).read_bytes() if made.file(name).exists() else None
    assert "(--output)" in refusal(prepare_app, [*made.paths, "--output", str(made.file(name))])
    assert before == (made.file(name).read_bytes() if made.file(name).exists() else None)


def test_two_manifests_in_one_folder_are_not_written_at_once(tmp_path: Path) -> None:
    made = project(tmp_path)
    with sole_manifest(made.file("other.jsonl")):
        assert "recordings.jsonl: another process is writing it" in refusal(prepare_app, made.prepare())


@pytest.mark.parametrize("what", ["the table", "the parameters", "the manifest"])
def test_prepare_neither_waits_for_a_pipe_nor_takes_its_place(tmp_path: Path, what: str) -> None:
    made = project(tmp_path)
    place = {"the table": "corpus/table.csv", "the parameters": "params.yaml", "the manifest": "manifest.jsonl"}[what]
    made.file(place).unlink(missing_ok=True)
    os.mkfifo(made.file(place))
    with at_most(30):
        assert f"{made.file(place)}: a pipe, socket or device; name a file" in refusal(prepare_app, made.prepare())
    assert made.file(place).is_fifo()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("dataset.roto=x", "override 'dataset.roto=x': unknown key 'dataset.roto'; did you mean 'dataset.root'?"),
        ("dataset.split=speakers", "'dataset.split' is 'speakers': input should be"),
        ("dataset.columns.txet=x", "unknown key 'dataset.columns.txet'; did you mean 'dataset.columns.text'?"),
        ("dataset.columns.text=txet", "no column 'txet' (dataset.columns.text); it has"),
        ("datset.root=x", "no section 'datset'; did you mean 'dataset'?"),
        ("dataset.root", "expected section.key=value"),
        ("dataset.root=/no/such/folder", "/no/such/folder/table.csv: no such table; fix dataset.root"),
        ("dataset.table=none.csv", "none.csv: no such table; fix dataset.root and dataset.table"),
        ("dataset.test_share=2", "'dataset.test_share' is 2: input should be less than 1"),
        ("dataset.split=speaker", "1 groups of speakers that share no conversation, but three splits need at least 3"),
    ],
)
def test_prepare_refuses_a_mistaken_parameter(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(prepare_app, project(tmp_path).prepare("--set", override))


def test_a_misspelt_column_is_answered_with_the_nearest(tmp_path: Path) -> None:
    line = refusal(prepare_app, project(tmp_path).prepare("--set", "dataset.columns.speaker=speakr"))
    assert line.endswith("did you mean 'speaker'?")


@pytest.mark.parametrize("command", ["prepare", "audio", "text", "join"])
def test_every_command_refuses_a_misspelt_section(tmp_path: Path, command: str) -> None:
    made = project(tmp_path)
    with made.file("params.yaml").open("a") as file:
        file.write("\naudoi: {encoder: log-mel}\n")
    app = {"prepare": prepare_app, "audio": audio_app, "text": text_app, "join": join_app}[command]
    assert "no section is called 'audoi'; did you mean 'audio'?" in refusal(app, getattr(made, command)())


@pytest.mark.parametrize("command", ["audio", "text", "join"])
def test_without_a_manifest_every_command_says_how_to_make_it(tmp_path: Path, command: str) -> None:
    app = {"audio": audio_app, "text": text_app, "join": join_app}[command]
    assert "manifest.jsonl: no such manifest; run pipeline-prepare" in refusal(
        app, getattr(project(tmp_path), command)()
    )


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A corpus full of oddities, after prepare, audio, text and join."""
    root = tmp_path_factory.mktemp("odd")
    corpus = root / "corpus"
    broken = sound(1.0, RATE)
    broken[7] = np.nan
    write_wav(corpus / "eight.wav", sound(1.0, 8_000), 8_000)
    write_wav(corpus / "deep.wav", sound(1.0, 24_000), 24_000, "s24")
    write_wav(corpus / "six.wav", sound(1.0, 48_000, channels=6), 48_000, "f32", 0x3F)
    write_wav(corpus / "one.wav", np.full((1, 1), 0.5), RATE)
    write_wav(corpus / "none.wav", np.zeros((0, 1)), RATE)
    write_wav(corpus / "silent.wav", np.zeros((RATE, 1)), RATE)
    write_wav(corpus / "nan.wav", broken, RATE, "f32")
    write_wav(corpus / "clipped.wav", sound(1.0, RATE, level=4), RATE)
    cut(write_wav(corpus / "cut.wav", sound(1.0, RATE), RATE), 0.5)
    write_film(corpus / "mute.mp4")
    (corpus / "text.wav").write_text("no recording")
    names = [
        *("eight.wav", "deep.wav", "six.wav", "one.wav", "none.wav", "silent.wav", "nan.wav", "clipped.wav"),
        *("cut.wav", "mute.mp4", "text.wav", "missing.mp3"),
    ]
    texts = ["", LONG, "😀👍🏽🎉", "It\x92s \x93caf\xe9\x94", "\u200b", "日本語", "a", "!!!", "ok", "ok", "ok", "ok"]
    rows = [
        {"conversation": "odd", "split": "train", "label": "joy", "text": text, "audio": name}
        for name, text in zip(names, texts, strict=True)
    ]
    rows += [
        {"conversation": split, "split": split, "label": "joy", "text": "plain", "audio": "plain.wav"}
        for split in ("validation", "test")
    ]
    made = project(root, rows)
    done(prepare_app, made.prepare())
    done(audio_app, made.audio())
    done(text_app, made.text())
    done(join_app, made.join())
    return made


def test_a_recording_of_two_splits_is_named_by_prepare_join_and_inspect(odd: Project) -> None:
    said = (
        "warning: 1 of 1 utterances of test are the same as one in validation (the same audio), the first 'test/0' as "
        "'validation/0': scores on them are not of new data; take them out of validation, or put both in the same split"
    )
    commands = [(prepare_app, odd.prepare()), (join_app, odd.join()), (inspect_app, [str(odd.file("feats.h5"))])]
    for app, arguments in commands:
        assert [line.strip() for line in done(app, arguments).splitlines() if "the same as one" in line] == [said]


@pytest.fixture
def again(odd: Project, tmp_path: Path) -> Project:
    """A copy of it to damage."""
    shutil.copytree(odd.root, tmp_path / "copy")
    return Project(tmp_path / "copy")


def test_odd_recordings_are_statuses_in_the_manifest(odd: Project) -> None:
    statuses = [u.status for u in read_manifest(odd.file("manifest.jsonl")) if u.conversation == "odd"]
    assert statuses == [
        "no-text",
        "ok",
        "ok",
        "short",
        "empty-audio+no-text",
        "silent",
        "not-finite",
        "clipped",
        "truncated",
        "no-sound-stream",
        "undecodable",
        "missing-file",
    ]


def test_odd_recordings_become_finite_frames_or_none(odd: Project) -> None:
    part = read_features(odd.file("feats.h5")).audio
    assert part is not None
    frames = dict(zip((u.audio for u in read_manifest(odd.file("manifest.jsonl"))), np.diff(part.offsets), strict=True))
    assert np.isfinite(part.values).all()
    for name in ("eight.wav", "deep.wav", "six.wav", "silent.wav", "clipped.wav"):
        assert frames[name] == 49, name  # a second at 50 frames a second
    assert (frames["one.wav"], frames["cut.wav"]) == (1, 24)
    for name in ("none.wav", "nan.wav", "mute.mp4", "text.wav", "missing.mp3"):
        assert frames[name] == 0, name


def test_every_token_of_odd_texts_is_kept(odd: Project) -> None:
    from pipeline.encoders import load_text_encoder
    from pipeline.params import TextParams

    encoder, part = load_text_encoder(TextParams(), "cpu"), read_features(odd.file("feats.h5")).text
    assert part is not None
    records = read_manifest(odd.file("manifest.jsonl"))
    assert np.isfinite(part.values).all()
    for record, rows in zip(records, np.diff(part.offsets), strict=True):
        assert rows == (len(encoder.tokenize(record.text)) + 2 if record.text else 0), record.text
    long = next(index for index, record in enumerate(records) if record.text == LONG)
    assert np.diff(part.offsets)[long] >= 2_002  # far more than the model's 512 positions
    assert next(record.text for record in records if "caf" in record.text) == "It’s “café”"


def test_a_joint_file_of_odd_turns_is_whole(odd: Project) -> None:
    report = json.loads(done(inspect_app, [str(odd.file("feats.h5")), "--verify", "--json"]))
    assert (report["utterances"], report["verified"]) == (14, True)
    assert report["splits"] == {"train": {"joy": 12}, "validation": {"joy": 1}, "test": {"joy": 1}}
    assert (report["parts"]["audio"]["empty"], report["parts"]["text"]["empty"]) == (5, 2)


def test_a_cp1252_table_is_prepared_and_its_repair_told(tmp_path: Path) -> None:
    made = project(tmp_path)
    table = made.root / "corpus" / "table.csv"
    table.write_bytes(table.read_bytes().replace(b"turn 0 of conversation 0", b"caf\xe9 \x96 it\x92s", 1))
    assert "repaired: 1 lines that were not UTF-8, read as cp1252" in done(prepare_app, made.prepare())
    assert read_manifest(made.file("manifest.jsonl"))[0].text == "café – it’s"


@pytest.mark.parametrize("command", ["audio", "text"])
@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("./no/such/folder", "no such encoder folder: ./no/such/folder; fix the path, or give a Hugging Face name"),
        ("/no/such/folder", "no such encoder folder: /no/such/folder"),
        ("models/no/such", "no such encoder folder: models/no/such"),
        ("FOLDER", "has no config.json; expected a Hugging Face model folder"),
        ("a model", "no encoder folder 'a model', nor is it the form of a Hugging Face name"),
        ("7", "is 7: input should be a valid string"),
    ],
)
def test_an_encoder_that_is_not_there_is_named(again: Project, command: str, encoder: str, expected: str) -> None:
    app = {"audio": audio_app, "text": text_app}[command]
    encoder = encoder.replace("FOLDER", str(again.root / "corpus"))
    assert expected in refusal(app, getattr(again, command)("--set", f"{command}.encoder={encoder}"))


def test_an_encoder_of_the_other_modality_is_refused(odd: Project) -> None:
    from pipeline.encoders import TINY_SPEECH, TINY_TEXT

    assert "is a 'bert' model; expected one of wav2vec2" in refusal(
        audio_app, odd.audio("--set", f"audio.encoder={TINY_TEXT}")
    )
    refusal(text_app, odd.text("--set", f"text.encoder={TINY_SPEECH}"))


def test_a_layer_that_the_encoder_lacks_is_refused(odd: Project) -> None:
    assert "has layers 0 to" in refusal(audio_app, odd.audio("--set", "audio.layers=[99]"))
    assert "has layers 0 to" in refusal(text_app, odd.text("--set", "text.layers=[99]"))


def test_a_recording_that_went_since_prepare_is_named(again: Project) -> None:
    (again.root / "gone").mkdir()
    again.file("audio.h5").unlink()
    line = refusal(audio_app, again.audio("--set", f"dataset.root={again.root / 'gone'}"))
    assert "no such file, though the manifest has it; set dataset.root to the one" in line
    assert "run pipeline-prepare again" in line


@pytest.mark.parametrize("command", ["audio", "text", "join"])
def test_a_damaged_manifest_is_refused(again: Project, command: str) -> None:
    cut(again.file("manifest.jsonl"), 0.9)
    app = {"audio": audio_app, "text": text_app, "join": join_app}[command]
    assert "'line': Invalid JSON" in refusal(app, getattr(again, command)())


def test_join_names_the_part_that_is_missing(again: Project) -> None:
    again.file("text.h5").unlink()
    assert "text.h5: no such feature file" in refusal(join_app, again.join())


@pytest.mark.parametrize("name", ["manifest.jsonl", "audio.h5", "params.yaml"])
def test_no_command_writes_in_place_of_what_it_reads(again: Project, name: str) -> None:
    before = again.file(name).read_bytes()
    again.file("link.h5").symlink_to(name)
    for output in (name, "link.h5"):
        arguments = [*again.join("--overwrite")[:-3], "--output", str(again.file(output)), "--overwrite"]
        assert f"{again.file(output)}: is both read and written; name another" in refusal(join_app, arguments)
    assert again.file(name).read_bytes() == before


def test_join_refuses_parts_of_another_manifest(again: Project) -> None:
    lines = again.file("manifest.jsonl").read_text().splitlines(keepends=True)
    records = read_manifest(again.file("manifest.jsonl"))
    write_manifest(again.file("manifest.jsonl"), records[:11] + records[12:])
    assert "feats.h5: holds other features or labels; name another file" in refusal(join_app, again.join())
    done(join_app, again.join("--overwrite"))  # of fewer utterances
    record = json.loads(lines[11]) | {"text": "something else"}
    again.file("manifest.jsonl").write_text("".join([*lines[:11], json.dumps(record) + "\n", *lines[12:]]))
    assert "line 12: damaged or edited since pipeline-prepare wrote it" in refusal(join_app, again.join())
    del record["check"]
    again.file("manifest.jsonl").write_text("".join([*lines[:11], json.dumps(record) + "\n", *lines[12:]]))
    message = f"text.h5: holds no text of 1 of the 14 utterances of {again.file('manifest.jsonl')}, the first "
    assert f"{message}'{record['id']}': it was made from other texts" in refusal(join_app, again.join())


def features(path: Path) -> Path:
    """A self-contained feature file of two utterances."""
    random = np.random.default_rng(0)
    rows = [random.normal(size=(count, 4)).astype(np.float16) for count in (300, 200)]
    table = Utterances(
        ["a", "b"], ["a", "b"], np.zeros(2, int), ["", ""], ["train", "test"], np.zeros(2, int), np.zeros(2)
    )
    write_features(path, table, ["joy"], (rows, Identity({"model": "x"})), (rows, Identity({"model": "y"})))
    return path


def of_version(path: Path, version: int) -> Path:
    content = path.read_bytes()
    seal = json.loads(content[:512].split(b"\n")[0]) | {"version": version}
    path.write_bytes((json.dumps(seal).encode() + b"\n").ljust(512, b"\0") + content[512:])
    return path


def with_flipped_byte(path: Path, position: int) -> Path:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def text_file(path: Path) -> Path:
    path.write_text("no features")
    return path


BAD_FEATURES = {
    "missing": (lambda path: path, "feats.h5: no such feature file; fix the path, or make it with dvc repro"),
    "folder": (folder, "feats.h5: cannot be read (Is a directory)"),
    "text": (text_file, "feats.h5: not a feature file of this project; name another, or make it with dvc repro"),
    "empty": (lambda path: cut(features(path), 0), "not a feature file of this project"),
    "half": (lambda path: cut(features(path), 0.5), "feats.h5: truncated:"),
    "without its last byte": (lambda path: cut(features(path), 0.99999), "feats.h5: truncated:"),
    "newer": (lambda path: of_version(features(path), 9), "written in version 9 of the format, this program reads"),
    "older": (lambda path: of_version(features(path), 0), "written in version 0 of the format, this program reads"),
    "one bit in its seal": (
        lambda path: with_flipped_byte(features(path), 3),
        "feats.h5: not a finished feature file, since its seal is missing or damaged",
    ),
    "one bit in its structure": (lambda path: with_flipped_byte(features(path), 600), "feats.h5: damaged, or changed"),
}


@pytest.mark.parametrize("name", BAD_FEATURES)
def test_a_bad_feature_file_is_refused_by_inspect_and_by_its_reader(tmp_path: Path, name: str) -> None:
    make, expected = BAD_FEATURES[name]
    path = make(tmp_path / "feats.h5")  # type: ignore[no-untyped-call]
    assert expected in refusal(inspect_app, [str(path)])
    with pytest.raises(StoreError) as error:
        read_features(path)
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ["audio", "text"])
def test_a_linked_part_that_is_gone_is_named_with_both_ways_to_fix_it(again: Project, name: str) -> None:
    again.file(f"{name}.h5").unlink()
    line = refusal(inspect_app, [str(again.file("feats.h5"))])
    assert f"its {name} part {again.file(f'{name}.h5')} is gone; put it back" in line
    assert "pipeline-join --copy" in line


def test_a_linked_part_of_another_encoder_is_refused(again: Project) -> None:
    done(audio_app, again.audio("--set", "audio.encoder=log-mel", "--overwrite"))
    line = refusal(inspect_app, [str(again.file("feats.h5"))])
    assert "its audio part" in line
    assert "is not the one that it was joined with" in line
    done(join_app, again.join())
    assert "log-mel" in done(inspect_app, [str(again.file("feats.h5"))])


def test_damaged_features_are_found_by_verify(again: Project) -> None:
    part = read_part(again.file("audio.h5"))
    with_flipped_byte(again.file("audio.h5"), int(part.values.base.offset) + 10)  # type: ignore[attr-defined]
    line = refusal(inspect_app, [str(again.file("feats.h5")), "--verify"])
    assert "audio.h5: 1 of 14 utterances do not match their checksum: " in line


def test_a_place_that_cannot_be_written_is_told_before_recordings_are_decoded(tmp_path: Path) -> None:
    made = project(tmp_path, [row | {"audio": "gone.mp3"} for row in rows_of()])  # which would be refused, too
    made.file("manifest.jsonl").mkdir()
    assert refusal(prepare_app, made.prepare()) == (
        f"error: {made.file('manifest.jsonl')}: Is a directory; fix the path or its permissions, then run the command "
        "again"
    )


LIMITED = {"prepare": prepare_app, "audio": audio_app, "text": text_app, "join": join_app}


def limited(app: typer.Typer, arguments: list[str], size: int, stderr: Path) -> tuple[int, str]:
    """Exit status and stderr, of its libraries and processes too, of a command that may write files of `size` bytes."""

    def run() -> None:
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        app(arguments)

    return exit_status(fork(run)), stderr.read_text()


@pytest.mark.parametrize("command", list(LIMITED))
def test_a_limit_on_the_size_of_files_is_one_line_of_the_systems_reason(again: Project, command: str) -> None:
    """Nothing of what HDF5 and the decoders' processes would say."""
    again.file("feats.h5" if command == "join" else f"{command}.h5").unlink(missing_ok=True)
    kilobytes = {"prepare": 2, "audio": 64, "text": 16, "join": 2}[command]  # recordings of 96 kB, decoded
    line = one_line(*limited(LIMITED[command], getattr(again, command)(), kilobytes * 1024, again.file("stderr")))
    assert "File too large" in line
    assert "raise the limit on the size of files (ulimit -f)" in line
    assert "errno" not in line


def test_an_import_onto_a_full_disk_names_its_output(tmp_path: Path) -> None:
    names = [f"{row['conversation']}-{row['turn']}" for row in rows_of()]
    np.savez(tmp_path / "audio.npz", **{name: np.ones((40, 9)) for name in names})
    rows = [f"{name},{name[:-2]},joy,{row['split']}\n" for name, row in zip(names, rows_of(), strict=True)]
    (tmp_path / "table.csv").write_text("".join(["id,conversation,label,split\n", *rows]))
    output = tmp_path / "data" / "feats.h5"
    given = ["--table", str(tmp_path / "table.csv"), "--audio", str(tmp_path / "audio.npz"), "--output", str(output)]
    (tmp_path / "params.yaml").write_text("import: {dtype: float32}\n")
    given += ["--params", str(tmp_path / "params.yaml")]
    line = one_line(*limited(import_app, given, 2048, tmp_path / "stderr"))
    assert line.startswith(f"error: {output}: cannot be written (File too large); raise the limit")
    assert not [path for path in output.parent.glob("*") if path.suffix != ".lock"]


def test_the_console_scripts_themselves_refuse_with_one_line(tmp_path: Path) -> None:
    made = project(tmp_path, rows_of(3))
    refused = [
        script("pipeline-prepare", [], tmp_path / "corpus"),
        script("pipeline-prepare", ["--set", "dataset.split=speakers"], tmp_path),
        script("pipeline-prepare", [], tmp_path),
        script("pipeline-inspect", [str(cut(features(made.file("feats.h5")), 0.5))], tmp_path),
    ]
    lines = [one_line(run.returncode, run.stderr) for run in refused]
    assert lines[0] == (
        "error: params.yaml: no such file; run the command where params.yaml lies, or name the file (--params)"
    )
    assert "did you mean 'speaker'?" in lines[1]
    assert "split 'test' has no utterance" in lines[2]
    assert "truncated" in lines[3]
    assert all(run.stdout == "" for run in refused)


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """`pipeline-inspect data/feats.h5 | head -1`"""
    path = features(tmp_path / "feats.h5")
    command = f"{Path(sys.executable).with_name('pipeline-inspect')} {path} --json"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        run = subprocess.run(command.split(), stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_console_script_prints_no_progress_into_a_file(tmp_path: Path) -> None:
    made = project(tmp_path)
    write_rows(made.root / "corpus" / "table.csv", changed(rows_of(), 0, audio="gone.mp3"))
    run = script("pipeline-prepare", [], tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert "status missing-file" in run.stdout
    assert (tmp_path / "data" / "manifest.jsonl").is_file()
