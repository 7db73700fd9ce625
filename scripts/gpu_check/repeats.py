"""The same seed gives the same weights, to the last bit, also after an interruption.

Attention is tried with few and with many keys and turns: kernels whose backward pass adds up in any order come into
play beyond some 64 to 128 of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measures.corpora import made_audio

from fusion.params import Recipe
from fusion.training import State, StateFile
from gpu_check.context import Context
from gpu_check.features import load_data, made_features, recipe_of
from gpu_check.sizes import SAMPLE_RATE, Corpus
from pipeline.encoders import weights_hash
from pipeline.finetuning.examples import Example
from pipeline.finetuning.learners import TextLearner, load_speech_learner
from pipeline.finetuning.trainer import Examples, learn
from pipeline.params import FinetuneAudioParams, FinetuneTextParams
from pipeline.store import Features

EPOCHS = 2
LABELS = ("joy", "anger")
TUNED_EXAMPLES = (16, 8)  # of train and validation


class InterruptedRunError(Exception):
    """Raised on purpose in the middle of a run."""


@dataclass(frozen=True)
class _Interrupting(StateFile):
    """A state that is written once, after which the run ends."""

    def save(self, state: State) -> None:
        super().save(state)
        raise InterruptedRunError


def check_repeats(context: Context) -> None:
    """Training of models and fine-tuning of encoders: a run, the same again, and one that is interrupted."""
    few, many = context.size.keys
    cases: list[tuple[str, str, Corpus, int]] = [
        (f"hbaf, {few} keys", "hbaf", context.size.many_keys, few),
        (f"hbaf, {many} keys", "hbaf", context.size.many_keys, many),
        (f"crossmodal, {many} keys", "crossmodal", context.size.many_keys, many),
        (f"hbaf, {context.size.many_turns.turns[1]} turns", "hbaf", context.size.many_turns, few),
        (f"hcam, {context.size.many_turns.turns[1]} turns", "hcam", context.size.many_turns, few),
    ]
    for title, model, corpus, frames in cases:
        recipe = recipe_of(context, model, f"train.epochs={EPOCHS}", f"model.audio_frames={frames}")
        features = made_features(context, corpus)
        _check_same(context, title, partial(_trained, context, features, recipe, title))
    for modality in ("text", "audio"):
        _check_same(context, f"fine-tuning, {modality}", partial(_tuned, context, modality))


def _check_same(context: Context, title: str, weights_of: Callable[[str], str]) -> None:
    with context.case(title) as case:
        first = weights_of("first")
        case["weights"] = first[:12]
        case.require(weights_of("again") == first, "a second run has other weights")
        case.require(weights_of("interrupted") == first, "a run that was interrupted and resumed has other weights")


def _trained(context: Context, features: Features, recipe: Recipe, title: str, run: str) -> str:
    """Hash of the weights that a run ends with."""
    data = load_data(features, recipe, context.device)
    path = context.work / f"{title.replace(' ', '-')}-{run}.state"
    if run == "interrupted":
        _interrupted(lambda: data.fit(recipe, _Interrupting(path, "same")))
    return weights_hash(data.fit(recipe, StateFile(path, "same")).model)


def _interrupted(run: Callable[[], Any]) -> None:
    try:
        run()
    except InterruptedRunError:
        return
    raise AssertionError("the run was to be interrupted, and was not")


def _tuned(context: Context, modality: str, run: str) -> str:
    """Hash of the weights of an encoder that was fine-tuned."""
    work = context.work / f"tuned-{modality}-{run}"
    if run == "interrupted":
        _interrupted(lambda: _tune(context, modality, work, interrupted=True))
    return _tune(context, modality, work)


def _tune(context: Context, modality: str, work: Path, interrupted: bool = False) -> str:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"epochs": EPOCHS, "batch_size": 4, "learning_rate": 1e-3}
    learner: Any
    if modality == "audio":
        params: Any = FinetuneAudioParams(**settings)
        learner = load_speech_learner(params, LABELS)
        seconds = [0.3 + 0.1 * number for number in range(sum(TUNED_EXAMPLES))]
        clips = [torch.from_numpy(made_audio(int(s * SAMPLE_RATE), SAMPLE_RATE, n)) for n, s in enumerate(seconds)]
        inputs = [learner.prepare(clip) for clip in clips]
    else:
        params = FinetuneTextParams(**settings)
        learner = TextLearner(params, LABELS)
        inputs = [learner.tokenize("so be it " * (1 + number)) for number in range(sum(TUNED_EXAMPLES))]
    train, validation = _examples(inputs)
    if interrupted:  # in the second epoch: the checkpoint of the first is there
        learner.collate = _stopping(learner.collate, after=train_steps(params) + validation_steps(params) + 1)
    work.mkdir(exist_ok=True)
    learn(learner, train, validation, params, work, context.device)
    return weights_hash(learner.model)


def train_steps(params: Any) -> int:
    """Batches of an epoch."""
    return -(-TUNED_EXAMPLES[0] // params.batch_size)


def validation_steps(params: Any) -> int:
    """Batches of its validation."""
    return -(-TUNED_EXAMPLES[1] // params.batch_size)


def _examples(inputs: Sequence[torch.Tensor]) -> tuple[Examples, Examples]:
    labels = [number % len(LABELS) for number in range(len(inputs))]
    count = TUNED_EXAMPLES[0]
    return Examples(inputs[:count], labels[:count]), Examples(inputs[count:], labels[count:])


def _stopping(
    collate: Callable[[Sequence[Example]], Mapping[str, torch.Tensor]], after: int
) -> Callable[[Sequence[Example]], Mapping[str, torch.Tensor]]:
    """`collate`, which raises when so many batches were made."""
    made = 0

    def stopping(examples: Sequence[Example]) -> Mapping[str, torch.Tensor]:
        nonlocal made
        made += 1
        if made > after:
            raise InterruptedRunError
        return collate(examples)

    return stopping
