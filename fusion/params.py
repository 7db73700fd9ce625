"""The sections of params.yaml that fusion owns: `model`, `loss`, `train`, `evaluate`, `ablations`.

A comment behind a key gives its meaning and unit. Defaults are those of `fusion-train` where no params.yaml lies.
Models and metrics, which load torch, are imported when a value is checked: shell completion needs the keys alone.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from fusion.objective import Target
from pipeline.settings import Precision, Section, read_section

Fraction = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Modalities = Literal["both", "audio", "text"]

GENERAL = ("name", "modalities", "audio_frames")  # what every model depends on
LOSSES = {  # the keys of section `loss` that need a part of the model, by the argument that builds the part
    "auxiliary": ("auxiliary",),
    "contrastive": ("absolute", "relative", "label_aware", "temperature"),
    "supervised": ("supervised", "temperature"),
}
OF_LABELS = {"supervised", "label_aware", "label_smoothing", "class_weights"}  # of section `loss`: no use with scores


class ModelParams(Section):
    """Section `model`: what the model is given, and the arguments of all models with the switch of each part.

    A model takes the arguments that its class has (`fusion.models.own_arguments`), and does not look at the others.
    """

    name: Literal["hbaf", "hcam", "audio", "text", "concat", "crossmodal"] = "hbaf"
    modalities: Modalities = "both"  # given to the model; a withheld one is empty in every utterance
    audio_frames: int = Field(128, ge=1, le=100_000)  # longer utterances are average-pooled to it, nothing is cut
    dim: int = Field(64, ge=2, le=4096)  # width of every layer; a multiple of `heads`
    heads: int = Field(4, ge=1, le=64)  # of each attention
    dropout: Fraction = 0.3  # share of activations
    context: Literal["none", "text", "conversation", "both"] = "both"  # what audio frames look up
    context_turns: int = Field(4, ge=0, le=1000)  # turns on each side whose summaries are context
    direction: Literal["past", "both"] = "both"  # past: no turn sees a later one
    levels: Literal["both", "raw", "context"] = "both"  # of fusion
    self_attention: bool = True  # intra-modal relations; hcam: in all stages; crossmodal: behind the directions
    cross_attention: bool = True  # inter-modal relations
    gate: bool = True  # per dimension, between the two relations
    relevance: bool = True  # per position, may close a false cross-modal relation
    residual: bool = True
    conversation_encoder: Literal["gru", "none"] = "gru"
    stages: Annotated[tuple[Literal["utterance", "conversation", "fusion"], ...], Field(min_length=1)] = (
        "utterance",
        "conversation",
        "fusion",
    )
    training: Literal["hierarchical", "joint"] = "hierarchical"  # stage by stage, or all at once
    freeze: bool = True  # earlier stages, while a later one is trained
    co_attention: Literal["both", "audio", "text", "none"] = "both"  # audio: audio looks at text
    blocks: int = Field(2, ge=0, le=100)  # of co-attention, or of cross-modal attention in each direction
    recurrent_layers: int = Field(1, ge=1, le=10)  # along frames and tokens
    ensemble: bool = False  # of what all heads say, by weights chosen on validation

    @property
    def looks_at(self) -> tuple[str, ...]:
        """The modalities that make a difference to the model."""
        only = self.name if self.name in ("audio", "text") else self.modalities
        return ("audio", "text") if only == "both" else (only,)

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        order = ("utterance", "conversation", "fusion")
        if stages != tuple(name for name in order if name in stages):
            raise ValueError(f"must name some of {', '.join(order)}, each once, in this order")
        return stages

    @field_validator("modalities")
    @classmethod
    def _leaves_the_model_something(cls, modalities: str, info: Any) -> str:
        name = info.data.get("name")
        if name in ("audio", "text") and modalities not in ("both", name):
            raise ValueError(f"withholds all that model '{name}' looks at; set it to both or {name}")
        return modalities

    @field_validator("heads")
    @classmethod
    def _divides_dim(cls, heads: int, info: Any) -> int:
        dim = info.data.get("dim")
        if dim is not None and dim % heads:
            raise ValueError(f"must divide model.dim, which is {dim}")
        return heads


class LossParams(Section):
    """Section `loss`: what `fusion.objective.losses` adds up; 0 leaves a part out. A model without a part has no such
    loss.
    """

    auxiliary: Weight = 0.3  # of heads beside those that the stage is about
    absolute: Weight = 0.1  # contrast: audio and text of one utterance belong together
    relative: Weight = 0.1  # contrast: both modalities arrange a batch alike
    supervised: float = Field(0.2, ge=0, le=1)  # hcam, labels: share of supervised contrast beside cross-entropy
    temperature: float = Field(0.1, gt=0, le=100)  # of all contrasts
    label_aware: bool = False  # labels: utterances of one label are positives of the absolute contrast
    label_smoothing: Fraction = 0.0  # labels
    class_weights: Literal["none", "balanced"] = "none"  # balanced: each label weighs the same over the train split


class TrainParams(Section):
    """Section `train`: what is learned, optimisation, selection on validation, seeds.

    `metric` None stands for the first metric of the target (`fusion.objective.METRICS_OF`), and is it once it is read.
    """

    target: Target = "label"  # what models learn to tell of an utterance, of the columns of the feature file
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)] = (0, 1, 2)  # one model each
    epochs: int = Field(60, ge=1, le=100_000)  # at most
    patience: int = Field(15, ge=1)  # epochs without a better validation score before stopping
    metric: str = Field(None, validate_default=True)  # on validation; the best epoch's weights are kept
    conversations: int = Field(16, ge=1, le=100_000)  # a batch, on average; see `fusion.data.batches.draw_batches`
    optimizer: Literal["adam", "adamw"] = "adam"  # adam: weight decay as L2 penalty; adamw: decoupled from the step
    learning_rate: float = Field(1e-3, gt=0, le=10)
    weight_decay: float = Field(1e-4, ge=0, le=10)
    gradient_clip: float = Field(1.0, gt=0)  # largest norm of all gradients together
    precision: Precision = "float32"  # bfloat16: of matrix products and attention while it learns
    # GB for features; more stay in the file, with the same results. auto: half of what is free on the training device
    memory: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("every seed may be given once only")
        return seeds

    @field_validator("metric", mode="before")
    @classmethod
    def _lead_by_default(cls, metric: Any, info: Any) -> Any:
        """None is the first metric of the target."""
        from fusion.objective import METRICS_OF

        return next(iter(METRICS_OF[info.data.get("target", "label")])) if metric is None else metric

    @field_validator("metric")
    @classmethod
    def _fits_target(cls, metric: str, info: Any) -> str:
        from fusion.objective import METRICS_OF

        target: Target = info.data.get("target", "label")
        if metric not in METRICS_OF[target]:
            close = difflib.get_close_matches(metric, METRICS_OF[target], n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"expected one of {', '.join(METRICS_OF[target])} for train.target {target}{hint}")
        return metric


class EvaluateParams(Section):
    """Section `evaluate`: percentile bootstrap intervals that resample whole conversations, and robustness studies."""

    resamples: int = Field(1000, ge=10, le=1_000_000)
    confidence: float = Field(0.95, gt=0, lt=1)
    permutations: int = Field(10_000, ge=10, le=1_000_000)  # of the tests between rows of an ablation table
    seed: Seed = 0  # of the bootstrap, and of which utterances miss a modality
    missing: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()  # shares of utterances without one of two modalities
    degrade: dict[str, Any] | None = Field(None, exclude=True)  # read and checked by pipeline-degrade alone

    @field_validator("missing")
    @classmethod
    def _differ(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(shares)) < len(shares):
            raise ValueError("every share may be given once only")
        return shares


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
        """Plain values by section, those alone that the model takes; `train.seeds` is left out, a model has one;
        so is `train.memory`, which decides no number."""
        from fusion.models import own_arguments

        return {
            "model": self.model.model_dump(mode="json", include={*GENERAL, *own_arguments(self.model.name)}),
            "loss": self.loss.model_dump(mode="json", include=_own_losses(self.model.name, self.train.target)),
            "train": self.train.model_dump(mode="json", exclude={"seeds", "memory"}),
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


def model_arguments(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of the model's constructor; heads and projections that no loss would train are left out."""
    from fusion.models import own_arguments

    loss, scores = recipe.loss, recipe.train.target == "score"
    decided = {
        "auxiliary": loss.auxiliary > 0,
        "contrastive": loss.absolute > 0 or loss.relative > 0,
        "supervised": loss.supervised > 0 and not scores,
        "scores": scores,
    }
    values = recipe.model.model_dump() | decided
    return {name: values[name] for name in own_arguments(recipe.model.name)}


def losses_of(target: Target) -> set[str]:
    """Keys of section `loss` that make a difference to the loss of `target`."""
    return {*LossParams.model_fields} - (OF_LABELS if target == "score" else set())


def _own_losses(name: str, target: Target) -> set[str]:
    """Keys of section `loss` that make a difference to the model called `name`."""
    from fusion.models import own_arguments

    parts = {argument: keys for argument, keys in LOSSES.items() if not (target == "score" and argument in OF_LABELS)}
    taken = {key for argument in own_arguments(name) for key in parts.get(argument, ())}
    return losses_of(target) - ({key for keys in LOSSES.values() for key in keys} - taken)
