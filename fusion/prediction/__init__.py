"""Recordings or features -> labels, by models that were trained."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.prediction.command import Asked, predict
    from fusion.prediction.predictor import Predictor
    from fusion.prediction.records import Prediction, Turn
else:
    __getattr__ = door(__name__, __file__)
