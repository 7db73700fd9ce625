"""Feature files of real lengths, conversations and labels, in which what tells the label is planted.

A row is noise of `LATENT` dimensions, mixed into the width of the features; each modality has a mixing of its own. A
cue moves some rows of an utterance along one of those dimensions, one dimension a label:

- its text tells its label, in `TEXT_SHARE` of the utterances, at three tokens in ten;
- its audio tells its label, in `AUDIO_SHARE` of them, for a fifth of its frames in a row;
- the text of the turn before tells it, in `CONTEXT_SHARE` of them, along dimensions of their own.

Cues are drawn independently of each other, and a tenth of them tell another label. So text alone knows about half of
the labels, audio adds to it, the conversation adds to both, and a fifth remains a guess.

What an utterance's features are depends on itself, its neighbour and the width alone: a part of a corpus has the
features of the whole, to rounding. Features are made in blocks, never all in memory.

Axes: utterances, rows (frames or tokens), latent, dim.
"""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from measures.spoken import Spoken
from measures.timing import say
from pipeline.datasets.meld import LABELS
from pipeline.join import join
from pipeline.manifest import write_manifest
from pipeline.store import MODALITIES, Identity, PartLayout, SlotWriter

DIM = 768
LATENT = 64
STRENGTH = 4.0  # of a cue; the noise is 1
TEXT_SHARE, AUDIO_SHARE, CONTEXT_SHARE = 0.5, 0.4, 0.3
WRONG_SHARE = 0.1  # of the cues
TOKEN_SHARE, FRAME_SHARE = 0.3, 0.2  # of an utterance's rows that a cue moves
BLOCK_ROWS = 50_000  # 77 MB in float16


@dataclass(frozen=True)
class Cue:
    """The label that a modality carries of an utterance, along the dimensions from `first` on."""

    label: int
    first: int = 0


def write_planted(spoken: Sequence[Spoken], work: Path, dim: int = DIM) -> Path:
    """The joint file of `spoken`, in a folder of its own below `work`; one that is there already stays as it is."""
    plan = _digest(spoken, dim)
    folder = work / f"features-{plan[:12]}"
    target = folder / "feats.h5"
    if target.exists():
        return target
    say(f"{folder.name}: making the features of {len(spoken)} utterances")
    write_manifest(folder / "manifest.jsonl", [one.record for one in spoken])
    cues = dict(zip(MODALITIES, plant(spoken), strict=True))
    for modality in MODALITIES:
        _write_part(folder / f"{modality}.h5", modality, spoken, cues[modality], plan, dim)
    join(folder / "manifest.jsonl", folder / "audio.h5", folder / "text.h5", target)
    return target


def _digest(spoken: Sequence[Spoken], dim: int) -> str:
    lines = [f"{one.record.id} {one.record.label} {one.frames} {one.tokens}" for one in spoken]
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update("\n".join([*lines, str(dim)]).encode())
    return digest.hexdigest()


def plant(spoken: Sequence[Spoken]) -> tuple[list[list[Cue]], list[list[Cue]]]:
    """The cues in the audio of each utterance, and those in its text."""
    labels = LABELS["emotion"]
    number = {label: index for index, label in enumerate(labels)}
    audio: list[list[Cue]] = [[] for _ in spoken]
    text: list[list[Cue]] = [[] for _ in spoken]
    for index, one in enumerate(spoken):
        if one.record.label is None:
            continue
        random = _random(one, "cues")
        told = [int(random.integers(len(labels))) if random.random() < WRONG_SHARE else None for _ in range(3)]
        in_text, in_audio, before = (number[one.record.label] if label is None else label for label in told)
        shares = random.random(3) < (TEXT_SHARE, AUDIO_SHARE, CONTEXT_SHARE)
        text[index] += [Cue(in_text)] if shares[0] else []
        audio[index] += [Cue(in_audio)] if shares[1] else []
        if shares[2] and one.record.turn > 0:
            text[index - 1].append(Cue(before, first=len(labels)))
    return audio, text


def _write_part(
    path: Path, modality: str, spoken: Sequence[Spoken], cues: Sequence[list[Cue]], plan: str, dim: int
) -> None:
    rows = [one.frames if modality == "audio" else one.tokens for one in spoken]
    mixing = np.random.default_rng(MODALITIES.index(modality)).standard_normal((LATENT, dim), np.float32)
    mixing /= np.sqrt(np.float32(LATENT))
    identity = Identity({"model": "planted", "modality": modality})
    layout = PartLayout([one.record.id for one in spoken], rows, (dim,), "float16", identity, plan)
    with SlotWriter(path, layout) as writer:
        for block in _blocks(rows):
            latents = [draw_latents(spoken[index], modality, rows[index], cues[index]) for index in block]
            mixed = (np.concatenate(latents) @ mixing).astype(np.float16)
            writer.write(block, np.split(mixed, np.cumsum([rows[index] for index in block])[:-1]))
        writer.finish()


def draw_latents(one: Spoken, modality: str, rows: int, cues: Sequence[Cue]) -> np.ndarray:
    """(rows, latent) float32."""
    random = _random(one, modality)
    latents = random.standard_normal((rows, LATENT), np.float32)
    for cue in cues:
        if modality == "text":
            moved = random.permutation(rows)[: max(1, round(TOKEN_SHARE * rows))]
        else:
            length = max(1, round(FRAME_SHARE * rows))
            moved = np.arange(length) + random.integers(max(1, rows - length + 1))
        latents[moved[moved < rows], cue.first + cue.label] += STRENGTH
    return latents


def _random(one: Spoken, purpose: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{one.record.id} {purpose}".encode()))


def _blocks(rows: Sequence[int]) -> Iterator[list[int]]:
    """Neighbouring utterances of about `BLOCK_ROWS` rows together.

    >>> [len(block) for block in _blocks([30_000, 30_000, 10_000])]
    [2, 1]
    """
    block: list[int] = []
    held = 0
    for index, count in enumerate(rows):
        block.append(index)
        held += count
        if held >= BLOCK_ROWS:
            yield block
            block, held = [], 0
    if block:
        yield block
