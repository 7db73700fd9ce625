"""Training: what it learns, what it may not see, that it repeats itself, and that it survives being killed."""

import ctypes
import io
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.batch import Batch, Output
from fusion.data import Split, load_split
from fusion.errors import FeatureError, OutputError, TrainingError
from fusion.inference import score_answers
from fusion.models import MODELS, Concat
from fusion.objective import best_epoch
from fusion.objective.losses import label_weights
from fusion.objective.tasks import LabelTask
from fusion.params import Recipe, read_recipe
from fusion.training import State, StateFile, build_split_model, fit, loop, train_seeds
from fusion.training.loop import Fit
from fusion.training.stage import StageRun, Training
from pipeline.settings import SettingsError
from pipeline.store import Features, read_features
from tests.fusion.made import Made, garble_test_split, make_features, tiny_recipe, train_made, write_made

CLASSES = 3
SMALL = Made(conversations=(8, 4, 2))
CPU = torch.device("cpu")


def splits(features: Features, recipe: Recipe) -> tuple[Split, Split]:
    load = partial(load_split, features, modalities=recipe.model.modalities, audio_frames=recipe.model.audio_frames)
    return load("train"), load("validation")


def train(features: Features, recipe: Recipe, seed: int = 0, state: StateFile | None = None) -> Fit:
    return fit(*splits(features, recipe), recipe, seed, classes=CLASSES, state=state)


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("signal", "withheld"), [("audio", "text"), ("text", "audio")])
def test_a_planted_signal_is_learned_from_the_modality_that_carries_it(signal: str, withheld: str) -> None:
    made = Made(conversations=(16, 8, 1), frames=(2, 5), tokens=(2, 5), signal=(signal,))
    recipe = tiny_recipe(epochs=3, learning_rate=0.02)
    assert train(make_features(made), recipe).best.scores["weighted_f1"] > 0.9
    without = replace(recipe, model=recipe.model.model_copy(update={"modalities": withheld}))
    assert train(make_features(made), without).best.scores["weighted_f1"] < 0.75


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    features, recipe = make_features(SMALL), tiny_recipe(epochs=2)
    first, again, other = (train(features, recipe, seed) for seed in (0, 0, 1))
    assert_same_weights(first.model.state_dict(), again.model.state_dict())
    assert first.history == again.history
    assert any(
        not torch.equal(weight, other.model.state_dict()[name]) for name, weight in first.model.state_dict().items()
    )


