"""What every model has: `save_pretrained`, `from_pretrained` and `push_to_hub` of the Hugging Face hub, what it
refuses of its arguments, and the stages in which it is trained, one after the other; most models have one.

A model says by `stages()` how it is trained. The trainer takes each stage by itself: it optimises the weights of the
stage's branches, and each branch keeps those of its own best epoch on validation.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from fusion.batch import Batch
from pipeline.settings import SettingsError


class HubModel(PyTorchModelHubMixin):
    """huggingface_hub's mixin, which by itself takes a weight that is missing or too many for nothing.

    Nor does it save a model whose GRUs are on a GPU: cuDNN lays their weights into one storage, which safetensors takes
    for weights that are shared.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        own: Any = copy.deepcopy(self)  # every weight in a storage of its own
        PyTorchModelHubMixin._save_pretrained(own.cpu(), save_directory)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **arguments: Any) -> Any:
        return super()._from_pretrained(strict=strict, **arguments)


def check_choices(choices: Mapping[str, Any], **found: str) -> None:
    """Raise SettingsError unless each of `found` is among its literal type in `choices`."""
    for name, value in found.items():
        accepted = get_args(choices[name])
        if value not in accepted:
            raise SettingsError(f"model.{name} is {value!r}: expected one of {', '.join(accepted)}")


def check_width(dim: int, heads: int, *, halves: bool) -> None:
    """Raise SettingsError unless `heads` attention heads, and two directions where it has `halves`, share `dim`."""
    if dim % heads or (halves and dim % 2):
        raise SettingsError(
            f"model.dim is {dim}: expected a multiple of model.heads ({heads}), and even; change either"
        )


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
