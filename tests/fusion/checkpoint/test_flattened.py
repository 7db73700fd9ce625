"""Models whose GRUs are on a GPU: cuDNN lays the weights of each into one storage, here done on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from fusion.checkpoint import load_model
from fusion.checkpoint.onnx import with_onnx_grus
from fusion.models import MODELS
from fusion.training import StateFile
from tests.fusion.batches import make, make_batch
from tests.fusion.made import Made, make_features, tiny_recipe, train_made
from tests.fusion.training.test_training import (
    SMALL,
    StoppedError,
    StoppingFile,
    assert_same_weights,
    files_below,
    train,
)

every_model = pytest.mark.parametrize("name", MODELS)
ALIGNED = 32  # numbers, to a multiple of which cuDNN lays each weight


def flatten(model: nn.Module) -> None:
    """As `flatten_parameters` does on a GPU: every GRU's weights become slices of one storage, with gaps."""
    for gru in (part for part in model.modules() if isinstance(part, nn.GRU)):
        weights = list(gru.parameters())
        sizes = [-(-weight.numel() // ALIGNED) * ALIGNED for weight in weights]
        flat = torch.zeros(sum(sizes))
        for weight, slot in zip(weights, flat.split(sizes), strict=True):
            slot[: weight.numel()] = weight.detach().flatten()
            weight.data = slot[: weight.numel()].view_as(weight)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is moved to a device is flattened there."""
    move = nn.Module.to

    def moved(model: nn.Module, *place: Any, **options: Any) -> nn.Module:
        found = move(model, *place, **options)
        flatten(found)
        return found

    monkeypatch.setattr(nn.Module, "to", moved)


def test_safetensors_itself_refuses_such_weights(tmp_path: Path) -> None:
    model = make("concat")
    flatten(model)
    with pytest.raises(RuntimeError, match="covering the entire storage"):
        save_model(model, str(tmp_path / "model.safetensors"))


@every_model
def test_they_are_saved_with_the_bytes_of_any_other_model_and_stay_as_they_are(name: str, tmp_path: Path) -> None:
    model, batch = make(name), make_batch([3, 2])
    save_model(model, str(tmp_path / "plain.safetensors"))
    flatten(model)
    places = [weight.data_ptr() for weight in model.parameters()]
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    assert [weight.data_ptr() for weight in model.parameters()] == places
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(batch).logits, model(batch).logits)


@pytest.mark.sampled(4)
@every_model
def test_a_model_that_was_trained_there_is_the_one_that_was_trained_here(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    features, recipe = make_features(Made(conversations=(4, 3, 2))), tiny_recipe({"name": name}, epochs=1)
    train_made(features, tmp_path / "here", recipe)
    request.getfixturevalue("on_gpu")
    train_made(features, tmp_path / "there", recipe)
    assert files_below(tmp_path / "there") == files_below(tmp_path / "here")
    found = load_model(tmp_path / "there" / "seed-0").model
    assert any(weight.untyped_storage().nbytes() > weight.nbytes for weight in found.parameters())
    assert_same_weights(found.state_dict(), load_file(tmp_path / "here" / "seed-0" / "model.safetensors"))


@pytest.mark.usefixtures("on_gpu")
def test_a_run_that_goes_on_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    features, recipe = make_features(SMALL), tiny_recipe({"name": "hcam"}, epochs=2)
    undisturbed = train(features, recipe)
    with pytest.raises(StoppedError):
        train(features, recipe, state=StoppingFile(tmp_path / "run.state", "mark"))
    resumed = train(features, recipe, state=StateFile(tmp_path / "run.state", "mark"))
    assert resumed.history == undisturbed.history
    assert_same_weights(resumed.model.state_dict(), undisturbed.model.state_dict())


def test_they_are_exported_as_any_other() -> None:
    model = make("hcam")
    plain = with_onnx_grus(model).state_dict()
    flatten(model)
    assert_same_weights(with_onnx_grus(model).state_dict(), plain)