def test_training_leaves_the_callers_random_numbers_and_settings_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(make_features(SMALL), tiny_recipe(epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.filterwarnings("ignore:put_ does not have")
def test_a_model_with_an_operation_that_cannot_repeat_itself_is_trained_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    features, recipe = make_features(SMALL), tiny_recipe({"name": "concat"}, epochs=2)
    expected = train(features, recipe)
    assert not caplog.records

    class Putting(Concat):
        def forward(self, batch: Batch, views: bool = False) -> Output:
            torch.zeros(3).put_(torch.tensor([1]), torch.tensor([1.0]))  # has no deterministic form on any device
            return super().forward(batch, views)

    monkeypatch.setitem(MODELS, "concat", Putting)
    assert_same_weights(train(features, recipe).model.state_dict(), expected.model.state_dict())
    assert "seed 0: the same seed may give other numbers the next time: put_ does not have" in caplog.text


def test_training_is_the_same_bits_whatever_the_test_split_holds() -> None:
    recipe = tiny_recipe(loss={"class_weights": "balanced"}, epochs=2)
    features = make_features(SMALL)
    one, other = train(features, recipe), train(garble_test_split(features), recipe)
    assert_same_weights(one.model.state_dict(), other.model.state_dict())
    assert one.history == other.history


def test_a_withheld_modality_has_no_influence() -> None:
    features = make_features(SMALL)
    assert features.audio is not None
    noise = np.random.default_rng(0).normal(size=features.audio.values.shape).astype(np.float16)
    other = replace(features, audio=replace(features.audio, values=noise))
    recipe = tiny_recipe(model={"modalities": "text"}, epochs=2)
    assert_same_weights(train(features, recipe).model.state_dict(), train(other, recipe).model.state_dict())


def test_the_weights_are_those_of_the_best_epoch_on_validation() -> None:
    features, recipe = make_features(SMALL), tiny_recipe({"linear_path": False}, epochs=6, learning_rate=0.05)
    result = train(features, recipe)
    merit = {epoch.number: epoch.scores["weighted_f1"] - 0.1 * epoch.validation["fused"] for epoch in result.history}
    assert result.best.number == max(merit, key=merit.__getitem__)
    assert not result.model.training
    _, validation = splits(features, recipe)
    with torch.inference_mode():
        logits = torch.cat([result.model(batch).logits for batch in validation.batches(4)])
    assert score_answers(LabelTask(CLASSES), validation, logits.numpy()) == result.best.scores


def test_the_lowest_validation_loss_selects_where_it_is_asked_to() -> None:
    features = make_features(SMALL)
    result = train(features, tiny_recipe({"linear_path": False}, epochs=8, learning_rate=0.05, select="loss"))
    losses = {epoch.number: epoch.validation["fused"] for epoch in result.history}
    assert result.best.number == min(losses, key=losses.__getitem__)
    scored, sure = (
        replace(result.history[0], number=number, scores={"uar": score}, validation={"fused": loss})
        for number, score, loss in ((1, 0.9, 1.0), (2, 0.7, 0.8))
    )
    assert [best_epoch([scored, sure], metric).number for metric in ("uar", None)] == [1, 2]


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "step", "step_epochs": 2, "step_factor": 0.1}, [1, 1, 0.1, 0.1]),
        ({"schedule": "cosine"}, [1, 0.75**0.5 / 2 + 0.5, 0.75, 0.5]),  # of six epochs
    ],
)
def test_the_rate_falls_by_the_schedule(schedule: dict[str, Any], shares: list[float]) -> None:
    features, recipe = make_features(SMALL), tiny_recipe(epochs=6, warmup_updates=2, **schedule)
    model = build_split_model(splits(features, recipe)[0], recipe, CLASSES)
    training = Training(model, *splits(features, recipe), recipe, 0, CLASSES)
    run = StageRun(training.stages[0], training)
    for share in shares:
        run.advance()
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * share)


def test_a_line_now_and_then_takes_the_place_of_the_bar_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features, recipe = make_features(SMALL), tiny_recipe(epochs=3, patience=9)
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    train(features, recipe)
    assert "epoch" not in capsys.readouterr().err  # it took no minute
    monkeypatch.setattr(loop, "LINE_SECONDS", 0.0)
    train(features, recipe)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", loss")[0] for line in lines] == [
        f"seed 0, fusion: epoch {number} of at most 3" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("metric", ["weighted_f1", "uar"])
def test_training_stops_when_validation_has_not_improved_for_long_enough(metric: str) -> None:
    features = make_features(replace(SMALL, signal=()))
    history = train(features, tiny_recipe(epochs=40, patience=2, metric=metric)).history
    assert len(history) < 40
    assert len(history) == best_epoch(history, metric).number + 2


def test_the_first_of_equal_epochs_is_the_best() -> None:
    history = train(make_features(SMALL), tiny_recipe(epochs=1)).history
    assert best_epoch([history[0], replace(history[0], number=2)], "uar").number == 1


def test_patience_is_counted_in_updates_where_an_epoch_has_few() -> None:
    features = make_features(replace(SMALL, signal=()))
    history = train(features, tiny_recipe(epochs=60, patience=2, patience_updates=20)).history
    best = best_epoch(history, "weighted_f1")
    assert len(history) < 60
    assert history[-1].updates - best.updates >= 20 > history[-2].updates - best.updates
    assert history[-1].number - best.number > 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", "adam"),
        ("gradient_clip", 1e-3),
        ("weight_decay", 0.5),
        ("conversations", 2),
        ("average", 0.5),
        ("schedule", "cosine"),
    ],
)
def test_every_parameter_of_optimisation_changes_the_weights(key: str, value: Any) -> None:
    features = make_features(SMALL)
    same: dict[str, Any] = {"epochs": 2, "weight_decay": 0.1}
    one, two = (
        train(features, tiny_recipe({"linear_path": False}, **same | other)).model.state_dict()
        for other in ({}, {key: value})
    )
    assert any(not torch.equal(weight, two[name]) for name, weight in one.items())


