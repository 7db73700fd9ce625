"""Turns as they are spoken -> features, in memory, by the arithmetic of the stages `audio` and `text`.

What prediction from recordings needs of this package: `read_turns` of a table, and `TurnEncoder`. Every recording is
decoded once, in processes of their own; a turn is never dropped, and its status says what is missing, in the words of
`pipeline.manifest` and two more:

    cut-text        the text has more than 10,000 characters; what follows them is not read
    context-only    nothing of the turn can be used: a model knows it by the turns around it alone
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from pipeline.datasets import Turn, fix_surrogates, read_table, repair_controls, unused_columns
from pipeline.encoders import Named, Passage, load_speech, load_text, passages
from pipeline.errors import DataError
from pipeline.extraction import collect, plan_clips, plan_text
from pipeline.manifest import OK, Utterance
from pipeline.media import SAMPLE_RATES, Channels, Decoders, Recording, Stretch, judge, resample
from pipeline.params import AudioParams, DatasetParams, TextParams
from pipeline.preparation import after_probing, by_conversation, draft_utterance, leave_to_others, relative_path
from pipeline.settings import DEFAULT_PARAMS, Threads, keep_generators, read_section
from pipeline.store import Identity

if TYPE_CHECKING:
    import torch

    from pipeline.encoders import SpeechEncoder, TextEncoder

log = logging.getLogger(__name__)
UNREAD = ("split", "label", "score", "recognised")  # columns that say nothing to a model
LONGEST_TEXT = 10_000  # characters of a turn; what attention takes grows with the square of it
LOUDEST = 8.0  # of samples in [-1, 1], which float may exceed a little: 18 dB; whole numbers begin at 127
DECODE_SECONDS = 60.0  # that decoding may go without progress, as dataset.decode_seconds

__all__ = ["EncodedTurn", "Spoken", "TurnEncoder", "Waveform", "read_turns", "relative_path", "speak"]


@dataclass(frozen=True, eq=False)
class Waveform:
    """A recording in memory: (samples,) float32 in [-1, 1]."""

    samples: np.ndarray
    sample_rate: int


@dataclass(frozen=True, eq=False)
class Spoken:
    """A turn before its recording is looked at."""

    utterance: Utterance
    sound: Path | Waveform | None
    label: str | None = None  # what a table says that the answer is; no model sees it
    score: str | None = None
    carried: Mapping[str, str] = field(default_factory=dict)  # its other columns, by the table's own names


@dataclass(frozen=True, eq=False)
class EncodedTurn:
    """A turn as a model takes it.

    Shape:
        audio: (frames, dim) or (frames, layers, dim); None where it has none, or the model takes none
        text: (tokens, dim) or (tokens, layers, dim); likewise
    """

    audio: np.ndarray | None
    text: np.ndarray | None
    status: str


def read_turns(table: Path, root: Path, params: Path | None = None, overrides: Sequence[str] = ()) -> list[Spoken]:
    """The turns of a table (.csv, .tsv, .jsonl, .parquet), conversation by conversation, each in its order.

    Columns are those of `dataset.name: table`, which `dataset.columns` of `params` and `overrides` may name otherwise.
    Without `params`, those of the params.yaml that lies here are taken where the table has them. Recordings lie under
    `root`. What the answer may be, and every other column, comes along unread.

    Raises:
        SettingsError: section `dataset` is not as it must be.
        DataError: as `pipeline.datasets.table.read` and `pipeline.preparation.draft_utterance`; the line is named.
    """
    if not table.is_file():
        raise DataError(f"{table}: no such table; name another one (--table)")
    asked = read_section(params, "dataset", DatasetParams, overrides).columns.model_dump()
    here = DEFAULT_PARAMS if params is None and DEFAULT_PARAMS.exists() else params
    dataset = read_section(here, "dataset", DatasetParams, overrides)
    optional = [name for name, column in asked.items() if column is None]
    corpus = read_table(table, dataset, unread=UNREAD, optional=optional)
    turns, names = corpus.turns, corpus.columns
    unused = dict.fromkeys(name for turn in turns for name in turn.extra if name not in map(names.get, UNREAD))
    for note in unused_columns(unused, turns):
        log.warning("%s: %s", table, note)
    drafts = [
        (draft_utterance(turn, index, "test", _dataset(root)), turn)
        for conversation in by_conversation(turns)
        for index, turn in enumerate(conversation)
    ]
    counts = Counter(draft.id for draft, _ in drafts)
    if twice := [identifier for identifier, count in counts.items() if count > 1]:
        log.warning(
            "%s: %d ids are shared by several rows, such as '%s' (%d rows); predictions are told apart by conversation "
            "and turn",
            table,
            len(twice),
            twice[0],
            counts[twice[0]],
        )
    return [_spoken(turn, draft, root, dataset, names) for draft, turn in leave_to_others(drafts, _dataset(root))]


def _spoken(turn: Turn, draft: Utterance, root: Path, dataset: DatasetParams, names: Mapping[str, str]) -> Spoken:
    label = turn.extra.get(names.get("label", ""))
    own = {names[name]: getattr(turn, name) for name in ("text", "audio", "start", "end") if name in names}
    return Spoken(
        draft,
        None if draft.audio is None else root / draft.audio,
        label=None if label is None else dataset.labels.get(label, label),
        score=turn.extra.get(names.get("score", "")),
        carried={**{name: str(value) for name, value in own.items() if value not in (None, "")}, **turn.extra},
    )


def speak(
    conversation: str,
    index: int,
    text: str,
    sound: Path | Waveform | None,
    *,
    speaker: str | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Spoken:
    """The turn with this `index` in its conversation, whose recording may lie anywhere.

    Raises:
        DataError: as `pipeline.preparation.draft_utterance`; samples that are not a clip.
    """
    where = f"turn {index}"
    if isinstance(sound, Waveform):
        sound = _checked(sound, where)
    repaired: Counter[str] = Counter()
    text = repair_controls(fix_surrogates(text, repaired), repaired)
    turn = Turn(conversation, index, speaker=speaker, text=text, start=start, end=end, where=where)
    return Spoken(draft_utterance(turn, index, "test", _dataset(Path())), sound)


def _checked(wave: Waveform, where: str) -> Waveform:
    """The same with a rate that is an int: other libraries give 16000.0."""
    fits = wave.samples.ndim == 1 and wave.samples.dtype.kind == "f" and wave.sample_rate in SAMPLE_RATES
    if not fits:
        raise DataError(
            f"{where}: audio of shape {wave.samples.shape}, {wave.samples.dtype}, at {wave.sample_rate} Hz; expected "
            f"(samples,) of floats in [-1, 1] at {SAMPLE_RATES.start} to {SAMPLE_RATES.stop - 1} Hz: mix several "
            "channels to one, and divide whole numbers by their largest"
        )
    loudest = float(np.max(np.abs(wave.samples), where=np.isfinite(wave.samples), initial=0.0))
    if loudest > LOUDEST:
        raise DataError(
            f"{where}: audio with samples up to {loudest:g}; expected floats in [-1, 1]: divide whole numbers by their "
            "largest, such as 32768"
        )
    return replace(wave, sample_rate=int(wave.sample_rate))


def _dataset(root: Path) -> DatasetParams:
    """What `draft_utterance` looks at: a path that is not the user's own writing is taken as it is, `~` and all."""
    return DatasetParams.model_construct(name="table", root=str(root), table="")


