"""Every fabricated release goes the whole way: prepare, encode with the packaged encoders, join, train, evaluate."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.evaluation import evaluate, join_folds, write_report
from fusion.evaluation.scores import Evaluation
from fusion.params import EvaluateParams
from pipeline.datasets import read_corpus
from pipeline.datasets.repairs import Repairs, decode_lines
from pipeline.errors import DataError
from pipeline.extraction import extract_audio, extract_text
from pipeline.join import join
from pipeline.manifest import write_manifest
from pipeline.params import AudioParams, DatasetParams, TextParams
from pipeline.preparation import prepare
from pipeline.store import read_features
from tests.fusion.made import tiny_recipe, train_made
from tests.pipeline.releases import iemocap, meld, mosi

PARAMS = EvaluateParams(resamples=20)


def whole_way(folder: Path, params: DatasetParams) -> Evaluation:
    """The scores of a model of one epoch, and the results in `folder`/results."""
    prepared = prepare(params)
    write_manifest(folder / "manifest.jsonl", prepared.utterances)
    extract_audio(
        folder / "manifest.jsonl", folder / "audio.h5", AudioParams(), Path(params.root), params.channels, "cpu"
    )
    extract_text(folder / "manifest.jsonl", folder / "text.h5", TextParams(), "cpu")
    join(folder / "manifest.jsonl", folder / "audio.h5", folder / "text.h5", folder / "feats.h5", False)
    features = read_features(folder / "feats.h5")
    assert features.utterances.ids == [utterance.id for utterance in prepared.utterances]
    train_made(features, folder / "models", tiny_recipe(epochs=1))
    evaluation = evaluate(features, folder / "models", PARAMS, torch.device("cpu"))
    write_report(evaluation, folder / "results", None)
    return evaluation


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("meld", meld.write_release),
        ("iemocap", iemocap.write_faults),
        ("mosi", mosi.write_table),
        ("mosi", mosi.write_release),
    ],
)
def test_text_files_of_a_release_are_read_in_the_encoding_that_is_stated(
    tmp_path: Path, name: str, write: Callable[[Path], Path]
) -> None:
    root = write(tmp_path / "root")
    texts = [path for path in root.rglob("*") if path.suffix in (".csv", ".txt", ".annotprocessed")]
    contents = {path: decode_lines(path.read_bytes(), Repairs()) for path in texts if path.name[0] != "."}
    expected = read_corpus(DatasetParams(name=name, root=str(root))).turns
    for path, content in contents.items():
        path.write_text(content, encoding="utf-16", newline="")
    assert read_corpus(DatasetParams(name=name, root=str(root), encoding="utf-16")).turns == expected
    with pytest.raises(DataError, match=r"UTF-16 is read with dataset\.encoding: utf-16"):
        read_corpus(DatasetParams(name=name, root=str(root)))


@pytest.mark.soak
def test_mosi_goes_the_whole_way(tmp_path: Path) -> None:
    root = mosi.write_table(tmp_path / "root")
    evaluation = whole_way(tmp_path / "run", DatasetParams(name="mosi", root=str(root), target="positive"))
    assert evaluation.labels == ["negative", "positive"]
    assert (evaluation.true < 0).sum() == 2  # the zero of each test video is context
    assert np.isfinite([summary.mean for summary in evaluation.summaries.values()]).all()


@pytest.mark.soak
def test_folds_of_iemocap_go_the_whole_way_and_are_joined(tmp_path: Path) -> None:
    root = str(iemocap.write_faults(tmp_path / "root"))
    for fold in (1, 2):
        whole_way(tmp_path / f"run-{fold}", DatasetParams(name="iemocap", root=root, target="six", fold=fold))
        (tmp_path / f"run-{fold}" / "results").rename(tmp_path / f"fold-{fold}")
    joined = join_folds([tmp_path / "fold-1", tmp_path / "fold-2"], PARAMS)
    assert {name[:5] for fold in joined.folds for name in fold.conversations} == {"Ses01", "Ses02"}
    turns = (5 * 6) + 1  # dialogues of both sessions, turns of six classes in each, and one that was evaluated only
    assert joined.classes.support[0].sum() == turns
    assert sum(len(fold.ids) for fold in joined.folds) > turns  # all others are there, as context