def test_balanced_weights_let_every_label_weigh_the_same() -> None:
    labels = torch.tensor([0, 0, 0, 2, -1, -1])
    weights = label_weights(labels, 4)
    assert weights.tolist() == pytest.approx([4 / 6, 1, 2, 1])
    assert float(weights[labels[:4]].mean()) == pytest.approx(1)


def test_a_batch_without_a_label_changes_no_loss_but_is_allowed() -> None:
    features = make_features(Made(conversations=(6, 3, 1)))
    table = features.utterances
    silent = np.array([name <= "train/002" for name in table.conversations])
    features = replace(features, utterances=replace(table, labels=np.where(silent, -1, table.labels)))
    history = train(features, tiny_recipe(epochs=2, conversations=1)).history
    assert all(np.isfinite(epoch.train["total"]) for epoch in history)


def make_broken() -> Features:
    """Features that are no numbers."""
    features = make_features(SMALL)
    assert features.audio is not None
    values = np.array(features.audio.values)
    values[:] = np.inf
    return replace(features, audio=replace(features.audio, values=values))


def test_a_loss_that_is_not_finite_names_the_epoch_and_what_to_do() -> None:
    with pytest.raises(
        TrainingError, match=r"seed 0, epoch 1: the loss is nan; lower train\.learning_rate \(now 0\.01\)"
    ):
        train(make_broken(), tiny_recipe())


def test_what_the_model_refuses_is_an_error_of_settings() -> None:
    with pytest.raises(SettingsError, match="attention"):
        train(make_features(SMALL), tiny_recipe(model={"self_attention": False, "cross_attention": False}))


# resuming


class StoppedError(Exception):
    """Stands for whatever ends a process between two epochs."""


class StoppingFile(StateFile):
    """A state file whose process ends right after an epoch was saved."""

    def save(self, state: State) -> None:
        super().save(state)
        if len(state.history) == 2:
            raise StoppedError


@pytest.mark.parametrize(("seconds", "kept"), [(0, 2), (1000, 1)])
def test_a_run_that_goes_on_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path, seconds: float, kept: int) -> None:
    features, recipe = make_features(SMALL), tiny_recipe(epochs=4, schedule="cosine")
    undisturbed = train(features, recipe)
    with pytest.raises(StoppedError):
        train(features, recipe, state=StoppingFile(tmp_path / "run.state", "mark", seconds))
    begun = StateFile(tmp_path / "run.state", "mark")
    assert len(begun.load().history) == kept  # type: ignore[union-attr]
    resumed = train(features, recipe, state=begun)
    assert resumed.history == undisturbed.history
    assert_same_weights(resumed.model.state_dict(), undisturbed.model.state_dict())


def test_a_state_of_another_run_is_discarded_with_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features, recipe = make_features(SMALL), tiny_recipe(epochs=3)
    with pytest.raises(StoppedError):
        train(features, recipe, state=StoppingFile(tmp_path / "run.state", "one"))
    result = train(features, recipe, state=StateFile(tmp_path / "run.state", "other"))
    assert result.history == train(features, recipe).history
    assert "of other parameters, features or versions; training starts afresh" in caplog.text


def cut(content: bytes) -> bytes:
    return content[:-500]


