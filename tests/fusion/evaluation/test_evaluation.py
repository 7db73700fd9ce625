"""Evaluation on the test split and the files of results/."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

import fusion.inference
from fusion.checkpoint import load_model
from fusion.data import load_split
from fusion.errors import FeatureError, ModelError, OutputError
from fusion.evaluation import current_commit, evaluate, headline, write_report
from fusion.evaluation.predictions import class_table
from fusion.evaluation.scores import Evaluation
from fusion.inference import predict, predict_heads
from fusion.objective import best_epoch, calibrate, chance_scores
from fusion.objective.calibration import expected_calibration_error, fit_temperature
from fusion.objective.tasks import LabelTask, ScoreTask
from fusion.params import EvaluateParams
from fusion.prediction import Predictor
from fusion.training import fit
from pipeline.store import Features, Identity
from tests.fusion.made import LABELS, TEXT, Made, make_features, plant_copies, tiny_recipe, train_made

PARAMS = EvaluateParams(resamples=50)
TASK = LabelTask(len(LABELS))
CPU = torch.device("cpu")
NAMES = ["confusion.csv", "curves.csv", "details.json", "metrics.json", "predictions.csv", "table.md"]


@pytest.fixture(scope="module")
def features() -> Features:
    return make_features(Made(conversations=(8, 4, 7), frames=(0, 20), signal=("text",), unlabelled=0.2))


@pytest.fixture(scope="module")
def models(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "hbaf"
    train_made(features, output, tiny_recipe(epochs=2, seeds=(3, 11)))
    return output


@pytest.fixture(scope="module")
def evaluation(features: Features, models: Path) -> Evaluation:
    return evaluate(features, models, PARAMS, CPU)


@pytest.fixture(scope="module")
def results(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "deep" / "results"
    write_report(evaluation, folder, "c0ffee")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_conversation_is_predicted_alike_whatever_is_predicted_beside_it(
    features: Features, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(models / "seed-3").model
    split = load_split(features, "test", modalities="both", audio_frames=8)
    together = predict(model, split, TASK)
    monkeypatch.setattr(fusion.inference, "CONVERSATIONS", 1)
    np.testing.assert_allclose(predict(model, split, TASK), together, atol=1e-5)


def test_a_test_split_that_stays_in_the_file_is_scored_the_same(
    features: Features, models: Path, evaluation: Evaluation, caplog: pytest.LogCaptureFixture
) -> None:
    found = evaluate(features, models, PARAMS, torch.device("cpu"), memory=0.0)
    assert "more than train.memory leaves them" in caplog.text
    for one, other in zip(found.seeds, evaluation.seeds, strict=True):
        np.testing.assert_array_equal(one.answers, other.answers)


def test_values_far_outside_the_range_of_train_are_counted_and_named(
    features: Features, models: Path, evaluation: Evaluation, caplog: pytest.LogCaptureFixture
) -> None:
    part, splits = features.audio, np.array(features.utterances.splits)
    assert part is not None
    assert not [line for line in evaluation.warnings if "far outside the range" in line]
    changed = np.flatnonzero((splits == "test") & (np.diff(part.offsets) > 0) & (np.diff(part.offsets) <= 8))[:2]
    values, rows = part.values.copy(), [slice(*part.offsets[one : one + 2]) for one in changed]
    for one in rows:
        values[one, 4] = 1e4
    values[rows[0].start, 2] = -1e4
    odd = replace(features, audio=replace(part, values=values))
    frames = sum(one.stop - one.start for one in rows)
    said = (
        f"2 of {(splits == 'test').sum()} utterances have values far outside the range that their column had in train: "
        f"{frames + 1} in columns audio 4 ({frames}), audio 2 (1)."
    )
    (line,) = [line for line in evaluate(odd, models, PARAMS, CPU).warnings if "far outside the range" in line]
    assert line.startswith(said)
    with Predictor.load(models, "cpu") as predictor:
        predictor.predict_features(features)
        assert not caplog.messages
        predictor.predict_features(odd, "test")
    (line,) = caplog.messages
    assert line.startswith(said)


def test_probabilities_are_probabilities(evaluation: Evaluation) -> None:
    for seed in evaluation.seeds:
        assert seed.answers.shape == (len(evaluation.ids), len(LABELS))
        np.testing.assert_allclose(seed.answers.sum(-1), 1)
        assert (seed.answers >= 0).all()


def test_probabilities_are_calibrated_by_the_temperature_of_validation(
    features: Features, models: Path, evaluation: Evaluation, results: Path
) -> None:
    loaded, split = load_model(models / "seed-3"), load_split(features, "test", modalities="both", audio_frames=8)
    raw, said = predict(loaded.model, split, TASK), evaluation.seeds[0]
    validation = load_split(features, "validation", modalities="both", audio_frames=8)
    labelled, labels = validation.labels.numpy() != -1, validation.labels.numpy()
    train = load_split(features, "train", modalities="both", audio_frames=8)
    before = fit(train, validation, loaded.provenance.recipe, 3, classes=len(LABELS)).answers["fused"]
    fitted = fit_temperature(before[labelled], labels[labelled])  # the model itself has seen these labels
    assert loaded.provenance.temperature == pytest.approx(fitted)
    np.testing.assert_allclose(said.answers, calibrate(raw, fitted))
    found = json.loads((results / "details.json").read_text())["calibration"]["3"]
    counted, true = evaluation.counted, evaluation.true
    assert found["temperature"] == pytest.approx(fitted, abs=1e-5)
    assert found["before"] == pytest.approx(expected_calibration_error(raw[counted], true[counted]), abs=1e-5)
    assert found["after"] == pytest.approx(expected_calibration_error(said.answers[counted], true[counted]), abs=1e-5)
    assert "expected calibration error on the test split" in (results / "table.md").read_text()


def test_scores_are_mean_and_sample_deviation_over_seeds(evaluation: Evaluation) -> None:
    for name, summary in evaluation.summaries.items():
        scores = [seed.scores[name] for seed in evaluation.seeds]
        assert summary.mean == pytest.approx(sum(scores) / 2)
        assert summary.std == pytest.approx(abs(scores[0] - scores[1]) / np.sqrt(2))
        assert summary.interval.low <= summary.mean <= summary.interval.high


def test_a_single_seed_has_no_deviation(tmp_path: Path, models: Path, features: Features) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "seed-3").symlink_to(models / "seed-3")
    evaluation = evaluate(features, tmp_path / "one", PARAMS, CPU)
    write_report(evaluation, tmp_path / "results", None)
    content = json.loads((tmp_path / "results" / "details.json").read_text())
    assert content["test"]["uar"]["std"] is None
    assert content["run"]["commit"] is None
    assert "±" not in headline(evaluation)


def test_the_heads_inside_the_models_are_scored_like_the_whole(
    evaluation: Evaluation, features: Features, models: Path, results: Path
) -> None:
    split = load_split(features, "test", modalities="both", audio_frames=8)
    labelled = split.labels.numpy() >= 0
    scores = []
    for seed in ("seed-3", "seed-11"):
        predicted = predict_heads(load_model(models / seed).model, split, TASK)["text"].argmax(-1)
        scores.append(reference.accuracy_score(split.labels.numpy()[labelled], predicted[labelled]))
    assert evaluation.heads["text"]["accuracy"].mean == pytest.approx(sum(scores) / 2)
    assert set(evaluation.heads) == {"audio", "text"}
    assert json.loads((results / "details.json").read_text())["heads"]["text"]["accuracy"]["mean"] == pytest.approx(
        sum(scores) / 2, abs=1e-6
    )
    assert f"| text | {evaluation.heads['text']['weighted_f1'].mean:.3f}" in (results / "table.md").read_text()


def test_other_validation_and_train_features_change_no_score(
    evaluation: Evaluation, features: Features, models: Path
) -> None:
    table = features.utterances
    assert features.audio is not None
    elsewhere = np.repeat(np.array(table.splits) != "test", np.diff(features.audio.offsets))
    values = np.array(features.audio.values)
    values[elsewhere] = np.nan
    other = replace(features, audio=replace(features.audio, values=values))
    assert evaluate(other, models, PARAMS, CPU).summaries == evaluation.summaries


def test_another_encoder_is_refused_before_anything_is_scored(features: Features, models: Path) -> None:
    assert features.text is not None
    other = replace(features, text=replace(features.text, identity=Identity({**TEXT.fields, "layers": [1]})))
    with pytest.raises(ModelError, match=r'trained on text features of {"layers":\[2\]}, but made.h5 has .*\[1\]'):
        evaluate(other, models, PARAMS, CPU)


def test_conversations_that_a_model_learned_from_are_not_tested(features: Features, models: Path) -> None:
    table = features.utterances
    splits = dict(zip(table.conversations, table.splits, strict=True))
    first, last = table.conversations[0], table.conversations[-1]
    with pytest.raises(ModelError, match=rf"learned from 1 of the 7 conversations of the test split .*'{first}'"):
        evaluate(features.resplit(splits | {first: "test", last: "train"}), models, PARAMS, CPU)
    evaluate(features.resplit(splits | {last: "train"}), models, PARAMS, CPU)  # fewer are as good


def test_a_file_without_a_modality_of_the_model_says_what_to_do(features: Features, models: Path) -> None:
    with pytest.raises(ModelError, match=r"trained with text, which made\.h5 does not hold; join text features in"):
        evaluate(replace(features, text=None), models, PARAMS, CPU)


def test_few_conversations_and_scores_on_another_scale_are_warned_of(tmp_path: Path) -> None:
    features = make_features(Made(conversations=(8, 4, 3), scored=True, unlabelled=0))
    other = replace(features, utterances=replace(features.utterances, scores=3 + 0.5 * features.utterances.scores))
    train_made(other, tmp_path, tiny_recipe(epochs=1, target="score"))
    told = " ".join(evaluate(other, tmp_path, PARAMS, CPU).warnings)
    assert "Only 3 conversations of the test split can be scored" in told
    assert "Scores are from " in told
    assert "acc-7" in told


def test_utterances_of_train_in_the_test_split_are_warned_of(
    features: Features, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not [line for line in evaluate(features, models, PARAMS, CPU).warnings if "the same as" in line]
    copied = evaluate(plant_copies(features, "test"), models, PARAMS, CPU)
    (said,) = [line for line in copied.warnings if "the same as" in line]
    assert re.match(
        r"\d+ of \d+ utterances of test are the same as one in train .*\(the same audio\), the first ", said
    )
    write_report(copied, tmp_path, None)
    assert f"**{said}**" in (tmp_path / "table.md").read_text(encoding="utf-8").replace("\\", "")
    assert said in caplog.messages


def test_a_file_without_a_test_split_is_refused(models: Path) -> None:
    with pytest.raises(FeatureError, match="no utterance is in the test split"):
        evaluate(make_features(Made(conversations=(2, 2, 0))), models, PARAMS, CPU)


# results/


def test_every_file_is_written_into_a_folder_that_is_made(results: Path) -> None:
    assert sorted(path.name for path in results.iterdir()) == NAMES


def test_predictions_list_every_turn_of_every_seed(results: Path, evaluation: Evaluation, features: Features) -> None:
    rows = rows_of(results / "predictions.csv")
    table = features.utterances
    expected = [index for index, split in enumerate(table.splits) if split == "test"]
    assert list(rows[0]) == [
        "run", "seed", "utterance", "conversation", "split", "true", "predicted", "p_anger", "p_joy", "p_neutral",
        "speaker", "text",
    ]  # fmt: skip
    assert [row["utterance"] for row in rows] == [table.ids[index] for index in expected] * 2
    assert [row["seed"] for row in rows] == ["3"] * len(expected) + ["11"] * len(expected)
    true = [LABELS[table.labels[index]] if table.labels[index] >= 0 else "" for index in expected]
    assert [row["true"] for row in rows] == true * 2
    assert "" in true
    for row in rows:
        assert row["predicted"] == max(LABELS, key=lambda label: float(row[f"p_{label}"]))


def test_scores_can_be_computed_again_from_the_predictions(results: Path) -> None:
    content = json.loads((results / "details.json").read_text())
    for seed in ("3", "11"):
        rows = [row for row in rows_of(results / "predictions.csv") if row["seed"] == seed and row["true"]]
        true, predicted = [row["true"] for row in rows], [row["predicted"] for row in rows]
        expected = {
            "weighted_f1": reference.f1_score(true, predicted, average="weighted", zero_division=0.0),
            "macro_f1": reference.f1_score(true, predicted, average="macro", zero_division=0.0),
            "accuracy": reference.accuracy_score(true, predicted),
        }
        for name, value in expected.items():
            assert content["seeds"][seed]["test"][name]["value"] == pytest.approx(value, abs=1e-6)
        assert content["test"]["utterances"] == len(rows)


def test_no_label_breaks_the_table_of_classes_or_turns_its_words_round() -> None:
    scores = {name: {"mean": 0.5, "std": None} for name in ("precision", "recall", "f1")} | {"support": 3}
    rows = class_table({"a|b": scores, "<b>": scores, "\u202ejoy": scores})[2:]
    assert [row.split(" ", 2)[1] for row in rows] == ["a\\|b", "\\<b\\>", "\u2068\u202ejoy\u202c\u2069"]


def test_details_hold_means_classes_seeds_and_the_run(results: Path, features: Features) -> None:
    content = json.loads((results / "details.json").read_text())
    assert list(content) == [
        "run", "files", "warnings", "test", "validation", "heads", "calibration", "seeds", "ensemble", "linear",
        "digest",
    ]  # fmt: skip
    assert set(content["test"]["weighted_f1"]) == {"mean", "std", "low", "high", "floor", "chance"}
    assert list(content["test"]["per_class"]) == LABELS
    assert set(content["test"]["per_class"]["joy"]) == {"precision", "recall", "f1", "support"}
    assert list(content["seeds"]) == ["3", "11"]
    assert set(content["seeds"]["3"]["test"]["uar"]) == {"value", "low", "high"}
    run = content["run"]
    assert (run["features"], run["trained_on"]) == (features.digest, features.digest)
    assert (run["model"], run["seeds"], run["commit"]) == ("hbaf", "3,11", "c0ffee")
    assert run["params"] == tiny_recipe(epochs=2).digest


def test_metrics_are_the_short_form_of_the_details(results: Path) -> None:
    details = json.loads((results / "details.json").read_text())
    metrics = json.loads((results / "metrics.json").read_text())
    names = ["weighted_f1", "macro_f1", "accuracy", "uar", "floor", "chance", "ensemble", "linear", "seeds", "run"]
    assert list(metrics) == names
    for name, own in (("ensemble", details["ensemble"]), ("linear", details["linear"][0])):
        assert metrics[name] == {metric: one["value"] for metric, one in own["test"].items()}
    for name in ("weighted_f1", "macro_f1", "accuracy", "uar"):
        assert metrics[name] == {key: details["test"][name][key] for key in ("mean", "std")}
    values = {seed: details["seeds"][seed]["test"]["weighted_f1"]["value"] for seed in ("3", "11")}
    assert metrics["seeds"] == {"weighted_f1": values}
    assert metrics["weighted_f1"]["mean"] == pytest.approx(sum(values.values()) / 2, abs=1e-6)
    assert metrics["floor"] == {"weighted_f1": details["test"]["weighted_f1"]["floor"]}


def test_confusion_rows_are_the_labelled_predictions(results: Path) -> None:
    pairs = [(row["actual"], row["predicted"]) for row in rows_of(results / "confusion.csv")]
    predictions = rows_of(results / "predictions.csv")
    assert pairs == [(row["true"], row["predicted"]) for row in predictions if row["true"]]


def test_curves_have_a_row_for_each_seed_and_epoch(results: Path, evaluation: Evaluation) -> None:
    rows = rows_of(results / "curves.csv")
    assert [(row["seed"], row["epoch"]) for row in rows] == [("3", "1"), ("3", "2"), ("11", "1"), ("11", "2")]
    first = evaluation.seeds[0].history[0]
    assert float(rows[0]["train_loss"]) == pytest.approx(first.train["total"], abs=1e-6)
    assert float(rows[0]["validation_loss"]) == pytest.approx(first.validation["total"], abs=1e-6)
    assert float(rows[0]["validation_uar"]) == pytest.approx(first.scores["uar"], abs=1e-6)
    assert float(rows[0]["validation_text_uar"]) == pytest.approx(first.heads["text"]["uar"], abs=1e-6)
    assert "train_relative_loss" in rows[0]
    assert {row["stage"] for row in rows} == {"fusion"}


def test_every_file_names_the_run(results: Path) -> None:
    run = json.loads((results / "details.json").read_text())["run"]
    for name in NAMES:
        assert run["id"] in (results / name).read_text()
    table = (results / "table.md").read_text()
    for text in (run["params"][:12], run["features"][:12], "seeds 3, 11", "c0ffee", "| weighted_f1 |", "| joy |"):
        assert text in table


def test_the_table_says_in_words_what_was_run(evaluation: Evaluation, results: Path) -> None:
    line = next(line for line in (results / "table.md").read_text().splitlines() if line.startswith("Model "))
    recipe = evaluation.seeds[0].provenance.recipe
    best = [best_epoch(seed.history, recipe.train.metric).number for seed in evaluation.seeds]
    assert line.startswith(f"Model {recipe.model.name}, target label, modalities both, encoders ")
    assert f"at most {recipe.train.epochs} epochs, patience {recipe.train.patience}; kept are its epochs" in line
    assert f"of the best {recipe.train.metric} on validation" in line
    assert line.endswith(f"seed 3, epoch {best[0]}; seed 11, epoch {best[1]}.")


def test_the_same_evaluation_gives_the_same_bytes(
    results: Path, features: Features, models: Path, tmp_path: Path
) -> None:
    write_report(evaluate(features, models, PARAMS, CPU), tmp_path, "c0ffee")
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (results / name).read_bytes()


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file where the folder goes": (lambda folder: folder.write_text(""), r"metrics\.json: cannot be written \("),
    "a folder where a file goes": (
        lambda folder: (folder / "metrics.json").mkdir(parents=True),
        r"metrics\.json: cannot be written \(Is a directory\); make room, check who may write there",
    ),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_results_that_cannot_be_written_are_an_error_of_ours(
    evaluation: Evaluation, tmp_path: Path, spoiled: str
) -> None:
    spoil, message = SPOILED[spoiled]
    spoil(tmp_path / "results")
    with pytest.raises(OutputError, match=message):
        write_report(evaluation, tmp_path / "results", None)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; the process that has it is one of its own."""
    (tmp_path / "table.md").write_text("old")
    script = (
        "import resource, sys, pathlib\n"
        "from fusion.runtime.files import write_file\nfrom fusion.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_file(pathlib.Path(sys.argv[1]), bytes(5000))\nexcept OutputError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "table.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "table.md: cannot be written (File too large); raise the limit" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "old"


def test_the_commit_is_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert current_commit() is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True, env=os.environ)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert current_commit() == head
    monkeypatch.setenv("PATH", "")
    assert current_commit() is None


