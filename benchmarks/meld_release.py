"""`prepare` on MELD at its real size: the official CSVs, and a clip of the real length for every line that has one.

    python benchmarks/meld_release.py MELD_FOLDER WORK_FOLDER

MELD_FOLDER holds train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv and clips.csv (split, dialogue, utterance,
samples, sample_rate of every readable clip). In WORK_FOLDER a tree of the release is laid out: most clips as FLAC of
faint noise, which takes 0.8 GB in all, one in 55 and the longest as MP4 with 5.1 AAC (`--every 1`: all that can be,
which takes longer), train dia125_utt3 as bytes that nothing decodes, dev dia110_utt7 not at all, and ten
final_videos_test* beside the clips of test. What is laid out stays for the next run.

Then the manifest is made, for emotions and for sentiments, and checked: the published counts, ids, turns, and `samples`
of every clip. An MP4 holds AAC in packets of 1,024 samples: the decoder takes off the priming at the front, as the edit
list says, and keeps the last packet whole, so `samples` is the length rounded up to packets. 12,660 of MELD's clips are
of whole packets, and only those, and the longest, become MP4 here.
"""

import argparse
import csv
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from pipeline.manifest import Utterance, check_utterances, read_manifest, write_manifest
from pipeline.params import DatasetParams
from pipeline.preparation import check_published, prepare, summary

FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
UNDECODABLE = ("train", "dia125_utt3")
LONGEST = ("test", "dia38_utt4")  # 305 s
WITHOUT_AUDIO = {"train/125/3": "undecodable", "validation/110/7": "missing-file"}
PACKET = 1_024  # samples of an AAC packet
UNANNOTATED = 10  # files final_videos_test*
BRIEF = 9_600  # samples of 0.2 s at 48 kHz
BRIEF_CLIPS = 158
CHILDREN = resource.RUSAGE_CHILDREN
FAINT, LOUD = 1, 3_000  # of 32,768


@dataclass(frozen=True)
class Clip:
    """One line of clips.csv."""

    split: str
    stem: str
    samples: int
    rate: int
    is_film: bool

    @property
    def path(self) -> Path:
        """Below the root of the release."""
        return Path(FOLDERS[self.split]) / f"{self.stem}.{'mp4' if self.is_film else 'flac'}"

    @property
    def decoded(self) -> int:
        """The samples that a decoder gives."""
        return -(-self.samples // PACKET) * PACKET if self.is_film else self.samples


def read_clips(path: Path, every: int) -> list[Clip]:
    """All readable clips of the release; one in `every` is a film."""
    clips = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            stem, samples = f"dia{row['dialogue']}_utt{row['utterance']}", int(row["samples"])
            is_film = (number % every == 0 and samples % PACKET == 0) or (row["split"], stem) == LONGEST
            clips.append(Clip(row["split"], stem, samples, int(row["sample_rate"]), is_film))
    return clips


def lay_out(meld: Path, root: Path, clips: Sequence[Clip]) -> None:
    """Make the tree of the release; clips that are there stay."""
    for split, folder in FOLDERS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(meld / f"{split}_sent_emo.csv", root / f"{split}_sent_emo.csv")
    split, stem = UNDECODABLE
    (root / FOLDERS[split] / f"{stem}.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    waiting = [clip for clip in clips if not (root / clip.path).exists()]
    with ProcessPoolExecutor() as pool:
        written = pool.map(write_clip, [root / clip.path for clip in waiting], waiting, chunksize=20)
        list(tqdm(written, total=len(waiting), desc="laying out", unit="clip", disable=None))
    film = next(clip for clip in clips if clip.is_film)
    for number in range(UNANNOTATED):
        shutil.copyfile(root / film.path, root / FOLDERS["test"] / f"final_videos_testdia{number}_utt0.mp4")


@lru_cache(maxsize=2)
def noise(size: int, level: int) -> np.ndarray:
    """(size,) int16, uniform from -level to level."""
    return np.random.default_rng(0).integers(-level, level + 1, size, np.int16)


def write_clip(path: Path, clip: Clip) -> None:
    """Noise of the clip's length: mono FLAC, or 5.1 AAC."""
    codec, layout, channels, level = ("aac", "5.1", 6, LOUD) if clip.is_film else ("flac", "mono", 1, FAINT)
    size = clip.samples * channels
    samples = noise(max(size, 2**20), level)[:size]
    partial = path.with_name("partial-" + path.name)
    with av.open(str(partial), "w", format=path.suffix[1:]) as container:
        stream: Any = container.add_stream(codec, rate=clip.rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = clip.rate, 0, Fraction(1, clip.rate)
        packet = stream.codec_context.frame_size or 4 * PACKET
        resampler = av.AudioResampler(stream.format, layout, clip.rate, frame_size=packet)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    partial.rename(path)


def check(utterances: Sequence[Utterance], clips: Sequence[Clip]) -> None:
    """Stop at the first thing that is not as in the release; counts are left to `check_published`."""
    check_utterances(utterances, "manifest")  # unique ids, turns without gaps
    expected = {f"{SPLITS[clip.split]}/{clip.stem}": clip.decoded for clip in clips}
    for utterance in utterances:
        split, dialogue, number = utterance.id.split("/")
        length = expected.get(f"{split}/dia{dialogue}_utt{number}", 0)
        if utterance.samples != length:
            sys.exit(f"{utterance.id}: {utterance.samples} samples, expected {length}")
    without = {u.id: u.status for u in utterances if not u.samples}
    if without != WITHOUT_AUDIO:
        sys.exit(f"turns without audio: {without}, expected {WITHOUT_AUDIO}")
    brief = sum(0 < u.samples < BRIEF for u in utterances)
    if brief != BRIEF_CLIPS:
        sys.exit(f"{brief} clips under 0.2 s, expected {BRIEF_CLIPS}")


def main(meld: Path, work: Path, every: int) -> None:
    clips = read_clips(meld / "clips.csv", every)
    root = work / f"every-{every}"
    lay_out(meld, root, clips)
    films = sum(clip.is_film for clip in clips)
    print(f"{root}: {len(clips)} clips, {films} of them MP4 with 5.1 AAC")
    for target in ("emotion", "sentiment"):
        began, processor = time.perf_counter(), processor_seconds()
        prepared = prepare(DatasetParams(name="meld", root=str(root), target=target))
        seconds, processor = time.perf_counter() - began, processor_seconds() - processor
        print(summary(prepared))
        check_published(prepared)
        write_manifest(work / "manifest.jsonl", prepared.utterances)
        check(read_manifest(work / "manifest.jsonl"), clips)
        own, decoder = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, CHILDREN))  # KiB
        print(
            f"{target}: as published; {seconds:.1f} s, {processor:.1f} s of processor, at most {own:.0f} MiB and "
            f"{decoder:.0f} MiB in each decoder process"
        )


def processor_seconds() -> float:
    """Of this process and of those that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("meld", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--every", type=int, default=55, help="one clip in so many is an MP4")
    arguments = parser.parse_args()
    main(arguments.meld, arguments.work, arguments.every)
