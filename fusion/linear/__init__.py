"""The linear reference: what a linear model makes of the same features."""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from fusion.linear.columns import pool_split
    from fusion.linear.reference import Fitted, LinearReference, fit_linear
else:
    __getattr__ = door(__name__, __file__)