def test_the_ensemble_is_what_prediction_with_all_seeds_gives(
    evaluation: Evaluation, results: Path, features: Features, models: Path
) -> None:
    with Predictor.load(models, "cpu") as predictor:
        said = predictor.predict_features(features, "test")
    expected = np.array([list(one.probabilities.values()) for one in said])
    np.testing.assert_allclose(evaluation.ensemble.answers, expected, atol=1e-6)
    truth = features.utterances.labels[np.array(features.utterances.splits) == "test"]
    counted = truth >= 0
    accuracy = reference.accuracy_score(truth[counted], expected[counted].argmax(1))
    assert evaluation.ensemble.scores["accuracy"] == pytest.approx(accuracy)
    assert f"| ensemble | {evaluation.ensemble.scores['weighted_f1']:.3f} |" in (results / "table.md").read_text()


def test_the_table_holds_the_models_against_linear_ones_in_numbers_and_words(tmp_path: Path) -> None:
    """Labels that lie in a linear direction of one modality, which models of one epoch cannot have found."""
    features = make_features(Made(conversations=(30, 10, 12), frames=(2, 4), tokens=(2, 4), unlabelled=0))
    recipe = tiny_recipe({"linear_path": False}, epochs=1, learning_rate=1e-6, seeds=(0, 1, 2, 3))
    train_made(features, tmp_path / "models", recipe)
    evaluation = evaluate(features, tmp_path / "models", EvaluateParams(resamples=100), CPU)
    write_report(evaluation, tmp_path, None)
    table, chosen = (tmp_path / "table.md").read_text().replace("\\", ""), evaluation.linear[0]
    change = chosen.changes["weighted_f1"]
    assert chosen.scores["weighted_f1"] > 0.9
    assert change.mean == pytest.approx(evaluation.summaries["weighted_f1"].mean - chosen.scores["weighted_f1"])
    assert f"{change.mean:+.3f} | {change.interval.low:+.3f} to {change.interval.high:+.3f} |" in table
    for said in ("than the linear reference: weighted_f1 0.", "Seed 0 has not learned", "does not exclude"):
        assert f"**{said}" in table or said in table.split("| metric")[0]
    card = (tmp_path / "models" / "seed-0" / "README.md").read_text()
    assert "This model has not learned" in card
    assert "| linear, " in card
    assert "| chance: labels drawn by their shares in train |" in card
    assert chosen.name.startswith("linear, mean of 6 linear models: ")
    assert "the mean of the linear models that follow" in table
    weights = [float(one.name.rpartition(", weight ")[2]) for one in evaluation.linear[1:]]
    assert len(weights) == 6
    assert sum(weights) == pytest.approx(1, abs=0.031)
    found = sum(weight * np.log(one.answers) for weight, one in zip(weights, evaluation.linear[1:], strict=True))
    assert (found.argmax(1) == chosen.answers.argmax(1)).mean() > 0.95


