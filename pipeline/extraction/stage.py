"""The `audio` and `text` stages: the manifest's recordings or transcripts -> a part file, slot by slot.

Everything that decides the outcome is settled before the encoder runs: how many rows each utterance gets, which
utterances share a batch, where each one lies in the file. An interrupted run goes on with the batches that are not
done, and ends with the same bytes as an undisturbed one.
"""

import contextlib
import hashlib
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.encoders import batches_under_budget, read_learned
from pipeline.errors import ClipError, DataError, StoreError
from pipeline.extraction.engine import Encoded, Engine, LocalEngine
from pipeline.extraction.progress import Progress, Unit
from pipeline.manifest import Source, content_key, key_of, learned_key, read_sources
from pipeline.media import Channels, Clips, encoder_samples
from pipeline.params import AudioParams, TextParams
from pipeline.settings import Threads, advise_precision, count_cores, sole_writer
from pipeline.store import NO_ENCODER, Columns, Dtype, Identity, PartLayout, SlotWriter, is_damaged, read_part

if TYPE_CHECKING:
    import torch

    from pipeline.encoders import Passage, Prepared, SpeechEncoder, TextEncoder


log = logging.getLogger(__name__)
BEHIND = 2  # encoded batches that may wait for the disk


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    path: Path
    utterances: int  # or what several of them share
    rows: int
    encoded: int  # utterances that this run encoded
    kept: int  # utterances that an earlier, interrupted run had finished
    empty: int  # utterances without this modality
    failures: Mapping[str, str]  # name -> status of those that were left without it, because they could not be read
    speed: str  # for the user
    advice: str | None = None  # what would make the next run faster
    there: bool = False  # these very features were there already

    def summary(self, inputs: str, unit: str) -> str:
        """One line for the user, and one for each failure; `inputs` were encoded to rows that are called `unit`."""
        kept = f", {self.kept} kept from an interrupted run" if self.kept else ""
        empty = f", {self.empty} empty" if self.empty else ""
        failed = f", {len(self.failures)} failed and left empty" if self.failures else ""
        lines = [f"{status}: '{utterance}'" for utterance, status in self.failures.items()]
        encoded = f"{self.encoded} encoded{kept}{empty}{failed}{self.speed}"
        if self.there:
            encoded = "they were there already, nothing was encoded"
        lines.append(f"{self.path}: {self.utterances} {inputs}, {self.rows} {unit}; {encoded}")
        return "\n".join([*lines, self.advice] if self.advice else lines)


@dataclass(frozen=True)
class Work:
    """What is to be encoded, settled before the encoder runs."""

    layout: PartLayout
    lengths: Sequence[int]  # of the utterances; 0 where the modality is absent
    unit: Unit  # of the lengths, for people
    budget: int  # largest padded length of a batch
    found: bool  # the budget was found from free memory: an interrupted run goes on with its own
    engine: Engine
    close: Callable[[], None] = lambda: None  # ends processes and closes files that loading keeps


@dataclass(frozen=True)
class Altered:
    """Says that an encoder's input is not the corpus' own."""

    input: Mapping[str, Any]  # the field `input` of the identity
    code: str  # hash (hex) of the code that alters: other code is other work
    clip: "Callable[[Source, torch.Tensor], torch.Tensor] | None" = None  # alters (samples,), not how many


@dataclass(frozen=True)
class Recordings:
    """What the stage `audio` works on."""

    utterances: Sequence[Source]
    params: AudioParams
    root: Path
    channels: Channels

    def plan(self, device: str, scratch: Path) -> Work:
        """Load the encoder, and plan."""
        from pipeline.encoders import load_speech_encoder

        return plan_audio(self, load_speech_encoder(self.params, device), scratch)

    def missing(self) -> list[Path]:
        """Recordings that this machine does not see."""
        return [self.root / u.audio for u in self.utterances if u.audio and file_size(self.root, u) is None]


def file_size(root: Path, utterance: Source) -> int | None:
    """Bytes of the recording, which change with most edits of it; None where there is none."""
    path = root / utterance.audio if utterance.audio else None
    with contextlib.suppress(OSError):  # also a name that is too long
        return path.stat().st_size if path is not None and path.is_file() else None
    return None


