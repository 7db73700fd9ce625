"""How long `fusion.Predictor` takes for a turn of a conversation that goes on, with sound and words, and its encoders.

    python benchmarks/latency.py --work /tmp/latency

Encoders have the shape of wav2vec2-base and BERT-base with random weights, made in the work folder; a model is trained
for one epoch on the first conversations of the embedded corpus. How long a turn takes depends on neither. Then turns of
`--seconds` of sound and twelve words are said one by one, in each precision that the processor is built for, and the
median is printed beside what both encoders take for the same turn and the floor of the speech encoder's products. Then
turns that differ in length, as those of people do: of half to one and a half times as much of both.
"""

import argparse
import csv
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from measures.encoding import build_base_model, operations
from measures.machine import describe, matrix_rate
from measures.timing import say
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel

from fusion import Predictor
from fusion.prediction import Turn
from pipeline.datasets import read_rows
from pipeline.encoders import TINY_TEXT, load_speech_encoder, load_text_encoder
from pipeline.params import AudioParams, TextParams
from pipeline.settings.precision import built_for_bfloat16

ROOT = Path(__file__).parents[1]
SAMPLE_RATE = 16_000
WORDS = "I really did not think that you would come here again today"
CONVERSATIONS = 6  # of the demo, with turns of all splits
STEPS = (
    "pipeline-prepare --output manifest.jsonl",
    "pipeline-audio --manifest manifest.jsonl --output audio.h5 --overwrite",
    "pipeline-text --manifest manifest.jsonl --output text.h5 --overwrite",
    "pipeline-join --manifest manifest.jsonl --audio audio.h5 --text text.h5 --output feats.h5 --overwrite",
    "fusion-train --features feats.h5 --output model --overwrite",
)


def main(work: Path, seconds: float, turns: int, speech: Path | None = None, text: Path | None = None) -> None:
    """Make what is needed, measure, print."""
    work.mkdir(parents=True, exist_ok=True)
    speech = speech or build_base_model(work / "wav2vec2-base-random")
    text = text or build_text_model(work / "bert-base-random")
    sound = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    print(f"{describe('cpu')}; {seconds:g} s of sound and {len(WORDS.split())} words, medians of {turns} turns")
    for precision in ("float32", "bfloat16") if built_for_bfloat16(torch.device("cpu")) else ("float32",):
        model = train(work / precision, speech, text, precision)
        with Predictor.load(model, "cpu", audio_encoder=speech, text_encoder=text) as predictor:
            whole = time_predictor(predictor, [Turn(WORDS, sound, SAMPLE_RATE, speaker="Ann")], turns)
            others = time_predictor(predictor, differing(sound, turns), turns)
        alone = time_encoders(speech, text, precision, sound, turns)
        floor = operations(AutoConfig.from_pretrained(speech), len(sound)) / matrix_rate(precision, "cpu", 1.0)
        shown = [f"{1000 * taken:.0f} ms" for taken in (whole, alone, floor, others)]
        print(
            f"{precision}: a turn {shown[0]}; both encoders alone {shown[1]}; floor of the speech encoder {shown[2]}; "
            f"a turn of another length than those before {shown[3]}"
        )


def differing(sound: np.ndarray, turns: int) -> list[Turn]:
    """Turns of half to one and a half times `sound` (samples,) and `WORDS`, three more than are measured."""
    shares = np.random.default_rng(1).uniform(0.5, 1.5, turns + 3)
    samples, words = np.tile(sound, 2), 2 * WORDS.split()
    said = [" ".join(words[: round(share * len(words) / 2)]) for share in shares]
    heard = [samples[: round(share * len(sound))] for share in shares]
    return [Turn(words, some, SAMPLE_RATE, speaker="Ann") for words, some in zip(said, heard, strict=True)]


def time_predictor(predictor: Predictor, turns: Sequence[Turn], repeats: int) -> float:
    """Seconds for one more turn, these in a circle."""
    predictor.load_encoders()
    conversation, following = predictor.conversation(), itertools.cycle(turns)
    return median(lambda: conversation.add(next(following)), repeats)


def time_encoders(speech: Path, text: Path, precision: str, sound: np.ndarray, turns: int) -> float:
    """Seconds for the frames and the tokens of one turn."""
    speaks = load_speech_encoder(AudioParams.model_validate({"encoder": str(speech), "precision": precision}), "cpu")
    reads = load_text_encoder(TextParams.model_validate({"encoder": str(text), "precision": precision}), "cpu")
    tokens, clip = reads.tokenize(WORDS), torch.from_numpy(sound)
    return median(lambda: (speaks.encode([clip]), reads.encode([tokens])), turns)


def median(action: Callable[[], object], repeats: int) -> float:
    """Seconds of `action`, three times unmeasured before."""
    taken = []
    for number in range(repeats + 3):
        started = time.perf_counter()
        action()
        taken += [time.perf_counter() - started] if number >= 3 else []
    return statistics.median(taken)


def build_text_model(folder: Path) -> Path:
    """A model of BERT-base's shape with random weights, and the packaged tokenizer."""
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(TINY_TEXT)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def train(folder: Path, speech: Path, text: Path, precision: str) -> Path:
    """The folder of an HBAF of one epoch on a few conversations of the demo, of every split some."""
    folder.mkdir(exist_ok=True)
    demo = ROOT / "data" / "demo"
    rows = [row.cells for row in read_rows(demo / "utterances.csv")]
    kept: set[str] = set()
    for split in ("train", "validation", "test"):
        names = dict.fromkeys(row["conversation"] for row in rows if row["split"] == split)
        kept |= set(list(names)[: CONVERSATIONS // 3])
    with (folder / "turns.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row["conversation"] in kept)
    (folder / "audio").unlink(missing_ok=True)
    (folder / "audio").symlink_to(demo / "audio")
    params = {
        "dataset": {"name": "table", "root": ".", "table": "turns.csv"},
        "audio": {"encoder": str(speech), "precision": precision},
        "text": {"encoder": str(text), "precision": precision},
        "train": {"epochs": 1, "seeds": [0]},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    for step in STEPS:
        command, *arguments = step.split()
        say(f"{precision}: {command}")
        subprocess.run([Path(sys.executable).parent / command, *arguments], cwd=folder, check=True, capture_output=True)
    return folder / "model"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for models and features; they stay there")
    parser.add_argument("--seconds", type=float, default=3.0, help="of sound in a turn")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--speech", type=Path, help="folder of another speech encoder")
    parser.add_argument("--text", type=Path, help="folder of another text encoder")
    given = parser.parse_args()
    main(given.work.resolve(), given.seconds, given.turns, given.speech, given.text)
