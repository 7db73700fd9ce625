"""The sections of params.yaml that fusion owns: `model`, `loss`, `train`, `evaluate`, `folds`, `ablations`.

A comment behind a key gives its meaning and unit. Defaults are those of `fusion-train` where no params.yaml lies.
Models and metrics, which load torch, are imported when a value is checked: shell completion needs the keys alone.
"""

import difflib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from fusion.models import MODEL_PLUGINS, ConversationEncoding, Heads, Needs, SharedParams, Wanted, Weight, idle_keys
from fusion.objective import Target
from pipeline.settings import (
    DEFAULT_PARAMS,
    PLACE,
    Precision,
    Section,
    SettingsError,
    check_plugin_name,
    check_section,
    installed_plugins,
    read_section,
    suggest,
)

if TYPE_CHECKING:
    from fusion.objective import LabelLoss

log = logging.getLogger(__name__)

Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Modalities = Literal["both", "audio", "text"]

ASIDE = {"seeds", "memory"}  # of section `train`: a model has one seed, and memory changes no number
GENERAL = ("name", "modalities", "audio_frames")  # what every model depends on
LOSSES = {  # the keys of section `loss` that need a part of the model, by the attribute of `Wanted` that asks for it
    "auxiliary": ("auxiliary",),
    "contrastive": ("absolute", "relative", "label_aware", "temperature"),
    "supervised": ("supervised", "temperature"),
}
OF_LABELS = {  # of section `loss`: no use with scores
    "kind", "gamma", "supervised", "label_aware", "label_smoothing", "class_weights",
}  # fmt: skip


OwnModel = Literal[  # `fusion.models.registry` has the classes
    "hbaf",
    "hcam",
    "audio",
    "text",
    "concat",
    "crossmodal",
    "tfn",
    "lmf",
    "misa",
    "mult",
    "dialoguernn",
    "dialoguegcn",
    "experts",
]
MODEL_NAMES: tuple[str, ...] = get_args(OwnModel)


def _names_a_model(name: str) -> str:
    return check_plugin_name(name, MODEL_PLUGINS, "the place of a model: my_package.module:Class", PLACE)


class ModelParams(SharedParams):
    """Section `model`: the keys that models share; and a group for each model that has keys besides, by its name; a dot
    in the name of a plug-in is a level of groups, as in every key.

    The groups are read by the models alone: `own_params` makes of this section what the model named is built from.
    """

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Any]
    # also a plug-in: an entry point of the group `erc_fusion.models`, or my_package.module:Class
    name: OwnModel | Annotated[str, AfterValidator(_names_a_model)] = "hbaf"
    modalities: Modalities = "both"  # given to the model; a withheld one is empty in every utterance
    audio_frames: int = Field(64, ge=1, le=100_000)  # longer utterances are average-pooled to it, nothing is cut
    heads: Heads = 4  # of each attention
    conversation_encoder: ConversationEncoding = "gru"  # none: utterances by themselves

    @property
    def looks_at(self) -> tuple[str, ...]:
        """The modalities that make a difference to the model."""
        only = self.name if self.name in ("audio", "text") else self.modalities
        return ("audio", "text") if only == "both" else (only,)

    @property
    def group(self) -> dict[str, Any]:
        """What stands under the model's name."""
        found = self.__pydantic_extra__
        for level in self.name.split("."):
            found = found.get(level) or {}
        return found

    @field_validator("modalities")
    @classmethod
    def _leaves_the_model_something(cls, modalities: str, info: Any) -> str:
        name = info.data.get("name")
        if name in ("audio", "text") and modalities not in ("both", name):
            raise ValueError(f"withholds all that model '{name}' looks at; set it to both or {name}")
        return modalities

    @property
    def attention_heads(self) -> int:
        """Those of the model named; 1 of a plug-in, which checks its own."""
        from fusion.models import MODELS

        return self.heads if self.name in MODELS and "heads" in MODELS[self.name].Params.model_fields else 1

    @property
    def attention_dim(self) -> int | None:
        """Of the model named, if it has one: then that is what its heads divide."""
        width = self.group.get("attention_dim") if isinstance(self.group, dict) else None
        return width if isinstance(width, int) else None

    @model_validator(mode="after")
    def _knows_its_groups(self) -> "ModelParams":
        for key, value in self.__pydantic_extra__.items():
            if "." in key:
                raise ValueError(f"'model.{key}': write each part between dots on a line by itself, one in the other")
            if not any(map(_is_model, _groups(key, value))):
                raise ValueError(_unknown(key))
            if not isinstance(value, dict | None):
                raise ValueError(f"'model.{key}' is {value!r}: expected a group of keys and values")
        return self


