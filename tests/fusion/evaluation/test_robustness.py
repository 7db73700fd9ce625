"""Robustness studies: degraded parts, missing modalities, and the files of results/robustness/."""

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import fusion.evaluation.result_files
import fusion.evaluation.robustness
import fusion.evaluation.scores
from fusion.checkpoint import load_model
from fusion.cli import evaluate_app
from fusion.data import load_split
from fusion.data.rows import Chosen
from fusion.errors import FeatureError
from fusion.evaluation import describe_run, evaluate, evaluate_all, load_test, measure_robustness, read_degraded
from fusion.evaluation.robustness import CLEAN, MISSING_AUDIO, Level, Robustness, withhold
from fusion.evaluation.robustness_files import robustness_files, scores_csv, table_md
from fusion.inference import predict
from fusion.objective.tasks import LabelTask
from fusion.params import EvaluateParams
from fusion.runtime import replace_files
from pipeline.store import Features, Identity, Part, PartLayout, SlotWriter, read_features
from tests.fusion.made import LABELS, Made, make_features, tiny_recipe, train_made, write_made
from tests.pipeline.made import part_from_arrays

TASK = LabelTask(len(LABELS))
CPU = torch.device("cpu")
PARAMS = EvaluateParams(resamples=50, missing=(1.0, 0.5))
RUN: dict[str, Any] = {"id": "0123456789ab", "model": "hbaf", "seeds": "3,11"}
ROUNDED = 1e-6  # of the files


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    path = tmp_path_factory.mktemp("data") / "feats.h5"
    return write_made(path, Made(conversations=(10, 5, 8), frames=(1, 12), tokens=(1, 5)))


