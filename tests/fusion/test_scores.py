"""Regression through the whole of fusion: what is learned, what is refused, and the files of every command."""

import csv
import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from fusion.ablation.comparison import Row
from fusion.ablation.table_files import draw_bars
from fusion.ablation.variants import BASE, Variant
from fusion.checkpoint import check_compatible, load_model
from fusion.cli import ablate_app, evaluate_app, train_app
from fusion.data import load_split
from fusion.errors import FeatureError
from fusion.evaluation import draw_png
from fusion.inference import predict_heads
from fusion.layers import Ensemble
from fusion.models import MODELS
from fusion.objective import Interval, LossTerms, best_epoch, fusion_loss, head_masks
from fusion.objective.losses import absolute_error
from fusion.objective.metrics import SCORE_METRICS
from fusion.objective.tasks import ScoreTask
from fusion.params import Recipe, TrainParams
from fusion.training import fit
from fusion.training.loop import Fit
from pipeline.settings import SettingsError, check_section
from pipeline.store import Features, read_features
from tests.fusion.batches import batch_for, make, make_batch, tensors_of, total_loss
from tests.fusion.made import Made, make_features, tiny_recipe, write_made
from tests.fusion.test_fusion_cli import run

SCORED = Made(conversations=(8, 4, 6), frames=(1, 6), tokens=(1, 4), scored=True)
score_recipe = partial(tiny_recipe, target="score")


def train(features: Features, recipe: Recipe) -> Fit:
    load = partial(load_split, features, modalities="both", audio_frames=8, target=recipe.train.target)
    return fit(load("train"), load("validation"), recipe, 0, classes=len(features.label_names))


# what is learned


@pytest.mark.parametrize("name", ["hbaf", "concat"])
def test_training_on_a_linear_signal_recovers_it(name: str) -> None:
    features = make_features(Made(conversations=(32, 5, 16), frames=(3, 5), tokens=(2, 4), scored=True))
    recipe = score_recipe(model={"name": name, "dropout": 0.0}, epochs=8, learning_rate=0.02)
    model = train(features, recipe).model
    split = load_split(features, "test", modalities="both", audio_frames=8, target="score")
    counted = ~split.scores.isnan()
    true, found = split.scores[counted].numpy(), predict_heads(model, split, ScoreTask())["fused"][counted, 0]
    assert scipy.stats.pearsonr(true, found).statistic > 0.95
    assert np.abs(true - found).mean() < 0.35
    assert np.abs(true - np.median(true)).mean() > 1  # which is what a constant achieves


@pytest.mark.parametrize("name", ["hbaf", "hcam", "concat"])
def test_scores_of_another_scale_are_learned_as_well(name: str) -> None:
    features = make_features(SCORED)
    other = replace(features, utterances=replace(features.utterances, scores=50 + 20 * features.utterances.scores))
    recipe = score_recipe(model={"name": name, "linear_path": False}, epochs=2, select="loss", average=0.5)
    split = load_split(features, "test", modalities="both", audio_frames=8, target="score")
    one, two = (predict_heads(train(given, recipe).model, split, ScoreTask()) for given in (features, other))
    for head, answers in one.items():
        np.testing.assert_allclose(two[head], 50 + 20 * answers, rtol=0, atol=0.02)
    assert np.ptp(one["fused"]) > 0.01


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *((name, {}) for name in MODELS),
        ("hcam", {"training": "joint"}),
        ("hcam", {"ensemble": True}),
        ("hcam", {"stages": ("utterance", "conversation"), "ensemble": True}),
    ],
    ids=str,
)
def test_every_model_learns_scores_and_is_found_again(name: str, setting: dict[str, Any], tmp_path: Path) -> None:
    done = train(make_features(SCORED), score_recipe(model={"name": name, **setting}, epochs=1))
    assert all(math.isfinite(score) for head in done.validation.values() for score in head.values())
    assert set(done.validation["fused"]) == set(SCORE_METRICS)
    batch = batch_for({})
    model = make(name, **score_arguments(name, setting))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, strict=True).eval()
    for part, value in tensors_of(model(batch)).items():
        assert torch.equal(tensors_of(loaded(batch))[part], value)
    assert {value.shape[1] for value in model(batch).heads().values()} == {1}


def score_arguments(name: str, setting: dict[str, Any]) -> dict[str, Any]:
    wanted = score_recipe(model={"name": name}).wanted
    return {"classes": 1, "supervised": wanted.supervised, "scores": wanted.scores, **setting}


