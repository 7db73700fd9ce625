"""The models, by the names that params.yaml and a model folder's config.json use."""

import difflib
from typing import Any

from fusion.models.baselines import AudioAlone, Concat, CrossModal, TextAlone
from fusion.models.hbaf import HBAF
from fusion.models.hcam import HCAM
from fusion.models.interface import HubModel
from fusion.models.shared import EVERYTHING, SharedParams, Sizes, Wanted
from pipeline.settings import SettingsError

MODELS: dict[str, type[HubModel]] = {
    "hbaf": HBAF,
    "hcam": HCAM,
    "audio": AudioAlone,
    "text": TextAlone,
    "concat": Concat,
    "crossmodal": CrossModal,
}


def build_model(name: str, params: SharedParams, sizes: Sizes, wanted: Wanted = EVERYTHING) -> Any:
    """The model called `name`, with random weights.

    Args:
        name: a key of MODELS.
        params: of that model's `Params`.
        sizes: of the features, and how many classes.
        wanted: by losses and target; a model without such parts is not given it.

    Raises:
        SettingsError: there is no such model.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise SettingsError(f"model.name is '{name}': expected one of {', '.join(MODELS)}{hint}")
    model: Any = MODELS[name]
    return model(params, sizes, wanted) if model.losses else model(params, sizes)
