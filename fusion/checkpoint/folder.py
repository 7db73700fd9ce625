"""Model folders: `models/<model>/seed-<n>/`, as huggingface_hub's mixin writes and reads them.

model.safetensors   weights
config.json         constructor arguments (`params`, `sizes`, `wanted`) at the top, where `from_pretrained` looks; all
                    else under the key `erc`
history.json        what training wrote down of every epoch
hashes.json         the SHA-256 of each of these three, checked whenever the folder is read: a changed bit
                    would change answers, or a label's name, in silence
README.md           model card, which may be edited
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from torch import nn

from fusion.checkpoint.card import model_card
from fusion.checkpoint.provenance import VERSION, Provenance, provenance_from_json
from fusion.errors import ModelError, OutputError
from fusion.models import Sizes, build_model, find_model, model_source
from fusion.objective import Epoch, find_task, history_from_json, history_to_json
from fusion.runtime import check_model_folder, write_file, writing
from pipeline.settings import SettingsError, publish
from pipeline.store import MODALITIES, Features, Identity

EXTRA = "erc"  # key of config.json that holds what is not a constructor argument
DAMAGE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
HASHES = "hashes.json"
HASHED = ("model.safetensors", "config.json", "history.json")
FILES = (*HASHED, HASHES, "README.md")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model folder, read."""

    folder: Path
    model: nn.Module  # in evaluation mode
    provenance: Provenance
    history: list[Epoch]
    stored: Mapping[str, tuple[int, int]]  # (layers, dim) of the features that it takes, by modality


def save_model(folder: Path, model: nn.Module, provenance: Provenance, history: Sequence[Epoch]) -> None:
    """Write a model folder; it appears whole, replacing an older one of that name.

    Raises:
        OutputError: it cannot be written.
    """
    partial = folder.with_name(folder.name + ".tmp")
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            # the card first: the mixin leaves one alone that is there
            write_file(partial / "README.md", model_card(provenance).encode())
            write_file(partial / "history.json", _json(history_to_json(history)))
            model.save_pretrained(partial)  # type: ignore[operator]  # the mixin's, which every model has
            config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
            write_file(partial / "config.json", _json(config | {EXTRA: provenance.to_json()}))
            # safetensors writes for the owner's eyes alone
            shutil.copymode(partial / "config.json", partial / "model.safetensors")
            write_hashes(partial)
            publish(partial, folder)
    except SafetensorError as error:
        raise OutputError(f"{folder}: the weights cannot be written ({error}); make room there") from error


def write_hashes(folder: Path) -> None:
    """Write hashes.json of what lies in `folder`."""
    write_file(folder / HASHES, _json({name: _hash(folder / name) for name in HASHED}))


def _check_hashes(folder: Path) -> None:
    """Raise ModelError where a file is not the one that was written."""
    try:
        expected = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        changed = [name for name in HASHED if expected[name] != _hash(folder / name)]
    except OSError as error:
        raise _unread(folder / HASHES, error) from error
    except DAMAGE:
        changed = [HASHES]
    if changed:
        raise ModelError(
            f"{folder / changed[0]}: damaged, or edited since it was written ({HASHES} says so, unless that itself is "
            "damaged); train it again, or accept an edit of yours: "
            f"fusion-export {folder} --accept-edits --output FOLDER"
        )


