"""What fine-tuning is worth: the same fusion trainer on features of the frozen and of the fine-tuned encoder.

    python benchmarks/finetune.py --work /tmp/finetune                          # the embedded corpus, tiny encoders
    python benchmarks/finetune.py --work /tmp/finetune --params mine.yaml --splits 0 1 2 --set audio.finetune.epochs=20

For every `dataset.split_seed` of `--splits` (one run where the splits are given): prepare, encode with
`<modality>.finetune.encoder` as it is, fine-tune it, encode with the result, and train the fusion model of params.yaml
with the other modality withheld, once for each of `train.seeds`, on both. Printed are the scores of validation, which
selects the epoch of the fine-tuning and of the fusion model alike, and then those of test, which selects nothing: how
much of a gain on validation is selection shows there.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusion.data import load_split
from fusion.inference import predict, score_answers
from fusion.objective import floor_scores
from fusion.objective.tasks import LabelTask
from fusion.params import read_recipe
from fusion.training import fit
from pipeline.extraction import extract_audio, extract_text
from pipeline.finetuning import finetune_audio, finetune_text
from pipeline.join import join
from pipeline.manifest import write_manifest
from pipeline.params import AudioParams, DatasetParams, TextParams
from pipeline.preparation import prepare
from pipeline.settings import read_section
from pipeline.store import Features

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Settings:
    """What a comparison is made from."""

    params: Path
    overrides: list[str]
    modality: str
    device: str

    def section(self, name: str, section: Any) -> Any:
        """A checked section of params.yaml."""
        return read_section(self.params, name, section, self.overrides)


def compare(settings: Settings, split_seed: int | None, work: Path) -> dict[str, list[Mapping[str, float]]]:
    """Scores `<split>/<frozen or fine-tuned>` of each seed, under one split of the corpus."""
    work.mkdir(parents=True, exist_ok=True)
    dataset = settings.section("dataset", DatasetParams)
    if split_seed is not None:
        dataset = dataset.model_copy(update={"split_seed": split_seed})
    manifest = work / "manifest.jsonl"
    write_manifest(manifest, prepare(dataset).utterances)
    started = time.monotonic()
    outcome = _finetune(settings, manifest, dataset, work / "encoder")
    print(f"  {outcome.summary()} ({time.monotonic() - started:.0f} s)")
    finetuned = {"encoder": str(work / "encoder"), "revision": None}
    frozen = {"encoder": _start(settings).encoder, "revision": _start(settings).revision}
    results: dict[str, list[Mapping[str, float]]] = {}
    for name, encoder in (("frozen", frozen), ("fine-tuned", finetuned)):
        features = _encode(settings, manifest, dataset, encoder, work / name)
        for split, scores in _train(settings, features).items():
            results[f"{split}/{name}"] = scores
    return results


def _start(settings: Settings) -> Any:
    section = AudioParams if settings.modality == "audio" else TextParams
    return settings.section(settings.modality, section).finetune


def _finetune(settings: Settings, manifest: Path, dataset: DatasetParams, output: Path) -> Any:
    if settings.modality == "text":
        return finetune_text(manifest, output, settings.section("text", TextParams), settings.device)
    audio = settings.section("audio", AudioParams)
    return finetune_audio(manifest, output, audio, Path(dataset.root), dataset.channels, settings.device)


def _encode(
    settings: Settings, manifest: Path, dataset: DatasetParams, encoder: Mapping[str, Any], work: Path
) -> Features:
    """The joint file; the modality that is withheld from the model is encoded by what params.yaml names."""
    work.mkdir(exist_ok=True)
    changed = {name: encoder if name == settings.modality else {} for name in ("audio", "text")}
    audio = settings.section("audio", AudioParams).model_copy(update=changed["audio"])
    text = settings.section("text", TextParams).model_copy(update=changed["text"])
    root, channels = Path(dataset.root), dataset.channels
    extract_audio(manifest, work / "audio.h5", audio, root, channels, settings.device, overwrite=True)
    extract_text(manifest, work / "text.h5", text, settings.device, overwrite=True)
    return join(manifest, work / "audio.h5", work / "text.h5", work / "feats.h5", overwrite=True)


def _train(settings: Settings, features: Features) -> dict[str, list[Mapping[str, float]]]:
    """Scores of each split, one for each seed."""
    recipe = read_recipe(settings.params, [*settings.overrides, f"model.modalities={settings.modality}"])
    splits = {
        name: load_split(
            features, name, modalities=recipe.model.modalities, audio_frames=recipe.model.audio_frames, device="cpu"
        )
        for name in ("train", *SPLITS)
    }
    task = LabelTask(len(features.label_names))
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in SPLITS}
    for seed in recipe.train.seeds:
        done = fit(splits["train"], splits["validation"], recipe, seed, classes=task.classes)
        answers = {"validation": done.answers["fused"], "test": predict(done.model, splits["test"], task)}
        for name in SPLITS:
            found[name].append(score_answers(task, splits[name], answers[name]))
    for name in SPLITS:
        floor = floor_scores(task, splits[name].labels.numpy(), splits["train"].labels.numpy())
        print(f"  {name}: {len(splits[name].ids)} utterances, majority {_line([floor])}")
    return found


def _line(scores: Sequence[Mapping[str, float]]) -> str:
    columns = {name: [score[name] for score in scores] for name in ("weighted_f1", "uar")}
    return ", ".join(
        f"{name} {statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
        for name, values in columns.items()
    )


def main() -> None:
    """Parse, compare under every split, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for features and encoders")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--modality", choices=["audio", "text"], default="audio")
    parser.add_argument("--splits", type=int, nargs="*", default=[], help="values of dataset.split_seed")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    settings = Settings(arguments.params, arguments.overrides, arguments.modality, arguments.device)
    together: dict[str, list[Mapping[str, float]]] = {}
    for split_seed in arguments.splits or [None]:
        name = "given" if split_seed is None else f"seed-{split_seed}"
        print(f"split {name}", flush=True)
        for key, scores in compare(settings, split_seed, arguments.work / name).items():
            print(f"  {key}: {_line(scores)}", flush=True)
            together.setdefault(key, []).extend(scores)
    print(f"all splits and seeds, {settings.modality} only")
    for key, scores in together.items():
        print(f"  {key}: {_line(scores)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
