"""A step of training asks the device for no number: on a GPU, Python never waits for it within an epoch."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.data import load_split
from fusion.data.batches import Grouping, make_plan
from fusion.layers import primitives
from fusion.models import MODELS
from fusion.training import build_split_model
from fusion.training.stage import StageRun, Training
from tests.fusion.made import make_features, tiny_recipe

# what makes Python wait for a GPU: a number, or a shape, that depends on values
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "repeat_interleave"}


class Waits(TorchDispatchMode):
    """Counts the operations that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in WAITING or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def test_the_count_finds_what_waits() -> None:
    with Waits() as waits:
        x = torch.arange(4.0)
        x[x > 1].sum().item()
    assert waits.found == {"index": 1, "_local_scalar_dense": 1}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_step_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primitives, "dominate", lambda x: True)  # as on a GPU
    recipe = tiny_recipe({"name": name})
    split = load_split(make_features(), "train", modalities="both", audio_frames=8)
    lengths = split.audio.lengths, split.text.lengths
    plan = make_plan(torch.arange(3), split.conversations, *lengths, Grouping(10, 2))
    assert len(plan.sizes) > 1
    training = Training(build_split_model(split, recipe, 3).train(), split, split, recipe, 0, 3)
    for stage in training.stages:
        run = StageRun(stage, training)
        with Waits() as waits:
            batch = split.gather_one(plan, plan)
            run.step(stage.encode(batch) if stage.encode else batch)
        assert not waits.found, stage.name
