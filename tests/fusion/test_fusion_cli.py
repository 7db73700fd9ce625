"""fusion-train and fusion-evaluate as a user types them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fusion.cli import evaluate_app, train_app
from pipeline.store import read_features
from tests.fusion.made import Made, write_made
from tests.pipeline.test_interrupts import KEPT, children, interrupted

PARAMS = """
model: {dim: 8, heads: 2, audio_frames: 8}
train: {seeds: [0, 1], epochs: 2}
evaluate: {resamples: 20}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with features and parameters, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    write_made(tmp_path / "data" / "feats.h5", Made(conversations=(4, 2, 3)))
    return tmp_path


def run(app: Any, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_train_and_evaluate_need_nothing_but_the_feature_file(project: Path) -> None:
    trained = run(train_app, "--features", "data/feats.h5")
    assert trained.exit_code == 0
    assert trained.stdout.startswith("models/hbaf: 2 seeds, mean validation weighted_f1 ")
    assert sorted(path.name for path in (project / "models" / "hbaf").iterdir()) == ["seed-0", "seed-1"]
    assert not (project / "models" / "hbaf.partial").exists()

    evaluated = run(evaluate_app, "--features", "data/feats.h5")
    assert evaluated.exit_code == 0
    assert evaluated.stdout.startswith("results: test weighted_f1 ")
    assert len(trained.stdout.splitlines()) == len(evaluated.stdout.splitlines()) == 1
    assert trained.stderr == evaluated.stderr == ""  # no progress bar where there is no terminal
    content = json.loads((project / "results" / "details.json").read_text())
    assert content["run"]["intervals"]["resamples"] == 20


def test_paths_and_parameters_can_be_given(project: Path) -> None:
    (project / "other.yaml").write_text("train: {epochs: 1, seeds: [7]}\nmodel: {dim: 8, heads: 2}\n")
    common = ["--features", "data/feats.h5", "--params", "other.yaml", "--device", "cpu"]
    assert run(train_app, *common, "--set", "model.hbaf.context=none", "--output", "out/plain").exit_code == 0
    config = json.loads((project / "out" / "plain" / "seed-7" / "config.json").read_text())
    assert config["params"]["context"] == "none"
    assert run(evaluate_app, *common, "--models", "out/plain", "--output", "out/scores").exit_code == 0
    assert (project / "out" / "scores" / "metrics.json").exists()


def test_a_switch_that_has_no_effect_is_named_and_one_of_params_yaml_is_not(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    switches = ["--set", "model.name=concat", "--set", "train.epochs=1", "--set", "loss.supervised=0.9"]
    assert run(train_app, "--features", "data/feats.h5", *switches).exit_code == 0
    assert "'loss.supervised' has no effect: model.name is concat; only hcam uses it" in caplog.messages
    assert "model.heads" not in caplog.text


def test_finished_results_are_replaced_only_where_that_is_said(project: Path) -> None:
    common = ["--features", "data/feats.h5"]
    assert run(train_app, *common).exit_code == run(evaluate_app, *common).exit_code == 0
    written = {path: path.stat().st_mtime_ns for path in Path("results").rglob("*") if path.is_file()}
    same = run(evaluate_app, *common)
    assert (same.exit_code, same.stdout.rstrip().endswith("; all files were there already, unchanged")) == (0, True)
    for other, expected in (
        (["--set", "evaluate.resamples=30"], "other intervals"),
        (["--models", "models/longer"], "other params"),
    ):
        if "models/longer" in other:
            more = ["--set", "train.epochs=3", "--output", "models/longer"]
            assert run(train_app, *common, *more).exit_code == 0
        refused = run(evaluate_app, *common, *other)
        assert refused.exit_code == 2
        assert f"results: holds the results of another run ({expected}); name another folder" in refused.stderr
        assert {path: path.stat().st_mtime_ns for path in written} == written
    assert run(evaluate_app, *common, "--models", "models/longer", "--overwrite").exit_code == 0
    assert any(path.stat().st_mtime_ns != written[path] for path in written)


def test_predictions_have_speakers_and_what_was_said(project: Path) -> None:
    features = read_features(project / "data" / "feats.h5")
    lines = [json.dumps({"id": name, "text": f"=said, in {name}"}) for name in features.utterances.ids]
    (project / "data" / "manifest.jsonl").write_text("\n".join(lines))
    common = ["--features", "data/feats.h5"]
    assert run(train_app, *common).exit_code == run(evaluate_app, *common).exit_code == 0
    with (project / "results" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    speakers = dict(zip(features.utterances.ids, features.utterances.speakers, strict=True))
    assert {row["utterance"]: row["speaker"] for row in rows}.items() <= speakers.items()
    assert all(row["text"] == f"'=said, in {row['utterance']}" for row in rows)


def test_a_place_that_cannot_be_written_is_told_before_models_are_scored(project: Path) -> None:
    (project / "taken").write_text("a file")
    refused = run(evaluate_app, "--features", "data/feats.h5", "--output", "taken")  # there are no models, either
    assert (refused.exit_code, refused.stderr.splitlines()[0][:30]) == (2, "error: taken: cannot be writte")


def test_without_params_yaml_defaults_are_used_and_this_is_said(project: Path) -> None:
    (project / "params.yaml").unlink()
    small = ["model.dim=8", "model.heads=2", "model.audio_frames=4", "train.seeds=[5]", "train.epochs=1"]
    overrides = [argument for one in small for argument in ("--set", one)]
    done = run(train_app, "--features", "data/feats.h5", *overrides)
    assert done.exit_code == 0
    assert done.stderr == "params.yaml: not here, so every parameter has its default\n"
    config = json.loads((project / "models" / "hbaf" / "seed-5" / "config.json").read_text())
    assert config["erc"]["params"]["train"]["patience"] == 5


@pytest.mark.soak
def test_ctrl_c_is_one_line_also_with_processes_that_train(project: Path) -> None:
    """A terminal gives it to all of them."""
    command = ["fusion-ablate", "--features", "data/feats.h5", "--device", "cpu", "--jobs", "2"]
    sets = ["train.epochs=2000", "train.patience=2000", "ablations.plain={model.hbaf.gate: false}"]
    command += [argument for one in sets for argument in ("--set", one)]
    assert interrupted(command, project, lambda process: len(children(process)) >= 2) == (130, KEPT)


# decoupled weight decay multiplies every weight by 1 - 10 * 10 a step
DIVERGING = ["train.optimizer=adamw", "train.learning_rate=10", "train.weight_decay=10", "train.epochs=40"]
DIVERGING = [argument for one in DIVERGING for argument in ("--set", one)]

REFUSED = [
    (train_app, ["--features", "data/none.h5"], "data/none.h5: no such feature file"),
    (train_app, ["--features", "params.yaml"], "params.yaml: not a feature file of this project"),
    (train_app, ["--features", "data/feats.h5", "--params", "none.yaml"], "none.yaml: no such file"),
    (train_app, ["--features", "data/feats.h5", "--set", "model.contxt=none"], "did you mean 'model.hbaf.context'"),
    (train_app, ["--features", "data/feats.h5", "--set", "model.name=hcma"], "'model.name' is 'hcma'"),
    (train_app, ["--features", "data/feats.h5", "--device", "tpu"], "device 'tpu': no such device; here are auto, cpu"),
    (train_app, ["--features", "data/feats.h5", "--output", "."], "exists and is not a folder of models alone"),
    (train_app, ["--features", "data/feats.h5", "--output", "params.yaml/m"], "m.partial: cannot be written"),
    (train_app, ["--features", "data/feats.h5", *DIVERGING], "the loss is"),
    (evaluate_app, ["--features", "data/feats.h5"], "models/hbaf: no such model folder; train it with fusion-train"),
    (evaluate_app, ["--features", "data/feats.h5", "--models", "data"], "data: holds no seed-<n> folder"),
    (evaluate_app, ["--features", "data/feats.h5", "--set", "evaluate.confidence=2"], "'evaluate.confidence' is 2"),
]  # fmt: skip


@pytest.mark.parametrize(("app", "arguments", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_a_user_can_fix_is_one_line_and_status_2(
    project: Path, app: Any, arguments: list[str], message: str
) -> None:
    done = run(app, *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
