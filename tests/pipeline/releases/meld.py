"""A small MELD: three CSVs and clips in the folders of the release, with every known fault of it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.pipeline.made import SURROUND, cut, write_encoded, write_film, write_wav
from tests.pipeline.releases.speech import speech

RATE = 48_000
PACKET = 1_024  # samples of an AAC packet
FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
CENTER = 2  # of the channels of 5.1


@dataclass(frozen=True)
class Line:
    """One line of a CSV, and its clip."""

    split: str  # as the release calls it
    dialogue: int
    utterance: int
    speaker: str
    emotion: str
    text: str
    samples: int = 10 * PACKET  # at 48 kHz
    clip: str = "5.1"  # 5.1, stereo, film; or broken, missing

    @property
    def stem(self) -> str:
        return f"dia{self.dialogue}_utt{self.utterance}"

    @property
    def sentiment(self) -> str:
        if self.emotion == "surprise":
            return "positive" if self.utterance % 2 else "negative"
        return {"neutral": "neutral", "joy": "positive"}.get(self.emotion, "negative")


LINES = [
    Line("train", 0, 0, "Ada", "neutral", "You’re here, then."),
    Line("train", 0, 1, "The Interviewer", "joy", "Oh, it's great to see you!", clip="stereo"),
    Line("train", 0, 3, "Ada", "surprise", 'She said "never", of all things…', 20 * PACKET),  # there is no utterance 2
    Line("train", 125, 1, "Ben", "anger", "No."),  # out of order, and dialogue 60 is not the only one that is absent
    Line("train", 125, 0, "Joey", "sadness", "I, I lost it."),
    Line("train", 125, 3, "Joey", "disgust", "Eww!", clip="broken"),
    Line("train", 309, 0, "Ada", "fear", "Wait, wait, wait.", 41 * RATE // PACKET * PACKET, "stereo"),
    Line("dev", 0, 0, "Ben", "joy", "Hi!", 3 * PACKET),  # 0.064 s, as the shortest of the release
    Line("dev", 110, 7, "Ben", "neutral", "It’s gone.", clip="missing"),
    Line("dev", 110, 8, "Ada", "anger", "Where?"),
    Line("test", 0, 0, "Ada", "neutral", "Good.", clip="film"),
    Line("test", 38, 4, "All", "surprise", "What?!", 60 * PACKET),
    Line("test", 155, 3, "Ada", "joy", "Ha!"),
]


def write_release(root: Path, lines: Sequence[Line] = LINES, kind: str = "mp4") -> Path:
    """The whole tree; `kind` is mp4, or wav or flac for clips that were converted beforehand."""
    for split in FOLDERS:
        write_table(root / f"{split}_sent_emo.csv", [line for line in lines if line.split == split])
    for number, line in enumerate(lines):
        _write_clip(root / FOLDERS[line.split] / f"{line.stem}.{kind}", line, number)
    extra = Line("test", 0, 0, "", "", "", PACKET)
    for number in range(2):
        _write_clip(root / FOLDERS["test"] / f"final_videos_testdia{number}_utt0.mp4", extra, number)
    return root


def write_table(path: Path, lines: Sequence[Line]) -> Path:
    """A CSV as the release writes them: UTF-8, cells quoted where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER.split(","))
        for number, line in enumerate(lines, start=1):
            start, end = "00:16:16,059", "00:16:16,059" if line.dialogue == 155 else "00:16:21,731"
            names = [number, line.text, line.speaker, line.emotion, line.sentiment]
            writer.writerow([*names, line.dialogue, line.utterance, 8, 21, start, end])
    return path


def sound_of(line: Line, number: int) -> np.ndarray:
    """(samples, channels): in 5.1 the dialogue is in the centre, and each other channel has a steady level."""
    voice = speech(line.samples, RATE, number)
    if line.clip == "film":
        return voice[:, None]
    if line.clip == "stereo":
        return np.stack([voice, 0.5 * voice], axis=1)
    around = 0.01 * np.arange(6) * np.ones((line.samples, 1))
    around[:, CENTER] = voice
    return around


def _write_clip(path: Path, line: Line, number: int) -> None:
    sound = sound_of(line, number)
    if line.clip == "missing":
        return
    if path.suffix == ".wav":
        write_wav(path, sound, RATE, channel_mask=SURROUND if sound.shape[1] == 6 else 0)
    elif path.suffix == ".flac":
        write_encoded(path, sound, RATE, "flac")
    elif line.clip == "film":
        write_film(path, sound, RATE)
    else:
        write_encoded(path, sound, RATE, "aac")
    if line.clip == "broken":
        cut(path, 0.5).write_bytes(path.read_bytes()[20:])  # an mp4 loses its index at the end; none has a header left
