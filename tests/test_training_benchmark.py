"""`benchmarks/training.py` at toy size: what it prints and writes, not how fast."""

import csv
import doctest
import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.data import load_split
from fusion.models import MODELS
from fusion.params import read_recipe
from pipeline.store import Features, read_features
from tests.fusion.batches import make_batch, regrouped, tensors_in
from tests.fusion.made import make_features, tiny_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
EMOTIONS = ("neutral", "joy", "anger")
CONVERSATIONS = {"train": 8, "dev": 3, "test": 2}
HEADER = ["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"]
TOY = ["--dim", "16", "--seeds", "2", "--repeats", "1", "--epochs", "1", "--study-seeds", "1", "--device", "cpu"]
SMALL = ["--set", "model.dim=8", "--set", "model.heads=2", "--set", "model.audio_frames=8"]


def load(name: str) -> Any:
    """A module of the benchmarks."""
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def training() -> Any:
    """The command, which finds its parts beside itself."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield load("training")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables like MELD's, of a few conversations; one utterance has no clip."""
    root = tmp_path_factory.mktemp("release")
    clips = [["split", "dialogue", "utterance", "samples", "sample_rate"]]
    for split, conversations in CONVERSATIONS.items():
        rows = []
        for dialogue in range(conversations):
            for turn in range(2 + dialogue % 3):
                label = EMOTIONS[(dialogue + turn) % 3]
                text = " ".join(["well"] * (1 + (dialogue * 5 + turn) % 7))
                rows.append([len(rows), text, "Monica", label, "neutral", dialogue, turn])
                clips.append([split, dialogue, turn, 4_000 + 9_000 * ((dialogue + 2 * turn) % 5), 48_000])
        write_table(root / f"{split}_sent_emo.csv", [HEADER, *rows])
    write_table(root / "clips.csv", [clips[0], *clips[2:]])
    return root


