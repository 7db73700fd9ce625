"""Train the models of several seeds into one folder, which appears when all are done.

The work is done in `<output>.partial` beside the output, because DVC deletes the output before it runs the stage:

    models/hbaf.partial/seed-0/          finished, taken over as it is when its fingerprint is still right
    models/hbaf.partial/seed-1.state     begun, goes on after its last epoch
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fusion.checkpoint import (
    VERSION,
    Provenance,
    count_split,
    load_model,
    mark_conversations,
    measure_gain,
    read_provenance,
    save_model,
    score_intervals,
)
from fusion.data import Split, hold, load_for, report_features
from fusion.errors import ModelError, OutputError
from fusion.linear import LinearReference, fit_linear
from fusion.models import model_source
from fusion.objective import METRICS, chance_scores, find_task, floor_scores
from fusion.params import Recipe
from fusion.runtime import (
    Held,
    count_jobs,
    memory_for_features,
    partial_folder,
    side_by_side,
    single_thread,
    within_memory,
    writing,
)
from fusion.tables import number_of
from fusion.training.loop import find_signs, fit
from fusion.training.resume import KEEP_SECONDS, StateFile
from pipeline.settings import closure_digest, publish, sole_writer
from pipeline.store import MODALITIES, Contents, Features, Identity, split_copies

CODE = ("fusion.training.loop:fit", "fusion.data:load_for")  # what decides the weights of a model

TRY = (
    "try another train.learning_rate (a tenth, or three times as much), more train.epochs and train.patience, and "
    "look at features and splits with pipeline-inspect; if the linear reference is at chance too, they may "
    "not hold what is asked"
)

log = logging.getLogger(__name__)


def train_seeds(
    features: Features,
    recipe: Recipe,
    output: Path,
    device: torch.device,
    jobs: int | None = None,
    overwrite: bool = False,
) -> list[Provenance]:
    """One model for each of `train.seeds`, in `output/seed-<n>/`, which appears when all are done.

    Interrupted and called again, it goes on where it stopped. Models that `output` holds already are not trained.

    Args:
        jobs: seeds that are trained side by side; one for each core by default, always one on a GPU.
        overwrite: whether other models in `output` may be replaced, at the end.

    Raises:
        FeatureError, SettingsError, TrainingError: as `load_split` and `fit`; or a process was killed.
        OutputError: the models cannot be written, `output` is something else than a folder of models, or it holds
            other models and `overwrite` is not given.
        BusyError: another process trains into `output`.
    """
    jobs = count_jobs(jobs, device)
    with sole_writer(output) as output:
        _check_replaceable(output)
        wanted = {seed: fingerprint(features, recipe, seed, device) for seed in recipe.train.seeds}
        there = _finished_before(output, features, recipe, wanted, overwrite)
        if there.keys() == wanted.keys():
            log.warning("%s: these very models are there already; nothing is trained", output)
            return [there[seed] for seed in recipe.train.seeds]
        work = partial_folder(output)
        with writing(work):  # now, rather than after the first epoch
            work.mkdir(parents=True, exist_ok=True)
            for seed in there:
                if not (work / f"seed-{seed}").exists():
                    shutil.copytree(output / f"seed-{seed}", work / f"seed-{seed}")
        with single_thread(jobs) as threads:
            held = _load(features, recipe, device)
            for line in split_copies(Contents.of(features), features.utterances.splits, ["validation"]):
                log.warning("%s: %s", features.path, line)
            beside = _fit_reference(features, held.here, recipe)
            train = partial(
                _train_seed, features=features, held=held, recipe=recipe, work=work, device=device, beside=beside
            )
            with side_by_side(recipe.train.seeds, train, jobs, threads) as finished:
                found = {one.seed: one for one in finished}
        _publish(work, output, keep={f"seed-{seed}" for seed in recipe.train.seeds})
        trained = [found[seed] for seed in recipe.train.seeds]
        _warn(trained)
        return trained


@dataclass(frozen=True, eq=False)
class _Beside:
    """What every seed is held against on validation."""

    reference: LinearReference
    scores: Mapping[str, Mapping[str, float]]  # by name and metric: of it, of chance and of the constant answer


def _fit_reference(features: Features, splits: tuple[Split, Split], recipe: Recipe) -> _Beside:
    reference = fit_linear(*splits, recipe, len(features.label_names))
    task = reference.task
    train, known = (task.truth(split).numpy() for split in splits)
    scores = {
        f"linear, {reference.name}": reference.scores,
        f"chance: {task.chance_is}": chance_scores(task, known, train),
        f"always {task.floor_is}": floor_scores(task, known, train),
    }
    return _Beside(reference, scores)


def _warn(trained: Sequence[Provenance]) -> None:
    """Say which seeds have learned nothing, and where all are no better than the linear reference."""
    for one in trained:
        if one.unlearned:
            log.warning("seed %d has not learned: %s; %s", one.seed, "; ".join(one.unlearned), TRY)
    metric = trained[0].recipe.train.metric
    gains = [one.gain.mean for one in trained if one.gain]
    gain = float(np.mean(gains)) if gains else 0.0
    if gains and (gain >= 0 if METRICS[metric].lower_is_better else gain <= 0):
        log.warning(
            "no better than the linear reference (%s) on validation: %s differs by %+.3f on average over the seeds",
            trained[0].gain and trained[0].gain.linear,
            metric,
            gain,
        )


def _load(features: Features, recipe: Recipe, device: torch.device) -> Held[tuple[Split, Split]]:
    """Train and validation."""
    train, validation = (load_for(features, recipe, name, device) for name in ("train", "validation"))
    held = hold([train, validation], memory_for_features(recipe.train.memory, device))
    report_features(held[0], [recipe])
    for name in recipe.model.looks_at:
        if not getattr(train, name).lengths.any() and getattr(validation, name).lengths.any():
            log.warning(
                "no utterance of the train split has %s, some of validation do: its weights learn nothing; leave it "
                "out with model.modalities",
                name,
            )
    return Held((held[0], held[1]), (train, validation))


def training_headline(trained: Sequence[Provenance]) -> str:
    """One line: the mean validation score of every head over the seeds, that of the whole model first."""
    metric = trained[0].recipe.train.metric
    means = {
        head: sum(seed.validation[head][metric] for seed in trained) / len(trained) for head in trained[0].validation
    }
    fused = means.pop("fused")
    heads = f" ({', '.join(f'{head} {mean:.3f}' for head, mean in means.items())})" if means else ""
    return f"{number_of(len(trained), 'seed')}, mean validation {metric} {fused:.3f}{heads}"


def fingerprint(features: Features, recipe: Recipe, seed: int, device: torch.device) -> str:
    """Hash (hex) of everything that decides the weights of a model, but the processor and its threads."""
    code = closure_digest(*CODE)
    source = model_source(recipe.model.name)
    parts = [features.digest, recipe.digest, seed, device.type, torch.__version__, VERSION, code, source]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _train_seed(
    seed: int,
    features: Features,
    held: Held[tuple[Split, Split]],
    recipe: Recipe,
    work: Path,
    device: torch.device,
    beside: _Beside,
) -> Provenance:
    folder = work / f"seed-{seed}"
    state = StateFile(work / f"seed-{seed}.state", fingerprint(features, recipe, seed, device), KEEP_SECONDS)
    found = _finished(folder, state.fingerprint)
    if found is None:
        classes = len(features.label_names)
        result = within_memory(
            lambda: fit(*held.here, recipe, seed, classes=classes, state=state, linear=beside.reference),
            held,
            f"seed {seed}",
        )
        task, splits, linear = find_task(recipe.train.target, classes), held.here, beside.reference
        found = Provenance(
            recipe=recipe,
            seed=seed,
            labels=tuple(features.label_names) if recipe.train.target == "label" else (),
            audio=_encoder(features, "audio", recipe),
            text=_encoder(features, "text", recipe),
            features=features.digest,
            fingerprint=state.fingerprint,
            selected=result.selected,
            validation=result.validation,
            calibration=result.calibration,
            corpus=features.corpus,
            data={split.name: count_split(split, task, features.label_names) for split in splits},
            intervals=score_intervals(task, splits[1], result.answers),
            source=model_source(recipe.model.name),
            references=beside.scores,
            gain=measure_gain(
                task, splits[1], recipe.train.metric, result.answers["fused"], linear.name, linear.answers
            ),
            learned=_learned(features, recipe),
            unlearned=find_signs(result, task, splits, recipe),
        )
        save_model(folder, result.model, found, result.history)
    state.delete()
    return found


def _finished(folder: Path, fingerprint: str) -> Provenance | None:
    """What lies in `folder` if it is the model with this fingerprint."""
    if not folder.exists():
        return None
    try:
        found = read_provenance(folder)
    except ModelError as error:
        log.warning("%s; it is trained afresh", error)
        return None
    if found.fingerprint != fingerprint:
        log.warning("%s: of other parameters, features or versions; it is trained afresh", folder)
        return None
    return found


def _encoder(features: Features, name: str, recipe: Recipe) -> Identity | None:
    part = getattr(features, name)
    return part.identity if recipe.model.modalities in ("both", name) else None


def _learned(features: Features, recipe: Recipe) -> tuple[str, ...]:
    """Marks of the conversations of train and validation."""
    given = [name for name in MODALITIES if _encoder(features, name, recipe)]
    return tuple(mark_conversations(features, ["train", "validation"], given).values())


def _check_replaceable(output: Path) -> None:
    """Refuse before training what must not be deleted after it."""
    if not output.exists():
        return
    with writing(output):
        replaceable = output.is_dir() and all(path.name.startswith("seed-") for path in output.iterdir())
    if not replaceable:
        raise OutputError(f"{output}: exists and is not a folder of models alone; name another one (--output)")


def _finished_before(
    output: Path, features: Features, recipe: Recipe, wanted: Mapping[int, str], overwrite: bool
) -> dict[int, Provenance]:
    """The models in `output` that need no training, by seed; none where others lie beside them and may go.

    Raises:
        OutputError: others lie there, and `overwrite` is not given.
    """
    found: dict[int, Provenance] = {}
    for folder in sorted(output.glob("seed-*")):
        try:
            one = load_model(folder).provenance  # whole, not just its config.json
            what = _differing(one, features, recipe, wanted)
        except ModelError as error:
            one, what = None, f"that cannot be used ({error})"
        if one is not None and not what:
            found[one.seed] = one
        elif overwrite:
            return {}
        else:
            model = f"a model of {one.recipe.model.name} with other {what}" if one else f"a model {what}"
            raise OutputError(
                f"{folder}: holds {model}; name another folder (--output) to keep it, or replace all with --overwrite"
            )
    return found


def _differing(found: Provenance, features: Features, recipe: Recipe, wanted: Mapping[int, str]) -> str:
    """In what a model is not one that would be trained; "" where it is."""
    if wanted.get(found.seed) == found.fingerprint:
        return ""
    differing = {
        "parameters": found.recipe.digest != recipe.digest,
        "features": found.features != features.digest,
        "seeds": found.seed not in wanted,
    }
    return " and ".join(name for name, differs in differing.items() if differs) or "code, torch or device"


def _publish(work: Path, output: Path, keep: set[str]) -> None:
    """Rename `work` to `output`; killed in between, the next run finds every seed finished and does it again."""
    with writing(output):
        for path in work.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        publish(work, output)
