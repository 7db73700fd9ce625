"""Folds joined: the scores against scikit-learn's, and everything that is no fold of the same study is refused."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from typer.testing import CliRunner

from fusion.cli import folds_app
from fusion.errors import ResultError
from fusion.evaluation import evaluate, hash_files, join_folds, write_folds, write_report
from fusion.evaluation.folds import Joined, read_fold, table_md
from fusion.evaluation.scores import Evaluation
from fusion.params import EvaluateParams
from fusion.tables import digested
from tests.fusion.made import Made, make_features, tiny_recipe, train_made

PARAMS = EvaluateParams(resamples=50)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    features = make_features(Made(conversations=(6, 3, 5), frames=(0, 8), signal=("text",), unlabelled=0.2))
    output = tmp_path_factory.mktemp("models") / "hbaf"
    train_made(features, output, tiny_recipe(epochs=1, seeds=(3, 11)))
    return evaluate(features, output, PARAMS, torch.device("cpu"))


def as_fold(evaluation: Evaluation, number: int) -> Evaluation:
    """The same models on other conversations that look alike, less the first `number` turns."""
    keep = slice(number, None)
    return replace(
        evaluation,
        ids=[f"{number}/{identifier}" for identifier in evaluation.ids[keep]],
        conversations=[f"{number}/{name}" for name in evaluation.conversations[keep]],
        speakers=evaluation.speakers[keep],
        true=evaluation.true[keep],
        seeds=[replace(seed, answers=seed.answers[keep]) for seed in evaluation.seeds],
        features=f"{number:064}",
    )


@pytest.fixture
def folders(evaluation: Evaluation, tmp_path: Path) -> list[Path]:
    """Three folds as fusion-evaluate writes them."""
    found = [tmp_path / f"fold-{number}" for number in range(1, 4)]
    for number, folder in enumerate(found, start=1):
        write_report(as_fold(evaluation, number), folder, "c0ffee")
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected_scores(rows: list[dict[str, str]]) -> Mapping[str, float]:
    true, predicted = zip(*[(row["true"], row["predicted"]) for row in rows if row["true"]], strict=True)
    return {
        "weighted_f1": reference.f1_score(true, predicted, average="weighted", zero_division=0.0),
        "macro_f1": reference.f1_score(true, predicted, average="macro", zero_division=0.0),
        "accuracy": reference.accuracy_score(true, predicted),
    }


def test_scores_are_those_of_each_fold_and_of_all_utterances_together(folders: list[Path]) -> None:
    joined = join_folds(folders, PARAMS)
    rows = [rows_of(folder / "predictions.csv") for folder in folders]
    for name in ("weighted_f1", "macro_f1", "accuracy"):
        folds = [
            np.mean([expected_scores([row for row in fold if row["seed"] == seed])[name] for seed in ("3", "11")])
            for fold in rows
        ]
        pooled = [
            expected_scores([row for fold in rows for row in fold if row["seed"] == seed])[name] for seed in ("3", "11")
        ]
        score = joined.scores[name]
        assert score.folds == pytest.approx(folds)
        assert (score.mean, score.std) == pytest.approx((np.mean(folds), np.std(folds, ddof=1)))
        assert (score.pooled, score.pooled_std) == pytest.approx((np.mean(pooled), np.std(pooled, ddof=1)))
        assert score.interval.low <= score.pooled <= score.interval.high
    assert joined.classes.support[0].sum() == sum(
        row["true"] != "" for fold in rows for row in fold if row["seed"] == "3"
    )


def test_the_ensemble_takes_the_mean_of_all_probabilities(folders: list[Path]) -> None:
    rows = [row for folder in folders for row in rows_of(folder / "predictions.csv") if row["true"]]
    sums: dict[str, dict[str, float]] = {}
    for row in rows:
        found = sums.setdefault(row["utterance"], {"true": row["true"]})
        for name in row:
            if name.startswith("p_"):
                found[name[2:]] = found.get(name[2:], 0.0) + float(row[name])
    true = [one.pop("true") for one in sums.values()]
    predicted = [max(one, key=lambda label: one[label]) for one in sums.values()]
    expected = reference.f1_score(true, predicted, average="weighted", zero_division=0.0)
    assert join_folds(folders, PARAMS).scores["weighted_f1"].ensemble == pytest.approx(expected)


def test_a_fold_without_a_linear_reference_joins_without_it(folders: list[Path]) -> None:
    edit_details(folders[0], "linear", to=[])
    joined = join_folds(folders, PARAMS)
    assert [*joined.scores["accuracy"].beside] == ["floor", "chance"]
    assert "linear reference" not in table_md(joined).lower()


def test_joined_folds_say_what_has_not_learned_and_what_no_score_shows(folders: list[Path]) -> None:
    idle = "Seed 11 has not learned: its loss never fell."
    edit_details(folders[1], "warnings", to=[idle, "Only 5 conversations of the test split can be scored."])
    table = table_md(join_folds(folders, PARAMS))
    assert f"**{folders[1].name}: {idle}**" in table.replace("\\", "")
    assert "of the test split can be scored" not in table
    assert "The models are no better than the linear reference: weighted" in table


def test_joined_folds_say_once_what_is_tested_on_copies(folders: list[Path]) -> None:
    copies = "3 of 9 utterances of test are the same as one in train (the same audio)."
    for folder in folders[1:]:
        edit_details(folder, "warnings", to=[copies])
    found = [line for line in join_folds(folders, PARAMS).warnings if "the same as" in line]
    assert found == [f"{folders[1].name}: {copies} So it is in 1 other fold."]


def test_the_order_of_utterances_changes_nothing(folders: list[Path]) -> None:
    before = join_folds(folders, PARAMS)
    fold = read_fold(folders[0])
    path = folders[0] / "predictions.csv"
    half = len(fold.rows) // 2
    mixed = [*fold.rows[:half][::-1], *fold.rows[half:][::-1]]  # of each seed
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([fold.header, *mixed])
    edit_details(folders[0], "files", **hash_files({"predictions.csv": (folders[0] / "predictions.csv").read_bytes()}))
    after = join_folds(folders, PARAMS)
    for name, score in before.scores.items():
        assert (after.scores[name].mean, after.scores[name].pooled) == pytest.approx((score.mean, score.pooled))


def test_files_agree_with_each_other(folders: list[Path], tmp_path: Path) -> None:
    joined: Joined = join_folds(folders, PARAMS)
    write_folds(joined, tmp_path / "joined")
    details = json.loads((tmp_path / "joined" / "details.json").read_text())
    score = details["test"]["weighted_f1"]
    assert set(score["folds"]) == {"fold-1", "fold-2", "fold-3"}
    assert score["mean"] == pytest.approx(sum(score["folds"].values()) / 3, abs=1e-6)
    single = [json.loads((folder / "details.json").read_text()) for folder in folders]
    for name in ("floor", "chance"):
        assert score[name] == pytest.approx(np.mean([one["test"]["weighted_f1"][name] for one in single]))
    assert score["linear"] == pytest.approx(
        np.mean([one["linear"][0]["test"]["weighted_f1"]["value"] for one in single])
    )
    rows = rows_of(tmp_path / "joined" / "predictions.csv")
    assert [{**row, "fold": folder.name} for folder in folders for row in rows_of(folder / "predictions.csv")] == rows
    table = (tmp_path / "joined" / "table.md").read_text()
    assert f"| {score['mean']:.3f} ± {score['std']:.3f} | {score['linear']:.3f} |" in table
    assert f"| {score['ensemble']:.3f} |" in table
    assert details["run"]["id"] in table
    assert all(name in table for name in ("| fold-2 |", "| joy |", *details["run"]["folds"].values()))


def test_the_same_folds_give_the_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folds(join_folds(folders, PARAMS), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def edit_details(folder: Path, key: str, to: Any = None, **values: Any) -> None:
    """Let details.json say something else, as if it had been written so."""
    path = folder / "details.json"
    details = json.loads(path.read_text())
    details[key] = details[key] | values if to is None else to
    del details["digest"]
    path.write_text(json.dumps(digested(details)))


def edit_run(folder: Path, **values: Any) -> None:
    edit_details(folder, "run", **values)


def edit_text(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def edit_predictions(folder: Path, old: str, new: str, count: int = -1) -> None:
    path = folder / "predictions.csv"
    path.write_text(path.read_text().replace(old, new, count))
    edit_details(folder, "files", **hash_files({path.name: path.read_bytes()}))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "parameters": (lambda f: edit_run(f, params="f00"), "fold-2 was run with params f00, but fold-1 with"),
    "model": (lambda f: edit_run(f, model="hcam"), "fold-2 was run with model hcam, but fold-1 with hbaf"),
    "encoders": (lambda f: edit_run(f, encoders="other"), "run with encoders other, but fold-1 with made-audio"),
    "seeds": (lambda f: edit_run(f, seeds="3"), "fold-2 was run with seeds 3, but fold-1 with 3,11"),
    "labels": (lambda f: edit_predictions(f, "joy", "glee"), "fold-2 has the labels anger, glee, neutral, but fold-1"),
    "conversation": (lambda f: edit_predictions(f, ",2/test/001,", ",1/test/001,"), "'1/test/001' is tested in fold-1"),
    "a file of another run": (
        lambda f: shutil.copy(f.with_name("fold-1") / "table.md", f),
        "fold-2/table.md: of another run than the files beside it, damaged or edited; run fusion-evaluate again",
    ),
    "run": (lambda f: edit_run(f, id="123"), "predictions.csv: is not of run 123, as details.json beside it"),
    "no predictions": (
        lambda f: (f / "predictions.csv").unlink(),
        "predictions.csv: no such result file; run fusion-evaluate",
    ),
    "no details": (lambda f: (f / "details.json").unlink(), "details.json: no such result file; run fusion-evaluate"),
    "edited details": (
        lambda f: edit_text(f / "details.json", '"mean": 0.', '"mean": 0.1'),
        "details.json: damaged or edited since it was written; run fusion-evaluate again",
    ),
    "broken details": (lambda f: (f / "details.json").write_text("{"), "not the details of an evaluation"),
    "unknown label": (lambda f: edit_predictions(f, "test,joy,", "test,glee,"), "label 'glee' is none of anger"),
    "another seed": (lambda f: edit_predictions(f, ",11,", ",12,", 1), "do not list the same utterances"),
    "bytes": (lambda f: (f / "predictions.csv").write_bytes(b"\xff\xfe"), "predictions.csv: cannot be read"),
    "no probabilities": (lambda f: edit_predictions(f, "p_", "q_"), "and a probability of each label, found run, seed"),
    "empty": (lambda f: (f / "predictions.csv").write_text(""), "holds no table of predictions"),
    "cut": (
        lambda f: (f / "predictions.csv").write_text((f / "predictions.csv").read_text()[:-30]),
        "truncated, or not a table of 12 columns",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_fold_of_the_same_study_is_refused(folders: list[Path], name: str) -> None:
    spoil, expected = REFUSED[name]
    spoil(folders[1])
    with pytest.raises(ResultError) as error:
        join_folds(folders, PARAMS)
    assert expected in str(error.value)


def test_one_fold_is_not_joined(folders: list[Path]) -> None:
    with pytest.raises(ResultError, match="1 folder of results, but folds are joined"):
        join_folds(folders[:1], PARAMS)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_predictions_are_joined_or_refused(folders: list[Path], data: st.DataObject) -> None:
    path = folders[1] / "predictions.csv"
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    piece = data.draw(st.sampled_from([b"", b",", b"\n", b'"', b"\xff", b"\0", b"joy"]))
    try:
        path.write_bytes(whole[:place] + piece + whole[place + data.draw(st.integers(0, 3)) :])
        join_folds(folders, PARAMS)
    except ResultError:
        pass
    finally:
        path.write_bytes(whole)


def test_the_command(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*map(str, folders), "--output", "joined", "--set", "evaluate.resamples=20"]
    done = CliRunner().invoke(folds_app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.startswith("joined: test weighted_f1 0.")
    assert len(done.stdout.splitlines()) == 1
    assert json.loads((tmp_path / "joined" / "details.json").read_text())["run"]["intervals"]["resamples"] == 20
    assert "all files were there already, unchanged" in CliRunner().invoke(folds_app, arguments).stdout
    other = [*arguments[:2], *arguments[3:]]
    lost = CliRunner().invoke(folds_app, other)
    assert (lost.exit_code, "joined: holds the results of another run; name another" in lost.stderr) == (2, True)
    assert CliRunner().invoke(folds_app, [*other, "--overwrite"]).exit_code == 0
    refused = CliRunner().invoke(folds_app, [str(folders[0]), str(folders[0])], catch_exceptions=False)
    assert refused.exit_code == 2
    assert "is tested in fold-1 and in fold-1" in refused.stderr