def write_table(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def run(training: Any, release: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Results and tables of a run of all parts but `start`, which is tested below."""
    work = tmp_path_factory.mktemp("work")
    given = ["--work", str(work), "--output", str(work / "results.json"), "--meld", str(release), "--share", "1"]
    capture = pytest.MonkeyPatch()
    for name in ("training_runs", "training_studies"):  # processes take seconds to start; one is tested below
        capture.setattr(load(f"measures.{name}"), "in_own_process", lambda function, task: function(task))
    capture.setattr(load("measures.training_runs"), "in_own_processes", lambda do, tasks: [do(one) for one in tasks])
    studies = load("measures.training_studies")
    capture.setattr(studies, "STUDY", dict(list(studies.STUDY.items())[:1]))
    printed: list[str] = []
    capture.setattr("builtins.print", lambda *values, file=None, **_: printed.extend([] if file else values))
    try:
        training.main([*given, *TOY, *SMALL, "--parts", "models", "growth", "operations", "every", "study"])
    finally:
        capture.undo()
    return json.loads((work / "results.json").read_text()), printed[-1]


@pytest.fixture(scope="module")
def features(training: Any, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Features:
    """The made features of all conversations."""
    spoken = load("measures.spoken").read_spoken(release)
    return read_features(load("measures.planted").write_planted(spoken, tmp_path_factory.mktemp("features"), 16))


@pytest.mark.soak
def test_every_way_to_train_is_timed_for_every_model(run: tuple[dict[str, Any], str]) -> None:
    results, printed = run
    runs = load("measures.training_runs")
    assert [found["model"] for found in results["models"]] == ["hbaf", "hcam", "concat"]
    for found in results["models"]:
        assert [variant["name"] for variant in found["variants"]] == list(runs.WAYS)
        assert found["epochs"] == (3 if found["model"] == "hcam" else 1)
        usual = found["variants"][0]
        assert usual["times_usual"]["median"] == 1
        assert usual["reached"] > 0
        for variant in found["variants"]:
            parts = variant["train_seconds"]["median"] + variant["validation_seconds"]["median"]
            assert 0 < variant["train_seconds"]["median"] < variant["epoch_seconds"]["median"]
            assert parts == pytest.approx(variant["epoch_seconds"]["median"])
            assert variant["seconds"]["lowest"] > found["epochs"] * variant["epoch_seconds"]["lowest"] / 2
            assert len(variant["scores"]) == 2
            assert 0 <= variant["mean_score"] <= 1
            assert 0 < variant["padding"]["text"] < 1
    assert load("measures.training_report").VARIANTS[runs.BESIDE] in printed


@pytest.mark.soak
def test_growth_holds_parts_of_the_corpus_to_all_of_it(run: tuple[dict[str, Any], str]) -> None:
    growth = [found for found in run[0]["growth"] if found["model"] == "hbaf"]
    assert [found["share"] for found in growth] == [0.25, 0.5, 1]
    assert sorted({found["utterances"] for found in growth}) == [found["utterances"] for found in growth]
    assert growth[-1]["utterance_ratio"]["median"] == 1
    assert all(found["utterance_ratio"]["median"] > 0 for found in growth)


@pytest.mark.soak
def test_an_epoch_of_every_model_is_timed(run: tuple[dict[str, Any], str]) -> None:
    every = {found["model"]: found for found in run[0]["every"]}
    assert list(every) == list(MODELS)
    assert every["hbaf"]["times_first"]["median"] == 1
    assert list(every["hcam"]["stage_seconds"]) == ["utterance", "conversation", "fusion"]
    assert all(one["lowest"] > 0 for found in every.values() for one in found["stage_seconds"].values())


@pytest.mark.soak
def test_a_study_is_trained_whole(run: tuple[dict[str, Any], str]) -> None:
    study = run[0]["study"]
    assert (study["variants"], study["seeds"], study["epochs"]) == (2, 1, 2)
    assert study["seconds"] > 0


@pytest.mark.soak
def test_tables_are_well_formed(run: tuple[dict[str, Any], str]) -> None:
    tables = [lines.split("\n") for lines in run[1].strip().split("\n\n") if lines.startswith("|")]
    assert len(tables) == 7  # three models, the stages of HCAM, growth, operations, every model
    for header, rule, *rows in tables:
        assert rows
        assert re.fullmatch(r"\| ---( \| ---:)+ \|", rule)
        assert {row.count("|") for row in [rule, *rows]} == {header.count("|")}


@pytest.mark.soak
def test_the_first_step_of_the_command_is_timed(training: Any, features: Features, tmp_path: Path) -> None:
    found = load("measures.training_studies").measure_start("concat", features.path, tmp_path, "cpu", 1)
    assert 0.5 < found.seconds.median < 600
    assert found.utterances == len(features.utterances)
    assert not list(tmp_path.iterdir())


def test_the_usual_way_gives_the_batches_of_this_trainer(training: Any, features: Features) -> None:
    usual = load("measures.usual")
    data = usual.Conversations(features, "train", 8)
    ours = load_split(features, "train", modalities="both", audio_frames=8)
    chosen = [4, 0, 5]
    expected, found = ours.gather(torch.tensor(chosen)), usual.collate([data[index] for index in chosen])
    assert len(data) == CONVERSATIONS["train"]
    torch.testing.assert_close(tensors_in(found), tensors_in(expected), equal_nan=True)


@pytest.mark.soak
def test_a_process_of_its_own_trains_with_the_threads_of_the_command(
    training: Any, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = load("measures.training_runs")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    recipe = read_recipe(None, ["model.name=concat", "train.epochs=1", "model.dim=8"])
    job = runs.Job(runs.RESIDENT, features.path, recipe, 0, "cpu")
    assert runs.environment(job) == {"OMP_NUM_THREADS": "1"}
    assert runs.environment(runs.Job(runs.USUAL, features.path, recipe, 0, "cpu")) == {}
    found = runs.in_own_process(runs.run, job)
    assert [epoch.stage for epoch in found.epochs] == ["fusion"]
    assert 0 < found.epoch_seconds < found.seconds
    assert found.own_peak_bytes is None or 2**20 < found.own_peak_bytes <= found.peak_bytes


def test_features_have_the_lengths_and_labels_of_the_tables(features: Features, release: Path) -> None:
    spoken = load("measures.spoken").read_spoken(release)
    assert features.audio is not None
    assert features.text is not None
    assert np.diff(features.audio.offsets).tolist() == [one.frames for one in spoken]
    assert np.diff(features.text.offsets).tolist() == [one.tokens for one in spoken]
    assert [one.record.id for one in spoken if not one.frames] == ["train/0/0"]
    labels = Counter(features.label_names[label] for label in features.utterances.labels)
    assert labels == Counter(one.record.label for one in spoken)


def test_a_share_is_part_of_a_larger_one_and_its_features_are_the_same(
    training: Any, features: Features, release: Path, tmp_path: Path
) -> None:
    spoken, planted = load("measures.spoken"), load("measures.planted")
    chosen = [spoken.of_share(spoken.read_spoken(release), share) for share in (0.25, 0.5, 1)]
    quarter, half, whole = ({one.record.id for one in part} for part in chosen)
    assert quarter < half < whole
    part = read_features(planted.write_planted(chosen[1], tmp_path, 16))
    for name in ("audio", "text"):
        rows, all_rows = getattr(part, name), getattr(features, name)
        for index, utterance in enumerate(part.utterances.ids):
            np.testing.assert_allclose(rows.rows(index), all_rows.rows(all_rows.ids.index(utterance)), atol=1e-3)


def test_what_is_planted_tells_labels_that_noise_does_not(training: Any) -> None:
    planted, spoken = load("measures.planted"), load("measures.spoken")
    record = importlib.import_module("pipeline.manifest").Utterance
    told = [
        spoken.Spoken(record(id=f"{n}/{t}", conversation=str(n), turn=t, split="train", label="joy"), 50, 9)
        for n in range(150)
        for t in range(2)
    ]
    audio, text = planted.plant(told)
    for cues, share in ((audio, planted.AUDIO_SHARE), (text, planted.TEXT_SHARE)):
        own = [cue.label for row in cues for cue in row if not cue.first]
        assert len(own) / len(told) == pytest.approx(share, abs=0.1)
        assert Counter(own).most_common(1)[0][0] == 3  # joy is the fourth of MELD's labels
        assert 0.8 < own.count(3) / len(own) < 1
    before = [[cue for cue in row if cue.first] for row in text]
    assert not any(before[1::2])
    assert sum(map(bool, before[::2])) / 150 == pytest.approx(planted.CONTEXT_SHARE, abs=0.12)
    moved = planted.draw_latents(told[0], "audio", 50, [planted.Cue(3)]) - planted.draw_latents(
        told[0], "audio", 50, []
    )
    assert np.count_nonzero(moved) == planted.FRAME_SHARE * 50
    assert np.unique(moved[:, 3].round(3)).tolist() == [0, planted.STRENGTH]


def test_padding_is_counted_over_all_batches(training: Any) -> None:
    batches = [make_batch([2], [2, 4], [1, 3]), regrouped(make_batch([2], [1, 5], [2, 2]), [[0], [1]])]
    padding = load("measures.epochs").count_padding(batches)
    assert (padding.audio, padding.text) == (pytest.approx(2 / 14), pytest.approx(2 / 10))


def test_an_epoch_of_a_staged_model_is_that_of_its_stages(training: Any) -> None:
    epochs = load("measures.epochs")
    made = [
        epochs.EpochTime(stage, began, began + 1, began + seconds, score)
        for began, (stage, seconds, score) in enumerate([("one", 4, 0.9), ("one", 2, 0.8), ("two", 9, 0.3)])
    ]
    assert epochs.epoch_seconds(made) == pytest.approx((2 * 3 + 9) / 3)
    assert epochs.train_seconds(made) == pytest.approx(1)
    assert epochs.reach(made, 0.3) == made[2]
    assert epochs.reach(made, 0.5) is None


# at most so many operations a step: those measured, which every change that adds one must answer for
MOST_OPERATIONS = {
    "hbaf": {"fusion": 866},  # 1,025 before layers spared any
    "hcam": {"utterance": 435, "conversation": 453, "fusion": 674},  # 491, 539 and 830, without standardising (10)
}
# calls of cuDNN's GRU among them, forwards and backwards, each of which is some forty kernels
GRUS = {"hbaf": {"fusion": 6}, "hcam": {"utterance": 8, "conversation": 8, "fusion": 0}}


@pytest.mark.parametrize("model", MOST_OPERATIONS)
def test_a_step_asks_a_gpu_for_few_operations(training: Any, model: str) -> None:
    counted = load("measures.operations").measure_operations(model, make_features(), tiny_recipe({"name": model}))
    found = {step.stage: step.total for step in counted}
    assert found.keys() == MOST_OPERATIONS[model].keys()
    assert {stage: count for stage, count in found.items() if count > MOST_OPERATIONS[model][stage]} == {}
    assert all(step.by_phase["backward"] > step.by_phase["loss"] > 0 for step in counted)
    assert not any(step.indexed for step in counted)
    assert {step.stage: step.grus for step in counted} == GRUS[model]


def test_operations_are_counted_and_views_are_not(training: Any) -> None:
    operations = load("measures.operations")
    tally, x = operations._Tally(), torch.ones(2, 3)
    with operations._Counting(tally):
        torch.empty(2, 3).copy_(x.T.reshape(3, 2).T)[:, 0].view(2, 1).index_copy_(0, torch.tensor([1]), x[:1, :1])
        x.mul_(2).split(1)
    assert tally.found["gather"] == {"copy_": 1, "index_copy_": 1, "mul_": 1}
    assert tally.of(operations.INDEXED) == 1


@pytest.mark.parametrize("name", ["planted"])
def test_examples_hold(training: Any, name: str) -> None:
    found = doctest.testmod(load(f"measures.{name}"))
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("share", ["0", "5/4"])
def test_a_share_that_is_none_is_refused(training: Any, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["--work", "/nowhere", "--share", share])
    assert f"{share} is not above 0 and at most 1" in capsys.readouterr().err