def extract_audio(
    manifest: Path,
    target: Path,
    params: AudioParams,
    root: Path,
    channels: Channels,
    device: str = "auto",
    overwrite: bool = False,
) -> Outcome:
    """Encode the recordings under `root` to the part file `target`, each once.

    `manifest` may also be the recordings.jsonl beside it.

    Raises:
        DataError: a recording is not what the manifest says.
        EncoderError: the encoder cannot be loaded, or one clip alone exceeds the memory.
        StoreError, OSError: the file cannot be written, or holds something else and `overwrite` is not given.
        BusyError: another process writes it.
    """
    from pipeline.encoders import load_speech_encoder

    recordings = Recordings(read_sources(manifest, "audio"), params, root, channels)
    if not any(utterance.samples for utterance in recordings.utterances):
        return leave_empty(target, recordings.utterances, "audio", params.dtype, overwrite)
    encoder = load_speech_encoder(params, device)
    outcome = fill(target, plan_audio(recordings, encoder, target.parent), "audio", overwrite)
    precision = encoder.identity.fields.get("precision", "")  # log-mel frames have none
    return replace(outcome, advice=advise_precision(precision, encoder.device, "audio.precision"))


def extract_text(
    manifest: Path, target: Path, params: TextParams, device: str = "auto", overwrite: bool = False
) -> Outcome:
    """Encode the transcripts to the part file `target`, as `extract_audio` does; or those of the texts.jsonl."""
    from pipeline.encoders import due, load_text_encoder

    utterances = read_sources(manifest, "text")
    if not any(utterance.text for utterance in utterances):
        return leave_empty(target, utterances, "text", params.dtype, overwrite)
    encoder = load_text_encoder(params, device)
    learned = read_learned(params.encoder)
    work = plan_text(due(utterances, encoder.context), encoder, params, learned=learned)
    outcome = fill(target, work, "text", overwrite)
    return replace(outcome, advice=advise_precision(params.precision, encoder.device, "text.precision"))


def plan_audio(recordings: Recordings, encoder: "SpeechEncoder", scratch: Path, altered: Altered | None = None) -> Work:
    """The work of encoding the recordings; `scratch`: a folder with room for what `pipeline.media.clips` lays down."""
    utterances, params, channels = recordings.utterances, recordings.params, recordings.channels
    clips = Clips(utterances, recordings.root, channels, encoder.sample_rate, scratch, params.decode_seconds)
    alter = altered.clip if altered else None

    def load(index: int) -> "torch.Tensor":
        clip = clips.load(utterances[index])
        return alter(utterances[index], clip) if alter else clip

    work = plan_clips(utterances, encoder, params, channels, load)
    learned = read_learned(params.encoder)
    inputs = [
        [content_key(u, "audio"), u.audio, u.start, u.end, u.samples, file_size(recordings.root, u)] for u in utterances
    ]
    layout = replace(work.layout, learned=[learned_key(utterance, "audio") in learned for utterance in utterances])
    return replace(work, layout=_made_from([channels, *inputs], altered, layout), close=clips.close)


def plan_clips(
    utterances: Sequence[Source],
    encoder: "SpeechEncoder",
    params: AudioParams,
    channels: Channels,
    load: "Callable[[int], torch.Tensor]",
) -> Work:
    """The work of encoding the clips (samples,) at the encoder's rate that `load` gives for an utterance's index.

    `channels` is how several became one, which the identity says.
    """
    lengths = [encoder_samples(utterance, encoder.sample_rate) for utterance in utterances]

    def load_if_readable(index: int) -> "torch.Tensor | None":
        try:
            return load(index) if lengths[index] else None
        except ClipError:
            if params.on_error == "stop":
                raise
            return None  # it is marked when it is to be encoded

    named = [utterance.speaker for utterance in utterances]
    # by content, whatever utterances are called
    order = sorted(range(len(utterances)), key=lambda index: content_key(utterances[index], "audio") or "")
    turn = Lock()

    @cache
    def speakers() -> Mapping[str, Columns]:
        if not encoder.by_speaker:
            return {}
        return encoder.measure_speakers([named[index] for index in order], lambda place: load_if_readable(order[place]))

    def load_prepared(index: int) -> "Prepared":
        with turn:  # the first of the threads that load clips listens to all of them
            own = speakers().get(named[index] or "")
        clip = load(index)
        assert len(clip) == lengths[index]
        return encoder.prepare(clip, own)

    layout = PartLayout(
        ids=[utterance.id for utterance in utterances],
        rows=[encoder.frames(length) if length else 0 for length in lengths],
        row_shape=encoder.row_shape,
        dtype=params.dtype,
        identity=Identity({**encoder.identity.fields, "channels": channels}),
        plan="",
        names=[utterance.name for utterance in utterances],
    )
    if encoder.by_speaker:
        _warn_of_zeros(utterances, layout.rows)
    engine = LocalEngine(
        load_prepared,
        partial(encoder.start, dtype=params.dtype),
        layout.name,
        mark=params.on_error == "mark",
        advice="lower audio.window_seconds, or encode on the cpu (--device)",
        side_by_side=encoder.side_by_side,
    )
    budget = encoder.budget() if params.batch == "auto" else int(params.batch * encoder.sample_rate)
    unit = Unit("h of audio", "h", 3600 * encoder.sample_rate, digits=2)
    return Work(layout, lengths, unit, budget, params.batch == "auto", engine)