def read_provenance(folder: Path, edited: bool = False) -> Provenance:
    """Where the model in `folder` comes from, without loading it.

    Args:
        edited: whether files may be others than were written.

    Raises:
        ModelError: as `load_model`, apart from the weights.
    """
    check_model_folder(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        seeds = sorted(path for path in folder.glob("seed-*") if path.is_dir())
        if seeds:
            raise ModelError(f"{folder}: the models of several seeds; name one of them, such as {seeds[0]}")
        raise ModelError(f"{folder}: incomplete, {', '.join(missing)} is missing; train it again with fusion-train")
    if not edited:
        _check_hashes(folder)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        content = config[EXTRA]
        _check_model(content["model"], path)
        if "sizes" in config:
            return provenance_from_json(content, path)
    except OSError as error:
        raise _unread(path, error) from error
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise ModelError(f"{path}: damaged, or not of erc-fusion ({reason}); train it again") from error
    except SettingsError as error:
        raise ModelError(f"{error} (the model is of version {content.get('version')}, this is {VERSION})") from error
    raise ModelError(f"{path}: of an earlier version, whose models took other arguments; train it again")


def _check_model(name: str, path: Path) -> None:
    """Raise ModelError where there is no such model, or it is a plug-in that nobody here has named."""
    try:
        find_model(name, trusted=False)
    except SettingsError as error:
        raise ModelError(f"{path}: {error} (this is erc-fusion {VERSION})") from error


def load_model(folder: str | PathLike[str], device: torch.device | str = "cpu", edited: bool = False) -> LoadedModel:
    """The model in `folder`, on `device`, in evaluation mode; `edited` as of `read_provenance`.

    Raises:
        ModelError: the folder is missing, incomplete or damaged, or holds a model that this version does not know.
    """
    folder = Path(folder)
    check_model_folder(folder)
    with _kept(folder):
        return _load_model(folder, device, edited)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Raise ModelError where `folder` is another one in the end: a training that ends puts a new one in its place."""
    before = folder.stat()
    yield
    try:
        after = folder.stat()
    except OSError as error:
        raise _unread(folder, error) from error
    if not os.path.samestat(before, after):
        raise ModelError(f"{folder}: was replaced while it was read, by a training run that finished; run it again")


def _load_model(folder: Path, device: torch.device | str, edited: bool) -> LoadedModel:
    provenance = read_provenance(folder, edited)
    if provenance.source != model_source(provenance.recipe.model.name):
        log.warning(
            "%s: the code of its model, %s, is not what it was trained with, so its answers may differ; train it again",
            folder,
            provenance.recipe.model.name,
        )
    try:
        # not the mixin's `from_pretrained`: that one prints, and takes an unknown argument or weight for nothing
        arguments = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del arguments[EXTRA]
        recipe, sizes = provenance.recipe, Sizes(**arguments["sizes"])
        outputs = find_task(recipe.train.target, len(provenance.labels)).outputs
        if sizes.classes != outputs:
            raise ValueError(f"classes is {sizes.classes}, but there are {outputs}")
        expected_arguments = {"params": recipe.own.model_dump(mode="json"), "sizes": asdict(sizes)}
        if find_model(recipe.model.name).losses:
            expected_arguments["wanted"] = asdict(recipe.wanted)
        if arguments != expected_arguments:
            raise ValueError("the constructor's arguments are not those of the training")
        model: nn.Module = build_model(recipe.model.name, recipe.own, sizes, recipe.wanted)
        load_weights(model, folder / "model.safetensors", strict=True)  # before cuDNN lays weights into one storage
        stored = {"audio": (sizes.audio_layers, sizes.audio_dim), "text": (sizes.text_layers, sizes.text_dim)}
        history = history_from_json(json.loads((folder / "history.json").read_text(encoding="utf-8")))
    except OSError as error:
        raise _unread(folder, error) from error
    except (*DAMAGE, SafetensorError, MemoryError, AssertionError) as error:
        raise ModelError(
            f"{folder}: damaged or of another version ({_one_line(error)}); train it again with fusion-train"
        ) from error
    return LoadedModel(folder, model.to(device).eval(), provenance, history, stored)


def load_seeds(folder: str | PathLike[str], device: torch.device | str = "cpu") -> list[LoadedModel]:
    """The models of all seeds in `folder`, by seed.

    Raises:
        ModelError: as `load_model`, or there is none, or they are not of one training.
    """
    folder = Path(folder)
    check_model_folder(folder)
    with _kept(folder):
        return _load_seeds(folder, device)


def _load_seeds(folder: Path, device: torch.device | str) -> list[LoadedModel]:
    folders = [path for path in folder.iterdir() if path.name.startswith("seed-") and path.is_dir()]
    if not folders and (folder / "config.json").is_file():
        raise ModelError(f"{folder}: the model of one seed; name the folder of all seeds, {folder.parent}")
    if not folders:
        raise ModelError(f"{folder}: holds no seed-<n> folder; name the folder that fusion-train wrote")
    loaded = sorted((load_model(path, device) for path in folders), key=lambda one: one.provenance.seed)
    first = loaded[0]
    for one, other in pairwise(loaded):
        if one.provenance.seed == other.provenance.seed:
            raise ModelError(
                f"{folder}: {one.folder.name} and {other.folder.name} hold one and the same seed, "
                f"{one.provenance.seed}; take one of them away"
            )
    for other in loaded[1:]:
        if _training(other.provenance) != _training(first.provenance):
            raise ModelError(
                f"{folder}: {first.folder.name} and {other.folder.name} were trained on different parameters or "
                "features; train all seeds together with fusion-train"
            )
    return loaded


def check_compatible(loaded: LoadedModel, features: Features) -> None:
    """Raise ModelError unless `features` are of the encoders and labels that the model was trained on."""
    check_encoders(loaded, features)
    provenance = loaded.provenance
    for name in provenance.given:
        if getattr(features, name) is None:
            raise ModelError(
                f"{loaded.folder}: was trained with {name}, which {features.path} does not hold; join {name} features "
                "in (pipeline-join), or train a model without it (model.modalities)"
            )
    if provenance.recipe.train.target == "label" and list(provenance.labels) != list(features.label_names):
        raise ModelError(
            f"{loaded.folder}: trained on the labels {', '.join(provenance.labels)}, but {features.path} has "
            f"{', '.join(features.label_names)}; use the same labels in the same order, or train anew"
        )


def check_encoders(loaded: LoadedModel, features: Features) -> None:
    """Raise ModelError unless `features` are of the encoders that the model was trained on, whatever their labels."""
    provenance = loaded.provenance
    for name in MODALITIES:
        trained, part = getattr(provenance, name), getattr(features, name)
        seen = name in provenance.recipe.model.looks_at  # of the other one nothing reaches the model
        if seen and trained is not None and part is not None and trained != part.identity:
            fix = (
                "a model of imported features can only predict the utterances of that import: import others together "
                "with those it is to learn from, and train anew"
                if trained.imported
                else "extract with the same encoder, or train anew"
            )
            raise ModelError(
                f"{loaded.folder}: trained on {name} features of {_difference(trained, part.identity)}, but "
                f"{features.path} has {_difference(part.identity, trained)}; {fix}"
            )


def _unread(path: Path, error: OSError) -> ModelError:
    """Of what the disk does not give nothing is known, so it is not called damaged."""
    return ModelError(f"{error.filename or path}: cannot be read ({error.strerror or error}); see who may read it")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _training(provenance: Provenance) -> tuple[str, str, tuple[str, ...]]:
    return provenance.recipe.digest, provenance.features, provenance.labels


def _difference(one: Identity, other: Identity) -> str:
    """The fields of `one` that `other` lacks or has otherwise, on one line."""
    fields = {key: value for key, value in one.fields.items() if key not in other.fields or other.fields[key] != value}
    return Identity(fields).to_json()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
