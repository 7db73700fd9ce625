"""The models: one a file (the baselines share one), and the table of their names."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.models.baselines import AudioAlone, Concat, CrossModal, CrossModalParams, TextAlone
    from fusion.models.hbaf import HBAF, HBAFParams
    from fusion.models.hcam import HCAM, HCAMParams
    from fusion.models.interface import HubModel, Stage, whole
    from fusion.models.registry import MODELS, build_model, find_model, model_source
    from fusion.models.shared import (
        MODEL_PLUGINS,
        ConversationEncoding,
        Heads,
        SharedParams,
        Sizes,
        Wanted,
    )
else:
    __getattr__ = door(__name__, __file__)