def _warn_of_zeros(utterances: Sequence[Source], rows: Sequence[int]) -> None:
    """A single row less the mean of the speaker's rows is zero where it is the only one of its speaker."""
    heard = Counter(one.speaker for one, count in zip(utterances, rows, strict=True) if count)
    zeros = [
        one.name
        for one, count in zip(utterances, rows, strict=True)
        if count == 1 and (not one.speaker or heard[one.speaker] == 1)
    ]
    if zeros:
        log.warning(
            "clips of a single row, without another clip of their speaker, are all zero once they are normalised by "
            "speaker: %d, such as '%s'; name speakers, or set audio.normalise to null",
            len(zeros),
            zeros[0],
        )


def plan_text(
    said: "Sequence[Passage]",
    encoder: "TextEncoder",
    params: TextParams,
    altered: Altered | None = None,
    learned: Collection[str] = (),
) -> Work:
    """The work of encoding the utterances of the passages, of which the encoder has `learned` some (`learned_key`)."""
    readings = [encoder.read(passage) for passage in said]
    lengths = [encoder.length(one) if passage.own.text else 0 for passage, one in zip(said, readings, strict=True)]
    rows = [encoder.tokens(one.own) if length else 0 for one, length in zip(readings, lengths, strict=True)]
    around = [(passage.own.speaker, passage.past, passage.future) if any(encoder.context) else () for passage in said]
    inputs = [[passage.id, passage.own.text, *context] for passage, context in zip(said, around, strict=True)]
    ids, names = [passage.id for passage in said], [passage.name for passage in said]
    layout = PartLayout(ids, rows, encoder.row_shape, params.dtype, encoder.identity, plan="", names=names)
    layout = replace(layout, learned=[key_of([passage.own.text]) in learned for passage in said])
    engine = LocalEngine(
        readings.__getitem__,
        partial(encoder.start, dtype=params.dtype),
        layout.name,
        advice="shorten its text, or encode on the cpu (--device)",
    )
    budget = encoder.budget() if params.batch == "auto" else params.batch
    unit = Unit("tokens", "tokens", 1, digits=0)
    return Work(_made_from(inputs, altered, layout), lengths, unit, budget, params.batch == "auto", engine)


def _made_from(inputs: list[Any], altered: Altered | None, layout: PartLayout) -> PartLayout:
    """The layout with a hash of all that its features are made from besides the encoder, and how that was altered."""
    if altered:
        inputs = [*inputs, altered.code]
        layout = replace(layout, identity=Identity({**layout.identity.fields, "input": dict(altered.input)}))
    if any(layout.learned):  # so that the same features without marks are made again
        inputs = [*inputs, list(layout.learned)]
    plan = hashlib.sha256(json.dumps(inputs, ensure_ascii=False).encode()).hexdigest()
    return replace(layout, plan=plan)


def collect(work: Work) -> list[np.ndarray]:
    """What `fill` would write, in memory: the rows of every utterance, none where the modality is absent.

    Raises:
        DataError: a value that the type of the features cannot hold.
        ClipError, EncoderError: as `LocalEngine.run`.
    """
    layout = work.layout
    rows = [np.empty((0, *layout.row_shape), layout.dtype)] * len(layout.ids)
    batches = batches_under_budget(work.lengths, work.budget)
    with closing(work):
        for encoded in work.engine.run(batches, alone=len(batches) < count_cores()):
            for index, found in zip(encoded.indices, encoded.rows, strict=True):
                if not np.isfinite(found).all():
                    raise DataError(f"'{layout.name(index)}': its features hold values that {layout.dtype} cannot")
                rows[index] = found
    return rows


def fill(target: Path, work: Work, name: str, overwrite: bool = False) -> Outcome:
    """Encode every batch that is not done, and finish the file; `name` is that of the progress bar.

    What is finished when an error ends the run is kept. The very same features are not encoded again.

    Raises:
        DataError, EncoderError, StoreError, OSError: as `extract_audio`.
    """
    with closing(work), sole_writer(target):
        if _is_there(target, work.layout, overwrite):
            rows, empty = sum(work.layout.rows), work.layout.rows.count(0)
            return Outcome(target, len(work.layout.ids), rows, 0, 0, empty, {}, "", there=True)
        return _fill(target, work, name)


