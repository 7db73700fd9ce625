"""What models make of features: one scale for all columns, and a word where they can make nothing of them."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusion.batch import Batch, Output
from fusion.checkpoint import load_model
from fusion.data import Resident, Split, hold, load_split
from fusion.inference import predict
from fusion.layers import Standardise
from fusion.models import MODELS, HubModel, SharedParams, Sizes, Stage
from fusion.models.interface import whole
from fusion.objective import find_task
from fusion.training import fit, train_seeds
from pipeline.store import Features
from tests.fusion.made import Made, make_features, plant_copies, tiny_recipe, train_made, write_made
from tests.pipeline.made import part_from_arrays

CPU = torch.device("cpu")
MADE = Made(conversations=(6, 3, 2), frames=(0, 12), layers=(1, 2), dtype=np.float32)
FRAMES = 8  # of tiny_recipe: some utterances are longer, and pooled to it


def split_of(features: Features, name: str, resident: bool = True) -> Split:
    return load_split(features, name, modalities="both", audio_frames=FRAMES, resident=resident)


def rescaled(features: Features, units: float) -> Features:
    """The same features with columns of other units, powers of two from 1 / `units` to `units`."""
    parts = {}
    for name in ("audio", "text"):
        part = getattr(features, name)
        powers = np.linspace(-np.log2(units), np.log2(units), part.values.shape[-1]).round()
        parts[name] = replace(part, values=(part.values * 2**powers).astype(np.float32))
    return replace(features, **parts)


def answers(features: Features, name: str, **model: Any) -> np.ndarray:
    train, validation = (split_of(features, split) for split in ("train", "validation"))
    done = fit(train, validation, tiny_recipe({"name": name, **model}), 0, classes=3)
    return predict(done.model, split_of(features, "test"), find_task("label", 3))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
def test_the_units_of_columns_change_no_answer(name: str) -> None:
    features = make_features(MADE)
    assert np.array_equal(answers(features, name), answers(rescaled(features, 2.0**14), name))
    raw = partial(answers, name=name, standardise=False)
    assert not np.array_equal(raw(features), raw(rescaled(features, 2.0**14)))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_holds_the_mean_and_scale_of_the_real_rows_of_train_and_no_other(
    name: str, tmp_path: Path
) -> None:
    features = write_made(tmp_path / "made.h5", MADE)
    train_seeds(features, tiny_recipe({"name": name}), tmp_path / "models", CPU)
    model = load_model(tmp_path / "models" / "seed-0").model
    (part,) = [one for one in model.modules() if isinstance(one, Standardise)]
    train = split_of(features, "train")
    batch = next(train.batches(len(train.conversations))).joined()
    for modality in MODELS[name].inputs:
        x, mask = batch.groups[0].modality(modality)
        real = x[mask].double()
        found = getattr(part, modality)
        torch.testing.assert_close(found.mean.double(), real.mean(0), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(1 / found.scale.double(), real.std(0, correction=0), rtol=1e-6, atol=0)


def test_rows_in_the_file_and_on_the_device_give_the_same_bits(tmp_path: Path) -> None:
    features = write_made(tmp_path / "made.h5", replace(MADE, conversations=(60, 2, 2), dtype=np.float16))
    in_file = split_of(features, "train", resident=False)
    (on_device,) = hold([in_file], None)
    for name in ("audio", "text"):
        one, other = getattr(in_file, name).columns, getattr(on_device, name).columns
        assert one.rows == other.rows > 512
        assert np.array_equal(one.mean, other.mean)
        assert np.array_equal(one.squares, other.squares)


def test_a_constant_column_of_train_gives_zeros_everywhere() -> None:
    features = make_features(replace(MADE, layers=(1, 1)))
    assert features.audio is not None
    values = features.audio.values.copy()
    first_of_others = features.audio.offsets[sum(split == "train" for split in features.utterances.splits)]
    values[:first_of_others, 2] = 1 / 3
    changed = replace(features, audio=replace(features.audio, values=values))
    train = split_of(changed, "train")
    part = Standardise((6, 1), (5, 1))
    part.fit(lambda name: getattr(train, name).columns)
    for split in ("train", "test"):
        batch = next(split_of(changed, split).batches(99)).joined()
        found = part(batch).groups[0].audio
        assert found[..., 2].eq(0).all()
        assert found[..., :2].abs().gt(0).any()


def test_values_within_three_times_the_range_of_train_are_as_they_were() -> None:
    train, test = (split_of(make_features(MADE), name) for name in ("train", "test"))
    part = Standardise((6, 1), (5, 2))
    part.fit(lambda name: getattr(train, name).columns)
    (group,) = next(test.batches(99)).joined().groups
    for own, name in ((part.audio, "audio"), (part.text, "text")):
        x, mask = group.modality(name)
        real = mask.view(*mask.shape, *[1] * (x.dim() - 2))
        assert not own.beyond(x, mask).any()
        assert torch.equal(own(x, mask), (x - own.mean) * own.scale * real)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
def test_beyond_the_limits_nothing_that_is_larger_still_changes_an_answer(name: str) -> None:
    features = make_features(replace(MADE, dtype=np.float32))
    train, validation, test = (split_of(features, split) for split in ("train", "validation", "test"))
    model = fit(train, validation, tiny_recipe({"name": name}), 0, classes=3).model

    def far(factor: float) -> np.ndarray:
        parts = {one: getattr(test, one) for one in ("audio", "text")}
        other = {one: replace(part, values=part.values * factor) for one, part in parts.items()}
        return predict(model, replace(test, **other), find_task("label", 3))

    assert np.array_equal(far(1e8), far(1e12))
    assert not np.array_equal(far(1e8), far(1))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
def test_a_robust_model_learns_and_answers_the_same_however_large_outliers_are(name: str) -> None:
    features = make_features(replace(MADE, dtype=np.float32, conversations=(20, 6, 6)))

    def outlying(factor: float) -> Features:
        parts = {one: getattr(features, one) for one in ("audio", "text")}
        values = {
            one: np.where(np.abs(part.values) > 2.5, part.values * factor, part.values) for one, part in parts.items()
        }
        return replace(features, **{one: replace(part, values=values[one]) for one, part in parts.items()})

    path = {"linear_path": False}  # which looks at means of frames, however large
    said = [answers(outlying(1e3**power), name, standardise="robust", **path) for power in (1, 2)]
    assert np.array_equal(*said)
    assert not np.array_equal(*(answers(outlying(1e3**power), name, **path) for power in (1, 2)))


def test_quartiles_of_many_rows_do_not_depend_on_how_long_utterances_are() -> None:
    """Frames of utterances of one length, the first of which are unlike the others."""
    count, frames = 3000, 64
    values = np.random.default_rng(1).normal(0, 1, (count, frames, 2)).astype(np.float32)
    values[:, 0] += 8
    lengths = torch.full((count,), frames)
    rows = Resident.packed(torch.from_numpy(values).flatten(0, 1), lengths)
    (one, other) = (each.robust_columns.scale for each in (rows, rows.leave("cpu")))
    np.testing.assert_allclose(one.centre, np.median(values, axis=(0, 1)), atol=0.05)
    np.testing.assert_allclose(one.spread, 1, atol=0.06)
    halves = replace(
        rows, starts=torch.arange(2 * count) * (frames // 2), lengths=torch.full((2 * count,), frames // 2)
    )
    for same in (other, halves.robust_columns.scale):
        assert np.array_equal(one.centre, same.centre)


def test_quartiles_are_those_of_train_from_the_file_and_from_the_device(tmp_path: Path) -> None:
    features = write_made(tmp_path / "made.h5", replace(MADE, conversations=(60, 2, 2), dtype=np.float16))
    in_file = split_of(features, "train", resident=False)
    (on_device,) = hold([in_file], None)
    for name in ("audio", "text"):
        one, other = (getattr(split, name).robust_columns.scale for split in (in_file, on_device))
        quartiles = np.quantile(getattr(on_device, name).values.float().numpy(), (0.25, 0.5, 0.75), axis=0)
        np.testing.assert_allclose(one.centre, quartiles[1], rtol=1e-6)
        np.testing.assert_allclose(one.spread, (quartiles[2] - quartiles[0]) / 1.349, rtol=1e-6)
        assert np.array_equal(one.centre, other.centre)
        assert np.array_equal(one.spread, other.spread)


def test_a_column_that_hardly_varies_on_train_does_not_drown_the_others_elsewhere() -> None:
    features = make_features(replace(MADE, layers=(1, 1), dtype=np.float32))
    assert features.audio is not None
    values = features.audio.values.copy()
    of_train = features.audio.offsets[sum(split == "train" for split in features.utterances.splits)]
    values[:of_train, 2] = np.where(np.arange(of_train) == 1, 1e-4, 0)
    changed = replace(features, audio=replace(features.audio, values=values))
    train, test = (split_of(changed, name) for name in ("train", "test"))
    part = Standardise((6, 1), (5, 1))
    part.fit(lambda name: getattr(train, name).columns)
    (group,) = next(test.batches(99)).joined().groups
    raw = (group.audio[..., 2] - part.audio.mean[2]) * part.audio.scale[2]
    assert raw.abs().max() > 1e4
    assert part.audio(group.audio, group.audio_mask)[..., 2].abs().max() <= 3 * train.audio.columns.rows**0.5


@pytest.mark.parametrize("standardise", [True, False])
def test_training_reports_odd_columns_once(standardise: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = make_features(MADE)
    assert features.text is not None
    values = features.text.values.copy()
    values[:, 1, 3], values[:, 0, 0] = 0, 1e4 * values[:, 0, 0]
    changed = replace(features, text=replace(features.text, values=values))
    recipe = tiny_recipe({"name": "concat", "standardise": standardise}, seeds=(0, 1))
    train_seeds(changed, recipe, tmp_path / "models", CPU, 1)
    (said,) = [record.getMessage() for record in caplog.records if "columns" in record.getMessage()]
    assert said.startswith("text features of the train split, ")
    assert "of 10 columns: 1 constant (1/3), standard deviations from " in said
    assert ("not standardised" in said) is not standardise


def test_training_says_once_that_attention_has_nothing_to_choose_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = make_features(replace(MADE, layers=(1, 1), frames=(1, 1), tokens=(0, 1)))
    for attends in ("positions", "turns"):
        caplog.clear()
        train_seeds(features, tiny_recipe({"attends": attends}, seeds=(0, 1), epochs=1), tmp_path / attends, CPU, 1)
        said = [record.getMessage() for record in caplog.records if "nothing to choose from" in record.getMessage()]
        assert len(said) == (attends == "positions")
        assert all("model.hbaf.attends" in line for line in said)


class OfOneLine(nn.Module, HubModel):
    """A user's model, which knows nothing of standardising."""

    Params = SharedParams

    def __init__(self, params: SharedParams, sizes: Sizes) -> None:
        super().__init__()
        self.linear = nn.Linear(sizes.audio_dim, sizes.classes)

    def stages(self) -> list[Stage]:
        return [whole(self)]

    def forward(self, batch: Batch, views: bool = False) -> Output:
        return Output(logits=batch.each(lambda group: self.linear(group.audio).sum(1)))


