"""Memory that runs out: a run is done again with its features off the device, then reported, and the others go on."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.ablation import ablate
from fusion.ablation.single_run import Result, Run, Splits, place_splits
from fusion.ablation.study import Actor, convert_all, make_trainer
from fusion.data import Resident, load_split
from fusion.data.rows import Mapped
from fusion.errors import TrainingError
from fusion.models import MODELS
from fusion.runtime import Held, memory_for_features, take_share, within_memory
from pipeline.store import Features
from tests.fusion.ablation.test_ablation import CPU, PARAMS, SECTION, SMALL, make_variants
from tests.fusion.made import Made, make_features, tiny_recipe, train_made, write_made
from tests.fusion.training.test_training import files_below

LACK = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB")
Allocation = Callable[[int], bool]  # whether a model's pass of that number (from 0) fails


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> Callable[[Allocation], list[int]]:
    """Lets memory run out in passes of `concat`; returns the numbers of all passes."""

    def arrange(fails: Allocation) -> list[int]:
        passes: list[int] = []

        class Short(MODELS["concat"]):  # type: ignore[misc,name-defined]
            def forward(self, *arguments: Any, **options: Any) -> Any:
                passes.append(len(passes))
                if fails(passes[-1]):
                    raise torch.OutOfMemoryError(*LACK.args)
                return super().forward(*arguments, **options)

        monkeypatch.setitem(MODELS, "concat", Short)
        return passes

    return arrange


def splits_of(features: Features) -> Splits:
    return Splits(
        *(load_split(features, name, modalities="both", audio_frames=8) for name in ("train", "validation", "test"))
    )


def test_the_features_are_let_go_before_the_second_time(caplog: pytest.LogCaptureFixture) -> None:
    large = torch.zeros(3)
    alive, held = weakref.ref(large), Held([large], [torch.ones(3)])
    del large
    states: list[tuple[bool, float]] = []

    def do() -> float:
        states.append((alive() is not None, float(held.here[0].sum())))
        if len(states) == 1:
            raise torch.OutOfMemoryError(*LACK.args)
        return states[-1][1]

    assert within_memory(do, held, "seed 3") == 3.0
    assert states == [(True, 0.0), (False, 3.0)]
    assert "seed 3: memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB); again" in caplog.text


def test_what_is_no_lack_of_memory_is_raised_and_not_done_again() -> None:
    asked: list[int] = []

    def do() -> None:
        asked.append(1)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        within_memory(do, Held([], []), "seed 3")
    assert asked == [1]


def test_seeds_go_on_where_they_were_and_end_with_the_same_bytes(
    tmp_path: Path, allocations: Callable[[Allocation], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    features, recipe = make_features(Made(conversations=(4, 3, 2))), tiny_recipe({"name": "concat"}, seeds=(0, 1))
    passes = allocations(lambda number: False)
    train_made(features, tmp_path / "undisturbed", recipe, jobs=1)
    undisturbed = len(passes)
    passes = allocations(lambda number: number == undisturbed // 4)  # half way through the first seed
    train_made(features, tmp_path / "short", recipe, jobs=1)
    assert caplog.text.count("memory ran out") == 1
    assert len(passes) < undisturbed * 1.5  # the epochs before were kept
    assert files_below(tmp_path / "short") == files_below(tmp_path / "undisturbed")


def test_a_seed_that_does_not_fit_is_named_with_what_to_do(
    tmp_path: Path, allocations: Callable[[Allocation], list[int]]
) -> None:
    allocations(lambda number: True)
    message = r"^seed 0: memory ran out \(CUDA out of memory.*\), also with features off.*; lower train.conversations"
    with pytest.raises(TrainingError, match=message):
        train_made(make_features(Made(conversations=(4, 3, 2))), tmp_path / "m", tiny_recipe({"name": "concat"}))


def test_a_row_that_does_not_fit_is_reported_and_the_others_are_done(
    tmp_path: Path, allocations: Callable[[Allocation], list[int]]
) -> None:
    allocations(lambda number: True)
    content = PARAMS.split("ablations")[0] + "ablations:\n  late: {model.name: concat}\n"
    variants = make_variants(tmp_path, content)
    features = write_made(tmp_path / "feats.h5", SMALL)
    message = r"^row 'late' of ablations: seed 0: memory ran out .* \(and 1 more runs failed\)"
    with pytest.raises(TrainingError, match=message):
        ablate(features, variants[::-1], SECTION, tmp_path / "runs", CPU, 1)
    assert len(list((tmp_path / "runs").glob("*.npz"))) == 2  # of the base row


# actors of a cluster


def shared_by(features: Features) -> Mapping[tuple[int, int], Any]:
    """As they come out of the object store: arrays that may not be written."""
    arrays = {(0, 8): convert_all(splits_of(features), Tensor, Tensor.numpy)}
    for split in vars(arrays[0, 8]).values():
        split.audio.values.flags.writeable = False
        split.text.values.flags.writeable = False
    return arrays


def test_an_actor_retries_a_run_and_reports_the_next_one(allocations: Callable[[Allocation], list[int]]) -> None:
    features, recipe = make_features(Made(conversations=(4, 3, 2))), tiny_recipe({"name": "concat"}, epochs=2)
    train = make_trainer(shared_by(features), 3, Actor("cpu", 0.0, 1, "auto"), {})
    run = Run("row", recipe, 0, "0" * 64)
    expected = train(run)
    assert isinstance(expected, Result)

    allocations(lambda number: number == 3)
    train = make_trainer(shared_by(features), 3, Actor("cpu", 0.0, 1, "auto"), {})
    found = train(run)
    assert isinstance(found, Result)
    np.testing.assert_array_equal(found.answers, expected.answers)

    allocations(lambda number: number < 2)
    failure = train(replace(run, seed=1))
    assert isinstance(failure, str)
    assert failure.startswith("row 'row' of ablations: seed 1: memory ran out (CUDA out of memory")
    assert isinstance(train(run), Result)


@pytest.mark.parametrize("gpus", [0.25, 0.5])
def test_an_actor_takes_its_share_of_a_gpu_and_no_more(gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, str]] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.append((share, str(device)))
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70_000_000_000, 80_000_000_000))
    device = torch.device("cuda")
    share = take_share(device, gpus)
    assert limits == [(gpus, "cuda")]
    assert memory_for_features("auto", device, share) == int(gpus * 40_000_000_000)
    assert memory_for_features(3.5, device, share) == 3_500_000_000


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0.5), ("cuda", 0.0), ("cuda", 1.0), ("cuda", 2.0)])
def test_whole_devices_are_not_limited(device: str, gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "set_per_process_memory_fraction")
    assert take_share(torch.device(device), gpus) == 1.0


def test_splits_of_an_actor_stay_off_a_gpu_that_has_no_room(caplog: pytest.LogCaptureFixture) -> None:
    splits = splits_of(make_features())
    table = place_splits({(0, 8): splits}, torch.device("cuda"), memory=100)
    rows = table.held.here[0, 8].train.audio
    assert isinstance(rows, Mapped)
    assert rows.device.type == "cuda"
    assert "more than train.memory leaves them" in caplog.text


def test_splits_of_an_actor_without_a_gpu_are_not_copied() -> None:
    splits = splits_of(make_features())
    table = place_splits({(0, 8): splits}, CPU, memory=0)
    assert table.held.here[0, 8].train is splits.train


def test_rows_in_the_memory_of_the_machine_give_the_same_batches() -> None:
    splits = splits_of(make_features())
    table = place_splits({(0, 8): splits}, CPU, memory=0)
    table.held.let_go()
    left = table.held.here[0, 8].train
    assert isinstance(left.audio, Mapped)
    assert isinstance(splits.train.audio, Resident)
    for one, other in zip(left.batches(3), splits.train.batches(3), strict=True):
        for group, same in zip(one.groups, other.groups, strict=True):
            assert torch.equal(group.audio, same.audio)
            assert torch.equal(group.text_mask, same.text_mask)