def _is_there(target: Path, layout: PartLayout, overwrite: bool) -> bool:
    """Whether `target` holds this very work, whole and undamaged.

    Raises:
        StoreError: it holds something else, and `overwrite` is not given.
    """
    if not target.exists():
        return False
    try:
        part = read_part(target)
        same = {
            "encoder settings": part.identity == layout.identity,
            "input": (part.plan, part.ids) == (layout.plan, list(layout.ids)),
        }
        if all(same.values()):
            return not is_damaged(part) and not part.failed  # those that failed are tried again
        what = f"features of other {' and other '.join(name for name, one in same.items() if not one)}"
    except StoreError as error:
        what = f"something that cannot be used ({error})"
    if overwrite:
        return False
    raise StoreError(f"{target}: holds {what}; name another file (--output) to keep it, or replace it with --overwrite")


def _fill(target: Path, work: Work, name: str) -> Outcome:
    layout, lengths, engine = work.layout, work.lengths, work.engine
    failures: dict[int, str] = {}
    with SlotWriter(target, layout) as writer:
        empty = [index for index, rows in enumerate(layout.rows) if not rows]
        writer.write(empty, [np.empty((0, *layout.row_shape), layout.dtype)] * len(empty))
        budget = writer.note.get("budget", work.budget) if work.found else work.budget
        pieces = writer.note.get("pieces", 1) if writer.note.get("budget") == budget else 1  # of the same batches
        engine.cut_into(pieces)
        batches = batches_under_budget(lengths, budget)
        waiting = [batch for batch in batches if not writer.done[batch].all()]
        writer.take_note(budget=budget, pieces=pieces)
        total = sum(len(batch) for batch in waiting)
        left = sum(lengths[index] for batch in waiting for index in batch)
        with (
            Progress(name, work.unit, sum(lengths), kept=sum(lengths) - left) as progress,
            _WritingBehind(writer, budget) as behind,
        ):
            for encoded in engine.run(waiting):
                behind.write(encoded)
                failures |= encoded.failures
                progress.advance(sum(lengths[index] for index in encoded.batch))
        failures = {index: status for index, status in failures.items() if not writer.done[index]}
        if failures and len(failures) + len(empty) == len(layout.ids):
            raise DataError(
                f"none of the {len(failures)} utterances could be read ({', '.join(sorted(set(failures.values())))}); "
                "fix dataset.root, or run pipeline-prepare again"
            )
        writer.finish(failures)
    return Outcome(
        path=target,
        utterances=len(layout.ids),
        rows=sum(rows for index, rows in enumerate(layout.rows) if index not in failures),
        encoded=total - len(failures),
        kept=len(layout.ids) - len(empty) - total,
        empty=len(empty),
        failures={layout.name(index): status for index, status in sorted(failures.items())},
        speed=progress.speed(),
    )


def leave_empty(
    target: Path, utterances: Sequence[Source], modality: str, dtype: Dtype, overwrite: bool = False
) -> Outcome:
    """Write the part of a corpus that lacks the modality: no rows, of no encoder, and none is loaded for it."""
    ids, shape = [utterance.id for utterance in utterances], (1,)
    identity = Identity({"modality": modality, "model": NO_ENCODER})
    layout = PartLayout(ids, [0] * len(ids), shape, dtype, identity, plan="")
    with sole_writer(target):
        if not _is_there(target, layout, overwrite):
            with SlotWriter(target, layout) as writer:
                writer.write(range(len(ids)), [np.empty((0, *shape), dtype)] * len(ids))
                writer.finish()
    advice = f"the corpus has no {modality}: nothing to encode, and no encoder was loaded"
    return Outcome(target, len(ids), 0, 0, 0, len(ids), {}, "", advice)


class _WritingBehind:
    """Writes in a thread, so that the encoder need not wait for the disk; all is written when the context is left.

    Batches are written in order, none after one that could not be, and each one's pieces are noted before it: wherever
    a run ends, its successor cuts the next batch as it would have done.
    """

    def __init__(self, writer: SlotWriter, budget: int) -> None:
        self._writer, self._budget = writer, budget
        self._thread = Threads(1)
        self._writes: deque[Future[None]] = deque()

    def __enter__(self) -> "_WritingBehind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self._wait_for(0)

    def write(self, encoded: Encoded) -> None:
        """Take what is to be written; an error of an earlier write is raised here."""
        before = self._writes[-1] if self._writes else None
        self._writes.append(self._thread.submit(self._write, encoded, before))
        self._wait_for(BEHIND)

    def _write(self, encoded: Encoded, before: "Future[None] | None") -> None:
        if before:
            before.result()  # raises its error
        pieces = max(encoded.pieces, self._writer.note["pieces"])  # a cluster's actors come to them at different times
        self._writer.take_note(budget=self._budget, pieces=pieces)
        self._writer.write(encoded.indices, encoded.rows)

    def _wait_for(self, waiting: int) -> None:
        while len(self._writes) > waiting:
            self._writes.popleft().result()
