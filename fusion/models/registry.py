"""The models, by the names that params.yaml and a model folder's config.json use, and models of others that plug in
(docs/adding-a-model.md).
"""

from typing import Any

from fusion.models.baselines import AudioAlone, Concat, CrossModal, TextAlone
from fusion.models.dialoguegcn import DialogueGCN
from fusion.models.dialoguernn import DialogueRNN
from fusion.models.experts import Experts
from fusion.models.hbaf import HBAF
from fusion.models.hcam import HCAM
from fusion.models.interface import HubModel
from fusion.models.lmf import LMF
from fusion.models.misa import MISA
from fusion.models.mult import MulT
from fusion.models.shared import EVERYTHING, MODEL_PLUGINS, SharedParams, Sizes, Wanted
from fusion.models.tfn import TFN
from pipeline.settings import PLACE, SettingsError, installed_plugins, is_trusted, load_plugin, plugin_digest, suggest

MODELS: dict[str, type[HubModel]] = {
    "hbaf": HBAF,
    "hcam": HCAM,
    "audio": AudioAlone,
    "text": TextAlone,
    "concat": Concat,
    "crossmodal": CrossModal,
    "tfn": TFN,
    "lmf": LMF,
    "misa": MISA,
    "mult": MulT,
    "dialoguernn": DialogueRNN,
    "dialoguegcn": DialogueGCN,
    "experts": Experts,
}


def find_model(name: str, trusted: bool = True) -> type[HubModel]:
    """The model called `name`: one of the table, of an installed plug-in, or `package.module:Class`.

    Modules are also found in the current folder, as `python -m` would find them.

    Args:
        trusted: False where a stranger may have written the name, as in a model folder: then no module is imported but
            what an installed package offers.

    Raises:
        SettingsError: there is no such model, or its module may not be imported. An error inside it is its own.
    """
    if name in MODELS:
        return MODELS[name]
    if not (PLACE.fullmatch(name) or name in installed_plugins(MODEL_PLUGINS)):
        raise SettingsError(f"model.name is '{name}': expected one of {', '.join(MODELS)}{suggest(name, MODELS)}")
    if not (trusted or is_trusted(name, MODEL_PLUGINS)):
        raise SettingsError(
            f"its model is {name}, code from outside erc-fusion, which is run only if you name it yourself: "
            f"--set model.name={name}, or model.name in params.yaml; in Python, import {name.partition(':')[0]} first"
        )
    model: type[HubModel] = load_plugin(
        "model.name", name, MODEL_PLUGINS, "class", _is_model, base="fusion.models.HubModel"
    )
    return model


def _is_model(value: Any) -> bool:
    """Whether it is a model with a params class."""
    params = getattr(value, "Params", None) if isinstance(value, type) and issubclass(value, HubModel) else None
    return isinstance(params, type) and issubclass(params, SharedParams)


def model_source(name: str) -> str | None:
    """Hash (hex) of the source files of a plug-in; None for a model of the table, whose code is this package's."""
    return None if name in MODELS else plugin_digest(find_model(name).__module__)


def build_model(name: str, params: SharedParams, sizes: Sizes, wanted: Wanted = EVERYTHING) -> Any:
    """The model called `name`, with random weights.

    Args:
        name: as of `find_model`, with its errors.
        params: of that model's `Params`.
        sizes: of the features, and how many classes.
        wanted: by losses and target; a model without such parts is not given it.
    """
    model: Any = find_model(name)
    return model(params, sizes, wanted) if model.losses else model(params, sizes)
