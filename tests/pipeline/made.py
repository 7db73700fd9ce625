"""Fabricated recordings, corpora and features: real files of many formats, intact, odd and damaged.

Sounds are (samples, channels) float64 in [-1, 1].
"""

import csv
import json
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import yaml
from pyarrow import parquet

from pipeline.store import Identity, Part, Utterances, checksum, write_joint

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # format tags of WAV
GUID = bytes.fromhex("000000001000800000aa00389b71")  # what follows the format tag in an extensible header
SURROUND = 0x3F  # channel mask of 5.1: front left, front right, front centre, low frequency, back left, back right


def sound(seconds: float, rate: int, channels: int = 1, seed: int = 0, level: float = 0.5) -> np.ndarray:
    """A chord with another pitch in each channel and a little noise: (samples, channels), at most `level` loud."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate))[:, None] / rate
    pitches = random.uniform(100, 900, (3, channels))
    chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in pitches) / 3
    return level * (0.9 * chord + 0.1 * random.uniform(-1, 1, (len(time), channels)))


def as_stored(samples: np.ndarray, kind: str) -> np.ndarray:
    """`samples` as they come out of a WAV file of this kind: u8, s16, s24, s32, f32 or f64."""
    if kind.startswith("f"):
        return samples.astype(np.dtype(kind.replace("f32", "<f4").replace("f64", "<f8"))).astype(np.float64)
    scale = 2 ** (int(kind[1:]) - 1)
    return np.clip(np.rint(samples * scale), -scale, scale - 1) / scale


def write_wav(path: Path, samples: np.ndarray, rate: int, kind: str = "s16", channel_mask: int = 0) -> Path:
    """A WAV file; a channel mask makes its header an extensible one."""
    _, channels = samples.shape
    width = int(kind[1:]) // 8
    tag = FLOAT if kind.startswith("f") else PCM
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * width, channels * width, 8 * width)
    if channel_mask:
        form = struct.pack("<H", EXTENSIBLE) + form[2:]
        form += struct.pack("<HHIH", 22, 8 * width, channel_mask, tag) + GUID
    content = _pcm(samples, kind)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(content)) + content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


def _pcm(samples: np.ndarray, kind: str) -> bytes:
    if kind.startswith("f"):
        return samples.astype({"f32": "<f4", "f64": "<f8"}[kind]).tobytes()
    bits = int(kind[1:])
    whole = np.rint(as_stored(samples, kind) * 2 ** (bits - 1)).astype("<i4")
    if kind == "u8":
        return (whole + 128).astype(np.uint8).tobytes()
    return np.ascontiguousarray(whole).view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()


def write_encoded(path: Path, samples: np.ndarray, rate: int, codec: str, **options: str) -> Path:
    """A file of the container that its suffix names: flac, libopus, aac, libmp3lame ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = samples.shape[1]
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        whole = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(whole.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.codec_context.frame_size or 4096)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def write_film(path: Path, samples: np.ndarray | None = None, rate: int = 48_000) -> Path:
    """A second of moving picture; without `samples` it has no sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        voice = None if samples is None else container.add_stream("aac", rate=rate, layout="mono")
        for number in range(10):
            image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * number, np.uint8), format="rgb24")
            container.mux(picture.encode(image))
        container.mux(picture.encode(None))
        if voice is not None and samples is not None:
            frame = av.AudioFrame.from_ndarray(samples.T.astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            for piece in av.AudioResampler("fltp", "mono", rate, frame_size=1024).resample(frame):
                container.mux(voice.encode(piece))
            container.mux(voice.encode(None))
    return path


def cut(path: Path, share: float) -> Path:
    """Only the first `share` of the file's bytes stay."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A table: .csv, .tsv, .jsonl or .parquet by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        names = {name: None for row in rows for name in row}
        parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)
        return path
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_params(path: Path, **sections: Mapping[str, Any]) -> Path:
    """A params.yaml with these sections."""
    path.write_text(yaml.safe_dump({name: dict(section) for name, section in sections.items()}), encoding="utf-8")
    return path


def rows_of(conversations: int = 6, turns: int = 2, audio: bool = True) -> list[dict[str, Any]]:
    """Rows of a small corpus with every split; recordings are called `<conversation>-<turn>.wav`."""
    splits = ["train", "train", "validation", "test"]
    return [
        {
            "conversation": f"c{conversation}",
            "turn": turn,
            "speaker": f"s{(conversation + turn) % 3}",
            "split": splits[conversation % len(splits)],
            "label": ["joy", "anger"][turn % 2],
            "text": f"turn {turn} of conversation {conversation}",
        }
        | ({"audio": f"c{conversation}-{turn}.wav"} if audio else {})
        for conversation in range(conversations)
        for turn in range(turns)
    ]


def write_corpus(root: Path, rows: Sequence[Mapping[str, Any]] | None = None, table: str = "table.csv") -> Path:
    """A folder with a table, and a short recording for every row that names a .wav file which is not there yet."""
    rows = rows_of() if rows is None else rows
    write_rows(root / table, rows)
    for number, row in enumerate(rows):
        name = row.get("audio")
        if name and name.endswith(".wav") and not (root / name).exists():
            write_wav(root / name, sound(0.2, 16_000, seed=number), 16_000)
    return root


def write_features(
    path: Path,
    utterances: Utterances,
    label_names: Sequence[str],
    audio: tuple[Sequence[np.ndarray], Identity] | None,
    text: tuple[Sequence[np.ndarray], Identity] | None,
) -> None:
    """One self-contained joint file from arrays in memory, one (rows, dim) array an utterance."""
    given = {"audio": audio, "text": text}
    parts = {name: part_from_arrays(path, utterances.ids, *one) for name, one in given.items() if one}
    write_joint(path, utterances, label_names, parts, copy=True)


def part_from_arrays(path: Path, ids: Sequence[str], rows: Sequence[np.ndarray], identity: Identity) -> Part:
    """A part in memory from one (rows, dim) array an utterance; float16 stays, all else becomes float32."""
    dtype = "<f2" if rows[0].dtype == np.float16 else "<f4"
    rows = [np.ascontiguousarray(array, dtype) for array in rows]
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in rows])]).astype(np.int64)
    checksums = np.array([checksum(array) for array in rows], np.uint64)
    return Part(np.concatenate(rows), offsets, checksums, list(ids), identity, "", path)
