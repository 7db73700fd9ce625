"""The stages in which a model is trained, one after the other; most models have one.

A model says by `stages()` how it is trained. The trainer takes each stage by itself: it optimises the weights of the
stage's branches, and each branch keeps those of its own best epoch on validation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from fusion.batch import Batch


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of training.

    Attributes:
        name: as in the histories and result files.
        module: what is called on a batch while the stage is trained, and returns an `Output`; part of the model.
        branches: the heads that learn (`fused`, `audio`, `text`), each with the module that holds its weights. Weights
            of branches don't overlap.
        encode: what the frozen stages before this one make of a batch, called once for every batch of a split before
            the stage begins, without gradient; None where the stage takes the features as they are.
    """

    name: str
    module: nn.Module
    branches: Mapping[str, nn.Module]
    encode: Callable[[Batch], Batch] | None = None


def whole(model: nn.Module) -> Stage:
    """The one stage of a model that is trained in one piece."""
    return Stage("fusion", model, {"fused": model})
