"""Models, losses, batches and answers on a GPU that is not there: devices and types fit, and nothing waits for it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)

import fusion.data.split
from fusion.batch import Batch
from fusion.data import Split, load_split
from fusion.data.batches import Grouping
from fusion.inference import predict_heads
from fusion.models import MODELS
from fusion.objective.tasks import LabelTask
from fusion.params import Recipe
from fusion.training import build_split_model
from fusion.training.stage import Criterion, LossMeans, make_optimizer
from tests.fake_cuda import Seen, fake_cuda, send_back
from tests.fusion.batches import make, make_batch, name_of
from tests.fusion.made import Made, make_features, tiny_recipe

SWITCHES: dict[str, list[dict[str, Any]]] = {
    "hbaf": [
        {"context": "conversation", "direction": "past"},
        {"levels": "raw", "cross_attention": False},
        {"levels": "context", "self_attention": False, "conversation_encoder": "none"},
        {"gate": False, "relevance": False, "residual": False},
        {"attends": "turns", "levels": "raw"},
        {"attends": "turns", "direction": "past"},
        {"standardise": False, "linear_path": False},
    ],
    "hcam": [
        {"training": "joint", "ensemble": True},
        {"freeze": False, "direction": "past"},
        {"stages": ("conversation", "fusion"), "co_attention": "audio"},
        {"self_attention": False},
    ],
}
# what an answer copies to the GPU while Python waits, by switch
COPIES = {"ensemble": 1}  # the names of its heads become a mask, once a batch
CASES = [(name, setting) for name in MODELS for setting in [{}, *SWITCHES.get(name, [])]]


def named(name: str, setting: dict[str, Any], *more: str) -> Any:
    return pytest.param(name, setting, *more, id=" ".join([name, name_of(setting), *more]))


every_case = pytest.mark.parametrize(("name", "setting"), [named(*case) for case in CASES])
# with every switch in float32; in bfloat16 as they come
every_step = pytest.mark.parametrize(
    ("name", "setting", "precision"),
    [*(named(*case, "float32") for case in CASES), *(named(name, {}, "bfloat16") for name in MODELS)],
)
TASK = LabelTask(3)


def recipe_of(name: str, setting: dict[str, Any], precision: str = "float32") -> Recipe:
    loss = {"absolute": 0.1, "relative": 0.1, "supervised": 0.5, "auxiliary": 0.3, "label_smoothing": 0.1}
    losses = {key: value for key, value in loss.items() if key != "supervised" or name == "hcam"}
    return tiny_recipe({"name": name, **setting}, losses, precision=precision)


@pytest.fixture(scope="module")
def host() -> Split:
    return load_split(make_features(Made(frames=(0, 30), tokens=(0, 12))), "train", modalities="both", audio_frames=24)


def on_gpu(split: Split, mode: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> Split:
    """The split with its rows on the GPU; batches are planned with numbers, which are real, and gathered without."""

    def faked(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            with mode:
                found = function(*arguments)
                return found if isinstance(found, Batch) else iter(list(found))

        return wrapped

    monkeypatch.setattr(fusion.data.split, "move", faked(fusion.data.split.move))
    monkeypatch.setattr(Split, "gather_one", faked(Split.gather_one))
    monkeypatch.setitem(fusion.data.split.GROUPING, "cuda", Grouping(100, 10))  # so few that there are several groups
    return replace(split, audio=split.audio.move("cuda"), text=split.text.move("cuda"))


def batches_of(split: Split) -> list[Batch]:
    with unset_fake_temporarily():
        return list(split.batches(4, torch.Generator().manual_seed(0)))


def tensors_of(batch: Batch) -> list[Tensor]:
    groups = [getattr(group, item.name) for group in batch.groups for item in fields(group)]
    return [*groups, batch.order, batch.labels, batch.scores, batch.turns.mask, batch.turns.places]


# the GPU that is not there


def test_what_would_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    waits: list[Callable[[Tensor, Tensor], Any]] = [
        lambda x, mask: x.sum().item(),
        lambda x, mask: x.tolist(),
        lambda x, mask: x[mask],
        lambda x, mask: mask.nonzero(),
        lambda x, mask: 1 if mask.all() else 0,
    ]
    with fake_cuda(monkeypatch):
        x, mask = x.to("cuda"), mask.to("cuda")
        for wait in waits:
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                wait(x, mask)
        with Seen() as seen:
            x.cpu(), torch.tensor([1.0, 2.0], device="cuda"), x + 1.0
        assert seen.copies.total() == 2
        with pytest.raises(RuntimeError, match=r"found two different devices|cuda.*cpu"):
            x + torch.arange(4.0)


def test_the_way_back_is_that_of_torch() -> None:
    gradients = []
    for back in (Tensor.backward, send_back):
        model = make("hbaf")
        output = model(make_batch([3, 2]))
        back(output.logits.square().sum() + (output.audio * output.text).sum())
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


# what is made for it


@every_step
@pytest.mark.sampled(30)
def test_a_step_fits_together_and_waits_for_nothing(
    host: Split, name: str, setting: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(name, setting, precision)
    model: Any = build_split_model(host, recipe, 3)
    with fake_cuda(monkeypatch) as mode:
        split = on_gpu(host, mode, monkeypatch)
        batch = batches_of(split)[0]
        assert len(batch.groups) > 1
        criterion = Criterion(recipe.loss, split, TASK)
        for stage in model.to("cuda").stages():
            with torch.no_grad():
                given = stage.encode(batch) if stage.encode else batch
            stage.module.train()
            weights = [weight for branch in stage.branches.values() for weight in branch.parameters()]
            optimizer, means = make_optimizer(weights, recipe.train), LossMeans()
            with Seen() as seen:
                with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
                    output = stage.module(given)
                losses = criterion(output, given, stage.branches)
                send_back(losses.total)
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                means.add(losses, TASK.counted(given.labels).sum())
            stage.module.eval()
            assert not seen.copies, stage.name
            assert (seen.operations["_cudnn_rnn"] > 0) == any(
                isinstance(part, nn.GRU) for part in stage.module.modules()
            )
            assert (torch.bfloat16 in seen.types) == (precision == "bfloat16")
            assert (losses.total.dtype, losses.total.device.type) == (torch.float32, "cuda")
            learned = [weight.grad for weight in weights if weight.grad is not None]
            assert {(gradient.dtype, gradient.device.type) for gradient in learned} == {(torch.float32, "cuda")}


@pytest.mark.parametrize("layers", [(1, 1), (3, 2)])
def test_batches_are_gathered_where_the_rows_are(layers: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    host = load_split(make_features(Made(layers=layers)), "train", modalities="both", audio_frames=8)
    with fake_cuda(monkeypatch) as mode:
        split = on_gpu(host, mode, monkeypatch)
        found = batches_of(split)
    assert sum(len(batch.labels) for batch in found) == len(host.ids)
    for batch in found:
        assert {tensor.device.type for tensor in tensors_of(batch)} == {"cuda"}
        assert {group.audio.dtype for group in batch.groups} == {torch.float32}


class Answers(LabelTask):
    """Takes what is to become answers, which has no numbers here."""

    def answers(self, outputs: Tensor) -> np.ndarray:
        assert (outputs.device.type, outputs.dtype) == ("cuda", torch.float32)
        return np.zeros(tuple(outputs.shape))


@every_case
@pytest.mark.sampled(30)
def test_answers_are_given_on_the_device(
    host: Split, name: str, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = build_split_model(host, recipe_of(name, setting), 3)
    with fake_cuda(monkeypatch) as mode:
        split, model = on_gpu(host, mode, monkeypatch), model.to("cuda")
        given = batches_of(split)
        monkeypatch.setattr(Split, "batches", lambda *_: iter(given))
        monkeypatch.setattr("fusion.inference.reproducible", lambda *_: nullcontext())  # asks the driver for its states
        with Seen() as seen:
            found = predict_heads(model, split, Answers(3))
    assert {len(answers) for answers in found.values()} == {len(host.ids)}
    assert seen.copies.total() == len(given) * sum(COPIES.get(key, 0) for key, value in setting.items() if value)
