"""The `degrade` stage: the test split once more, as a worse recogniser or a worse microphone would have given it."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from pipeline.degradation.stage import degrade
else:
    __getattr__ = door(__name__, __file__)