def _is_model(name: str) -> bool:
    return bool(name in MODEL_NAMES or PLACE.fullmatch(name) or name in installed_plugins(MODEL_PLUGINS))


def _groups(key: str, value: Any) -> Iterator[str]:
    """`key` and all groups in it that may be a plug-in's, which has a colon in its name."""
    yield key
    if ":" not in key and isinstance(value, dict):
        for inner, content in value.items():
            yield from _groups(f"{key}.{inner}", content)


def own_params(model: ModelParams, source: str, overrides: Sequence[str] = (), *, trusted: bool = True) -> SharedParams:
    """What the model named is built from: its group, and the shared keys that it takes.

    Raises:
        SettingsError: a key or value of the group is not accepted; `source` and `overrides` as of `check_section`; or
            there is no such model, `trusted` as of `find_model`.
    """
    from fusion.models import find_model

    params, shared = find_model(model.name, trusted).Params, ModelParams.model_fields
    for key in model.group:
        if key in shared:
            raise SettingsError(f"{source}: 'model.{model.name}.{key}' is shared by all models; set 'model.{key}'")
    taken = model.model_dump(mode="json", include={*shared} & {*params.model_fields})
    own = check_section(taken | model.group, f"model.{model.name}", params, source, overrides)
    return own.for_modalities(model.looks_at)


def check_model_named(name: str, keys: Iterable[str], source: str) -> None:
    """Raise SettingsError where one of `keys` (`section.key`) is in the group of another model than `name`."""
    for key in keys:
        group, inside = _group_of(key)
        if group not in (None, name):
            if inside and group in MODEL_NAMES:
                _check_key(group, inside, source)
            raise SettingsError(
                f"{source}: '{key}' is of model {group}, but model.name is {name}, which does not look at it; "
                f"set model.name to {group}, or leave the key out"
            )


def _group_of(key: str) -> tuple[str | None, str]:
    """The model whose group the dotted `key` is of, or in, and the rest of it; None where it is of no group."""
    section, *levels = key.split(".")
    if section == "model" and levels[0] not in ModelParams.model_fields:
        for end in range(1, len(levels) + 1):
            if _is_model(name := ".".join(levels[:end])):
                return name, ".".join(levels[end:])
    return None, ""


def _own_keys() -> dict[str, set[str]]:
    """The keys of each model's group."""
    from fusion.models import MODELS

    return {name: {*one.Params.model_fields} - {*ModelParams.model_fields} for name, one in MODELS.items()}


def _check_key(group: str, key: str, source: str) -> None:
    """Raise SettingsError where the model called `group` has no such key."""
    if key.partition(".")[0] not in _own_keys()[group]:
        others = [f"'model.{name}.{key}'" for name, keys in _own_keys().items() if key in keys]
        hint = f"; there is {' and '.join(others)}" if others else ""
        raise SettingsError(f"{source}: unknown key 'model.{group}.{key}'{hint}")


def _unknown(key: str) -> str:
    """What is wrong with a key of section `model` that is neither shared nor a model's name."""
    groups = _own_keys()
    moved = [f"'model.{name}.{key}'" for name, keys in groups.items() if key in keys]
    if moved:
        return f"'model.{key}' is now {' or '.join(moved)}"
    known = [*ModelParams.model_fields, *groups, *(f"{name}.{one}" for name, keys in groups.items() for one in keys)]
    ends = {one.rpartition(".")[2]: one for one in reversed(known)}
    close = difflib.get_close_matches(key, ends, n=1)
    hint = f"did you mean 'model.{ends[close[0]]}'?" if close else f"known here: {', '.join(sorted(known))}"
    return f"unknown key 'model.{key}'; {hint}"


