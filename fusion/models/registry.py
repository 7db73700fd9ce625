"""The models, by the names that params.yaml and a model folder's config.json use."""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fusion.models.baselines import Concat, CrossModal, SingleModality
from fusion.models.hbaf import HBAF
from fusion.models.hcam import HCAM
from pipeline.settings import SettingsError

MODELS: dict[str, Callable[..., nn.Module]] = {
    "hbaf": HBAF,
    "hcam": HCAM,
    "audio": partial(SingleModality, modality="audio"),
    "text": partial(SingleModality, modality="text"),
    "concat": Concat,
    "crossmodal": CrossModal,
}
GIVEN = ("modality", "audio_dim", "text_dim", "audio_layers", "text_layers", "classes")  # by the name and the features


def own_arguments(name: str) -> list[str]:
    """The arguments of the model called `name` that parameters decide, in order."""
    return [argument for argument in inspect.signature(MODELS[name]).parameters if argument not in GIVEN]


def build_model(
    name: str,
    *,
    audio_dim: int,
    text_dim: int,
    audio_layers: int,
    text_layers: int,
    classes: int,
    **arguments: Any,
) -> nn.Module:
    """The model called `name`, with random weights.

    Args:
        name: a key of MODELS.
        audio_dim, text_dim, audio_layers, text_layers: of the stored features.
        classes: how many labels there are; 1 for a score.
        arguments: the model's own, see its class.

    Raises:
        SettingsError: there is no such model, or it refuses its arguments.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise SettingsError(f"model.name is '{name}': expected one of {', '.join(MODELS)}{hint}")
    return MODELS[name](
        audio_dim=audio_dim,
        text_dim=text_dim,
        audio_layers=audio_layers,
        text_layers=text_layers,
        classes=classes,
        **arguments,
    )
