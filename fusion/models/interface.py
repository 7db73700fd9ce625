"""What every model has: its params class, `save_pretrained`, `from_pretrained` and `push_to_hub` of the Hugging Face
hub, and the stages in which it is trained, one after the other; most models have one.

A model says by `stages()` how it is trained; one that says nothing is trained in one piece. The trainer takes each
stage by itself: it optimises the weights of the stage's branches, and each branch keeps those of its own best epoch on
validation.

With `model.standardise` every model looks at standardised features (`fusion.layers.Standardise`). A model that is
trained in one piece does not see to that itself: its `forward` is given a batch that is standardised.

Where scores are learned, what a model gives is put on the scale of train's (`fusion.layers.ScoreScale`) likewise.

With `model.linear_path` a linear model stands beside it (`fusion.layers.LinearPath`), which is fitted after training:
what it makes of the features as they are stored is added to the fused logits that `forward` returns.
"""

import copy
import inspect
import json
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from fusion.batch import Batch, Output
from fusion.layers import LinearPath, ScoreScale, Standardise
from fusion.models.shared import SharedParams, Sizes
from pipeline.settings import SettingsError


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


class _Completed(type):
    """Gives a model, once it is built, `score_scale`, `linear_path` and `standardise` around its `forward`.

    Not the first and the last where a part does it already, as in a model that is trained in stages; nor the first
    where stages train parts of the model that know nothing of it.
    """

    def __call__(cls, params: SharedParams, sizes: Sizes, *wanted: Any, **named: Any) -> Any:
        model: Any = super().__call__(params, sizes, *wanted, **named)
        own = any(isinstance(part, ScoreScale) for part in model.modules())
        if sizes.classes == 1 and not own and any(stage.module is model for stage in model.stages()):
            model.score_scale = ScoreScale()
            model.register_forward_hook(_on_score_scale)
        if params.linear_path:  # before what standardises: it looks at the features as they are stored
            stored = sizes.stored("audio"), sizes.stored("text")
            model.linear_path = LinearPath(*stored, sizes.classes, cls.inputs)  # type: ignore[attr-defined]
            model.register_forward_pre_hook(_ask_linear_path)
            model.register_forward_hook(_join_linear_path)
        if params.standardise and not any(isinstance(part, Standardise) for part in model.modules()):
            model.standardise = standardise_of(sizes, cls.inputs)  # type: ignore[attr-defined]
            model.register_forward_pre_hook(_standardise_first)
        return model


def standardise_of(sizes: Sizes, inputs: Collection[str] = ("audio", "text")) -> Standardise:
    """For features of these sizes; of `inputs`, what the model looks at."""
    return Standardise(sizes.stored("audio"), sizes.stored("text"), inputs)


def _standardise_first(model: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    batch, *others = given
    return model.standardise(batch), *others


def _on_score_scale(model: Any, given: tuple[Any, ...], output: Output) -> Output:
    return model.score_scale(output)


def _ask_linear_path(model: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    batch, *others = given
    return given if model.training else (replace(batch, linear=model.linear_path(batch)), *others)


def _join_linear_path(model: Any, given: tuple[Any, ...], output: Output) -> Output:
    linear = given[0].linear
    return output if linear is None else model.linear_path.join(output, linear)


class HubModel(PyTorchModelHubMixin, metaclass=_Completed):
    """huggingface_hub's mixin, which by itself ignores a weight that is missing or too many.

    Nor does it save a model whose GRUs are on a GPU: cuDNN lays their weights into one storage, which safetensors takes
    for weights that are shared. A model's constructor takes `(params, sizes)`, and `wanted` where it has `losses`.

    Attributes:
        Params: the class of `params`; its fields that section `model` lacks are the keys of `model.<name>`.
        losses: attributes of `Wanted` for which the model has a part.
        inputs: the modalities that it looks at.
    """

    Params: ClassVar[type[SharedParams]]
    losses: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]] = ("audio", "text")

    def __init_subclass__(cls, **info: Any) -> None:
        """Raises SettingsError where `Params` or the constructor is not as said above."""
        of_torch = cls.__module__.partition(".")[0] == "torch"  # which derives classes as it traces a graph
        if not of_torch and (problem := _problem(cls)):
            where = traceback.extract_stack(limit=2)[0]
            raise SettingsError(f"{where.filename}, line {where.lineno}: class {cls.__name__} {problem}")
        coders = {cls.Params: (_plain, cls.Params.model_validate_json)}
        super().__init_subclass__(library_name="erc-fusion", coders=coders, **info)

    def stages(self) -> list[Stage]:
        """How it is trained: one part after the other."""
        model: Any = self
        return [whole(model)]

    @classmethod
    def _decode_arg(cls, expected_type: type, value: Any) -> Any:
        is_params = isinstance(expected_type, type) and issubclass(expected_type, SharedParams)
        return super()._decode_arg(expected_type, json.dumps(value) if is_params else value)

    def _save_pretrained(self, save_directory: Path) -> None:
        own: Any = copy.deepcopy(self)  # every weight in a storage of its own
        PyTorchModelHubMixin._save_pretrained(own.cpu(), save_directory)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **arguments: Any) -> Any:
        return super()._from_pretrained(strict=strict, **arguments)


def _problem(cls: type[HubModel]) -> str:
    """What is wrong with a model's class; "" where nothing is."""
    params = getattr(cls, "Params", None)
    if params is None:
        return "has no Params; write Params = <its params class, derived from fusion.models.SharedParams>"
    if not (isinstance(params, type) and issubclass(params, SharedParams)):
        return f"has the Params {params!r}; expected a class derived from fusion.models.SharedParams"
    taken = ["self", "params", "sizes", *["wanted"] * bool(cls.losses)]
    given = inspect.signature(cls.__init__)
    try:
        given.bind(*taken)
    except TypeError:
        return f"has the constructor __init__{given}; expected __init__({', '.join(taken)})"
    return ""


def _plain(params: SharedParams) -> dict[str, Any]:
    return params.model_dump(mode="json")