@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    model = make(name, dropout=0.0, **score_arguments(name, {}))
    batch = batch_for({}, [3, 1, 5])  # an odd number: the signs of absolute errors cannot cancel out
    reached: set[int] = set()
    for stage in model.stages():
        with torch.no_grad():
            given = stage.encode(batch) if stage.encode else batch
        total_loss(stage.module(given), given, stage.branches).backward()
        reached |= {id(weight) for weight in model.parameters() if weight.grad is not None and weight.grad.any()}
    assert reached == {id(weight) for weight in model.parameters()}


def test_labels_have_no_part_in_learning_scores() -> None:
    features, recipe = make_features(SCORED), score_recipe(epochs=1, loss={"label_aware": True})
    other = make_features(SCORED)
    other.utterances.labels[:] = -1
    one, two = train(features, recipe).model.state_dict(), train(other, recipe).model.state_dict()
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


def test_the_epoch_of_the_lowest_error_is_chosen() -> None:
    done = train(make_features(SCORED), score_recipe(epochs=6, learning_rate=0.05))
    errors = [epoch.scores["mae"] for epoch in done.history]
    assert done.best.scores["mae"] == min(errors) < max(errors)
    best = best_epoch(done.history, "correlation")
    assert best.scores["correlation"] == max(epoch.scores["correlation"] for epoch in done.history)


def test_training_stops_when_the_error_has_not_fallen_for_long_enough() -> None:
    features = make_features(Made(conversations=(8, 4, 1), scored=True, signal=()))
    history = train(features, score_recipe(epochs=40, patience=2)).history
    assert len(history) == best_epoch(history, "mae").number + 2 < 40


# losses and ensembles


def test_the_absolute_error_is_that_of_a_loop_and_leaves_out_what_does_not_count() -> None:
    scores = torch.tensor([1.0, math.nan, -2.0, 0.5])
    outputs = torch.tensor([[0.0], [5.0], [-1.5], [9.0]], requires_grad=True)
    mask = torch.tensor([True, False, True, False])
    loss = absolute_error(outputs, scores, mask)
    loss.backward()
    assert loss.item() == pytest.approx((1.0 + 0.5) / 2)
    assert outputs.grad is not None
    assert outputs.grad.flatten().tolist() == [-0.5, 0, 0.5, 0]
    assert absolute_error(outputs, scores, torch.zeros(4, dtype=torch.bool)) == 0


def test_heads_of_one_modality_learn_scores_where_it_is_there() -> None:
    batch, model = batch_for({}), make("hbaf", classes=1)
    audio = torch.arange(len(batch.scores)) % 2 == 0
    output, counted = model(batch), torch.ones_like(audio)
    terms = LossTerms(auxiliary=0.5, absolute=0.0, relative=0.0, temperature=0.1)
    losses = fusion_loss(output, batch.scores, head_masks(counted, audio, counted), absolute_error, terms)

    def error(x: Tensor, mask: Tensor) -> Tensor:
        return (x[mask, 0] - batch.scores[mask]).abs().mean()

    torch.testing.assert_close(losses.audio, error(output.audio_logits, audio))
    expected = error(output.logits, counted) + 0.5 * (losses.audio + error(output.text_logits, counted))
    torch.testing.assert_close(losses.total, expected)


def test_two_heads_speak_with_the_mean_of_what_is_there() -> None:
    model = make("hcam", classes=1, scores=True, supervised=False, stages=["utterance"])
    output = model(make_batch([4], [2, 0, 1, 0], [1, 1, 0, 0]))
    assert output.audio_logits is not None
    audio, text = output.audio_logits[:, 0], output.text_logits[:, 0]
    expected = [(audio[0] + text[0]) / 2, text[1], audio[2], torch.tensor(0.0)]
    torch.testing.assert_close(output.logits[:, 0], torch.stack(expected))


def test_the_weights_of_an_ensemble_of_scores_are_those_of_the_smallest_error() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(200, generator=generator)
    noise = torch.randn(200, 3, 1, generator=generator) * torch.tensor([0.5, 0.7, 3.0])[:, None]
    said, present = truth[:, None, None] + noise, torch.ones(200, 3, dtype=torch.bool)
    ensemble = Ensemble(["fused", "audio", "text"], scores=True)

    def error(weights: Tensor) -> float:
        return (said[:, :, 0] @ weights - truth).abs().mean().item()

    ensemble.fit(said, present, truth)
    best = error(ensemble.weights)
    assert ensemble.weights.sum().item() == pytest.approx(1)
    assert ensemble.weights[0] > ensemble.weights[1] > ensemble.weights[2] >= 0
    assert best < min(error(one) for one in torch.eye(3))
    for _ in range(200):
        other = torch.rand(3, generator=generator)
        assert error(other / other.sum()) >= best - 1e-6


