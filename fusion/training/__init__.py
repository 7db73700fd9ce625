"""Training: one model stage by stage, resumable, and the models of several seeds side by side."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.training.loop import build_split_model, find_signs, fit
    from fusion.training.resume import KEEP_SECONDS, State, StateFile
    from fusion.training.several_seeds import fingerprint, train_seeds, training_headline
else:
    __getattr__ = door(__name__, __file__)
