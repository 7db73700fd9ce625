"""Evaluations of made features, with a manifest and recordings, from which a page is written."""

import csv
import io
import json
import math
import struct
import wave
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fusion.evaluation import evaluate, write_report
from fusion.params import EvaluateParams
from fusion.report import Sources, write_page
from fusion.report.build import Page
from pipeline.store import Features
from tests.fusion.made import Made, tiny_recipe, train_made, write_made

CPU = torch.device("cpu")
HOSTILE = "</script><img src=x onerror=\"window.harmed=1\"> & <b>'bold'</b> \u2028 {{ 7 * 7 }} ${1} \U0001f600"
LABELS = ("anger", "</script><i>joy", "neutral & 'calm'")


@dataclass(frozen=True)
class Evaluated:
    """What a page is written from."""

    features: Features
    models: Path
    results: Path
    sources: Sources

    def write(self, output: Path, split: str = "test", sources: Sources | None = None) -> Page:
        return write_page(
            self.features, self.models, self.results, split, sources or self.sources, output, torch.device("cpu")
        )


def evaluated(folder: Path, made: Made, model: Mapping[str, Any], **train: Any) -> Evaluated:
    """Train, evaluate, and write what lies beside: every second turn has a recording, the second one a hostile text."""
    features = write_made(folder / "feats.h5", made)
    train_made(features, folder / "models", tiny_recipe(model, **{"seeds": (0, 1), "epochs": 2} | train), jobs=1)
    evaluation = evaluate(features, folder / "models", EvaluateParams(resamples=20), CPU)
    write_report(evaluation, folder / "results", None)
    write_corpus(features, folder)
    sources = Sources(manifest=folder / "manifest.jsonl", root=folder / "corpus")
    return Evaluated(features, folder / "models", folder / "results", sources)


def written_predictions(one: Evaluated) -> list[dict[str, str]]:
    """The rows of predictions.csv, by column."""
    return list(csv.DictReader(io.StringIO((one.results / "predictions.csv").read_text("utf-8"))))


def write_corpus(features: Features, folder: Path) -> None:
    (folder / "corpus").mkdir()
    write_tone(folder / "corpus" / "tone.wav", seconds=1.0)
    lines = []
    for index, name in enumerate(features.utterances.ids):
        audio = "tone.wav" if index % 2 == 0 else None
        times = {"start": 0.25, "end": 0.75} if audio else {"start": None, "end": None}
        text = HOSTILE if index % 7 == 1 else f"What is said in {name}."
        one = {"id": name, "text": text, "audio": audio, "status": "ok" if audio else "no-audio", **times}
        lines.append(json.dumps(one | {"samples": 4000 if audio else 0, "sample_rate": 8000 if audio else None}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tone(path: Path, seconds: float, rate: int = 8000) -> None:
    samples = [int(20_000 * math.sin(2 * math.pi * 440 * index / rate)) for index in range(int(seconds * rate))]
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))


def hostile_made() -> Made:
    return replace(Made(conversations=(6, 4, 8), turns=(2, 6), frames=(1, 9), tokens=(1, 5)), labels=list(LABELS))
