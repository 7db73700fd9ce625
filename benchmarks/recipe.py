"""How models with the shipped settings do on small corpora, fold by fold, beside the linear reference.

    python benchmarks/recipe.py meld-vectors --models hbaf hcam --work /tmp/recipe
    python benchmarks/recipe.py nemo --models audio hbaf hcam --work /tmp/recipe
    python benchmarks/recipe.py meld-vectors --models hbaf --set model.linear_path=false

meld-vectors: 659 turns with one audio and one text vector each; five folds by conversation, a sixth of the rest of the
    conversations validates. `meld-vectors-shuffled` has the audio of other turns, which is worth nothing.
nemo: 204 recordings as log-mel frames, text withheld; each of nine speakers is left out once, another one validates.
    `nemo-speaker` has frames standardised by the statistics of their speaker.

Every parameter has its default where `--set` gives no other. What a fold gave is kept in the work folder for the next
call. Printed are weighted F1 and unweighted average recall over the predictions of all folds: the mean over seeds, and
the seeds as an ensemble.
"""

import argparse
import csv
import os
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.data import Resident, Split
from fusion.data.rows import pool
from fusion.data.split import conversation_offsets
from fusion.inference import predict
from fusion.linear import fit_linear
from fusion.objective import find_task
from fusion.params import Recipe, read_recipe
from fusion.training import fit

SHARED = Path(os.environ.get("ERC_SHARED", Path(__file__).parents[2] / "shared")) / "data"
FOLDS = 5
VALIDATION = 6  # one in so many conversations that a fold does not test


@dataclass(frozen=True)
class Corpus:
    """Turns in their order, with the rows of both modalities, (rows, dim) each."""

    conversations: list[str]
    groups: list[str]  # what is held out as a whole
    labels: np.ndarray  # (turns,)
    classes: int
    audio: list[np.ndarray]
    text: list[np.ndarray]


@dataclass(frozen=True)
class Fold:
    """Indices of turns."""

    train: list[int]
    validation: list[int]
    test: list[int]


def meld_vectors(shuffled: bool) -> Corpus:
    """One row an utterance."""
    with (SHARED / "meld-vectors" / "turns.csv").open(encoding="utf-8", newline="") as file:
        turns = list(csv.DictReader(file))
    vectors = np.load(SHARED / "meld-vectors" / "vectors.npz")
    audio = vectors["audio"].astype(np.float32)
    audio = np.random.default_rng(0).permutation(audio) if shuffled else audio
    names = sorted({turn["label"] for turn in turns})
    conversations = [turn["conversation"] for turn in turns]
    return Corpus(
        conversations=conversations,
        groups=conversations,
        labels=np.array([names.index(turn["label"]) for turn in turns]),
        classes=len(names),
        audio=list(audio[:, None]),
        text=list(vectors["text"].astype(np.float32)[:, None]),
    )