def flip(content: bytes) -> bytes:
    """One bit, in the middle of the weights."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: list[Callable[[bytes], bytes]] = [lambda content: b"", lambda content: b"garbage", cut, flip]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_discarded_with_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "run.state"
    with pytest.raises(StoppedError):
        train(make_features(SMALL), tiny_recipe(), state=StoppingFile(path, "mark"))
    path.write_bytes(damage(path.read_bytes()))
    assert StateFile(path, "mark").load() is None
    assert "run.state: not a readable state" in caplog.text


@pytest.mark.sampled(4)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "history.json"])
def test_a_finished_seed_that_was_damaged_is_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[bytes], bytes]
) -> None:
    features, output, recipe = make_features(SMALL), tmp_path / "hbaf", tiny_recipe(epochs=1)
    train_made(features, output, recipe)
    undisturbed = files_below(output)
    output.rename(tmp_path / "hbaf.partial")  # as if it had been interrupted before it was done
    file = tmp_path / "hbaf.partial" / "seed-0" / name
    file.write_bytes(damage(file.read_bytes()))
    train_made(features, output, recipe)
    assert f"{name}: damaged" in caplog.text
    assert files_below(output) == undisturbed


def changes(path: Path, process: Any) -> Iterable[int]:
    """A number for each time that the file at `path` was seen to be another one, while `process` lives."""
    seen, count = None, 0
    while process.is_alive():
        now = path.stat().st_mtime_ns if path.exists() else None
        if now != seen:
            seen, count = now, count + 1
            yield count
        time.sleep(0.002)


@pytest.mark.soak
def test_killed_at_random_moments_training_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.training.several_seeds.KEEP_SECONDS", 0.0)  # a state after every epoch
    recipe = tiny_recipe(seeds=(0, 1), epochs=6, patience=6)
    write_made(tmp_path / "feats.h5")
    train_made(tmp_path / "feats.h5", tmp_path / "undisturbed", recipe)

    processes = multiprocessing.get_context("fork")  # which imports nothing again
    moments = random.Random(0)
    killed = 0
    for _ in range(4):
        arguments = (tmp_path / "feats.h5", tmp_path / "models", recipe)
        process = processes.Process(target=train_made, args=arguments)
        process.start()
        begun = {seed: tmp_path / "models.partial" / f"seed-{seed}.state" for seed in recipe.train.seeds}
        for epochs in changes(begun[killed // 3], process):
            if epochs == 3:  # the state that was there, if any, and new ones
                time.sleep(moments.uniform(0, 0.1))
                process.kill()
        process.join()
        killed += process.exitcode == -9
    assert killed >= 2
    train_made(tmp_path / "feats.h5", tmp_path / "models", recipe)
    assert files_below(tmp_path / "models") == files_below(tmp_path / "undisturbed")
    assert not (tmp_path / "models.partial").exists()


# several seeds in one folder


def test_a_finished_seed_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, output = make_features(SMALL), tmp_path / "hbaf"
    train_made(features, output, tiny_recipe(epochs=1))
    output.rename(tmp_path / "hbaf.partial")  # as if it had been interrupted before the next seed
    weights = tmp_path / "hbaf.partial" / "seed-0" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    train_made(features, output, tiny_recipe(epochs=1, seeds=(0, 4)))
    assert sorted(path.name for path in output.iterdir()) == ["seed-0", "seed-4"]
    assert (output / "seed-0" / "model.safetensors").stat().st_mtime_ns == written


def test_a_finished_seed_of_other_parameters_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features, output = make_features(SMALL), tmp_path / "hbaf"
    train_made(features, output, tiny_recipe(epochs=1, seeds=(0, 1)))
    output.rename(tmp_path / "hbaf.partial")
    train_made(features, output, tiny_recipe(epochs=2))
    assert "of other parameters, features or versions; it is trained afresh" in caplog.text
    assert [path.name for path in output.iterdir()] == ["seed-0"]


def test_an_older_output_stays_until_all_seeds_are_done(tmp_path: Path) -> None:
    features, output = make_features(SMALL), tmp_path / "hbaf"
    train_made(features, output, tiny_recipe(epochs=1))
    before = files_below(output)
    with pytest.raises(FeatureError):
        train_made(replace(features, text=None), output, tiny_recipe(epochs=1), overwrite=True)
    assert files_below(output) == before
    train_made(features, output, tiny_recipe(epochs=1, learning_rate=0.5), overwrite=True)
    assert files_below(output).keys() == before.keys()
    assert files_below(output) != before


OTHERS = {
    "parameters": (SMALL, {"epochs": 2}, "seed-0: holds a model of hbaf with other parameters; name another folder"),
    "features": (replace(SMALL, seed=1), {}, "seed-0: holds a model of hbaf with other features; name another"),
    "seeds": (SMALL, {"seeds": (1,)}, "seed-0: holds a model of hbaf with other seeds; name another folder"),
    "fewer seeds": (SMALL, {"seeds": (0,)}, "seed-3: holds a model of hbaf with other seeds; name another folder"),
    "two things": (replace(SMALL, seed=1), {"epochs": 2}, "with other parameters and features; name another folder"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", OTHERS)
def test_finished_models_are_replaced_only_where_that_is_said(tmp_path: Path, name: str) -> None:
    made, train, expected = OTHERS[name]
    output, recipe = tmp_path / "hbaf", tiny_recipe(**{"epochs": 1} | train)
    train_made(make_features(SMALL), output, tiny_recipe(epochs=1, seeds=(0, 3)))
    before = files_below(output)
    with pytest.raises(OutputError, match=expected) as error:
        train_made(make_features(made), output, recipe)
    assert str(error.value).endswith("(--output) to keep it, or replace all with --overwrite")
    assert files_below(output) == before
    assert not (tmp_path / "hbaf.partial").exists()
    train_made(make_features(made), output, recipe, overwrite=True)
    assert {path.name for path in output.iterdir()} == {f"seed-{seed}" for seed in recipe.train.seeds}


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_very_same_models_are_not_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, overwrite: bool
) -> None:
    features, output = make_features(SMALL), tmp_path / "hbaf"
    trained = train_made(features, output, tiny_recipe(epochs=1, seeds=(0, 3)))
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    caplog.clear()  # of what one epoch does not learn
    again = train_made(features, output, tiny_recipe(epochs=1, seeds=(3, 0)), overwrite=overwrite)
    assert [one.fingerprint for one in again] == [one.fingerprint for one in trained[::-1]]
    assert caplog.messages[-1] == f"{output}: these very models are there already; nothing is trained"
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == written


def test_further_seeds_are_trained_beside_those_that_are_there(tmp_path: Path) -> None:
    features, output = make_features(SMALL), tmp_path / "hbaf"
    train_made(features, output, tiny_recipe(epochs=1, seeds=(0,)))
    card = (output / "seed-0" / "README.md").read_text() + "\nmy own words"
    (output / "seed-0" / "README.md").write_text(card)
    train_made(features, output, tiny_recipe(epochs=1, seeds=(0, 1)))
    assert [path.name for path in sorted(output.iterdir())] == ["seed-0", "seed-1"]
    assert (output / "seed-0" / "README.md").read_text() == card


def test_a_model_that_cannot_be_used_is_replaced_only_where_that_is_said(tmp_path: Path) -> None:
    features, output = make_features(SMALL), tmp_path / "hbaf"
    train_made(features, output, tiny_recipe(epochs=1))
    (output / "seed-0" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"holds a model that cannot be used \(.*\); name another folder"):
        train_made(features, output, tiny_recipe(epochs=1))
    train_made(features, output, tiny_recipe(epochs=1), overwrite=True)


def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"exists and is not a folder of models alone; name another one \(--output\)"):
        train_made(make_features(SMALL), tmp_path, tiny_recipe())
    with pytest.raises(OutputError, match=r"notes\.txt: exists and is not a folder"):
        train_made(make_features(SMALL), tmp_path / "notes.txt", tiny_recipe())


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"models\.partial: cannot be written \(Not a directory\)"):
        train_made(make_features(SMALL), tmp_path / "file" / "models", tiny_recipe())


# side by side, and features that stay in the file


@pytest.mark.parametrize("name", ["hbaf", "hcam"])
@pytest.mark.sampled(2)
def test_seeds_side_by_side_and_features_in_the_file_give_the_same_bytes(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    features = write_made(tmp_path / "feats.h5", Made(conversations=(5, 2, 1)))
    recipe = tiny_recipe({"name": name}, seeds=(0, 1, 2), epochs=1, conversations=2)
    mapped = replace(recipe, train=recipe.train.model_copy(update={"memory": 0.0}))
    train_made(features, tmp_path / "alone", recipe, jobs=1)
    train_made(features, tmp_path / "together", recipe, jobs=2)
    assert "read batch by batch" not in caplog.text
    train_made(features, tmp_path / "mapped", mapped, jobs=2)
    assert "more than train.memory leaves them (0.0 kB)" in caplog.text
    assert len(files_below(tmp_path / "alone")) > 3
    for other in ("together", "mapped"):
        assert files_below(tmp_path / other) == files_below(tmp_path / "alone")


@pytest.mark.parametrize("name", ["hbaf", "hcam", "crossmodal"])
def test_reduced_precision_learns_the_same_to_rounding(name: str) -> None:
    features = make_features(SMALL)
    exact, reduced = (
        train(features, tiny_recipe({"name": name}, epochs=1, precision=precision)).history[0].train
        for precision in ("float32", "bfloat16")
    )
    assert reduced != exact
    assert reduced == pytest.approx(exact, rel=0.05, abs=0.02)


def test_an_error_beside_other_seeds_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"seed \d, epoch 1: the loss is nan; lower train.learning_rate"):
        train_made(make_broken(), tmp_path / "models", tiny_recipe(seeds=(0, 1)), jobs=2)


def held_bytes() -> int:
    """What this process holds in memory of its own, without pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def train_and_measure(features: Path, memories: Sequence[str], told: Connection) -> None:
    """Train with each `train.memory`, and tell how many bytes more than before were held at most."""
    ctypes.CDLL(None).malloc_trim(0)  # so that no memory which the parent had freed is taken without a notice
    settings = ["model.name=concat", "model.dim=4", "model.audio_frames=1000"]
    short = ["train.epochs=1", "train.conversations=1", "train.seeds=[0]"]
    for memory in memories:
        before, peaks, done = held_bytes(), [0], threading.Event()

        def watch(peaks: list[int] = peaks, done: threading.Event = done) -> None:
            while not done.wait(0.005):
                peaks.append(held_bytes())

        watching = threading.Thread(target=watch)
        watching.start()
        recipe = read_recipe(None, [*settings, *short, f"train.memory={memory}"])
        train_seeds(read_features(features), recipe, features.parent / f"models-{memory}", CPU, jobs=1)
        done.set()
        watching.join()
        told.send(max(peaks) - before)


@pytest.mark.soak
def test_features_four_times_larger_than_the_memory_for_them_are_trained_within_it(tmp_path: Path) -> None:
    """They take 111 MB. A process of its own trains on them, which is forked and so has nothing to load."""
    size = {"frames": (800, 800), "audio_dim": 256, "turns": (4, 4)}
    write_made(tmp_path / "feats.h5", Made(**size, conversations=(64, 2, 2)))  # type: ignore[arg-type]
    train_made(make_features(SMALL), tmp_path / "small", tiny_recipe({"name": "concat"}, epochs=1))  # which loads it
    budget_gb = (tmp_path / "feats.h5").stat().st_size / 4 / 1e9
    here, there = multiprocessing.Pipe(duplex=False)
    arguments = (tmp_path / "feats.h5", (str(budget_gb), "auto"), there)
    process = multiprocessing.get_context("fork").Process(target=train_and_measure, args=arguments)
    process.start()
    there.close()
    within, resident = here.recv(), here.recv()
    process.join()
    assert within < 1e9 * budget_gb + 10e6  # which scikit-learn takes, however few the features
    assert resident > 3e9 * budget_gb  # the measure sees what it is to see
