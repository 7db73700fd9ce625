"""The `degrade` stage: the test split once more, as a worse recogniser or a worse microphone would have given it.

Each condition is a part file of the test split's utterances alone, made by the encoder and the code of the stages
`audio` and `text`. Its identity differs from theirs by the field `input`, which says what was done and measured:

    text-word-errors-0.2.h5   words substituted, deleted and inserted (pipeline.degradation.distortions), drawn from
    train's transcripts text-recogniser.h5        a recogniser's words, the corpus' own column `recognised`
    audio-noise-10dB.h5       noise at a signal-to-noise ratio (pipeline.degradation.distortions), at the encoder's
    sample rate

An utterance that lacks the modality lacks it here, too, and one whose words were all deleted has an empty text.

Encoding is done in `<output>.kept` beside the output, because DVC deletes the output before it runs the stage. What
an earlier run has encoded there is used again if encoder, input and code are still the same: one more level costs that
level alone, and an interrupted run goes on. The output holds hard links (copies, where the disk has none) to the
conditions that are asked for, and nothing else. The kept files may be deleted at any time.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.degradation.distortions import (
    ErrorKinds,
    WordErrors,
    add_noise,
    add_word_errors,
    is_unspaced,
    vocabulary_of,
    word_errors,
)
from pipeline.errors import DataError, StoreError
from pipeline.extraction import Altered, Recordings, Work, fill, plan_audio, plan_text
from pipeline.manifest import Source, Utterance, content_key, read_manifest
from pipeline.media import Channels
from pipeline.params import AudioParams, DegradeParams, NoiseKind, TextParams
from pipeline.settings import closure_digest, publish, sole_writer
from pipeline.store import source_digest, writing

if TYPE_CHECKING:
    import torch


CODE = "pipeline.degradation.stage:degrade"  # what decides what a condition holds, besides the encoder's weights
WRITTEN = re.compile(r"(text-(word-errors-.+|recogniser)|audio-noise-.+dB)\.h5")  # names of conditions


@dataclass(frozen=True)
class Condition:
    """One file, and what its encoder is given."""

    name: str
    work: Work
    measured: str  # for the user


@dataclass(frozen=True)
class Degraded:
    """What a run did."""

    folder: Path
    encoded: Sequence[Condition]
    kept: Sequence[Condition]  # that an earlier run had encoded
    notes: Sequence[str]  # studies that the corpus does not allow

    def summary(self) -> str:
        """A line for each condition and note, and one with the outcome."""
        lines = [
            f"{condition.name}: {condition.measured}, {how}"
            for how, conditions in (("encoded", self.encoded), ("kept from an earlier run", self.kept))
            for condition in conditions
        ]
        count = len(lines)
        outcome = f"{self.folder}: {count} {'condition' if count == 1 else 'conditions'}, {len(self.encoded)} encoded"
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), outcome])


def degrade(
    manifest: Path,
    folder: Path,
    params: DegradeParams,
    audio: AudioParams,
    text: TextParams,
    root: Path,
    channels: Channels,
    device: str = "auto",
    overwrite: bool = False,
) -> Degraded:  # nine: three sections of params.yaml, and the two keys of a fourth that say where recordings lie
    """Make `folder` hold exactly the conditions that `params` asks for.

    A study that the corpus does not allow, such as noise where there are no recordings, is left out with a note.

    Raises:
        DataError: the manifest is missing or broken, a recording is not what it says, or the recogniser's words are
            asked for and not there.
        EncoderError, StoreError, OSError: as `pipeline.extraction.extract_audio`; of `overwrite`, too: a condition of
            that name was made of other input, by other code or by another encoder. `folder` holds something else.
    """
    with sole_writer(folder):
        _check_replaceable(folder)
        utterances = read_manifest(manifest)
        hearings, notes = hear(utterances, params, manifest)
        test = [utterance for utterance in utterances if utterance.split == "test"]
        if params.noise and not any(utterance.samples for utterance in test):
            notes.append("no study of noise: the test split has no recordings")
            params = params.model_copy(update={"noise": ()})
        kept = folder.with_name(folder.name + ".kept")
        done: dict[bool, list[Condition]] = {True: [], False: []}  # by whether an earlier run had encoded it
        for condition in (
            *_text_conditions(test, hearings, text, device),
            *_audio_conditions(test, Recordings(test, audio, root, channels), params, kept, device),
        ):
            outcome = fill(kept / condition.name, condition.work, condition.name, overwrite)
            done[outcome.there].append(condition)
        _publish([kept / condition.name for conditions in done.values() for condition in conditions], folder)
        return Degraded(folder, encoded=done[False], kept=done[True], notes=notes)


def _check_replaceable(folder: Path) -> None:
    """Refuse at once what must not be deleted in the end."""
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name] * folder.exists()
    if others := sorted(name for name in found if not WRITTEN.fullmatch(name)):
        raise StoreError(
            f"{folder}: holds what pipeline-degrade did not write ({others[0]}); name another folder (--output)"
        )


@dataclass(frozen=True)
class Hearing:
    """The transcripts of the test split as someone else heard them."""

    name: str
    given: Mapping[str, Any]
    texts: Sequence[str]
    errors: WordErrors


def hear(utterances: Sequence[Utterance], params: DegradeParams, manifest: Path) -> tuple[list[Hearing], list[str]]:
    """Every study of the transcripts, and notes on those that the corpus does not allow."""
    test = [utterance for utterance in utterances if utterance.split == "test"]
    hearings, notes = [], []
    vocabulary = vocabulary_of(utterance.text for utterance in utterances if utterance.split == "train")
    if params.word_errors and (vocabulary is None or not word_errors((u.text, "") for u in test).words):
        notes.append("no study of word errors: it needs words in the test split, and two that differ in train")
    elif vocabulary is not None:
        kinds = ErrorKinds(params.substitute, params.delete, params.insert)
        for rate in params.word_errors:
            texts = [add_word_errors(u.text, rate, params.seed, u.id, vocabulary, kinds) for u in test]
            given = {"study": "word-errors", "level": rate, "seed": params.seed, **vars(kinds)}
            hearings.append(_measured(f"word-errors-{rate:.12g}", given, test, texts))
    if params.recogniser:
        if any(utterance.recognised is None for utterance in test):
            raise DataError(
                f"{manifest}: evaluate.degrade.recogniser is true, but the corpus has no recogniser's words; name "
                "their column in dataset.columns.recognised, or set it to false"
            )
        heard = [utterance.recognised or "" for utterance in test]
        hearings.append(_measured("recogniser", {"study": "recogniser"}, test, heard))
    if hearings and is_unspaced(utterance.text for utterance in test):
        notes.append(
            "the texts have no blanks between words, so word errors count what lies between blanks, such as whole "
            "sentences; put a segmenter's blanks into the table to have words"
        )
    return hearings, notes


def _measured(name: str, given: Mapping[str, Any], test: Sequence[Utterance], texts: Sequence[str]) -> Hearing:
    errors = word_errors(zip((utterance.text for utterance in test), texts, strict=True))
    return Hearing(name, {**given, "edits": errors.edits, "words": errors.words}, texts, errors)


def _text_conditions(
    test: Sequence[Utterance], hearings: Sequence[Hearing], params: TextParams, device: str
) -> Iterator[Condition]:
    if not hearings:
        return
    from pipeline.encoders import load_text_encoder, passage_key, passages

    encoder, code = load_text_encoder(params, device), closure_digest(CODE)
    clean = source_digest(passage_key(one, encoder.context) or "" for one in passages(test, encoder.context))
    for hearing in hearings:
        records = [u.model_copy(update={"text": text}) for u, text in zip(test, hearing.texts, strict=True)]
        altered = Altered({**hearing.given, "of": clean}, code)
        work = plan_text(passages(records, encoder.context), encoder, params, altered)
        rate = hearing.errors.rate
        measured = "no words to compare with" if rate is None else f"word error rate {rate:.3f}"
        yield Condition(f"text-{hearing.name}.h5", work, measured)


def _audio_conditions(
    test: Sequence[Utterance], recordings: Recordings, params: DegradeParams, scratch: Path, device: str
) -> Iterator[Condition]:
    if not params.noise:
        return
    from pipeline.encoders import load_speech_encoder

    encoder, code = load_speech_encoder(recordings.params, device), closure_digest(CODE)
    clips = sum(utterance.samples > 0 for utterance in test)
    clean = source_digest(content_key(utterance, "audio") or "" for utterance in test)
    silent = sum("silent" in utterance.status.split("+") for utterance in test)
    for ratio in params.noise:
        given = {"study": "noise", "level": ratio, "seed": params.seed, "kind": params.noise_kind, "silent": silent}
        given |= {"of": clean}
        alter = partial(_add_noise, ratio=ratio, seed=params.seed, kind=params.noise_kind)
        work = plan_audio(recordings, encoder, scratch, Altered(given, code, alter))
        measured = f"{params.noise_kind} noise in {clips - silent} clips"
        yield Condition(
            f"audio-noise-{ratio:.12g}dB.h5", work, measured + f", {silent} silent ones left as they are" * (silent > 0)
        )


def _add_noise(utterance: Source, clip: "torch.Tensor", ratio: float, seed: int, kind: NoiseKind) -> "torch.Tensor":
    import torch

    return torch.from_numpy(add_noise(clip.numpy(), ratio, seed, utterance.id, kind))


def _publish(files: Sequence[Path], folder: Path) -> None:
    """Let `folder` hold these files and no other: a new folder takes its place."""
    made = folder.with_name(folder.name + ".tmp")
    with writing(folder):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for file in files:
            try:
                os.link(file, made / file.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, made / file.name)
        publish(made, folder)