def test_a_head_that_sees_nothing_has_no_weight() -> None:
    truth, said = torch.arange(4.0), torch.zeros(4, 3, 1)
    present = torch.tensor([[True, False, True]] * 4)
    ensemble = Ensemble(["fused", "audio", "text"], scores=True)
    said[:, 2, 0] = truth
    ensemble.fit(said, present, truth)
    assert ensemble.weights.tolist() == pytest.approx([0, 0, 1])
    ensemble.fit(said, torch.eye(4, 3, dtype=torch.bool), truth)
    assert ensemble.weights.tolist() == pytest.approx([1 / 3] * 3)


def test_an_ensemble_of_scores_starts_as_the_fused_head() -> None:
    setting = {"classes": 1, "scores": True, "supervised": False}
    plain, ensemble, batch = make("hcam", **setting), make("hcam", ensemble=True, **setting), batch_for({})
    ensemble.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(ensemble(batch).logits, plain(batch).logits)


# parameters


def test_the_metric_follows_the_target() -> None:
    assert TrainParams().metric == "weighted_f1"
    assert TrainParams(target="score").metric == "mae"
    for given, expected in ((None, "mae"), ("correlation", "correlation")):
        assert check_section({"target": "score", "metric": given}, "train", TrainParams, "x").metric == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"target": "score", "metric": "weighted_f1"}, r"'weighted_f1': expected one of mae, .*'weighted_f1_2'\?"),
        ({"metric": "mae"}, r"'train\.metric' is 'mae': expected one of weighted_f1, .* for train\.target label"),
        ({"target": "scores"}, "'train.target' is 'scores'.*did you mean 'score'"),
    ],
)
def test_a_metric_of_another_target_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_section(content, "train", TrainParams, "params.yaml")


def test_what_needs_labels_makes_no_difference_to_scores() -> None:
    def digest(name: str, target: str, **loss: Any) -> str:
        return tiny_recipe(model={"name": name}, loss=loss, target=target).digest

    for key, value in {"label_smoothing": 0.1, "class_weights": "balanced", "supervised": 0.9}.items():
        assert digest("hcam", "score", **{key: value}) == digest("hcam", "score")
        assert digest("hcam", "label", **{key: value}) != digest("hcam", "label")
    assert digest("hbaf", "score", label_aware=True) == digest("hbaf", "score")
    assert digest("hcam", "score", temperature=0.5) == digest("hcam", "score")
    assert digest("hbaf", "score", temperature=0.5) != digest("hbaf", "score")
    assert digest("hbaf", "score") != digest("hbaf", "label")


# what is refused


def test_a_split_without_a_score_says_what_to_do() -> None:
    with pytest.raises(FeatureError, match=r"the train split has a score; .* set train\.target to label"):
        load_split(make_features(), "train", modalities="both", audio_frames=8, target="score")


def test_a_split_without_a_label_points_to_its_scores() -> None:
    unlabelled = make_features(SCORED)
    unlabelled.utterances.labels[:] = -1
    with pytest.raises(FeatureError, match=r"the test split has a label; .* set train\.target to score"):
        load_split(unlabelled, "test", modalities="both", audio_frames=8)


# the files of every command