def test_outliers_that_no_model_could_know_do_not_hide_that_it_learned(tmp_path: Path) -> None:
    """A few test scores are far off, for the model as for the median: their difference knows nothing of it."""
    features = make_features(Made(conversations=(30, 10, 30), scored=True, unlabelled=0))
    table = features.utterances
    test = np.flatnonzero(np.array(table.splits) == "test")
    scores = table.scores.copy()
    scores[test[[3, 50, 70]]] += 60
    features = replace(features, utterances=replace(table, scores=scores))
    train_made(features, tmp_path / "models", tiny_recipe({"name": "audio"}, target="score", metric="mae", epochs=1))
    evaluation = evaluate(features, tmp_path / "models", EvaluateParams(resamples=200), CPU)
    error, gain = evaluation.summaries["mae"], evaluation.constant.changes["mae"]
    assert evaluation.constant.scores["mae"] == pytest.approx(error.floor)
    assert gain.mean == pytest.approx(error.mean - error.floor)
    assert error.interval.high > error.floor
    assert gain.interval.high < 0
    assert "nothing shows that more was learned" not in " ".join(evaluation.warnings)


def test_of_one_linear_model_the_table_says_no_mean(tmp_path: Path) -> None:
    features = make_features(Made(conversations=(30, 10, 12), turns=(1, 1), frames=(2, 4), unlabelled=0))
    train_made(features, tmp_path / "models", tiny_recipe({"name": "audio"}, epochs=1))
    evaluation = evaluate(features, tmp_path / "models", EvaluateParams(resamples=100), CPU)
    write_report(evaluation, tmp_path, None)
    assert [one.name.startswith("linear, audio (C ") for one in evaluation.linear] == [True]
    assert "mean of the linear models" not in (tmp_path / "table.md").read_text()