def nemo(by_speaker: bool) -> Corpus:
    """Log-mel frames: every band of zero mean and unit variance over its clip, or over its speaker."""
    from torchaudio.transforms import MelSpectrogram

    from pipeline.media import resample

    mel = MelSpectrogram(16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False)
    with (SHARED / "nemo" / "nemo.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    clips = []
    for row in rows:
        with wave.open(str(SHARED / "nemo" / row["file"])) as recording:
            samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2").astype(np.float32) / 2**15
            sound = torch.from_numpy(np.asarray(resample(samples, recording.getframerate(), 16_000)))
        clips.append(torch.log(mel(sound) + 1e-5).T.numpy())
    speakers = [row["speaker"] for row in rows]
    for own in [[index] for index in range(len(rows))] if not by_speaker else _members(speakers):
        frames = np.concatenate([clips[index] for index in own])
        mean, deviation = frames.mean(0), frames.std(0) + 1e-3
        for index in own:
            clips[index] = (clips[index] - mean) / deviation
    names = sorted({row["emotion"] for row in rows})
    return Corpus(
        conversations=[row["file"] for row in rows],
        groups=speakers,
        labels=np.array([names.index(row["emotion"]) for row in rows]),
        classes=len(names),
        audio=clips,
        text=[np.zeros((0, 1), np.float32)] * len(rows),
    )


def _members(groups: Sequence[str]) -> list[list[int]]:
    return [[index for index, one in enumerate(groups) if one == group] for group in sorted(set(groups))]


CORPORA = {
    "meld-vectors": lambda: meld_vectors(False),
    "meld-vectors-shuffled": lambda: meld_vectors(True),
    "nemo": lambda: nemo(False),
    "nemo-speaker": lambda: nemo(True),
}


def make_folds(corpus: Corpus) -> Iterator[Fold]:
    """Groups of conversations by number; where groups are few, one is left out at a time and the next validates."""
    members = _members(corpus.groups)
    few = len(members) <= 2 * FOLDS
    order = list(range(len(members))) if few else np.random.default_rng(0).permutation(len(members)).tolist()
    for fold in range(len(members) if few else FOLDS):
        test = [order[fold]] if few else order[fold::FOLDS]
        rest = [group for group in order if group not in test]
        validation = [order[(fold + 1) % len(order)]] if few else rest[fold::VALIDATION]
        train = [group for group in rest if group not in validation]
        yield Fold(*(sorted(index for group in part for index in members[group]) for part in (train, validation, test)))


def make_split(corpus: Corpus, name: str, turns: list[int], audio_frames: int) -> Split:
    """These turns, in the memory of the machine."""

    def rows(modality: list[np.ndarray], limit: int | None) -> Resident:
        lengths = torch.tensor([len(modality[turn]) for turn in turns])
        return pool(np.concatenate([modality[turn] for turn in turns]), lengths, limit)

    conversations = [corpus.conversations[turn] for turn in turns]
    return Split(
        name=name,
        ids=[str(turn) for turn in turns],
        conversation_ids=conversations,
        labels=torch.from_numpy(corpus.labels[turns].astype(np.int64)),
        scores=torch.full((len(turns),), torch.nan),
        conversations=conversation_offsets(conversations),
        speakers=torch.zeros(len(turns), dtype=torch.int64),
        audio=rows(corpus.audio, audio_frames),
        text=rows(corpus.text, None),
    )


def run_corpus(corpus: Corpus, recipe: Recipe, name: str, work: Path) -> dict[str, np.ndarray]:
    """Probabilities on the test turns of all folds: `linear` (turns, classes), and `seeds` (seeds, turns, classes)."""
    turns, seeds = len(corpus.labels), recipe.train.seeds
    linear = np.zeros((turns, corpus.classes))
    found = np.zeros((len(seeds), turns, corpus.classes))
    for number, fold in enumerate(make_folds(corpus)):
        kept = work / f"{name}-{recipe.model.name}-{recipe.digest[:12]}-fold-{number}.npz"
        if not kept.exists():
            splits = [
                make_split(corpus, split, getattr(fold, split), recipe.model.audio_frames)
                for split in ("train", "validation", "test")
            ]
            train, validation, test = splits
            reference = fit_linear(train, validation, recipe, corpus.classes)
            given: dict[str, Any] = {"classes": corpus.classes, "linear": reference}
            models = [fit(train, validation, recipe, seed, **given).model for seed in seeds]
            task = find_task("label", corpus.classes)
            np.savez(kept, linear=reference.answer(test), seeds=[predict(model, test, task) for model in models])
        with np.load(kept) as content:
            linear[fold.test], found[:, fold.test] = content["linear"], content["seeds"]
    return {"linear": linear, "seeds": found}


def score(labels: np.ndarray, answers: np.ndarray, classes: int) -> dict[str, float]:
    """Weighted F1 and unweighted average recall."""
    task = find_task("label", classes)
    tally = task.tally(labels, answers, np.array([0, len(labels)]))[0]
    return {name: float(task.metrics[name](tally)) for name in ("weighted_f1", "uar")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", choices=CORPORA)
    parser.add_argument("--models", nargs="+", default=["hbaf", "hcam"])
    parser.add_argument("--work", type=Path, default=Path("/tmp/recipe"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print("| corpus | | weighted F1: seeds, ensemble | unweighted average recall: seeds, ensemble |\n|---|---|---|---|")
    for name in given.corpora:
        corpus, shown = CORPORA[name](), False
        for model in given.models:
            withheld = [] if len(np.concatenate(corpus.text)) or model == "audio" else ["model.modalities=audio"]
            recipe = read_recipe(None, [f"model.name={model}", *withheld, *given.overrides])
            found = run_corpus(corpus, recipe, name, given.work)
            rows = [(model, found["seeds"])]
            if not shown:
                rows, shown = [("linear", found["linear"][None]), *rows], True
            for row, answers in rows:
                seeds = [score(corpus.labels, one, corpus.classes) for one in answers]
                whole = score(corpus.labels, answers.mean(0), corpus.classes)
                cells = [f"{np.mean([one[key] for one in seeds]):.3f}, {whole[key]:.3f}" for key in whole]
                print(f"| {name} | {row} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
