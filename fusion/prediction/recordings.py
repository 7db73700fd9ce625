"""From recordings to what a model takes: the one place of fusion that asks the pipeline to encode, when it is called.

Conversations are encoded some at a time, so that memory holds a few hundred turns, however long the table is.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusion.checkpoint import Provenance
from fusion.errors import RecordingError
from fusion.prediction.inputs import Heard, shorten
from fusion.prediction.records import Turn
from pipeline.store import Identity

if TYPE_CHECKING:
    from pipeline.recordings import Spoken, TurnEncoder, Waveform


log = logging.getLogger(__name__)

TURNS = 512  # of whole conversations that are encoded at a time


class Recordings:
    """The encoders of a model, which are loaded when they are needed.

    Args:
        provenance: of the model.
        audio, text: the folders of its encoders, where they are neither built in nor on the hub.
        device: cpu, cuda or cuda:<n>.
    """

    def __init__(self, provenance: Provenance, audio: Path | None, text: Path | None, device: str) -> None:
        self._model, self._folders, self._device = provenance.recipe.model, (audio, text), device
        self._identities = {"audio": provenance.audio, "text": provenance.text}
        self._started: TurnEncoder | None = None
        self._closed = False
        self._warned = False  # of clips alone

    @property
    def future_turns(self) -> int:
        """How many turns behind it the words of a turn are read with."""
        text = self._identity("text")
        turns = text.fields.get("future_turns", 0) if text else 0
        return turns if isinstance(turns, int) else 0  # else the encoder will refuse it

    def load(self) -> None:
        """Load the encoders now; raises EncoderError where one is not available."""
        self._encoder.load()

    def close(self) -> None:
        """End the decoders' processes; from now on recordings are refused."""
        self._closed = True
        if self._started:
            self._started.close()

    def hear(self, turns: Sequence["Spoken"], since: int = 0) -> list[Heard]:
        """What the model is given of these turns from number `since` on; those before it are read with them.

        Raises:
            EncoderError: an encoder is not available, or a turn alone exceeds the memory.
            DataError: nothing can be decoded here.
            RecordingError: there are recordings after `close`.
        """
        if self._closed and any(turn.sound is not None for turn in turns):
            raise RecordingError(
                "this predictor is closed and decodes no more recordings; load another one, or close it after the last "
                "turn"
            )
        encoded = self._encoder.encode(turns, since)
        self._warn_of_clips_alone(turns[since:])
        return [
            Heard(
                conversation=turn.utterance.conversation,
                turn=turn.utterance.turn,
                speaker=turn.utterance.speaker,
                id=turn.utterance.id,
                audio=shorten(found.audio, self._model.audio_frames),
                text=found.text,
                status=found.status,
            )
            for turn, found in zip(turns[since:], encoded, strict=True)
        ]

    def _warn_of_clips_alone(self, turns: Sequence["Spoken"]) -> None:
        """Once, where they are most: with others of its speaker, such a clip would have had other features."""
        speakers = [turn.utterance.speaker for turn in turns if turn.sound is not None]
        if self._warned or not speakers or not self._encoder.by_speaker:
            return
        clips = Counter(speakers)
        alone = sum(speaker is None or clips[speaker] == 1 for speaker in speakers)
        if 2 * alone > len(speakers):
            self._warned = True
            log.warning(
                "%d of %d clips are the only clip of their speaker, over whose clips this model's features are "
                "normalised (audio.normalise: speaker), so their answers differ from those among more clips; give all "
                "turns of a speaker in one table, with the speaker's name",
                alone,
                len(speakers),
            )

    def hear_next(self, said: Sequence["Spoken"], heard: Sequence[Heard]) -> list[Heard]:
        """What the model is given of one conversation up to now, all of which but the last turn was `heard` before.

        What is known is not encoded anew, but for the words of turns that are read with those behind them. Raises as
        `hear`.
        """
        future = self.future_turns
        with_words = [index for index, turn in enumerate(said[:-1]) if turn.utterance.text]
        since = min(with_words[-future:], default=len(heard)) if future else len(heard)
        silent = [replace(turn, sound=None) for turn in said[:-1]]
        *again, new = self.hear([*silent, said[-1]], since)
        reread = [replace(old, text=one.text) for old, one in zip(heard[since:], again, strict=True)]
        return [*heard[:since], *reread, new]

    def hear_all(self, turns: Sequence["Spoken"]) -> Iterator[list[Heard]]:
        """The same, some whole conversations at a time, but all where features are normalised by speaker.

        `turns` lie conversation by conversation.
        """
        heard = any(turn.sound is not None for turn in turns)
        for some in [list(turns)] if heard and self._encoder.by_speaker else _some_at_a_time(turns):
            yield self.hear(some)

    @property
    def _encoder(self) -> "TurnEncoder":
        from pipeline.recordings import TurnEncoder

        if self._started is None:
            audio, text = self._identity("audio"), self._identity("text")
            self._started = TurnEncoder(audio, text, *self._folders, self._device)
        return self._started

    def _identity(self, name: str) -> Identity | None:
        return self._identities[name] if name in self._model.looks_at else None


def read_table(table: Path, root: Path, params: Path | None, overrides: Sequence[str]) -> list["Spoken"]:
    """The turns of a table, conversation by conversation; raises as `pipeline.recordings.read_turns`."""
    from pipeline.recordings import read_turns

    return read_turns(table, root, params, overrides)


def speak(turn: Turn, index: int) -> "Spoken":
    """`turn` as the one with this `index` in its conversation.

    Raises:
        DataError: a name holds control characters, times do not fit, or samples are not a clip.
        RecordingError: samples come without their rate.
    """
    from pipeline import recordings

    return recordings.speak(
        turn.conversation,
        index,
        turn.text or "",
        _sound(turn, index),
        speaker=turn.speaker,
        start=turn.start,
        end=turn.end,
    )


def inside(audio: str, where: str, root: Path) -> Path:
    """The recording that a stranger names, which has to lie in `root`; raises DataError, which `where` leads."""
    from pipeline.recordings import relative_path

    return root / relative_path(audio, where, str(root))


def _sound(turn: Turn, index: int) -> "Path | Waveform | None":
    from pipeline.recordings import Waveform

    if isinstance(turn.audio, np.ndarray):
        if turn.sample_rate is None:
            raise RecordingError(f"turn {index}: its audio are samples; give their sample_rate, too")
        return Waveform(turn.audio, turn.sample_rate)
    return Path(turn.audio) if turn.audio else None


def _some_at_a_time(turns: Sequence["Spoken"]) -> Iterator[list["Spoken"]]:
    """Whole conversations of at least `TURNS` turns together, but for the last ones."""
    some: list[Spoken] = []
    for turn in turns:
        if len(some) >= TURNS and turn.utterance.conversation != some[-1].utterance.conversation:
            yield some
            some = []
        some.append(turn)
    if some:
        yield some