@pytest.fixture(scope="module")
def models(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "hbaf"
    train_made(features, output, tiny_recipe(epochs=5, learning_rate=0.02, seeds=(3, 11)))
    return output


def rows_of_test(features: Features, modality: str) -> tuple[list[str], list[np.ndarray]]:
    part: Part = getattr(features, modality)
    here = [index for index, split in enumerate(features.utterances.splits) if split == "test"]
    return [part.ids[index] for index in here], [np.array(part.rows(index)) for index in here]


def write_part(
    folder: Path,
    features: Features,
    name: str,
    given: dict[str, Any],
    change: Callable[[int, np.ndarray], np.ndarray] = lambda _, rows: rows,
    drop: int = 0,
    **identity: Any,
) -> None:
    """A part of the test split with `change`d rows."""
    modality = "audio" if given["study"] == "noise" else "text"
    ids, rows = rows_of_test(features, modality)
    rows = [change(index, array) for index, array in enumerate(rows)][drop:]
    fields = {**getattr(features, modality).identity.fields, **identity, "input": given}
    counts = [len(array) for array in rows]
    layout = PartLayout(ids[drop:], counts, rows[0].shape[1:], "float16", Identity(fields), "made")
    with SlotWriter(folder / name, layout) as writer:
        writer.write(range(len(rows)), rows)
        writer.finish()


def noisy(scale: float) -> Callable[[int, np.ndarray], np.ndarray]:
    return lambda index, rows: rows + np.random.default_rng(index).normal(0, scale, rows.shape)


def words(level: float | None, edits: int) -> dict[str, Any]:
    study = {"study": "recogniser"} if level is None else {"study": "word-errors", "level": level}
    return {**study, "edits": edits, "words": 200}


@pytest.fixture(scope="module")
def degraded(features: Features) -> Path:
    """Beside the feature file, where fusion-evaluate looks for it."""
    folder = features.path.parent / "degraded"
    write_part(folder, features, "text-word-errors-0.5.h5", words(0.5, 97), noisy(2.0))
    write_part(folder, features, "text-word-errors-0.1.h5", words(0.1, 19), noisy(0.2))
    write_part(folder, features, "text-recogniser.h5", words(None, 55), noisy(1.0))
    for level in (0.0, 20.0, -10.0):
        write_part(
            folder, features, f"audio-noise-{level:g}dB.h5", {"study": "noise", "level": level}, noisy(8 - 0.4 * level)
        )
    return folder


@pytest.fixture(scope="module")
def robustness(features: Features, models: Path, degraded: Path) -> Robustness:
    return measure_robustness(load_test(features, models, CPU), PARAMS, read_degraded(None, features))


def study(robustness: Robustness, name: str) -> list[Level]:
    return [level for level in robustness.levels if level.study == name]


def test_every_study_begins_clean_and_gets_worse(robustness: Robustness) -> None:
    assert [(level.study, level.level, level.word_error_rate) for level in robustness.levels] == [
        ("word-errors", 0.0, 0.0),
        ("word-errors", 0.1, 0.095),
        ("word-errors", 0.5, 0.485),
        ("recogniser", 0.0, 0.0),
        ("recogniser", None, 0.275),
        ("noise", math.inf, None),
        ("noise", 20.0, None),
        ("noise", 0.0, None),
        ("noise", -10.0, None),
        ("missing-audio", 0.0, None),
        ("missing-audio", 0.5, None),
        ("missing-audio", 1.0, None),
        ("missing-text", 0.0, None),
        ("missing-text", 0.5, None),
        ("missing-text", 1.0, None),
    ]


def test_the_clean_level_is_the_evaluation_bit_for_bit(
    robustness: Robustness, features: Features, models: Path
) -> None:
    evaluation = evaluate(features, models, PARAMS, CPU)
    clean = [level for level in robustness.levels if level.level == CLEAN[level.study]]
    assert len(clean) == 5
    for level in clean:
        for name, summary in evaluation.summaries.items():
            score = level.scores[name]
            assert (score.mean, score.std, score.interval) == (summary.mean, summary.std, summary.interval)
            assert (score.change, score.change_interval.low, score.change_interval.high) == (0, 0, 0)
            assert robustness.floor[name] == summary.floor


def test_models_and_the_test_split_are_read_once(
    features: Features, models: Path, degraded: Path, robustness: Robustness, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []

    def counting(name: str) -> None:
        original = getattr(fusion.evaluation.scores, name)

        def count(*arguments: Any, **options: Any) -> Any:
            read.append((name, arguments[2] if name == "load_for" else arguments[0]))
            return original(*arguments, **options)

        monkeypatch.setattr(fusion.evaluation.scores, name, count)

    counting("load_seeds")
    counting("load_for")
    for module in (fusion.evaluation.robustness, fusion.evaluation.result_files):
        assert not {"load_seeds", "load_for", "load_split"} & set(vars(module))  # nor does another one read by itself
    evaluation, again = evaluate_all(features, models, PARAMS, read_degraded(degraded, features), CPU)
    assert [one for one in read if one != ("load_for", "train") and one != ("load_for", "validation")] == [
        ("load_seeds", models),
        ("load_for", "test"),
    ]
    assert again.levels == robustness.levels
    assert evaluation.summaries == evaluate(features, models, PARAMS, CPU).summaries


def test_a_level_is_scored_on_its_own_part(robustness: Robustness, features: Features, models: Path) -> None:
    """Against a feature file whose whole text is the degraded one."""
    ids, rows = rows_of_test(features, "text")
    assert features.text is not None
    changed = {
        name: noisy(2.0)(index, array).astype(np.float16)
        for index, (name, array) in enumerate(zip(ids, rows, strict=True))
    }
    every = [changed.get(name, features.text.rows(index)) for index, name in enumerate(features.text.ids)]
    other = replace(features, text=part_from_arrays(Path("x"), features.text.ids, every, features.text.identity))
    expected = evaluate(other, models, PARAMS, CPU).summaries
    level = study(robustness, "word-errors")[2]
    for name, score in level.scores.items():
        assert (score.mean, score.interval) == (expected[name].mean, expected[name].interval)


def test_degraded_audio_is_pooled_as_the_model_was_trained(features: Features, models: Path, tmp_path: Path) -> None:
    """Unchanged rows of up to 12 frames, pooled to 8, score as the clean split does."""
    write_part(tmp_path, features, "audio-noise-90dB.h5", {"study": "noise", "level": 90.0})
    parts = read_degraded(tmp_path, features)
    clean, same = measure_robustness(load_test(features, models, CPU), EvaluateParams(resamples=20), parts).levels
    assert same.scores == clean.scores


def test_changes_are_differences_with_the_same_draws(robustness: Robustness) -> None:
    for name in CLEAN:
        clean, *worse = study(robustness, name)
        for level in worse:
            for metric, score in level.scores.items():
                assert score.change == pytest.approx(score.mean - clean.scores[metric].mean)
                assert score.change_interval.low <= score.change_interval.high
    loudest = study(robustness, "noise")[-1].scores["weighted_f1"]
    assert loudest.change < 0
    width = loudest.change_interval.high - loudest.change_interval.low
    clean_interval = study(robustness, "noise")[0].scores["weighted_f1"].interval
    # equal where the clean score is perfect in every draw
    assert width <= loudest.interval.high - loudest.interval.low + clean_interval.high - clean_interval.low + 1e-9


# missing modalities


@pytest.mark.parametrize(("modality", "other"), [("audio", "text"), ("text", "audio")])
def test_a_share_of_1_is_the_modality_withheld(features: Features, models: Path, modality: str, other: str) -> None:
    model = load_model(models / "seed-3").model
    split = load_split(features, "test", modalities="both", audio_frames=8)
    missing = withhold(split, f"missing-{modality}", 1.0, seed=0).split
    without = load_split(features, "test", modalities=other, audio_frames=8)  # type: ignore[arg-type]
    batch = next(missing.batches(100))
    assert not getattr(batch, f"{modality}_present").any()
    with torch.inference_mode():
        expected = model(next(without.batches(100))).logits
        torch.testing.assert_close(model(batch).logits, expected, rtol=0, atol=0)
    np.testing.assert_array_equal(predict(model, missing, TASK), predict(model, without, TASK))


def test_a_share_of_nothing_changes_no_bit(features: Features, models: Path) -> None:
    model = load_model(models / "seed-3").model
    split = load_split(features, "test", modalities="both", audio_frames=8)
    none = withhold(split, MISSING_AUDIO, 0.0, seed=0).split
    np.testing.assert_array_equal(predict(model, none, TASK), predict(model, split, TASK))


def test_a_larger_share_holds_a_smaller_one_and_the_rest_is_untouched(features: Features) -> None:
    split = load_split(features, "test", modalities="both", audio_frames=8)
    before: set[int] = set()
    for share in (0.1, 0.25, 0.5, 1.0):
        audio = withhold(split, MISSING_AUDIO, share, seed=0).split.audio
        gone = set(np.flatnonzero(audio.lengths.numpy() == 0).tolist())
        assert len(gone) == round(share * len(split.ids))
        assert before < gone
        for index in set(range(len(split.ids))) - gone:
            chosen = Chosen(*[torch.tensor([index])] * 2)
            assert torch.equal(audio.gather(chosen, 8)[0], split.audio.gather(chosen, 8)[0])
        before = gone


def test_who_misses_a_modality_depends_on_the_seed(features: Features) -> None:
    split = load_split(features, "test", modalities="both", audio_frames=8)
    lengths = [withhold(split, MISSING_AUDIO, 0.5, seed).split.audio.lengths.tolist() for seed in (0, 0, 1)]
    assert lengths[0] == lengths[1] != lengths[2]


def test_layers_survive_withholding() -> None:
    features = make_features(Made(conversations=(2, 1, 2), layers=(3, 1)))
    split = load_split(features, "test", modalities="both", audio_frames=8)
    withheld = split.audio.without(torch.ones(len(split.ids), dtype=torch.bool))
    assert (withheld.shape, withheld.lengths.any()) == ((3, 6), False)


def test_a_model_of_one_modality_has_the_studies_of_that_one(
    features: Features, degraded: Path, tmp_path: Path
) -> None:
    train_made(features, tmp_path / "text", tiny_recipe({"modalities": "text"}, epochs=1))
    parts = read_degraded(degraded, features)
    result = measure_robustness(load_test(features, tmp_path / "text", CPU), PARAMS, parts)
    assert {level.study for level in result.levels} == {"word-errors", "recogniser", "missing-text"}
    assert all(name.startswith("text-") for name in result.parts)


# what is refused


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another encoder": (
        {"weights": "t2"},
        "text of another encoder or precision than .*feats.h5; run pipeline-degrade",
    ),
    "other utterances": ({"drop": 1}, "other utterances than the test split of"),
    "an unknown study": ({"given": {"study": "echo"}}, "not degraded features of a study that is known here"),
    "other texts": ({"given": words(0.1, 3) | {"of": "0" * 32}}, "made from other texts than .*feats.h5"),
    "recordings of other lengths": (
        {"given": {"study": "noise", "level": 1.0}, "change": lambda _, rows: rows[:0]},
        "recordings of other lengths than those of",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_parts_that_do_not_belong_to_the_features_are_refused(what: str, features: Features, tmp_path: Path) -> None:
    options, message = REFUSED[what]
    given = options.get("given", words(0.1, 3))
    write_part(tmp_path, features, "part.h5", **{"given": given, **options})
    assert features.text is not None
    features = replace(features, text=replace(features.text, sources=["1" * 32 for _ in features.text.ids]))
    with pytest.raises(FeatureError, match=message):
        read_degraded(tmp_path, features)


def test_an_ordinary_part_is_not_taken_for_a_degraded_one(features: Features, tmp_path: Path) -> None:
    ids, rows = rows_of_test(features, "text")
    assert features.text is not None
    layout = PartLayout(ids, [len(array) for array in rows], (5,), "float16", features.text.identity, "")
    with SlotWriter(tmp_path / "text.h5", layout) as writer:
        writer.write(range(len(rows)), rows)
        writer.finish()
    with pytest.raises(FeatureError, match="not degraded features"):
        read_degraded(tmp_path, features)


def test_a_folder_that_is_named_must_be_there(features: Features, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="none: no such folder; write it with pipeline-degrade"):
        read_degraded(tmp_path / "none", features)
    elsewhere = replace(features, path=tmp_path / "feats.h5")
    assert read_degraded(None, elsewhere) == {}


# results/robustness/


def numbers(robustness: Robustness) -> list[dict[str, str]]:
    return list(csv.DictReader(scores_csv(robustness, RUN).splitlines()))


def test_the_csv_holds_every_level_and_metric(robustness: Robustness) -> None:
    rows = numbers(robustness)
    assert [row["study"] for row in rows] == [level.study for level in robustness.levels]
    for row, level in zip(rows, robustness.levels, strict=True):
        assert row["run"] == RUN["id"]
        assert (float(row["level"]) if row["level"] else None) == level.level
        assert (float(row["word_error_rate"]) if row["word_error_rate"] else None) == level.word_error_rate
        for name, score in level.scores.items():
            found = [float(row[name + kind]) for kind in ("", "_std", "_low", "_high", "_change", "_change_high")]
            expected = [score.mean, score.std, score.interval.low, score.interval.high, score.change]
            assert found == pytest.approx([*expected, score.change_interval.high], abs=ROUNDED)


def test_the_tables_hold_the_numbers_of_the_csv(robustness: Robustness) -> None:
    lines = table_md(robustness, RUN).splitlines()
    tables = [
        line.split(" | ") for line in lines if line.startswith("| ") and not line.startswith(("| level", "| ---"))
    ]
    rows = numbers(robustness)
    assert len(tables) == len(rows)
    for cells, row in zip(tables, rows, strict=True):
        scores = cells[2:] if row["word_error_rate"] else cells[1:]
        assert scores[0] == f"{float(row['weighted_f1']):.3f} ± {float(row['weighted_f1_std']):.3f}"
        assert scores[1] == f"{float(row['weighted_f1_low']):.3f} to {float(row['weighted_f1_high']):.3f}"
        if "clean" not in cells[0]:
            assert float(scores[2]) == pytest.approx(float(row["weighted_f1_change"]), abs=5.1e-4)
    assert [line for line in lines if line.startswith("## ")] == [
        "## Word errors in the transcripts",
        "## Transcripts of a speech recogniser",
        "## Noise in the recordings",
        "## Audio missing",
        "## Text missing",
    ]
    assert "`audio-noise-0dB.h5`" in lines[-1]


@pytest.fixture(scope="module")
def written(robustness: Robustness, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    replace_files(folder, robustness_files(robustness, RUN), "robustness")
    return folder


def test_there_is_a_picture_for_each_study_and_the_same_bytes_again(
    robustness: Robustness, written: Path, tmp_path: Path
) -> None:
    replace_files(tmp_path, robustness_files(robustness, RUN), "robustness")
    assert sorted(path.name for path in written.iterdir()) == [
        "missing.png",
        "noise.png",
        "scores.csv",
        "table.md",
        "words.png",
    ]
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()  # its checksums are right
                assert picture.info["run"] == RUN["id"]


def test_pictures_of_studies_that_are_no_longer_asked_for_are_gone(
    robustness: Robustness, written: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "robustness"))
    less = replace(robustness, levels=study(robustness, "noise"))
    assert replace_files(folder, robustness_files(less, RUN), "robustness")
    assert sorted(path.name for path in folder.iterdir()) == ["noise.png", "scores.csv", "table.md"]


# fusion-evaluate


def run(*arguments: str) -> Result:
    return CliRunner().invoke(evaluate_app, list(arguments), catch_exceptions=False)


@pytest.fixture
def project(features: Features, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        "evaluate: {resamples: 20, missing: [0.5], degrade: {noise: [1], what: ever}}"
    )
    return ["--features", str(features.path), "--models", str(models)]


def test_the_command_writes_the_studies_beside_the_scores(
    project: list[str], degraded: Path, features: Features, models: Path
) -> None:
    done = run(*project)
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 1
    rows = list(csv.DictReader(Path("results/robustness/scores.csv").read_text().splitlines()))
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert {row["run"] for row in rows} == {metrics["run"]}
    clean = [row for row in rows if row["level"] in ("0", "inf") and not float(row["weighted_f1_change"])]
    assert {row["study"] for row in clean} == set(CLEAN)
    assert {float(row["weighted_f1"]) for row in clean} == {metrics["weighted_f1"]["mean"]}
    params = EvaluateParams(resamples=20, missing=(0.5,))
    again = describe_run(evaluate(read_features(features.path), models, params, CPU), None)
    assert again["intervals"] == {
        "resamples": 20,
        "confidence": 0.95,
        "permutations": 10_000,
        "seed": 0,
        "missing": [0.5],
    }


def test_with_nothing_asked_for_there_is_no_row_and_no_picture(project: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run(*project, "--degraded", "empty", "--set", "evaluate.missing=[]")
    assert done.exit_code == 0
    assert sorted(path.name for path in Path("results/robustness").iterdir()) == ["scores.csv", "table.md"]
    assert len(Path("results/robustness/scores.csv").read_text().splitlines()) == 1
    assert "No study was asked for: see `evaluate.missing`" in Path("results/robustness/table.md").read_text()


def test_a_degraded_part_that_does_not_fit_is_one_line_before_anything_is_written(
    project: list[str], features: Features, tmp_path: Path
) -> None:
    write_part(tmp_path / "other", features, "text.h5", words(0.1, 3), weights="t2")
    done = run(*project, "--degraded", "other")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: other/text.h5: text of another encoder")
    assert not Path("results").exists()


def test_shares_are_checked(project: list[str]) -> None:
    for value, message in (("[0]", "greater than 0"), ("[1.5]", "less than or equal to 1"), ("[0.5,0.5]", "once only")):
        done = run(*project, "--set", f"evaluate.missing={value}")
        assert done.exit_code == 2
        assert message in done.stderr


def test_charts_that_cannot_be_drawn_with_few_open_files_are_refused_in_a_line() -> None:
    """In a process of its own, since the converter starts threads that no fork has."""
    script = """
import resource
import altair as alt
from fusion.evaluation import draw_png
resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
draw_png(alt.Chart(alt.Data(values=[])).mark_point())
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "OutputError: charts cannot be drawn with only 12 files open at once; allow 64: ulimit -n 64" in found.stderr
