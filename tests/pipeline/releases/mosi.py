"""Small CMU-MOSI releases in both layouts: real video ids, made texts and scores, synthesised speech, known faults."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.pipeline.made import write_film
from tests.pipeline.releases.speech import speech, write_speech

TRAIN = ("03bSnISJMiM", "2iD-tVS8NPw", "_unlisted-1")  # the last one is in no list
VALIDATION = ("WKA5OygbEKI", "_dI--eQ6qVU")
TEST = ("tmZoasNr4rU", "c7UH_rxdZv4")
SCORES = (-2.6, 1.8, 0.0, 2.2, -0.333333333, 0.5, 3.0, -1.5, 1.0)  # of the segments of every video, in order
HEADER = ("video_id", "clip_id", "text", "label", "annotation", "mode", "label_T", "label_A", "label_V")


@dataclass(frozen=True)
class Segment:
    """A segment as the release writes it."""

    video: str
    number: int
    score: str
    text: str

    @property
    def annotation(self) -> str:
        """MMSA's word for the sign of the score."""
        score = float(self.score or 0)
        return "Positive" if score > 0 else "Negative" if score < 0 else "Neutral"


def segments_of(videos: Sequence[str]) -> list[Segment]:
    return [
        Segment(video, number, f"{score:g}" if score == round(score, 1) else str(score), f"OPINION {number}, IN TRUTH")
        for video in videos
        for number, score in enumerate(SCORES, start=1)
    ]


SEGMENTS = segments_of([*TRAIN, *VALIDATION, *TEST])


def write_release(root: Path) -> Path:
    """The raw release, with a segment that is not scored, one without a transcript, and a score out of range."""
    lines = [
        f"{10.5 * segment.number:.9f},{10.5 * segment.number + 3:.9f},{segment.video},{segment.number},{segment.score}"
        for segment in SEGMENTS
    ]
    lines.append(f"99.0,103.5,{TRAIN[0]},{len(SCORES) + 2},3.4")
    _write(root / "Labels" / "OpinionLevelSentiment.csv", "\n".join([*lines, ""]))
    transcripts = root / "Transcript" / "Segmented"
    for video in [*TRAIN, *VALIDATION, *TEST]:
        told = [f"{segment.number}_DELIM_{segment.text}" for segment in reversed(SEGMENTS) if segment.video == video]
        told += [f"{len(SCORES) + 1}_DELIM_NOBODY SCORED THIS"] * (video == TRAIN[0])
        _write(transcripts / f"{video}.annotprocessed", "\n".join([*told, ""]))
    (transcripts / f"._{TEST[0]}.annotprocessed").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    for count, segment in enumerate(SEGMENTS):
        write_speech(root / "Audio" / "WAV_16000" / "Segmented" / f"{segment.video}_{segment.number}.wav", count)
    return root


def write_table(root: Path) -> Path:
    """MMSA's convention, with an empty label, a mode and an annotation that contradict, and a cp1252 byte."""
    modes = {**dict.fromkeys(TRAIN, "train"), **dict.fromkeys(VALIDATION, "valid"), **dict.fromkeys(TEST, "test")}
    rows = [
        [s.video, s.number, f" {s.text.lower()} ", s.score, s.annotation, modes[s.video], "", "", ""] for s in SEGMENTS
    ]
    rows[0][4] = "Positive"
    rows[1][2] = "it\x92s fine"
    rows[2][3] = ""
    rows[3][5] = "test"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "label.csv").open("w", encoding="latin-1", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    for count, segment in enumerate(SEGMENTS):
        film = root / "Raw" / segment.video / f"{segment.number}.mp4"
        if segment.number == 1:  # films take their time to write
            write_film(film, speech(4_800, 16_000, count)[:, None], 16_000)
        else:
            write_speech(film, count)  # FFmpeg goes by what is in a file, not by its name
    return root


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="\n")