class TurnEncoder:
    """Turns -> features, with the encoders that two identities name; a context manager.

    An encoder is loaded when the first turn needs it. A modality without an identity is one that the model takes none
    of: its encoder is never loaded, and recordings are then not even opened.

    Args:
        audio, text: of the features that the model was trained on.
        audio_folder, text_folder: where the encoder lies, if it is not built in and not on the hub.
        device: auto, cpu, cuda or cuda:<n>.
    """

    def __init__(
        self,
        audio: Identity | None,
        text: Identity | None,
        audio_folder: Path | None = None,
        text_folder: Path | None = None,
        device: str = "auto",
        decode_seconds: float = DECODE_SECONDS,
    ) -> None:
        self._audio, self._text = (one if one and one.of_an_encoder else None for one in (audio, text))
        self._audio_folder, self._text_folder = audio_folder, text_folder
        self._device = device
        self._decoders = Decoders(decode_seconds)

    def __enter__(self) -> "TurnEncoder":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoders' processes."""
        self._decoders.close()

    @property
    def by_speaker(self) -> bool:
        """Whether a clip's features depend on the others of its speaker, so that all are to be encoded together."""
        return self._audio is not None and self._speech.encoder.by_speaker

    def load(self) -> None:
        """Load both encoders now, rather than with the first turn.

        Imported features have none, which is an error of the turns that need it, and here if all features are imported.

        Raises:
            EncoderError: one is not available, cannot be loaded, or is not the one that the model was trained with.
        """
        asked = [one for one in (self._audio, self._text) if one]
        if not all(one.imported for one in asked):
            asked = [one for one in asked if not one.imported]
        _ = self._audio in asked and self._speech, self._text in asked and self._words

    def encode(self, turns: Sequence[Spoken], since: int = 0) -> list[EncodedTurn]:
        """Features of the turns, in their order; where a recording cannot be used, the status says why.

        Args:
            since: the first of them that is asked for; those before it are read with it, as its past, and not heard.

        Raises:
            EncoderError: as `load`, or a turn alone exceeds the memory.
            DataError: nothing can be decoded here.
        """
        said, turns = [turn.utterance for turn in turns], turns[since:]
        recordings = self._hear(turns) if self._audio else [None] * len(turns)
        utterances = [
            after_probing(_cut(turn.utterance), recording) for turn, recording in zip(turns, recordings, strict=True)
        ]
        audio = self._encode_audio(utterances, recordings) if self._audio else None
        text = self._encode_text(said, since) if self._text else None
        return [
            EncodedTurn(
                audio=_present(audio, index), text=_present(text, index), status=self._status(turn.utterance, utterance)
            )
            for index, (turn, utterance) in enumerate(zip(turns, utterances, strict=True))
        ]

    @cached_property
    def _speech(self) -> "Named[SpeechEncoder, AudioParams]":
        assert self._audio is not None
        with keep_generators():
            return load_speech(self._audio, self._audio_folder, self._device)

    @cached_property
    def _words(self) -> "Named[TextEncoder, TextParams]":
        assert self._text is not None
        with keep_generators():
            return load_text(self._text, self._text_folder, self._device)

    @property
    def _channels(self) -> Channels:
        """How several become one; features that were made before this was recorded are taken for the default."""
        assert self._audio is not None
        stated = self._audio.fields.get("channels", "downmix")
        if stated not in get_args(Channels):
            choices = ", ".join(get_args(Channels))
            raise DataError(f"the model's config.json: channels {stated!r} are none of {choices}")
        return stated

    def _encode_audio(
        self, utterances: Sequence[Utterance], recordings: Sequence[Recording | None]
    ) -> list[np.ndarray] | None:
        if not any(utterance.samples for utterance in utterances):
            return None
        speech = self._speech

        def load(index: int) -> "torch.Tensor":
            recording = recordings[index]
            assert recording is not None
            return resample(recording.samples, recording.sample_rate, speech.encoder.sample_rate)

        return collect(plan_clips(utterances, speech.encoder, speech.params, self._channels, load))

    def _encode_text(self, said: Sequence[Utterance], since: int) -> list[np.ndarray] | None:
        """Features of the words of the utterances from number `since` on."""
        if not any(utterance.text for utterance in said[since:]):
            return None
        words = self._words
        found = passages(said, words.encoder.context)[since:]
        return collect(plan_text([_bounded(one) for one in found], words.encoder, words.params))

    def _hear(self, turns: Sequence[Spoken]) -> list[Recording | None]:
        """Every recording, decoded once whatever the number of its turns; None where a turn has none."""
        heard: dict[int, Recording] = {}
        albums: dict[Path, dict[Stretch, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, turn in enumerate(turns):
            stretch = Stretch(turn.utterance.start, turn.utterance.end)
            if isinstance(turn.sound, Waveform):
                heard[index] = _piece(turn.sound, stretch)
            elif turn.sound is not None:
                albums[turn.sound][stretch].append(index)
        with Threads(self._decoders.workers) as pool:
            for found in pool.map(partial(self._decode, channels=self._channels), albums.items()):
                heard.update(found)
        return [heard.get(index) for index in range(len(turns))]

    def _decode(self, album: tuple[Path, dict[Stretch, list[int]]], channels: Channels) -> dict[int, Recording]:
        path, turns = album
        return {
            index: recording
            for stretch, recording in self._decoders.decode_stretches(path, channels, list(turns))
            for index in turns[stretch]
        }

    def _status(self, given: Utterance, found: Utterance) -> str:
        """What prepare would say, of the modalities that the model takes."""
        issues = [issue for issue in found.status.split("+") if issue != OK]
        if self._audio is None:
            issues = [issue for issue in issues if issue != "no-audio"]
        if self._text is None:
            issues = [issue for issue in issues if issue != "no-text"]
        elif found.text != given.text:
            issues.append("cut-text")
        if not (self._audio and found.samples) and not (self._text and found.text):
            issues.append("context-only")
        return "+".join(issues) or OK


def _cut(utterance: Utterance) -> Utterance:
    """The utterance with so much of its text as is read."""
    if len(utterance.text) <= LONGEST_TEXT:
        return utterance
    return utterance.model_copy(update={"text": utterance.text[:LONGEST_TEXT].rstrip()})


def _bounded(passage: Passage) -> Passage:
    """The passage with so much of each text as is read; of what is before and behind it the part that is nearest."""
    return replace(
        passage,
        own=passage.own._replace(text=passage.own.text[:LONGEST_TEXT].rstrip()),
        past=[one._replace(text=one.text[-LONGEST_TEXT:]) for one in passage.past],
        future=[one._replace(text=one.text[:LONGEST_TEXT]) for one in passage.future],
    )


def _piece(wave: Waveform, stretch: Stretch) -> Recording:
    last = len(wave.samples) if stretch.end is None else round(stretch.end * wave.sample_rate)
    samples = np.asarray(wave.samples[stretch.first(wave.sample_rate) : last], np.float32)
    return judge(samples, wave.sample_rate, 1, [])


def _present(rows: Sequence[np.ndarray] | None, index: int) -> np.ndarray | None:
    """The rows of one utterance; None where it has none."""
    return rows[index] if rows is not None and len(rows[index]) else None