def test_chance_is_the_mean_of_many_draws() -> None:
    random = np.random.default_rng(0)
    train, truth = random.choice(3, 400, p=(0.6, 0.3, 0.1)), random.choice(3, 300, p=(0.5, 0.2, 0.3))
    task = LabelTask(3)
    drawn = [random.choice(train, len(truth)) for _ in range(300)]
    expected = np.mean([reference.f1_score(truth, one, average="weighted") for one in drawn])
    found = chance_scores(task, truth, train)
    assert found["weighted_f1"] == pytest.approx(expected, abs=0.005)
    assert found["accuracy"] == pytest.approx(np.mean([(one == truth).mean() for one in drawn]), abs=0.005)
    scores, known = random.normal(0.5, 1, 200), random.normal(0, 1, 300)
    of_scores = chance_scores(ScoreTask(), scores, known)
    errors = np.mean([np.abs(random.choice(known, 200) - scores).mean() for _ in range(300)])
    assert of_scores["mae"] == pytest.approx(errors, abs=0.02)
    assert of_scores["correlation"] == pytest.approx(0, abs=1e-9)
    few = np.append(known[:100], 40.0)  # one far away counts as often as any other
    expected = np.abs(few[:, None] - scores[None]).mean()
    assert chance_scores(ScoreTask(), scores, few)["mae"] == pytest.approx(expected, rel=1e-9)
