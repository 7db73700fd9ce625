"""The encoder that an identity names: found, loaded, and held to being that very one.

An identity may come from a model folder that a stranger made. A name in it is looked up among the built-in encoders and
on the hub, never as a path: a folder is taken only where the user says so, and what is found anywhere has to have the
weights that the identity states.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipeline.encoders.context import TextContext
from pipeline.errors import EncoderError
from pipeline.params import AudioParams, TextParams
from pipeline.settings import PrecisionError, SettingsError, check_section
from pipeline.store import Identity

if TYPE_CHECKING:
    from pipeline.encoders.speech import SpeechEncoder
    from pipeline.encoders.text import TextEncoder

EncoderType = TypeVar("EncoderType")
ParamsType = TypeVar("ParamsType")

BUILT_IN = {"audio": ("tiny", "log-mel", "egemaps", "egemaps-functionals"), "text": ("tiny",)}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
SHARED = ("layers", "mix", "precision", "dtype")  # what an identity says in the words of params.yaml
OWN = {
    "audio": (*SHARED, "context", "window_seconds", "overlap_seconds"),
    "text": (*SHARED, "overlap_tokens", *TextContext._fields),
}
PLACE = ("model", "revision")  # a folder need not be called what it was called when features were made
NOT_OF_THE_ENCODER = ("channels",)


@dataclass(frozen=True)
class Named(Generic[EncoderType, ParamsType]):
    """The encoder of an identity, and the parameters that make it so."""

    encoder: EncoderType
    params: ParamsType


def load_speech(identity: Identity, folder: Path | None, device: str) -> "Named[SpeechEncoder, AudioParams]":
    """The speech encoder that `identity` names, or that lies in `folder`, which has to be the same.

    Raises:
        EncoderError: it is not available, cannot be loaded, or is another one.
    """
    from pipeline.encoders.speech import load_speech_encoder

    return _load("audio", identity, folder, AudioParams, lambda params: load_speech_encoder(params, device))


def load_text(identity: Identity, folder: Path | None, device: str) -> "Named[TextEncoder, TextParams]":
    """The text encoder that `identity` names; raises as `load_speech` does."""
    from pipeline.encoders.text import load_text_encoder

    return _load("text", identity, folder, TextParams, lambda params: load_text_encoder(params, device))


def _load(modality: str, identity: Identity, folder: Path | None, section: Any, load: Callable[[Any], Any]) -> Any:
    """What `load` makes of the section; errors say what to do for a model that was trained already."""
    content = _settings(modality, identity, folder)
    try:
        params = check_section(content, modality, section, "the model's config.json")
    except SettingsError as error:
        raise EncoderError(
            f"{error}: no encoder can be made as the model asks; take the model from its source"
        ) from None
    try:
        encoder = load(params)
    except PrecisionError as error:
        raise PrecisionError(
            f"{error}: the model was trained on such {modality} features, so use it on another machine, or extract and "
            "train again in float32"
        ) from None
    except EncoderError as error:
        if folder is not None:
            raise
        raise EncoderError(
            f"{error} (it is the {modality} encoder of the model; if it lies in a folder here, name that with "
            f"--{modality}-encoder)"
        ) from None
    _check_same(modality, identity, encoder.identity, folder)
    return Named(encoder, params)


def _settings(modality: str, identity: Identity, folder: Path | None) -> dict[str, Any]:
    """What section `modality` of params.yaml would have to say."""
    found = {key: identity.fields[key] for key in OWN[modality] if key in identity.fields}
    name, revision = identity.fields.get("model"), identity.fields.get("revision")
    if identity.fields.get("frames") == "speaker":
        found["normalise"] = "speaker"
    if folder is not None:
        if not folder.is_dir():
            raise EncoderError(
                f"{folder}: no such folder; name that of the model's {modality} encoder (--{modality}-encoder)"
            )
        return {"encoder": str(folder.absolute())} | found
    if name in BUILT_IN[modality] and revision is None:
        own = {"normalise": identity.fields.get("normalise")} if name == "log-mel" else {}
        return {"encoder": name} | own | found
    if (
        isinstance(name, str)
        and isinstance(revision, str)
        and HUB_NAME.fullmatch(name)
        and REVISION.fullmatch(revision)
    ):
        return {"encoder": name, "revision": revision} | found
    if identity.imported:
        raise EncoderError(
            f"the model was trained on {modality} features that were imported, which no encoder can make of others: it "
            f"can only predict the utterances of that import (--features); for new ones, train on features of "
            f"pipeline-{modality}"
        )
    weights = str(identity.fields.get("weights"))[:12]
    raise EncoderError(
        f"the model was trained on {modality} features of an encoder folder called {name!r} (weights {weights}), which "
        f"it does not hold; say where the folder lies (--{modality}-encoder)"
    )


def _check_same(modality: str, wanted: Identity, found: Identity, folder: Path | None) -> None:
    aside = NOT_OF_THE_ENCODER if folder is None else (*NOT_OF_THE_ENCODER, *PLACE)
    there, here = ({key: value for key, value in one.fields.items() if key not in aside} for one in (found, wanted))
    if Identity(there) == Identity(here):
        return
    different = [key for key in sorted({*there, *here}) if there.get(key, "") != here.get(key, "")]
    told = (f"{key} {_said(there, key)} here, {_said(here, key)} for the model" for key in different)
    place = f"the {modality} encoder" if folder is None else f"--{modality}-encoder {folder}"
    raise EncoderError(
        f"{place} is not the one that the model was trained with: {', '.join(told)}; name the folder of the right one "
        f"with --{modality}-encoder, install the version of erc-fusion that the model is of, or train anew"
    )


def _said(fields: Mapping[str, Any], key: str) -> str:
    return Identity({key: fields[key]}).to_json()[:100] if key in fields else "not stated"
