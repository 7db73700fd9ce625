"""The `audio` and `text` stages: the manifest's recordings or transcripts -> a part file, slot by slot.

Everything that decides the outcome is settled before the encoder runs: how many rows each utterance gets, which
utterances share a batch, where each one lies in the file. An interrupted run goes on with the batches that are not
done, and ends with the same bytes as an undisturbed one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from tqdm import tqdm

from pipeline.batching import batches_under_budget
from pipeline.clips import Clips, encoder_samples
from pipeline.errors import EncoderError
from pipeline.manifest import Utterance, read_manifest
from pipeline.media import Channels
from pipeline.params import AudioParams, TextParams
from pipeline.slots import PartLayout, SlotWriter
from pipeline.store import Identity

if TYPE_CHECKING:
    import torch

    from pipeline.encoders.speech import SpeechEncoder
    from pipeline.encoders.text import TextEncoder

Input = TypeVar("Input")

DECODERS = 4  # threads that decode the next batch while this one is encoded


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    path: Path
    utterances: int
    rows: int
    encoded: int  # utterances that this run encoded
    kept: int  # utterances that an earlier, interrupted run had finished
    empty: int  # utterances without this modality

    def summary(self, unit: str) -> str:
        """One line for the user; `unit` is what a row is called."""
        kept = f", {self.kept} kept from an interrupted run" if self.kept else ""
        empty = f", {self.empty} empty" if self.empty else ""
        return f"{self.path}: {self.utterances} utterances, {self.rows} {unit}; {self.encoded} encoded{kept}{empty}"


@dataclass(frozen=True)
class Work:
    """What is to be encoded, settled before the encoder runs."""

    layout: PartLayout
    batches: list[list[int]]
    load: Callable[[int], Any]  # the encoder's input for the utterance with this index
    encode: Callable[[list[Any]], list[np.ndarray]]
    close: Callable[[], None] = lambda: None  # lets go of what `load` holds


@dataclass(frozen=True)
class Altered:
    """Says that an encoder's input is not the corpus' own."""

    input: Mapping[str, Any]  # the field `input` of the identity
    code: str  # hash (hex) of the code that alters: other code is other work


def extract_audio(
    manifest: Path, target: Path, params: AudioParams, root: Path, channels: Channels, device: str = "auto"
) -> Outcome:
    """Encode the recordings under `root` to the part file `target`.

    Raises:
        DataError: a recording is not what the manifest says.
        EncoderError: the encoder cannot be loaded, or one clip alone exceeds the memory.
        StoreError, OSError: the file cannot be written.
    """
    from pipeline.encoders.speech import load_speech_encoder

    utterances = read_manifest(manifest)
    encoder = load_speech_encoder(params, device)
    return fill(target, plan_audio(utterances, encoder, params, root, channels, target.parent), "audio")


def extract_text(manifest: Path, target: Path, params: TextParams, device: str = "auto") -> Outcome:
    """Encode the transcripts to the part file `target`; raises as `extract_audio` does."""
    from pipeline.encoders.text import load_text_encoder

    utterances = read_manifest(manifest)
    encoder = load_text_encoder(params, device)
    return fill(target, plan_text(utterances, encoder, params), "text")


def plan_audio(
    utterances: Sequence[Utterance],
    encoder: "SpeechEncoder",
    params: AudioParams,
    root: Path,
    channels: Channels,
    scratch: Path,
    altered: Altered | None = None,
    alter: Callable[[Utterance, "torch.Tensor"], "torch.Tensor"] | None = None,
) -> Work:
    """The work of encoding the recordings; `alter` changes a clip (samples,) at the encoder's rate, not its length.

    `scratch` is a folder with room for what `pipeline.clips` lays down.
    """
    lengths = [encoder_samples(utterance, encoder.sample_rate) for utterance in utterances]
    inputs = [[u.id, u.audio, u.start, u.end, u.samples, file_size(root, u)] for u in utterances]
    plan = _plan([channels, *inputs], altered)
    rows = [encoder.frames(length) if length else 0 for length in lengths]
    batches = batches_under_budget(lengths, budget=int(params.batch_seconds * encoder.sample_rate))
    clips = Clips(utterances, root, channels, encoder.sample_rate, scratch, params.decode_seconds)

    def load(index: int) -> "torch.Tensor":
        clip = clips.load(utterances[index])
        assert len(clip) == lengths[index]
        return alter(utterances[index], clip) if alter else clip

    layout = _layout(utterances, rows, encoder, params.dtype, plan, altered)
    return Work(layout, batches, load, encoder.encode, clips.close)


def plan_text(
    utterances: Sequence[Utterance], encoder: "TextEncoder", params: TextParams, altered: Altered | None = None
) -> Work:
    """The work of encoding the field `text` of the utterances."""
    token_ids = [encoder.tokenize(utterance.text) if utterance.text else [] for utterance in utterances]
    rows = [encoder.tokens(ids) if ids else 0 for ids in token_ids]
    plan = _plan([[utterance.id, utterance.text] for utterance in utterances], altered)
    layout = _layout(utterances, rows, encoder, params.dtype, plan, altered)
    batches = batches_under_budget(rows, budget=params.batch_tokens)
    return Work(layout, batches, token_ids.__getitem__, encoder.encode)


def _layout(
    utterances: Sequence[Utterance],
    rows: list[int],
    encoder: "SpeechEncoder | TextEncoder",
    dtype: Literal["float16", "float32"],
    plan: str,
    altered: Altered | None,
) -> PartLayout:
    identity = encoder.identity
    if altered:
        identity = Identity({**identity.fields, "input": dict(altered.input)})
    return PartLayout([u.id for u in utterances], rows, encoder.row_shape, dtype, identity, plan)


def _plan(inputs: list[Any], altered: Altered | None) -> str:
    """Hash (hex) of all that the features are made from, besides the encoder."""
    content = inputs if altered is None else [*inputs, altered.code]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def file_size(root: Path, utterance: Utterance) -> int | None:
    """Bytes of the recording, which change with most edits of it; None where there is none."""
    path = root / utterance.audio if utterance.audio else None
    return path.stat().st_size if path is not None and path.is_file() else None


def fill(target: Path, work: Work, name: str) -> Outcome:
    """Encode every batch that is not done, and finish the file; `name` is that of the progress bar.

    Raises:
        DataError, EncoderError, StoreError, OSError: as `extract_audio`.
    """
    layout = work.layout
    with SlotWriter(target, layout) as writer, ThreadPoolExecutor(DECODERS) as pool, closing(work):
        empty = [index for index, rows in enumerate(layout.rows) if not rows]
        writer.write(empty, [np.empty((0, *layout.row_shape), layout.dtype)] * len(empty))
        waiting = [batch for batch in work.batches if not writer.done[batch].all()]
        total = sum(len(batch) for batch in waiting)
        kept = len(layout.ids) - len(empty) - total
        with tqdm(total=total, desc=name, unit="utterance", disable=None) as progress:
            ahead = [pool.submit(work.load, index) for index in waiting[0]] if waiting else []
            for number, batch in enumerate(waiting):
                loaded = [future.result() for future in ahead]
                following = waiting[number + 1] if number + 1 < len(waiting) else []
                ahead = [pool.submit(work.load, index) for index in following]
                writer.write(batch, _encode_halving(loaded, work.encode, layout.ids[batch[0]]))
                progress.update(len(batch))
        writer.finish()
    return Outcome(target, len(layout.ids), sum(layout.rows), total, kept, len(empty))


def _encode_halving(
    inputs: list[Input], encode: Callable[[list[Input]], list[np.ndarray]], longest: str
) -> list[np.ndarray]:
    """Encode a batch; where memory runs out, its halves."""
    import torch

    try:
        return encode(inputs)
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "not enough memory" not in str(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(inputs) == 1:
            raise EncoderError(
                f"'{longest}' alone exceeds the memory; lower audio.window_seconds, or use --device cpu"
            ) from None
    half = len(inputs) // 2
    return _encode_halving(inputs[:half], encode, longest) + _encode_halving(inputs[half:], encode, longest)
