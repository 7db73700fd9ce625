"""The demo from its samples to its score, on the processor and on the device.

Its recordings come decoded (`gpu_check.kit`), since the machine may have no decoder. Or its features come, made
beforehand on a processor (`--features`): then only training is compared. Every part has a process of its own: training
starts processes, which must not happen where torch has computed with several threads.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fusion.evaluation import evaluate
from fusion.params import EvaluateParams, read_recipe
from fusion.training import train_seeds
from gpu_check.agreement import COSINE, largest_difference, lowest_cosine
from gpu_check.context import Context
from gpu_check.kit import LOUDEST, read_demo, write_demo
from gpu_check.sizes import SAMPLE_RATE
from pipeline.encoders import load_speech_encoder, load_text_encoder, passages
from pipeline.extraction import fill, plan_clips, plan_text
from pipeline.join import join
from pipeline.manifest import SPLITS, Utterance, write_manifest
from pipeline.params import AudioParams, TextParams
from pipeline.settings import read_section
from pipeline.store import read_features, read_part

PARAMS = Path(__file__).parents[2] / "params.yaml"
METRIC = "weighted_f1"
INTERVAL = (0.783, 0.911)  # docs/measured.md, "The demo": 95 % interval over conversations and seeds
FEATURES = 2e-3  # float16 rounds values of up to 4 by half as much


@dataclass(frozen=True)
class Score:
    """On the test split, of all seeds."""

    mean: float
    deviation: float | None
    seeds: int


def check_demo(context: Context) -> None:
    """Features on both, compared; then training and the score on both."""
    samples = _samples(context)
    if samples is None and context.features is None:
        with context.case("score") as case:
            case.require(False, "neither the kit's demo.npz nor --features is there")
        return
    joints = {"cpu": context.features, context.device: context.features}
    if samples is not None:
        for device in joints:
            with context.case(f"features, {device}") as case:
                joints[device] = context.apart(_encode, context, samples, device, "float32")
                if device != "cpu" and joints["cpu"] is not None:
                    found, expected = (_frames(Path(str(joints[name])).parent) for name in (device, "cpu"))
                    case.at_most("difference_to_cpu", largest_difference(found, expected), FEATURES)
        with context.case(f"frames in bfloat16, {context.device}") as case:
            reduced = context.apart(_encode, context, samples, context.device, "bfloat16")
            pair = [_frames(Path(str(joint)).parent) for joint in (reduced, joints["cpu"])]
            case.at_least("lowest_cosine_to_cpu_float32", lowest_cosine(*pair), COSINE)
    for device, joint in joints.items():
        with context.case(f"score, {device}") as case:
            case.require(joint is not None, "its features were not made")
            score: Score = context.apart(_score, context, joint, device)
            case[f"test_{METRIC}"], case["deviation"], case["seeds"] = score.mean, score.deviation, score.seeds
            if context.judges:
                low, high = INTERVAL
                case.require(low <= score.mean <= high, f"outside {low} to {high}, the README's interval")


def _samples(context: Context) -> Path | None:
    """The decoded recordings; at toy size, a few that are made here."""
    if not context.judges:
        return _toy_samples(context.work / "toy-demo.npz")
    path = context.kit / "demo.npz" if context.kit else None
    return path if path is not None and path.exists() else None


def _toy_samples(path: Path) -> Path:
    random = np.random.default_rng(0)
    utterances = [
        Utterance(
            id=f"{split}/{turn}",
            conversation=split,
            turn=turn,
            split=split,
            label=("joy", "anger")[turn % 2],
            text=("What a day!", "Not again.")[turn % 2],
            audio="made",
            samples=1,
        )
        for split in SPLITS
        for turn in range(4)
    ]
    clips = [random.normal(0, 0.1 * LOUDEST, 2_000 + 500 * n).astype("<i2") for n in range(len(utterances))]
    write_demo(path, sorted(utterances, key=lambda one: (SPLITS.index(one.split), one.turn)), clips)
    return path


def _encode(context: Context, samples: Path, device: str, precision: str) -> Path:
    """The joint file of the demo, made on that device by the encoders of params.yaml."""
    utterances, clips = read_demo(samples)
    folder = context.work / f"demo-{device}-{precision}"
    section = partial(read_section, PARAMS)
    audio = section("audio", AudioParams, [f"audio.precision={precision}"])
    text = section("text", TextParams, [f"text.precision={precision}"])
    write_manifest(folder / "manifest.jsonl", utterances)
    speech, words = load_speech_encoder(audio, device), load_text_encoder(text, device)
    assert speech.sample_rate == SAMPLE_RATE
    work = plan_clips(utterances, speech, audio, "downmix", lambda index: clips[utterances[index].id])
    fill(folder / "audio.h5", work, "audio")
    fill(folder / "text.h5", plan_text(passages(utterances, words.context), words, text), "text")
    join(folder / "manifest.jsonl", folder / "audio.h5", folder / "text.h5", folder / "feats.h5")
    return folder / "feats.h5"


def _frames(folder: Path) -> list[np.ndarray]:
    """Of every utterance with audio, (frames, dim) float32."""
    part = read_part(folder / "audio.h5")
    rows = [np.asarray(part.rows(index), np.float32) for index in range(len(part.ids))]
    return [one for one in rows if len(one)]


def _score(context: Context, joint: Path, device: str) -> Score:
    """Training and evaluation of the model of params.yaml."""
    torch.set_num_threads(1)  # as fusion-train does: models this small leave seeds to the cores
    features, chosen = read_features(joint), torch.device(device)
    recipe = read_recipe(PARAMS, context.size.demo)
    folder = context.work / f"demo-models-{device}"
    train_seeds(features, recipe, folder, chosen)
    found = evaluate(features, folder, EvaluateParams(resamples=100), chosen).summaries[METRIC]
    return Score(found.mean, found.std, len(recipe.train.seeds))
