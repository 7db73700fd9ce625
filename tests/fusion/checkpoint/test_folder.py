"""Model folders: what they hold, that they load, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusion.checkpoint import check_compatible, load_model, load_seeds, read_provenance, share_model
from fusion.checkpoint.folder import write_hashes
from fusion.data import load_split
from fusion.errors import ModelError
from fusion.inference import predict_heads, score_heads
from fusion.models import HBAF, model_source
from fusion.objective import find_task
from pipeline.settings import publish
from pipeline.store import Features, Identity
from tests.fusion.made import AUDIO, LABELS, TEXT, Made, make_features, tiny_recipe, train_made


@pytest.fixture(scope="module")
def features() -> Features:
    return make_features()


@pytest.fixture(scope="module")
def trained(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two seeds; not to be changed."""
    output = tmp_path_factory.mktemp("trained") / "hbaf"
    train_made(features, output, tiny_recipe(epochs=1, seeds=(0, 10)))
    return output


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "hbaf"))


def logits(model: nn.Module, features: Features) -> torch.Tensor:
    split = load_split(features, "test", modalities="both", audio_frames=8)
    with torch.inference_mode():
        return torch.cat([model(batch).logits for batch in split.batches(4)])


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    write_hashes(folder)


def test_a_folder_says_where_its_model_comes_from(trained: Path, features: Features) -> None:
    loaded = load_model(trained / "seed-10")
    provenance = loaded.provenance
    assert provenance.recipe.to_json() == tiny_recipe(epochs=1, seeds=(10,)).to_json()
    assert provenance.recipe.train.seeds == (10,)
    assert (provenance.seed, provenance.labels) == (10, tuple(LABELS))
    assert (provenance.audio, provenance.text) == (AUDIO, TEXT)
    assert provenance.features == features.digest
    assert provenance.selected == {"fusion.fused": 1}
    validation, task = load_split(features, "validation", modalities="both", audio_frames=8), find_task("label", 3)
    answers = predict_heads(loaded.model, validation, task)
    assert provenance.validation["audio"] == score_heads(task, validation, answers)["audio"]  # without a linear path
    assert set(provenance.validation) == {"fused", "audio", "text"}


def test_models_that_are_replaced_while_they_are_read_are_not_mixed(
    models: Path, tmp_path: Path, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_made(features, tmp_path / "new", tiny_recipe(epochs=2, seeds=(0, 10)))

    def replace_it(name: str) -> str | None:
        if (tmp_path / "new" / "seed-0").exists():
            publish(tmp_path / "new", models)
        return model_source(name)

    monkeypatch.setattr("fusion.checkpoint.folder.model_source", replace_it)
    with pytest.raises(ModelError, match="was replaced while it was read"):
        load_seeds(models)
    assert [len(one.history) for one in load_seeds(models)] == [2, 2]


def test_the_encoder_of_a_withheld_modality_is_not_recorded(tmp_path: Path, features: Features) -> None:
    train_made(features, tmp_path / "hbaf", tiny_recipe(model={"modalities": "audio"}, epochs=1))
    provenance = load_model(tmp_path / "hbaf" / "seed-0").provenance
    assert (provenance.audio, provenance.text) == (AUDIO, None)


@pytest.mark.parametrize("levels", ["auto", "both"])
def test_a_model_of_one_modality_keeps_the_levels_it_was_trained_with(
    levels: str, tmp_path: Path, features: Features
) -> None:
    recipe = tiny_recipe(model={"modalities": "audio", "levels": levels}, epochs=1)
    train_made(features, tmp_path / "hbaf", recipe)
    found: Any = load_model(tmp_path / "hbaf" / "seed-0").model
    assert list(found.levels) == (["raw"] if levels == "auto" else ["raw", "context"])


def test_the_hubs_own_loader_gives_the_same_model(trained: Path, features: Features) -> None:
    loaded = load_model(trained / "seed-0")
    from_hub = HBAF.from_pretrained(trained / "seed-0", strict=True).eval()  # older hubs leave that out
    assert not loaded.model.training
    assert torch.equal(logits(loaded.model, features), logits(from_hub, features))


def test_a_model_that_was_saved_without_limits_has_none(models: Path, features: Features) -> None:
    expected, path = logits(load_model(models / "seed-0").model, features), models / "seed-0" / "model.safetensors"
    weights = load_file(path)
    save_file({name: one for name, one in weights.items() if ".limits." not in name}, path)
    write_hashes(models / "seed-0")
    model = load_model(models / "seed-0").model
    found = {name: buffer for name, buffer in model.named_buffers() if ".limits." in name}
    assert len(found) == 8
    assert all(buffer.isinf().all() for buffer in found.values())
    assert torch.equal(logits(model, features), expected)


def test_loading_prints_nothing(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(trained / "seed-0")
    assert capsys.readouterr() == ("", "")


def test_every_file_may_be_read_by_whom_the_folder_is_shared_with(trained: Path) -> None:
    assert len({path.stat().st_mode for path in (trained / "seed-0").iterdir()}) == 1


def test_seeds_are_loaded_in_the_order_of_their_numbers(trained: Path) -> None:
    assert [loaded.provenance.seed for loaded in load_seeds(trained)] == [0, 10]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "history.json"])
def test_an_incomplete_folder_is_refused(models: Path, name: str) -> None:
    (models / "seed-0" / name).unlink()
    with pytest.raises(ModelError, match=f"seed-0: incomplete, {name} is missing; train it again"):
        load_model(models / "seed-0")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "history.json"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_truncated_file_is_refused(models: Path, name: str, share: float) -> None:
    content = (models / "seed-0" / name).read_bytes()
    (models / "seed-0" / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=rf"seed-0/{name}: damaged.*; train it again"):
        load_model(models / "seed-0")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "history.json", "hashes.json"])
