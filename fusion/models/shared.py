"""What every model is built from: the keys of section `model` that all of them take, and the sizes around it.

Without torch, since shell completion reads the keys.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings import Section

MODEL_PLUGINS = "erc_fusion.models"  # entry points of installed packages that bring a model
Heads = Annotated[int, Field(ge=1, le=64)]
Weight = Annotated[float, Field(ge=0, le=1000)]  # of a term of the loss
ConversationEncoding = Literal["gru", "none"]


# by key: another key of the group, and the values (of a list, elements) of it with which the first makes a difference
Needs = Mapping[str, Sequence[Any]]


def idle_keys(params: Section) -> dict[str, str]:
    """The keys of `params` without which a model is the same, by its class variable `needs`; each with why."""
    idle, needs = {}, getattr(params, "needs", {})
    for key, (other, *values) in needs.items():
        found = getattr(params, other)
        held = found if isinstance(found, tuple) else (found,)
        if not any(one in values for one in held):
            needed = " or ".join(map(str, values))
            advice = f"add {needed} to {other}" if isinstance(found, tuple) else f"set {other} to {needed}"
            idle[key] = f"{other} is {', '.join(map(str, held))}; {advice}"
    return idle


class SharedParams(Section):
    """What every model takes. A model's own params class adds its keys, and of the other shared ones those it takes."""

    # width of every layer; a multiple of `heads` where it has any, even for direction both
    dim: int = Field(64, ge=2, le=4096)
    dropout: float = Field(0.5, ge=0, lt=1)  # share of activations
    direction: Literal["past", "both"] = "both"  # past: no turn sees a later one
    # columns of the features, by mean and deviation over the train split; robust: by median and interquartile range
    standardise: Literal["robust"] | bool = True
    linear_path: bool = True  # a linear model beside the deep one, weighted on validation

    needs: ClassVar[Needs] = {}

    def doubt(self, longest: Mapping[str, int]) -> str:
        """Why the model can't do with such features what its parameters say, in a line; "" where it can.

        Args:
            longest: rows of the longest utterance, of each modality that the model looks at.
        """
        return ""

    def for_modalities(self, given: Collection[str]) -> Self:
        """The same with what keys that are `auto` stand for, of a model that is given these modalities."""
        return self

    @property
    def uses_speakers(self) -> bool:
        """Whether who speaks makes a difference to the model."""
        return False

    @property
    def attention_heads(self) -> int:
        """Of each attention; 1 where the model has none to share out."""
        return getattr(self, "heads", 1)

    @model_validator(mode="after")
    def _divides(self) -> "SharedParams":
        heads, narrow = self.attention_heads, getattr(self, "attention_dim", None)
        if (narrow or self.dim) % heads:
            width = f"attention_dim, which is {narrow}" if narrow else f"model.dim, which is {self.dim}"
            raise ValueError(f"heads is {heads}: must divide {width}")
        if self.direction == "both" and self.dim % 2:
            raise ValueError(f"dim is {self.dim}: must be even, since both directions of model.direction share it")
        return self


@dataclass(frozen=True)
class Sizes:
    """What stands at both ends of a model.

    Attributes:
        audio_dim, text_dim: width of the stored features.
        audio_layers, text_layers: stored layers; more than one are mixed by learned weights.
        classes: how many labels there are; 1 for a score.
    """

    audio_dim: int
    text_dim: int
    audio_layers: int = 1
    text_layers: int = 1
    classes: int = 1

    def stored(self, modality: str) -> tuple[int, int]:
        """Width and layers of `audio` or `text` as stored."""
        return getattr(self, f"{modality}_dim"), getattr(self, f"{modality}_layers")


@dataclass(frozen=True)
class Wanted:
    """What the losses and the target ask for; a model leaves out what no loss would train.

    Attributes:
        auxiliary: classifiers beside the last one.
        contrastive: embeddings of both modalities for the contrast between them.
        supervised: embeddings for the supervised contrast.
        scores: the one output of each head is a score.
    """

    auxiliary: bool = True
    contrastive: bool = True
    supervised: bool = True
    scores: bool = False


EVERYTHING = Wanted()
