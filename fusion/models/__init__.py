"""The models: one a file (the baselines share one), and the table of their names."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.models.baselines import AudioAlone, Concat, CrossModal, CrossModalParams, TextAlone
    from fusion.models.dialoguegcn import DialogueGCN, DialogueGCNParams
    from fusion.models.dialoguernn import DialogueRNN, DialogueRNNParams
    from fusion.models.experts import Experts, ExpertsParams
    from fusion.models.hbaf import HBAF, HBAFParams
    from fusion.models.hcam import HCAM, HCAMParams
    from fusion.models.interface import HubModel, Stage, whole
    from fusion.models.lmf import LMF, LMFParams
    from fusion.models.misa import MISA, MISAParams
    from fusion.models.mult import MulT, MulTParams
    from fusion.models.registry import MODELS, build_model, find_model, model_source
    from fusion.models.shared import (
        MODEL_PLUGINS,
        ConversationEncoding,
        Heads,
        Needs,
        SharedParams,
        Sizes,
        Wanted,
        Weight,
        idle_keys,
    )
    from fusion.models.tfn import TFN, TFNParams
else:
    __getattr__ = door(__name__, __file__)
