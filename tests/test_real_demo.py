"""`make real-demo`: which folders it takes, and the whole way on real recordings with real weights."""

import csv
import json
from pathlib import Path

import pytest

from pipeline.store import read_features
from scripts.real_demo import layout, main, named_columns, settings

TABLE = "file,emotion,Speaker\na.wav,joy,x\nb.wav,anger,y\n"


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("train_sent_emo.csv", "", {"name": "meld"}),
        ("Session1/dialog", None, {"name": "iemocap"}),
        ("label.csv", "", {"name": "mosi"}),
        ("Labels/OpinionLevelSentiment.csv", "", {"name": "mosi"}),
        (
            "mine.csv",
            TABLE,
            {
                "name": "table",
                "table": "mine.csv",
                "columns": {"speaker": "Speaker", "label": "emotion", "audio": "file"},
                "split": "speaker",
            },
        ),
        (
            "mine.jsonl",
            '{"text": "Yes.", "dialogue": "1", "split": "train"}\n',
            {
                "name": "table",
                "table": "mine.jsonl",
                "columns": {"conversation": "dialogue", "split": "split", "text": "text"},
                "split": "given",
            },
        ),
    ],
)
def test_a_folder_is_known_by_what_lies_in_it(
    file: str, content: str | None, expected: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_text(content, encoding="utf-8")
    assert layout(tmp_path) == expected


@pytest.mark.parametrize(("tables", "found"), [((), "no table"), (("a.csv", "b.tsv"), r"2 tables \(a.csv, b.tsv\)")])
def test_a_folder_without_one_table_is_refused(tables: tuple[str, ...], found: str, tmp_path: Path) -> None:
    for name in tables:
        (tmp_path / name).write_text(TABLE, encoding="utf-8")
    with pytest.raises(SystemExit, match=f"no release of meld, iemocap, mosi, and {found}; expected one with a row"):
        layout(tmp_path)


def test_one_column_serves_one_field() -> None:
    assert named_columns(["text", "Utterance", "utterance_id"]) == {"text": "text"}
    assert named_columns(["sentiment", "Emotion"]) == {"label": "Emotion"}


@pytest.mark.soak
def test_real_recordings_and_real_weights_go_the_whole_way(
    nemo: Path, whisper_tiny: Path, minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whisper's frames and MiniLM's tokens of three of nine speakers; HBAF, HCAM and baselines, two epochs each."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "wav").symlink_to(nemo / "wav")
    with (nemo / "nemo.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    speakers = sorted({row["speaker"] for row in rows})[:3]
    rows = [row for row in rows if row["speaker"] in speakers]
    with (corpus / "nemo.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    made = settings(corpus)
    assert made["folds"] == {"hold_out": "speaker", "count": "all"}
    assert made["audio"]["normalise"] == "speaker"
    short = ["train.epochs=2", "train.patience_updates=1", "train.warmup_updates=0", "audio.context=clip"]
    main(corpus, tmp_path / "work", short)
    features = read_features(tmp_path / "work/feats.h5")
    assert features.audio
    assert features.text
    assert features.audio.identity.fields["architecture"] == "whisper"
    assert features.audio.values.shape[1:] == features.text.values.shape[1:] == (384,)
    table = json.loads((tmp_path / "work/results/folds/ablations.json").read_text(encoding="utf-8"))
    assert list(table["run"]["rows"]) == [
        *("base", "audio withheld", "text withheld", "hcam", "crossmodal", "concat", "audio", "text")
    ]
    assert (tmp_path / "work/results/report/index.html").stat().st_size > 10_000
    assert "| hcam |" in capsys.readouterr().out
