"""The models: one a file (the baselines share one), and the table of their names."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.models.baselines import Concat, CrossModal, SingleModality
    from fusion.models.hbaf import HBAF
    from fusion.models.hcam import HCAM
    from fusion.models.interface import Stage
    from fusion.models.registry import MODELS, build_model, own_arguments
else:
    __getattr__ = door(__name__, __file__)
