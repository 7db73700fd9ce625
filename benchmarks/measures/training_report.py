"""Results of training as the tables of the README, in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from measures.machine import Machine
from measures.operations import PHASES, StepOperations
from measures.report import memory, percent, table
from measures.timing import Spread
from measures.training_runs import (
    BESIDE,
    MAPPED,
    POOLED,
    RESIDENT,
    USUAL,
    EpochResult,
    GrowthResult,
    ModelResult,
    VariantResult,
)
from measures.training_studies import SeedsResult, StartResult, StudyResult

VARIANTS = {
    USUAL: "(a) the usual way",
    POOLED: "(a) with audio pooled as here",
    MAPPED: "(b) this trainer, memory-mapped",
    RESIDENT: "(c) this trainer, resident",
    BESIDE: "(c), a run on each core",
}
MODELS = {"hbaf": "HBAF", "hcam": "HCAM"}


@dataclass(frozen=True)
class CorpusSize:
    """What was trained on."""

    share: float  # of MELD's conversations
    utterances: int  # of all splits
    conversations: int
    frames: int
    tokens: int
    bytes: int


@dataclass
class TrainingResults:
    """Everything that a run measured; parts that were not asked for are empty."""

    machine: Machine
    corpus: CorpusSize
    seeds: int
    repeats: int  # of growth and start
    workers: int  # of the usual way's DataLoader
    threads: dict[str, int]  # by variant
    models: list[ModelResult] = field(default_factory=list)
    growth: list[GrowthResult] = field(default_factory=list)
    start: list[StartResult] = field(default_factory=list)
    operations: list[StepOperations] = field(default_factory=list)
    every: list[EpochResult] = field(default_factory=list)
    convergence: SeedsResult | None = None
    study: StudyResult | None = None


def training_markdown(results: TrainingResults) -> str:
    """All tables of what was measured."""
    machine, corpus = results.machine, results.corpus
    threads = ", ".join(f"{count} for {name}" for name, count in results.threads.items())
    parts = [
        f"{machine.processor}, {machine.cores} cores, threads {threads}, device {machine.device}, torch "
        f"{machine.torch}; {100 * corpus.share:.3g} % of MELD's conversations ({corpus.utterances} utterances, "
        f"{corpus.bytes / 1e6:.0f} MB); {results.workers} workers load for (a); medians (lowest-highest)."
    ]
    for model in results.models:
        parts += [_model_title(model, results.seeds), _model_table(model)]
        if len(model.variants[0].stage_seconds) > 1:
            parts.append(_stage_table(model))
    if results.growth:
        parts += [f"**Growth**, {VARIANTS[results.growth[0].variant]}:", _growth_table(results.growth)]
    if results.start:
        parts.append(_start_table(results.start))
    if results.operations:
        parts.append(_operations_table(results.operations))
    if results.every:
        parts.append(_every_table(results.every))
    if results.convergence:
        parts.append(_convergence_line(results.convergence))
    if results.study:
        parts.append(_study_line(results.study))
    return "\n\n".join(parts) + "\n"


def _model_title(model: ModelResult, seeds: int) -> str:
    first = VARIANTS[model.variants[0].name]
    return (
        f"**{_name(model.model)}**: {model.epochs} epochs of {model.utterances} utterances, {seeds} seeds; {first} "
        f"ends with {model.target_score:.3f} on validation."
    )


def _model_table(model: ModelResult) -> str:
    header = [
        "",
        "epoch s",
        "× the first",
        "learning s",
        "validation s",
        "utterances/s",
        "padding audio",
        "padding text",
    ]
    header += ["memory", "with mapped files", "GPU", "score", "s to the score of the first", "epochs"]
    return table(header, [_variant_row(variant) for variant in model.variants])


def _variant_row(found: VariantResult) -> list[str]:
    deviation = "" if found.score_deviation is None else f" ± {found.score_deviation:.3f}"
    reached = f" ({found.reached} of {len(found.scores)} seeds)" if found.reached < len(found.scores) else ""
    return [
        VARIANTS[found.name],
        str(found.epoch_seconds),
        str(found.times_usual),
        str(found.train_seconds),
        str(found.validation_seconds),
        f"{found.utterances_a_second:.0f}",
        "" if found.padding is None else percent(found.padding.audio),
        "" if found.padding is None else percent(found.padding.text),
        memory(found.own_peak_bytes),
        memory(found.peak_bytes),
        memory(found.gpu_peak_bytes),
        f"{found.mean_score:.3f}{deviation}",
        _or_none(found.reach_seconds) + reached,
        _or_none(found.reach_epochs),
    ]


def _stage_table(model: ModelResult) -> str:
    stages = list(model.variants[0].stage_seconds)
    header = [
        f"{_name(model.model)}, epoch of a stage",
        *(word for stage in stages for word in (f"{stage} s", "× the first")),
    ]
    rows = [
        [
            VARIANTS[found.name],
            *(str(value) for stage in stages for value in (found.stage_seconds[stage], found.stage_times_usual[stage])),
        ]
        for found in model.variants
    ]
    return table(header, rows)


def _growth_table(growth: Sequence[GrowthResult]) -> str:
    header = ["", "part of it", "utterances", "epoch s", "time an utterance, to all of it", "memory"]
    rows = [
        [
            _name(found.model),
            f"{found.share:g}",
            str(found.utterances),
            str(found.epoch_seconds),
            str(found.utterance_ratio),
            memory(found.own_peak_bytes),
        ]
        for found in growth
    ]
    return table(header, rows)


def _start_table(start: Sequence[StartResult]) -> str:
    rows = [[_name(found.model), str(found.utterances), str(found.seconds)] for found in start]
    return table(["`fusion-train`", "utterances", "s from its start to its first step"], rows)


def _operations_table(operations: Sequence[StepOperations]) -> str:
    header = ["Operations of a step on a GPU", "stage", *PHASES, "in all", "of them GRUs", "of them writing by index"]
    rows = [
        [
            _name(found.model),
            found.stage,
            *(str(found.by_phase[phase]) for phase in PHASES),
            str(found.total),
            str(found.grus),
            str(found.indexed),
        ]
        for found in operations
    ]
    return table(header, rows)


def _every_table(every: Sequence[EpochResult]) -> str:
    header = ["Every model", "an epoch of each stage, s of the processor", f"× {_name(every[0].model)}"]
    rows = [
        [
            _name(found.model),
            ", ".join(str(seconds) for seconds in found.stage_seconds.values()),
            str(found.times_first),
        ]
        for found in every
    ]
    return table(header, rows)


def _convergence_line(found: SeedsResult) -> str:
    return (
        f"**{found.seeds} seeds of {_name(found.model)} to convergence**: {found.seconds:.1f} s, "
        f"{found.epochs} epochs, mean validation score {found.mean_score:.3f}."
    )


def _study_line(study: StudyResult) -> str:
    return (
        f"**A study of {study.variants} variants x {study.seeds} seeds** with `fusion-ablate`: {study.seconds:.1f} s, "
        f"{study.epochs} epochs in all."
    )


def _name(model: str) -> str:
    return MODELS.get(model, f"`{model}`")


def _or_none(values: Spread | None) -> str:
    return "never" if values is None else str(values)
