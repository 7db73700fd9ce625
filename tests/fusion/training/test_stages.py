"""Training in stages: what moves, what is selected, and that every model and switch can be trained and resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusion.data import encode_split
from fusion.data.rows import Chosen
from fusion.models import MODELS
from fusion.params import Recipe
from fusion.training import State, StateFile, build_split_model
from fusion.training.loop import Fit
from fusion.training.stage import StageRun, Training
from pipeline.store import Features
from tests.fusion.made import Made, make_features, tiny_recipe
from tests.fusion.models.test_models import SETTINGS
from tests.fusion.training.test_training import CLASSES, StoppedError, assert_same_weights, splits, train

FEATURES = make_features(Made(conversations=(6, 6, 1)))


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, weight in module.state_dict().items() if not torch.equal(weight, before[name])}


def stage_runs(recipe: Recipe, features: Features = FEATURES) -> Any:
    """The model of `recipe`, and the run of each of its stages, to be advanced by the caller."""
    train_split, validation = splits(features, recipe)
    torch.manual_seed(0)
    model: Any = build_split_model(train_split, recipe, CLASSES)
    training = Training(model, train_split, validation, recipe, 0, CLASSES)
    for stage in training.stages:
        yield model, StageRun(stage, training)


def test_frozen_stages_do_not_move_by_a_bit() -> None:
    names = []
    for model, run in stage_runs(tiny_recipe(model={"name": "hcam"}, epochs=2)):
        before = weights_of(model)
        run.advance()
        run.advance()
        run.select()
        names.append(run.stage.name)
        assert moved(model, before)
        assert all(name.startswith(f"chain.parts.{run.stage.name}.") for name in moved(model, before))
    assert names == ["utterance", "conversation", "fusion"]


def test_stages_that_are_not_frozen_move() -> None:
    for model, run in stage_runs(tiny_recipe(model={"name": "hcam", "freeze": False}, epochs=1)):
        before = weights_of(model)
        run.advance()
        expected = {"utterance": 1, "conversation": 2, "fusion": 3}[run.stage.name]
        assert len({name.split(".")[2] for name in moved(model, before)}) == expected


def test_every_branch_has_the_weights_of_its_own_best_epoch() -> None:
    of_text = make_features(Made(conversations=(6, 6, 1), signal=("text",), seed=1))
    _, run = next(stage_runs(tiny_recipe(model={"name": "hcam"}, epochs=8, learning_rate=0.02), of_text))
    kept: dict[int, dict[str, dict[str, Tensor]]] = {}
    while not run.finished:
        epoch = run.advance()
        kept[epoch.number] = {branch: weights_of(module) for branch, module in run.stage.branches.items()}
    run.select()
    selected = {branch: epoch.number for branch, epoch in run.training.best_epochs(run.stage).items()}
    assert len(set(selected.values())) == 2, "the branches' best epochs happen to be the same: nothing is shown"
    for branch, number in selected.items():
        scores = {epoch.number: epoch.heads[branch]["weighted_f1"] for epoch in run.epochs}
        assert scores[number] == max(scores.values())
        assert_same_weights(weights_of(run.stage.branches[branch]), kept[number][branch])


def test_turns_without_a_modality_have_no_say_in_the_epoch_of_its_branch() -> None:
    features = make_features(Made(conversations=(8, 10, 1), frames=(0, 1), tokens=(1, 2), signal=()))
    assert features.audio is not None
    table, frames = features.utterances, np.diff(features.audio.offsets)
    silent = (np.array(table.splits) == "validation") & (frames == 0) & (table.labels >= 0)
    other = replace(
        features, utterances=replace(table, labels=np.where(silent, (table.labels + 1) % CLASSES, table.labels))
    )
    recipe = tiny_recipe({"name": "hcam", "stages": ["utterance"]}, epochs=8, patience=8, learning_rate=0.05)
    one, two = train(features, recipe), train(other, recipe)
    for head, same in (("audio", True), ("text", False)):
        scores = [[(epoch.heads[head], epoch.validation[head]) for epoch in result.history] for result in (one, two)]
        assert (scores[0] == scores[1]) is same, head
    assert one.selected["utterance.audio"] == two.selected["utterance.audio"]


def test_the_rate_rises_to_its_height_and_stays_there() -> None:
    _, run = next(stage_runs(tiny_recipe(warmup_updates=4, learning_rate=0.1)))
    rates = []
    for batch in [*run.train.batches(4)] * 3:
        run.step(batch)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert set(rates[3:]) == {0.1}


def test_what_is_validated_and_kept_is_the_running_mean_of_the_weights() -> None:
    _, run = next(stage_runs(tiny_recipe(average=0.6, epochs=1, conversations=2)))
    mean = [weight.detach().clone() for weight in run.weights]
    for updates, batch in enumerate(run.train.batches(2), start=1):
        run.step(batch)
        keep = min(0.6, updates / (updates + 9))
        mean = [keep * old + (1 - keep) * new.detach() for old, new in zip(mean, run.weights, strict=True)]
    learning = [weight.detach().clone() for weight in run.weights]
    with run.average.in_place():
        torch.testing.assert_close([weight.detach() for weight in run.weights], mean)
    assert all(torch.equal(before, after) for before, after in zip(learning, run.weights, strict=True))
    run.advance()
    run.select()
    kept = [weight.detach() for weight in run.weights]
    torch.testing.assert_close(kept, run.average.means)


def test_the_history_numbers_epochs_through_all_stages() -> None:
    result = train(FEATURES, tiny_recipe(model={"name": "hcam"}, epochs=2))
    assert [epoch.number for epoch in result.history] == [1, 2, 3, 4, 5, 6]
    assert [epoch.stage for epoch in result.history] == ["utterance"] * 2 + ["conversation"] * 2 + ["fusion"] * 2
    assert set(result.selected) == {
        "utterance.audio", "utterance.text", "conversation.audio", "conversation.text", "fusion.fused",
    }  # fmt: skip
    assert result.best.stage == "fusion"


def test_every_stage_is_scored_on_validation() -> None:
    complete = make_features(Made(conversations=(6, 6, 1), frames=(1, 9), tokens=(1, 5)))
    result = train(complete, tiny_recipe(model={"name": "hcam", "linear_path": False}, epochs=2))
    by_number = {epoch.number: epoch for epoch in result.history}
    for selected, number in result.selected.items():
        stage, head = selected.split(".")
        name = "fused" if stage == "fusion" else selected
        assert result.validation[name]["weighted_f1"] == pytest.approx(by_number[number].score(head, "weighted_f1"))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        pytest.param(name, setting, id=f"{name} {setting}")
        for name, several in SETTINGS.items()
        for setting in [{}, *several]
    ],
)
@pytest.mark.sampled(8)
def test_what_remains_of_a_model_trains(name: str, setting: dict[str, Any]) -> None:
    loss = {key: 0.0 for key in ("auxiliary", "supervised") if setting.get(key) is False}
    loss |= {"absolute": 0.0, "relative": 0.0} if setting.get("contrastive") is False else {}
    switches = {key: value for key, value in setting.items() if key not in ("auxiliary", "supervised", "contrastive")}
    switches |= {"stages": tuple(setting["stages"])} if "stages" in setting else {}
    recipe = tiny_recipe(
        model={"name": name, "dropout": 0.0, **switches}, loss=loss, epochs=2, conversations=6, learning_rate=0.02
    )
    history = train(FEATURES, recipe).history
    for stage in {epoch.stage for epoch in history}:
        losses = [epoch.train["total"] for epoch in history if epoch.stage == stage]
        assert losses[-1] < losses[0], stage


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
def test_a_planted_signal_is_learned_by_every_model(name: str) -> None:
    made = Made(conversations=(16, 8, 1), frames=(2, 5), tokens=(2, 5), signal=("audio", "text"))
    recipe = tiny_recipe(model={"name": name}, epochs=3, learning_rate=0.02)
    assert train(make_features(made), recipe).validation["fused"]["weighted_f1"] > 0.9


STAGED = tiny_recipe(model={"name": "hcam", "ensemble": True}, epochs=2)


@pytest.fixture(scope="module")
def undisturbed() -> Fit:
    return train(FEATURES, STAGED)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("after", [1, 2, 3, 5, 6])
def test_a_run_that_stops_in_any_stage_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: Fit, after: int
) -> None:
    class StoppingFile(StateFile):
        def save(self, state: State) -> None:
            super().save(state)
            if len(state.history) == after:
                raise StoppedError

    with pytest.raises(StoppedError):
        train(FEATURES, STAGED, state=StoppingFile(tmp_path / "run.state", "mark"))
    resumed = train(FEATURES, STAGED, state=StateFile(tmp_path / "run.state", "mark"))
    assert resumed.history == undisturbed.history
    assert resumed.selected == undisturbed.selected
    assert_same_weights(resumed.model.state_dict(), undisturbed.model.state_dict())


def test_an_encoded_split_holds_what_is_encoded_of_each_utterance() -> None:
    recipe = tiny_recipe(model={"name": "hcam"})
    split, _ = splits(FEATURES, recipe)
    model: Any = build_split_model(split, recipe, CLASSES).eval()
    encode = model.stages()[1].encode
    encoded = encode_split(split, encode)
    assert encoded.audio.dim == recipe.model.dim
    first = 0
    for batch in split.batches(3):
        expected, chosen = encode(batch), torch.arange(first, first + len(batch.labels))
        rows, mask = encoded.text.gather(Chosen(chosen, chosen), 1)
        assert torch.equal(mask[:, 0], expected.text_present)
        torch.testing.assert_close(rows[:, 0][mask[:, 0]], expected.vectors("text")[mask[:, 0]])
        first += len(batch.labels)


def test_the_weights_of_an_ensemble_are_chosen_on_validation_and_kept_in_the_model(undisturbed: Fit) -> None:
    model: Any = undisturbed.model
    weights = model.ensemble.weights
    assert weights.sum().item() == pytest.approx(1)
    assert (weights > 0).sum() > 1
    assert torch.equal(model.state_dict()["ensemble.weights"], weights)


def validation_losses(conversations: int, **loss: Any) -> Any:
    """Of an untrained model whose audio and labels are rare, by batches of so many conversations."""
    features = make_features(Made(conversations=(6, 12, 1), frames=(0, 1), unlabelled=0.5))
    recipe = tiny_recipe({"name": "hcam"}, {"supervised": 0.0, **loss}, learning_rate=1e-9, conversations=conversations)
    _, run = next(stage_runs(recipe, features))
    return run.advance().validation


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_the_validation_loss_of_a_head_does_not_depend_on_batches(class_weights: str) -> None:
    several, one = (validation_losses(size, class_weights=class_weights) for size in (1, 100))
    for head in ("fused", "audio", "text"):
        assert several[head] == pytest.approx(one[head], abs=1e-5), head
