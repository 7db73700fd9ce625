"""The sections of params.yaml that fusion owns: `model`, `loss`, `train`, `evaluate`, `ablations`.

A comment behind a key gives its meaning and unit. Defaults are those of `fusion-train` where no params.yaml lies.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from pipeline.settings import Section, read_section

Fraction = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Metric = Literal["weighted_f1", "macro_f1", "accuracy", "uar"]
Modalities = Literal["both", "audio", "text"]


class ModelParams(Section):
    """Section `model`: what the model is given, and HBAF's own arguments with the switch of each part."""

    name: Literal["hbaf"] = "hbaf"
    modalities: Modalities = "both"  # given to the model; a withheld one is empty in every utterance
    audio_frames: int = Field(128, ge=1, le=100_000)  # longer utterances are average-pooled to it, nothing is cut
    dim: int = Field(64, ge=2, le=4096)  # width of every layer; a multiple of `heads`
    heads: int = Field(4, ge=1, le=64)  # of each attention
    dropout: Fraction = 0.3  # share of activations
    context: Literal["none", "text", "conversation", "both"] = "both"  # what audio frames look up
    context_turns: int = Field(4, ge=0, le=1000)  # turns on each side whose summaries are context
    direction: Literal["past", "both"] = "both"  # past: no turn sees a later one
    levels: Literal["both", "raw", "context"] = "both"  # of fusion
    self_attention: bool = True  # intra-modal relations
    cross_attention: bool = True  # inter-modal relations
    gate: bool = True  # per dimension, between the two relations
    relevance: bool = True  # per position, may close a false cross-modal relation
    residual: bool = True
    conversation_encoder: Literal["gru", "none"] = "gru"

    @field_validator("heads")
    @classmethod
    def _divides_dim(cls, heads: int, info: Any) -> int:
        dim = info.data.get("dim")
        if dim is not None and dim % heads:
            raise ValueError(f"must divide model.dim, which is {dim}")
        return heads


class LossParams(Section):
    """Section `loss`: CE + auxiliary (CE audio + CE text) + absolute L_abs + relative L_rel; 0 leaves a part out."""

    auxiliary: Weight = 0.3  # cross-entropy of the head of each modality
    absolute: Weight = 0.1  # contrast: audio and text of one utterance belong together
    relative: Weight = 0.1  # contrast: both modalities arrange a batch alike
    temperature: float = Field(0.1, gt=0, le=100)  # of both contrasts
    label_aware: bool = False  # utterances of one label are positives of the absolute contrast
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"  # balanced: each label weighs the same over the train split


class TrainParams(Section):
    """Section `train`: optimisation, selection on validation, seeds."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)] = (0, 1, 2)  # one model each
    epochs: int = Field(60, ge=1, le=100_000)  # at most
    patience: int = Field(15, ge=1)  # epochs without a better validation score before stopping
    metric: Metric = "weighted_f1"  # on validation; the best epoch's weights are kept
    conversations: int = Field(16, ge=1, le=100_000)  # a batch
    optimizer: Literal["adam", "adamw"] = "adam"  # adam: weight decay as L2 penalty; adamw: decoupled from the step
    learning_rate: float = Field(1e-3, gt=0, le=10)
    weight_decay: float = Field(1e-4, ge=0, le=10)
    gradient_clip: float = Field(1.0, gt=0)  # largest norm of all gradients together

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("every seed may be given once only")
        return seeds


class EvaluateParams(Section):
    """Section `evaluate`: intervals that resample whole conversations, tests that swap them."""

    resamples: int = Field(1000, ge=10, le=1_000_000)
    confidence: float = Field(0.95, gt=0, lt=1)
    permutations: int = Field(10_000, ge=10, le=1_000_000)  # of the tests between rows of an ablation table
    seed: Seed = 0


class AblationSet(Section):
    """A set of section `ablations`: overrides `section.key: value` of `model`, `loss`, `train`, and two keys more."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Any]
    base: str | None = None  # the row whose overrides it inherits and with which it is compared; none: the base row
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({})  # a row for each combination of values

    @property
    def overrides(self) -> dict[str, Any]:
        """By `section.key`; values are checked where they are put in place."""
        return dict(self.__pydantic_extra__)


class AblationParams(Section):
    """Section `ablations`: sets by name."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, AblationSet]

    @property
    def sets(self) -> dict[str, AblationSet]:
        """By name, in the order of the file."""
        return dict(self.__pydantic_extra__)


@dataclass(frozen=True)
class Recipe:
    """Everything besides features and seed that decides what a trained model is."""

    model: ModelParams
    loss: LossParams
    train: TrainParams

    def to_json(self) -> dict[str, Any]:
        """Plain values by section; `train.seeds` is left out, since a model has but one of them."""
        return {
            "model": self.model.model_dump(mode="json"),
            "loss": self.loss.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude={"seeds"}),
        }

    @property
    def digest(self) -> str:
        """Hash (hex) of every parameter but the seeds."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def read_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The sections `model`, `loss` and `train` of the file at `path`; raises SettingsError."""
    return Recipe(
        read_section(path, "model", ModelParams, overrides),
        read_section(path, "loss", LossParams, overrides),
        read_section(path, "train", TrainParams, overrides),
    )


def model_arguments(model: ModelParams, loss: LossParams) -> dict[str, Any]:
    """Keyword arguments of the model's constructor; heads and projections that no loss would train are left out."""
    arguments = model.model_dump(exclude={"name", "modalities", "audio_frames"})
    return arguments | {
        "auxiliary": loss.auxiliary > 0,
        "contrastive": loss.absolute > 0 or loss.relative > 0,
    }