class LossParams(Section):
    """Section `loss`: what `fusion.objective.losses` adds up; 0 leaves a part out. A model without a part has no such
    loss.
    """

    kind: Literal["cross_entropy", "focal"] = "cross_entropy"  # of each head, of labels
    gamma: float = Field(2.0, ge=0, le=20)  # focal: what has probability p counts (1 - p) ^ gamma times
    auxiliary: Weight = 0.3  # of heads beside those that the stage is about
    absolute: Weight = 0.1  # contrast: audio and text of one utterance belong together
    relative: Weight = 0.1  # contrast: both modalities arrange a batch alike
    supervised: float = Field(0.2, ge=0, le=1)  # hcam, labels: share of supervised contrast beside cross-entropy
    temperature: float = Field(0.1, gt=0, le=100)  # of all contrasts
    label_aware: bool = False  # labels: utterances of one label are positives of the absolute contrast
    label_smoothing: Fraction = 0.0  # labels
    class_weights: Literal["none", "balanced"] = "none"  # balanced: each label weighs the same over the train split

    needs: ClassVar[Needs] = {"gamma": ("kind", "focal")}

    @property
    def of_labels(self) -> "LabelLoss":
        """What the loss of a head is."""
        from fusion.objective import LabelLoss

        gamma = self.gamma if self.kind == "focal" else 0.0
        return LabelLoss(self.class_weights == "balanced", self.label_smoothing, gamma)


class TrainParams(Section):
    """Section `train`: what is learned, optimisation, selection on validation, seeds.

    `metric` None stands for the first metric of the target (`fusion.objective.METRICS_OF`), and is it once it is read.
    """

    target: Target = "label"  # what models learn to predict of an utterance, of the columns of the feature file
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)] = (0, 1, 2)  # one model each
    epochs: int = Field(1000, ge=1, le=100_000)  # at most
    patience: int = Field(5, ge=1)  # epochs without a better validation score before stopping
    patience_updates: int = Field(
        300, ge=0
    )  # of the weights, which these epochs must have as well: some have only three
    select: Literal["metric", "loss"] = "metric"  # on validation: the best epoch, whose weights are kept
    metric: str = Field(None, validate_default=True)  # on validation; leads in tables and selects
    conversations: int = Field(16, ge=1, le=100_000)  # a batch, on average; see `fusion.data.batches.draw_batches`
    optimizer: Literal["adam", "adamw"] = "adamw"  # adam: weight decay as L2 penalty; adamw: decoupled from the step
    learning_rate: float = Field(2e-3, gt=0, le=10)  # after the warm-up
    warmup_updates: int = Field(50, ge=0, le=1_000_000)  # in which the rate rises to that, of each stage
    schedule: Literal["constant", "step", "cosine"] = (
        "constant"  # of the rate; cosine: to 0 over `epochs`, in each stage
    )
    step_epochs: int = Field(30, ge=1, le=100_000)  # step: epochs after each of which ..
    step_factor: float = Field(0.1, gt=0, le=1)  # .. the rate is multiplied by it
    weight_decay: float = Field(1e-2, ge=0, le=10)
    average: Fraction = (
        0.98  # share of the old in the running mean of the weights, which is validated and kept; 0: none
    )
    gradient_clip: float = Field(1.0, gt=0)  # largest norm of all gradients together
    precision: Precision = "float32"  # bfloat16: of matrix products and attention while it learns
    # GB for features; more stay in the file, with the same results. auto: half of what is free on the training device
    memory: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"

    needs: ClassVar[Needs] = {"step_epochs": ("schedule", "step"), "step_factor": ("schedule", "step")}

    @property
    def best(self) -> str:
        """What the epoch has on validation whose weights are kept, in words."""
        return f"best {self.metric}" if self.select == "metric" else "lowest loss"

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
            known = METRICS_OF[target]
            raise ValueError(f"expected one of {', '.join(known)} for train.target {target}{suggest(metric, known)}")
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