def test_a_model_that_knows_nothing_of_it_is_given_standardised_features_also_when_it_is_read_again(
    tmp_path: Path,
) -> None:
    train = split_of(make_features(replace(MADE, layers=(1, 1))), "train")
    batch = next(train.batches(3))
    model: Any = OfOneLine(SharedParams(), Sizes(6, 5, classes=3))
    model.standardise.fit(lambda name: getattr(train, name).columns)
    model.save_pretrained(tmp_path / "model")
    again: Any = OfOneLine.from_pretrained(tmp_path / "model")

    def expected(split: Split) -> Tensor:
        linear, (group,) = model.linear, batch.joined().groups
        x = (group.audio.double() - torch.from_numpy(split.audio.columns.mean)) / split.audio.columns.deviation
        x = x * group.audio_mask[..., None]
        return (x @ linear.weight.double().T + linear.bias).sum(1).float()

    torch.testing.assert_close(model(batch).logits, expected(train), rtol=1e-5, atol=1e-5)
    assert torch.equal(model(batch).logits, again(batch).logits)


def test_a_modality_that_train_alone_lacks_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = make_features(Made(conversations=(6, 3, 3), frames=(1, 4)))
    part = features.audio
    assert part is not None
    train = [split == "train" for split in features.utterances.splits]
    rows = [part.rows(index)[: 0 if absent else None] for index, absent in enumerate(train)]
    other = replace(features, audio=part_from_arrays(part.path, part.ids, rows, part.identity))
    train_made(other, tmp_path / "models", tiny_recipe(epochs=1))
    assert "no utterance of the train split has audio, some of validation do" in caplog.text


def test_copies_of_train_in_validation_are_warned_of_and_those_in_test_not_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = make_features(Made(conversations=(6, 3, 3), frames=(1, 4)))
    train_made(plant_copies(features, "test"), tmp_path / "one", tiny_recipe(epochs=1))
    assert "the same as one in" not in caplog.text
    train_made(plant_copies(features, "validation"), tmp_path / "other", tiny_recipe(epochs=1))
    (said,) = [line for line in caplog.messages if "the same as one in" in line]
    assert "utterances of validation are the same as one in train (the same audio" in said
