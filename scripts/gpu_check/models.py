"""Every model from features to predictions on the device, and its numbers beside the processor's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.checkpoint import load_seeds
from fusion.data import Split
from fusion.evaluation import evaluate
from fusion.inference import predict_heads
from fusion.models import MODELS
from fusion.objective import find_task
from fusion.params import EvaluateParams, Recipe
from fusion.prediction import Predictor
from fusion.runtime import reproducible
from fusion.training import build_split_model, train_seeds
from fusion.training.stage import Criterion
from gpu_check.agreement import EXACT, largest_difference, relative_distance
from gpu_check.context import Case, Context
from gpu_check.features import load_one, made_features, recipe_of
from pipeline.store import Features

GRADIENTS = 1e-3  # relative distance; sums of many float32 in another order
CONVERSATIONS = 4  # of the batch that is compared


def check_models(context: Context) -> None:
    """Every model: one epoch, saved, loaded, evaluated, asked to predict; a case each."""
    features = made_features(context, context.size.small)
    for name in MODELS:
        with context.case(name) as case:
            folder = context.work / f"models-{name}"
            recipe = recipe_of(context, name, "train.epochs=1")
            _train(context, case, features, recipe, folder)
            _use(context, case, features, recipe, folder)


def _train(context: Context, case: Case, features: Features, recipe: Recipe, folder: Path) -> None:
    (found,) = train_seeds(features, recipe, folder, torch.device(context.device), jobs=1)
    metric = recipe.train.metric
    case[f"validation_{metric}"] = found.validation["fused"][metric]
    case.require((folder / "seed-0" / "model.safetensors").is_file(), "no weights were saved")


def _use(context: Context, case: Case, features: Features, recipe: Recipe, folder: Path) -> None:
    done = evaluate(features, folder, EvaluateParams(resamples=10), torch.device(context.device))
    case[f"test_{recipe.train.metric}"] = done.summaries[recipe.train.metric].mean
    with Predictor.load(folder, context.device) as predictor:
        predictions = predictor.predict_features(features, "test")
    case.require(len(predictions) == len(done.ids), f"{len(predictions)} predictions of {len(done.ids)} turns")
    here, there = (_answers(features, recipe, folder, device) for device in (context.device, "cpu"))
    case.at_most("probabilities_to_cpu", largest_difference([here], [there]), EXACT)


def _answers(features: Features, recipe: Recipe, folder: Path, device: str) -> np.ndarray:
    """Of the test split, (utterances, classes), by the saved model on that device."""
    (loaded,) = load_seeds(folder, torch.device(device))
    split = load_one(features, recipe, "test", device)
    return predict_heads(loaded.model, split, find_task("label", len(features.label_names)))["fused"]


@dataclass(frozen=True)
class StagePass:
    """What one stage of training made of a batch."""

    name: str
    logits: Tensor
    loss: Tensor
    gradients: Tensor  # of all weights, one behind the other


def check_agreement(context: Context) -> None:
    """Logits, loss and gradients of every stage of every model, from the same weights, on device and processor."""
    features = made_features(context, context.size.small)
    for name in MODELS:
        with context.case(name) as case:
            recipe = recipe_of(context, name, "model.dropout=0", "loss.class_weights=balanced")
            ours, cpu = (load_one(features, recipe, "train", device) for device in (context.device, "cpu"))
            weights = _weights(cpu, recipe, len(features.label_names))
            passes = [one_pass(split, recipe, len(features.label_names), weights) for split in (ours, cpu)]
            for found, expected in zip(*passes, strict=True):
                _compare(case, found, expected)


def _weights(split: Split, recipe: Recipe, classes: int) -> dict[str, Tensor]:
    with reproducible(0, split.device):
        return build_split_model(split, recipe, classes).state_dict()


def one_pass(split: Split, recipe: Recipe, classes: int, weights: dict[str, Tensor]) -> Sequence[StagePass]:
    """Forward and backward of the same few conversations in every stage."""
    task, passes = find_task(recipe.train.target, classes), []
    with reproducible(0, split.device):
        model: Any = build_split_model(split, recipe, classes)
        model.load_state_dict(weights)
        model.train()
        criterion = Criterion(recipe.loss, split, task)
        for stage in model.stages():
            batch = split.gather(torch.arange(CONVERSATIONS))
            with torch.no_grad():
                given = stage.encode(batch) if stage.encode else batch
            output = stage.module(given)
            loss = criterion(output, given, stage.branches).total
            model.zero_grad()
            loss.backward()
            gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
            passes.append(StagePass(stage.name, output.logits.detach(), loss.detach(), torch.cat(gradients)))
    return passes


def _compare(case: Case, found: StagePass, expected: StagePass) -> None:
    logits = largest_difference([found.logits.cpu().numpy()], [expected.logits.cpu().numpy()])
    case.at_most(f"{found.name}_logits", logits, EXACT)
    case.at_most(f"{found.name}_loss", relative_distance(found.loss, expected.loss), EXACT)
    case.at_most(f"{found.name}_gradients", relative_distance(found.gradients, expected.gradients), GRADIENTS)