class FoldParams(Section):
    """Section `folds`: cross-validation of one feature file (`fusion.ablation.folds`)."""

    hold_out: Literal["conversation", "speaker"] = "conversation"  # whole ones, a speaker with all conversations
    count: Annotated[int, Field(ge=2, le=10_000)] | Literal["all"] = 5  # of the folds; all: leave one out
    validation: float = Field(0.15, gt=0, lt=1)  # share of what is not tested, in each fold
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

    def __getstate__(self) -> dict[str, Any]:
        """Without `own`, whose class another process would have to find before it knows where."""
        return {name: value for name, value in vars(self).items() if name != "own"}

    @cached_property
    def own(self) -> SharedParams:
        """What the model is built from, an instance of its `Params`."""
        return own_params(self.model, "model")

    @property
    def wanted(self) -> Wanted:
        """The parts of a model that some loss trains."""
        loss, scores = self.loss, self.train.target == "score"
        return Wanted(
            auxiliary=loss.auxiliary > 0,
            contrastive=loss.absolute > 0 or loss.relative > 0,
            supervised=loss.supervised > 0 and not scores,
            scores=scores,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values by section, those alone that make a difference to the model."""
        name, shared, own = self.model.name, {*ModelParams.model_fields}, {*type(self.own).model_fields}
        losses = _own_losses(name, self.train.target)
        model = self.model.model_dump(mode="json", include={*GENERAL, *(shared & own)})
        group = self.own.model_dump(mode="json", exclude=shared | {*idle_keys(self.own)})
        for level in reversed(name.split(".") if group else ()):
            group = {level: group}
        return {
            "model": model | group,
            "loss": self.loss.model_dump(mode="json", include=losses - {*idle_keys(self.loss)}),
            "train": self.train.model_dump(mode="json", exclude=ASIDE | {*idle_keys(self.train)}),
        }

    @property
    def digest(self) -> str:
        """Hash (hex) of every parameter but the seeds."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def read_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The sections `model`, `loss` and `train` of the file at `path`; raises SettingsError."""
    recipe = Recipe(
        read_section(path, "model", ModelParams, overrides),
        read_section(path, "loss", LossParams, overrides),
        read_section(path, "train", TrainParams, overrides),
    )
    for override in overrides:
        check_model_named(recipe.model.name, [override.partition("=")[0].strip()], f"override {override!r}")
    own_params(recipe.model, str(path or "defaults"), overrides)
    return recipe


def read_model_folder(path: Path | None, overrides: Sequence[str] = (), folder: Path | None = None) -> Path:
    """`folder`, or that of the model which section `model` of the file at `path` names. If that is a plug-in, it is
    imported: the user has named it, and from then on the folder may.

    Raises:
        SettingsError: as `read_section`, or as `find_model`.
    """
    name = read_section(path, "model", ModelParams, overrides).name
    if name not in MODEL_NAMES:
        from fusion.models import find_model

        find_model(name)
    return folder or Path("models") / name


def trust_model_named(path: Path | None, overrides: Sequence[str] = ()) -> None:
    """The same for a command that is given a folder, and to which params.yaml is of no other use."""
    if path is None and DEFAULT_PARAMS.exists():
        with suppress(SettingsError):  # it may be of another project
            read_section(DEFAULT_PARAMS, "model", ModelParams)
            path = DEFAULT_PARAMS
    read_model_folder(path, overrides)


def losses_of(target: Target) -> set[str]:
    """Keys of section `loss` that make a difference to the loss of `target`."""
    return {*LossParams.model_fields} - (OF_LABELS if target == "score" else set())


def _own_losses(name: str, target: Target) -> set[str]:
    """Keys of section `loss` that make a difference to the model called `name`."""
    from fusion.models import find_model

    parts = {argument: keys for argument, keys in LOSSES.items() if not (target == "score" and argument in OF_LABELS)}
    taken = {key for argument in find_model(name).losses for key in parts.get(argument, ())}
    return losses_of(target) - ({key for keys in LOSSES.values() for key in keys} - taken)


def why_unused(recipe: Recipe, key: str) -> str:
    """Why `key` (`section.key`) makes no difference to a model of `recipe`, and where it would; "" where it does."""
    from fusion.models import MODELS, find_model

    group, _, name = key.rpartition(".")
    model, target = recipe.model.name, recipe.train.target
    params = {f"model.{model}": recipe.own, "loss": recipe.loss, "train": recipe.train}
    if group in params and (why := idle_keys(params[group]).get(name)):
        return f"{group}.{why}"
    if group == "loss" and target == "score" and name in OF_LABELS:
        return "train.target is score; set target to label"
    taken_by = {
        "model": lambda one: {*GENERAL, *find_model(one).Params.model_fields},
        "loss": lambda one: _own_losses(one, target),
    }.get(group, lambda one: {name})
    takers = [one for one in MODELS if name in taken_by(one)]
    if not takers or name in taken_by(model):
        return ""
    return f"model.name is {model}; only {', '.join(takers)} {'use' if len(takers) > 1 else 'uses'} it"


def report_unused(given: Iterable[str], recipes: Sequence[Recipe], place: str = "") -> None:
    """Warn of each `section.key` or `section.key=value` that was given and makes no difference to any of `recipes`."""
    for key in dict.fromkeys(one.partition("=")[0].strip() for one in given):
        if all(reasons := [why_unused(recipe, key) for recipe in recipes]):
            log.warning("%s'%s' has no effect: %s", place, key, reasons[0])