def test_any_flipped_bit_is_refused_and_the_file_named(models: Path, name: str) -> None:
    path = models / "seed-0" / name
    content = path.read_bytes()
    for position in np.random.default_rng(0).choice(len(content), 25, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(position) % 8
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"seed-0/[a-z.]+: damaged, or edited since it was written"):
            read_provenance(models / "seed-0")


def test_an_edit_on_purpose_can_be_accepted(models: Path, tmp_path: Path) -> None:
    config = models / "seed-0" / "config.json"
    config.write_text(config.read_text().replace(f'"{LABELS[0]}"', '"delight"'))
    with pytest.raises(ModelError, match="--accept-edits"):
        share_model(models / "seed-0", tmp_path / "shared")
    share_model(models / "seed-0", tmp_path / "shared", accept_edits=True)
    assert "delight" in load_model(tmp_path / "shared").provenance.labels


def test_a_label_that_was_renamed_in_one_place_keeps_its_counts_in_the_card(models: Path, tmp_path: Path) -> None:
    def rename(config: dict[str, Any]) -> None:
        config["erc"]["labels"][0] = "delight"

    edit_config(models / "seed-0", rename)
    before = load_model(models / "seed-0").provenance.data["train"].labels[LABELS[0]]
    share_model(models / "seed-0", tmp_path / "shared", accept_edits=True)
    assert f"| delight | {before} |" in (tmp_path / "shared" / "README.md").read_text()


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "not ours": (lambda config: config.pop("erc"), "damaged, or not of erc-fusion"),
    "unknown model": (
        lambda config: config["erc"].update(model="hcam2"),
        r"config\.json: model\.name is 'hcam2': expected one of hbaf.*did you mean 'hcam'\? \(this is erc-fusion 0",
    ),
    "unknown parameter": (lambda config: config["erc"]["params"]["model"].update(new=1), r"unknown key 'model\.new'"),
    "no seed": (lambda config: config["erc"].pop("seed"), "damaged, or not of erc-fusion"),
    "no argument": (lambda config: config["sizes"].pop("audio_dim"), "damaged .*audio_dim"),
    "unknown argument": (lambda config: config.update(depth=3), "damaged .*arguments are not those of the training"),
    "unknown size": (lambda config: config["sizes"].update(depth=3), "damaged .*depth"),
    "other sizes": (lambda config: config["sizes"].update(audio_dim=16), "damaged .*size mismatch"),
    "other params": (lambda config: config["params"].update(dim=16), "damaged .*not those of the training"),
    "other parts": (lambda config: config["wanted"].update(auxiliary=False), "damaged .*not those of the training"),
    "fewer weights": (lambda config: config["erc"]["params"]["model"].update(dim=4), "damaged .*not those"),
    "an earlier version": (lambda config: config.pop("sizes"), "of an earlier version.*train it again"),
    "flat keys": (
        lambda config: config["erc"]["params"]["model"].update(gate=True),
        r"'model\.gate' is now 'model\.hbaf\.gate' \(the model is of version 0",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_config_that_does_not_fit_is_refused(models: Path, change: str) -> None:
    edit, message = CHANGES[change]
    edit_config(models / "seed-0", edit)
    with pytest.raises(ModelError, match=message):
        load_model(models / "seed-0")


def test_a_missing_folder_is_refused_and_an_interrupted_training_is_told(models: Path) -> None:
    missing = models.with_name("hcam")
    with pytest.raises(ModelError, match="hcam: no such model folder; train it with fusion-train"):
        load_seeds(missing)
    models.rename(missing.with_name("hcam.partial"))
    with pytest.raises(ModelError, match="training was interrupted, run fusion-train again"):
        load_seeds(missing)


def test_a_folder_without_seeds_is_refused(models: Path) -> None:
    with pytest.raises(ModelError, match=r"seed-0: the model of one seed; name the folder of all seeds, .*hbaf$"):
        load_seeds(models / "seed-0")
    (models / "empty").mkdir()
    with pytest.raises(ModelError, match="empty: holds no seed-<n> folder"):
        load_seeds(models / "empty")


def test_two_copies_of_a_seed_are_no_two_seeds(models: Path) -> None:
    shutil.copytree(models / "seed-0", models / "seed-1")
    with pytest.raises(ModelError, match=r"seed-\d and seed-\d hold one and the same seed, 0; take one of them away"):
        load_seeds(models)


def test_seeds_of_different_trainings_are_refused(models: Path) -> None:
    edit_config(models / "seed-10", lambda config: config["erc"]["params"]["loss"].update(auxiliary=0.2))
    with pytest.raises(ModelError, match="seed-0 and seed-10 were trained on different parameters or features"):
        load_seeds(models)


def test_features_of_another_encoder_are_refused_and_both_are_named(trained: Path, features: Features) -> None:
    assert features.text is not None
    other = replace(features, text=replace(features.text, identity=Identity({**TEXT.fields, "weights": "t2"})))
    with pytest.raises(ModelError) as caught:
        check_compatible(load_model(trained / "seed-0"), other)
    assert 'trained on text features of {"weights":"t1"}, but made.h5 has {"weights":"t2"}' in str(caught.value)


def test_other_labels_are_refused_and_both_are_named(trained: Path, features: Features) -> None:
    other = replace(features, label_names=["joy", "anger", "neutral"])
    with pytest.raises(ModelError, match=r"the labels anger, joy, neutral, but made\.h5 has joy, anger, neutral"):
        check_compatible(load_model(trained / "seed-0"), other)


def test_other_recordings_of_the_same_encoders_and_labels_are_welcome(trained: Path) -> None:
    check_compatible(load_model(trained / "seed-0"), make_features(Made(seed=9)))
