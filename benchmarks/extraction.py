"""How fast recordings become features, and features a file: this extractor beside what most projects do, in one run.

    python benchmarks/extraction.py --work /tmp/extraction --output /tmp/extraction/results.json
    python benchmarks/extraction.py --work /tmp/extraction --seconds 0 --device cuda    # all of MELD's lengths

Clips are the nEMO recordings, and audio made to MELD's real lengths (a folder with `wav/`, and `clips.csv`: split,
dialogue, utterance, samples, sample_rate); `--seconds` of each, of every length in its proportion. The model is one of
wav2vec2-base's shape with random weights, made in the work folder, unless `--encoder` names another: how long encoding
takes does not depend on weights, how far precisions agree does a little.

Parts, all unless `--parts` chooses:

- encoder: clips in memory. (a) transformers, one clip at a time in float32; (b) transformers, padded batches of 32 in
  random order; (c) this extractor in float32 and, where the device is built for it, in bfloat16. The floor is the
  model's multiplications at the rate of a matrix product of the same run. Then how far the features of (b) and (c)
  agree with (a), and bfloat16 with float32.
- files: the whole of `pipeline-audio` from compressed files (FLAC; AAC in 5.1, without the picture that MELD's have),
  each run in a process of its own. Decoding is its share of the processor's time, taken from decoding the same files
  alone. The loading of the model is left out of the times.
- growth: the same from a corpus and from one four times its size, with `--growth-encoder`.
- store: writing and reading `--utterances` of 768 float16, in several layouts.

Printed are the tables of the README; `--output` takes every number as JSON. Memory is what a variant takes above models
and clips in part encoder, and the peak of the whole process in the others.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from measures.agreement import measure_agreement
from measures.corpora import Corpus, made_corpus, real_corpus
from measures.encoding import build_base_model, measure
from measures.extraction_runs import measure_files, measure_growth
from measures.machine import describe
from measures.report import Results, markdown
from measures.storing import frame_counts, measure_store
from measures.timing import say

from pipeline.encoders import TINY_SPEECH, choose_device, find_model

PARTS = ("encoder", "files", "growth", "store")
SHARED = Path(os.environ.get("ERC_SHARED", Path(__file__).parents[2] / "shared")) / "data"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure the parts, print."""
    options = _parse(arguments)
    device = choose_device(options.device)
    corpora = _corpora(options.nemo, options.meld)
    location = _encoder(options.encoder, options.work)
    results = Results(describe(device), Path(location).name, options.repeats)
    sample = [corpus.sample(options.seconds) for corpus in corpora]
    if "encoder" in options.parts:
        results.encoding = [
            measure(corpus, location, device, options.repeats, options.product_seconds) for corpus in sample
        ]
        results.agreement = measure_agreement(sample[0], location, device)
    if "files" in options.parts:
        results.files = [
            measure_files(corpus, options.work / "files", location, device, options.repeats) for corpus in sample
        ]
    if "growth" in options.parts:
        growing = corpora[-1].sample(options.growth_seconds)
        results.growth = measure_growth(
            growing, options.work / "growth", options.growth_encoder, device, options.repeats
        )
    if "store" in options.parts:
        frames = frame_counts(corpora[-1].sources)
        chosen = [frames[number % len(frames)] for number in range(options.utterances)]
        results.store = measure_store(chosen, options.work, options.repeats)
    if options.output:
        options.output.write_text(json.dumps(dataclasses.asdict(results), indent=2) + "\n", encoding="utf-8")
    print(markdown(results), end="")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and the files; they stay there")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--encoder", help="folder or name; without: a base-size model made in the work folder")
    parser.add_argument("--nemo", type=Path, default=SHARED / "nemo", help="folder with wav/ (ERC_SHARED/data/nemo)")
    parser.add_argument("--meld", type=Path, default=SHARED / "meld" / "clips.csv", help="table of the clips' lengths")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120, help="of audio of each corpus; 0: all of it")
    parser.add_argument("--product-seconds", type=float, default=0.5, help="that each matrix product is repeated for")
    parser.add_argument("--growth-encoder", default="tiny")
    parser.add_argument("--growth-seconds", type=float, default=600, help="of audio, before it grows")
    parser.add_argument("--utterances", type=int, default=3_000, help="of part store")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def _corpora(nemo: Path, meld: Path) -> list[Corpus]:
    """Those that are available, real recordings first."""
    found = []
    if (nemo / "wav").is_dir():
        found.append(real_corpus(nemo))
    else:
        say(f"{nemo}: no real recordings there (--nemo); going on without")
    if meld.is_file():
        found.append(made_corpus(meld))
    else:
        say(f"{meld}: no lengths there (--meld); going on without")
    return found or sys.exit("neither --nemo nor --meld is there; name at least one of them")


def _encoder(name: str | None, work: Path) -> str:
    """Folder or hub name that transformers loads as well."""
    if name is None:
        return str(build_base_model(work / "wav2vec2-base-random"))
    return find_model(name, None, {"tiny": TINY_SPEECH}).location


if __name__ == "__main__":
    main()
