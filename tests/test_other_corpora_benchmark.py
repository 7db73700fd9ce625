"""`benchmarks/other_corpora.py` on toy corpora in the publishers' layouts: its commands make joint files."""

import csv
import importlib
import pickle
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import pipeline.cli
from fusion.ablation import read_variants
from pipeline.store import read_features
from tests.pipeline.made import write_wav

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PIPELINE = {
    "pipeline-prepare": pipeline.cli.prepare_app,
    "pipeline-audio": pipeline.cli.audio_app,
    "pipeline-text": pipeline.cli.text_app,
    "pipeline-import": pipeline.cli.import_app,
    "pipeline-join": pipeline.cli.join_app,
}


def write_rows(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """Six recordings of three speakers, three scenes, three conversations, four videos."""
    root = tmp_path / "corpora"
    (root / "emodb" / "wav").mkdir(parents=True)
    for name in ("03a01Fa", "03a01Wa", "08a02Fa", "08a02Wb", "16b01Fa", "16b03Wa"):
        write_wav(root / "emodb" / "wav" / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, (4_000, 1)), 16_000)
    header = ["Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode"]
    for number, split in enumerate(("train", "dev", "test")):
        turns = [
            [f"Line {turn}, again.", "['Monica Geller']", ("Mad", "Sad")[turn % 2], 1, turn, 1, number]
            for turn in (1, 2)
        ]
        write_rows(root / "emorynlp" / f"emorynlp_{split}_final.csv", [header, *turns])
    (root / "iemocap").mkdir()
    names = ["Ses01F_impro01", "Ses05M_impro01", "Ses02F_impro01"]  # of train, test, validation
    contents = ({name: ["F", "M"] for name in names}, {name: [3, 1] for name in names})
    said = {name: [f"{name} begins", "And it ends"] for name in names}
    (root / "iemocap" / "iemocap.pkl").write_bytes(pickle.dumps([*contents, said, *([name] for name in names)]))
    videos = [(f"video{number}_{turn}", f"WORDS {turn}", "4", str(turn % 2)) for number in range(4) for turn in (1, 2)]
    write_rows(root / "mosi" / "transcripts.csv", videos)
    for split, places in (("train", range(6)), ("test", range(6, 8))):
        write_rows(root / "mosi" / f"text_{split}.csv", [[place, 0.5] for place in places])
        write_rows(root / "mosi" / f"audio_{split}0.csv", [[place, 2.0, place % 2] for place in places])
    return root


def test_its_commands_make_the_features_of_each_corpus(
    corpora: Path, minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        importlib.import_module("other_corpora").main(corpora, tmp_path / "work", str(minilm))
    finally:
        sys.path.remove(str(BENCHMARKS))
    studies = []
    for command, *arguments in map(shlex.split, capsys.readouterr().out.splitlines()):
        if command in PIPELINE:
            done = CliRunner().invoke(PIPELINE[command], arguments)
            assert done.exit_code == 0, done.output
        else:
            studies.append((command, "--all" in arguments))
    assert studies == [("fusion-folds", True), *3 * [("fusion-ablate", False)]]
    for name in ("emodb", "emorynlp", "iemocap", "mosi"):
        variants = read_variants(tmp_path / "work" / name / "params.yaml")
        assert "hcam" in [one.name for one in variants]
    speech, talk, sessions, videos = (
        read_features(tmp_path / "work" / name / "feats.h5") for name in ("emodb", "emorynlp", "iemocap", "mosi")
    )
    assert speech.label_names == ["anger", "happiness"]
    assert sorted({*speech.utterances.speakers}) == ["03", "08", "16"]
    assert talk.utterances.speakers[0] == "Monica Geller"
    assert talk.utterances.splits == ["train", "train", "validation", "validation", "test", "test"]
    table = sessions.utterances
    assert table.splits == ["train", "train", "validation", "validation", "test", "test"]
    assert table.speakers[:2] + table.speakers[-2:] == ["Ses01 F", "Ses01 M", "Ses05 F", "Ses05 M"]
    assert [sessions.label_names[label] for label in table.labels[:2]] == ["angry", "sad"]
    assert videos.audio is not None
    assert videos.text is not None
    place = videos.utterances.ids.index("video2_1")
    np.testing.assert_array_equal(videos.audio.rows(place), [[4, 2]])
    assert len(videos.text.rows(place)) > 1