PARAMS = """
model: {dim: 4, heads: 2, audio_frames: 4}
train: {target: score, seeds: [0, 1], epochs: 1, learning_rate: 0.01}
evaluate: {resamples: 20, permutations: 20, missing: [0.5]}
ablations:
  concat: {model.name: concat}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all three commands have run."""
    folder = tmp_path_factory.mktemp("scores")
    (folder / "params.yaml").write_text(PARAMS)
    write_made(folder / "feats.h5", SCORED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        commands = [(train_app, ()), (evaluate_app, ()), (ablate_app, ("--jobs", "1"))]
        said = [run(app, "--features", "feats.h5", *arguments) for app, arguments in commands]
    assert [one.exit_code for one in said] == [0, 0, 0], [one.stderr for one in said]
    (folder / "said.txt").write_text("".join(one.stdout for one in said))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.mark.soak
def test_every_command_leads_with_the_metric_of_training(project: Path) -> None:
    trained, evaluated, ablated = (project / "said.txt").read_text().splitlines()
    assert trained.startswith("models/hbaf: 2 seeds, mean validation mae ")
    assert evaluated.startswith("results: test mae ")
    assert ablated.startswith("results: 2 rows of 2 seeds, base test mae ")


def test_scores_can_be_computed_again_from_the_predictions(project: Path) -> None:
    content = json.loads((project / "results" / "details.json").read_text())
    for seed in ("0", "1"):
        rows = [row for row in rows_of(project / "results" / "predictions.csv") if row["seed"] == seed]
        assert "" in [row["true"] for row in rows]
        counted = [row for row in rows if row["true"]]
        true, predicted = ([float(row[key]) for row in counted] for key in ("true", "predicted"))
        found = content["seeds"][seed]["test"]
        assert list(found) == list(SCORE_METRICS)
        assert found["mae"]["value"] == pytest.approx(np.abs(np.subtract(true, predicted)).mean(), abs=2e-6)
        expected = scipy.stats.pearsonr(true, predicted).statistic
        assert found["correlation"]["value"] == pytest.approx(expected, abs=1e-5)
        assert content["test"]["utterances"] == len(counted)
    assert content["test"]["per_class"] == {}


def test_confusions_are_those_of_seven_classes(project: Path) -> None:
    rows = rows_of(project / "results" / "confusion.csv")
    classes = [str(score) for score in range(-3, 4)]
    assert {row["actual"] for row in rows} | {row["predicted"] for row in rows} <= set(classes)
    hits = np.mean([row["actual"] == row["predicted"] for row in rows])
    mean = json.loads((project / "results" / "metrics.json").read_text())["accuracy_7"]["mean"]
    assert mean == pytest.approx(hits, abs=1e-6)


def test_no_result_file_holds_what_is_no_number(project: Path) -> None:
    for path in [*(project / "results").rglob("*.*"), *(project / "models").rglob("*.json")]:
        if path.suffix in (".json", ".csv", ".md", ".tex"):
            words = path.read_text().lower().replace("|", " ").replace(",", " ").split()
            assert not {"nan", "-inf"} & set(words), path
    metrics = json.loads((project / "results" / "metrics.json").read_text())
    assert list(metrics)[: len(SCORE_METRICS)] == list(SCORE_METRICS)
    assert metrics["floor"].keys() == {"mae"}


def test_tables_say_which_way_is_better(project: Path) -> None:
    table = (project / "results" / "table.md").read_text()
    assert "utterances with a score" in table
    assert "the floor always predicts the median score of train, chance: scores drawn from those of train." in table
    assert "Of mae less is better." in table
    assert "| linear, " in table
    assert "alpha " in table  # of ridge regression
    assert "precision" not in table
    assert "the median score of train" in (project / "results" / "robustness" / "table.md").read_text()
    ablations = (project / "results" / "ablations.md").read_text()
    assert "Of MAE less is better." in ablations
    assert "| row | MAE | 95% interval |" in ablations
    assert {"correlation", "accuracy_7", "mae"} <= rows_of(project / "results" / "ablations.csv")[0].keys()
    assert (project / "results" / "robustness" / "missing.png").exists()


def test_curves_have_the_metric_that_selects(project: Path) -> None:
    rows = rows_of(project / "results" / "curves.csv")
    assert [row["validation_metric"] for row in rows] == [row["validation_mae"] for row in rows]


def test_a_model_of_scores_is_loaded_and_does_not_mind_other_labels(project: Path) -> None:
    loaded = load_model(project / "models" / "hbaf" / "seed-0")
    assert loaded.provenance.labels == ()
    assert loaded.provenance.recipe.train.target == "score"
    assert "it predicts a score" in (loaded.folder / "README.md").read_text()
    features = read_features(project / "feats.h5")
    check_compatible(loaded, features)
    features.label_names.reverse()
    check_compatible(loaded, features)


def test_a_picture_is_drawn_where_an_interval_has_no_end() -> None:
    """A single conversation says nothing about others, and an error has no upper bound."""
    variant = Variant(BASE, None, {}, score_recipe())
    row = Row(variant, 0.9, None, Interval(0.0, math.inf), 0.8, None, {}, 100, None, 0.9, "hbaf", [])
    assert draw_png(draw_bars([row], "MAE", SCORE_METRICS["mae"].bounds, 0.05)).startswith(b"\x89PNG")


def test_rows_of_one_table_share_a_target(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    done = run(ablate_app, "--features", "feats.h5", "--set", "ablations.x={train.target: label}")
    assert done.exit_code == 2
    assert "train.target cannot be set here: all rows share the target of section train" in done.stderr
