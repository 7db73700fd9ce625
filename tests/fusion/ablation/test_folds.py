"""Cross-validation of one feature file: which folds, what models of a fold see, and one table of all."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.ablation import ablate, compare, read_variants, write_table
from fusion.ablation.folds import make_folds
from fusion.ablation.single_run import load_splits
from fusion.cli import folds_app
from fusion.data import Resident
from fusion.data.rows import Mapped
from fusion.errors import FeatureError
from fusion.evaluation import current_commit
from fusion.params import EvaluateParams, FoldParams
from fusion.training import fit
from pipeline.store import Features, read_features
from tests.fusion.made import Made, garble_part, make_features, plant_copies, write_made
from tests.fusion.test_fusion_cli import run

PARAMS = """
model: {dim: 4, heads: 2, audio_frames: 4}
train: {seeds: [0, 1], epochs: 1}
evaluate: {resamples: 50, permutations: 99}
folds: {count: 3, validation: 0.3}
ablations:
  no gate: {model.hbaf.gate: false}
  plain: {base: no gate, model.hbaf.levels: raw}
"""
MADE = Made(conversations=(9, 3, 4), frames=(0, 5))
CPU = torch.device("cpu")
SECTION = EvaluateParams(resamples=50, permutations=99)


def with_speakers(features: Features, count: int) -> Features:
    """Every conversation is that of one of so many speakers."""
    table = features.utterances
    numbers = {name: number for number, name in enumerate(dict.fromkeys(table.conversations))}
    speakers = [f"s{numbers[name] % count}" for name in table.conversations]
    return replace(features, utterances=replace(table, speakers=speakers))


def held_out_by(fold: Features, column: str) -> set[str]:
    table = fold.utterances
    return {name for name, split in zip(getattr(table, column), table.splits, strict=True) if split == "test"}


@pytest.mark.parametrize(
    ("hold_out", "column", "count", "expected"),
    [
        ("conversation", "conversations", 5, 5),
        ("conversation", "conversations", "all", 16),
        ("speaker", "speakers", 3, 3),
        ("speaker", "speakers", "all", 6),
    ],
)
def test_each_is_tested_once_and_is_in_no_other_split_of_that_fold(
    hold_out: Any, column: str, count: Any, expected: int
) -> None:
    features = with_speakers(make_features(MADE), 6)
    params = FoldParams(hold_out=hold_out, count=count)
    folds = make_folds(features, params)
    assert len(folds) == expected
    times = Counter(name for fold in folds for name in held_out_by(fold, column))
    assert times == dict.fromkeys(getattr(features.utterances, column), 1)
    for fold in folds:
        table = fold.utterances
        assert set(table.splits) == {"train", "validation", "test"}
        seen = dict.fromkeys(zip(getattr(table, column), table.splits, strict=True))
        assert len(seen) == len({name for name, _ in seen})
    other = [fold.digest for fold in make_folds(features, params)]
    assert [fold.digest for fold in folds] == other
    assert len(set(other)) == expected
    if count == 5:
        assert [one.digest for one in make_folds(features, params.model_copy(update={"seed": 1}))] != other


def test_folds_of_what_an_encoder_learned_are_refused(tmp_path: Path) -> None:
    features = make_features(MADE)
    assert features.audio is not None
    train = np.array(features.utterances.splits) == "train"
    tuned = replace(features, audio=replace(features.audio, learned=train))
    settings = ["model.dim=4", "model.heads=2", "train.epochs=1", "train.seeds=[0]"]
    variants = read_variants(None, settings, ["base"])
    with pytest.raises(FeatureError, match=r"its audio encoder was fine-tuned on the labels of \d+ of the"):
        ablate(tuned, variants, SECTION, tmp_path / "folds", CPU, folds=FoldParams(count=3))
    words = read_variants(None, [*settings, "model.name=text", "model.modalities=text"], ["base"])
    ablate(tuned, words, SECTION, tmp_path / "words", CPU, folds=FoldParams(count=3))  # which never hear it
    ablate(tuned, variants, SECTION, tmp_path / "split", CPU)  # whose test split it did not learn
    whole = replace(features, audio=replace(features.audio, learned=~train))
    with pytest.raises(FeatureError, match="fine-tune it again on this split"):
        ablate(whole, variants, SECTION, tmp_path / "test", CPU)


def test_where_speakers_are_held_out_they_are_what_is_drawn(tmp_path: Path) -> None:
    features = with_speakers(make_features(MADE), 5)
    settings = ["model.dim=4", "model.heads=2", "train.epochs=1", "train.seeds=[0]"]
    variants = read_variants(None, settings, ["base"])
    done = ablate(features, variants, SECTION, tmp_path, CPU, folds=FoldParams(count=5, hold_out="speaker"))
    table = features.utterances
    speaker = dict(zip(table.conversations, table.speakers, strict=True))
    names = [done.test.conversation_ids[start] for start in done.test.conversations[:-1].tolist()]
    assert len(names) == 16
    together = {(speaker[name], unit) for name, unit in zip(names, done.units.tolist(), strict=True)}
    assert len(together) == len(set(done.units.tolist())) == 5
    comparison = compare(done)
    write_table(comparison, tmp_path / "table", None)
    assert "other speakers (5 groups of speakers who share" in (tmp_path / "table" / "ablations.md").read_text()
    assert "no p is below 0.062" in (tmp_path / "table" / "ablations.md").read_text()
    alone = replace(done, units=np.arange(16))
    assert compare(alone).rows[0].interval != comparison.rows[0].interval
    assert compare(alone).rows[0].mean == pytest.approx(comparison.rows[0].mean)


def test_the_splits_of_the_file_make_no_difference() -> None:
    features = make_features(MADE)
    moved = features.resplit(dict.fromkeys(features.utterances.conversations, "train"))
    before, after = (make_folds(one, FoldParams(count=3)) for one in (features, moved))
    assert [fold.digest for fold in after] == [fold.digest for fold in before]


def test_labels_are_shared_by_folds() -> None:
    features = make_features(Made(conversations=(30, 10, 10), turns=(1, 6)))
    labels = features.utterances.labels
    for fold in make_folds(features, FoldParams(count=5)):
        table = fold.utterances
        for label in range(3):
            own = (table.labels == label) & (np.array(table.splits) == "test")
            assert own.sum() == pytest.approx((labels == label).sum() / 5, abs=2)


def test_a_label_of_one_fold_alone_is_named_and_spoils_no_other(caplog: pytest.LogCaptureFixture) -> None:
    features = make_features(Made(conversations=(12, 4, 4), turns=(2, 4), unlabelled=0))
    table = features.utterances
    rare = np.array(table.conversations) == table.conversations[0]
    labels = np.where(rare, 2, table.labels % 2)
    for fold in make_folds(replace(features, utterances=replace(table, labels=labels)), FoldParams(count=4)):
        held = {
            split: set(fold.utterances.labels[np.array(fold.utterances.splits) == split]) for split in ("train", "test")
        }
        assert {0, 1} <= held["train"]
        assert {0, 1} <= held["test"]
    (told,) = [one for one in caplog.messages if "its models cannot learn it" in one]
    assert told.endswith("tests all turns labelled neutral: its models cannot learn it")


def test_copies_in_other_folds_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = plant_copies(write_made(tmp_path / "feats.h5", MADE), "test")
    (tmp_path / "params.yaml").write_text(PARAMS)
    variants = read_variants(tmp_path / "params.yaml", only=["base"])
    ablation = ablate(features, variants, SECTION, tmp_path / "runs", CPU, 1, folds=FoldParams(count=3, validation=0.3))
    (said,) = ablation.copies
    assert " utterances are the same as one in another fold (the same audio), the first 'train/" in said
    assert [line for line in caplog.messages if "the same as" in line] == [f"{features.path}: {said}"]
    write_table(compare(ablation), tmp_path, None)
    assert f"**{said}.**" in (tmp_path / "ablations.md").read_text(encoding="utf-8").replace("\\", "")


def test_scores_that_few_conversations_have_are_shared_by_folds() -> None:
    features = make_features(Made(conversations=(20, 5, 5), scored=True, unlabelled=0))
    table = features.utterances
    names = list(dict.fromkeys(table.conversations))[::3]
    scores = np.where(np.isin(table.conversations, names), table.scores, np.nan)
    for fold in make_folds(replace(features, utterances=replace(table, scores=scores)), FoldParams(count=5), "score"):
        for split in ("train", "validation", "test"):
            assert not np.isnan(fold.utterances.scores[np.array(fold.utterances.splits) == split]).all()


def test_too_few_to_hold_out_are_refused_by_what_there_is() -> None:
    features = make_features(MADE)
    with pytest.raises(FeatureError, match=r"has no speaker, and folds\.hold_out is 'speaker'"):
        make_folds(features, FoldParams(hold_out="speaker"))
    with pytest.raises(FeatureError, match=r"2 groups of speakers .*, too few for 5 folds .* lower folds\.count"):
        make_folds(with_speakers(features, 2), FoldParams(hold_out="speaker"))


def test_a_fold_is_what_the_same_split_in_a_file_would_be() -> None:
    """Bit for bit, although folds share their rows; and a garbled test split changes no weight."""
    features = make_features(MADE)
    (variant,) = read_variants(None, ["model.dim=4", "model.heads=2", "train.epochs=1"], ["base"])
    folds = make_folds(features, FoldParams(count=3))
    table = load_splits(folds, [variant], CPU, None)
    rows = [table.find(variant.recipe, fold).train.audio for fold in range(3)]
    assert len({one.values.data_ptr() for one in rows if isinstance(one, Resident)}) == 1
    mapped = load_splits(folds, [variant], CPU, 0).find(variant.recipe, 1).train
    assert isinstance(mapped.audio, Mapped)
    weights = []
    for number, fold in enumerate(folds[:2]):
        test = np.array(fold.utterances.splits) == "test"
        assert fold.audio is not None
        assert fold.text is not None
        garbled = replace(fold, audio=garble_part(fold.audio, test), text=garble_part(fold.text, test))
        for splits in (
            table.find(variant.recipe, number),
            load_splits([fold], [variant], CPU, None).find(variant.recipe),
            load_splits([garbled], [variant], CPU, None).find(variant.recipe),
        ):
            done = fit(splits.train, splits.validation, variant.recipe, 0, classes=3)
            weights.append(torch.cat([one.flatten() for one in done.model.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[3], weights[4])
    assert not torch.equal(weights[0], weights[3])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    write_made(folder / "feats.h5", MADE)
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    given = [str(folder / "feats.h5"), "--params", str(folder / "params.yaml"), "--output", str(folder / "out")]
    result = run(folds_app, "--features", *given, "--only", "no gate", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "2 rows of 2 seeds over 3 folds, base test weighted_f1" in result.stdout
    return folder


def test_every_row_is_trained_on_every_fold_and_the_table_pools_them(done: Path) -> None:
    assert len(list((done / "out" / "ablations").glob("*.npz"))) == 2 * 3 * 2
    table = (done / "out" / "ablations.md").read_text(encoding="utf-8")
    assert table.startswith("# Ablations on the test splits of 3 folds\n")
    features = read_features(done / "feats.h5")
    labelled = int((features.utterances.labels >= 0).sum())
    assert f"{labelled} labelled utterances of 16 conversations" in table
    assert "| no gate |" in table


def test_pooled_answers_lie_beside_the_truth_and_a_second_run_trains_nothing(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.ablation.single_run.fit", None)
    features = read_features(done / "feats.h5")
    variants = read_variants(done / "params.yaml", [], ["no gate"])
    params = FoldParams(count=3, validation=0.3)
    ablation = ablate(features, variants, SECTION, done / "out" / "ablations", CPU, 1, folds=params)
    assert sorted(ablation.test.ids) == sorted(features.utterances.ids)
    labels = dict(zip(features.utterances.ids, features.utterances.labels.tolist(), strict=True))
    assert [labels[name] for name in ablation.test.ids] == ablation.test.labels.tolist()
    starts = ablation.test.conversations.tolist()
    for first, last in pairwise(starts):
        assert len(set(ablation.test.conversation_ids[first:last])) == 1
    assert all(len(one.answers) == len(labels) for row in ablation.results.values() for one in row)
    write_table(compare(ablation), done / "again", current_commit())
    again, before = ((done / name / "ablations.csv").read_text().splitlines() for name in ("again", "out"))
    assert [row.rpartition(",")[0] for row in again] == [
        row.rpartition(",")[0] for row in before
    ]  # but for the seconds


def test_folders_and_features_are_not_given_together(done: Path) -> None:
    result = run(folds_app, str(done), "--features", str(done / "feats.h5"))
    assert result.exit_code == 2
    assert "name the results of folds, or --features" in result.stderr
