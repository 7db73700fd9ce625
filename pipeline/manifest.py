"""One record per utterance, as JSON lines (`pipeline.settings.json_lines`) sorted by split, conversation and turn.

A turn is never dropped: where a modality is absent or odd, `status` says why. Reasons are joined by `+`:

    ok                 both modalities are there
    no-text            the transcript is empty, or holds nothing visible
    no-audio           the table names no recording
    missing-file       the recording is not there                           (no audio)
    unreadable (..)    it is there, but the system does not open it, and why: Permission denied   (no audio)
    undecodable        it is there, but no decoder can make sense of it, or it only refers to other files: a playlist, a
                       script, a session description                        (no audio)
    no-sound-stream    it holds no audio, such as a video without sound     (no audio)
    empty-audio        it holds no samples, or none from start to end       (no audio)
    timed-out          its decoder gave nothing for dataset.decode_seconds  (no audio)
    decoder-crashed    its decoder died, twice                              (no audio)
    not-finite         it holds NaN or infinite samples                     (no audio)
    truncated          it ends before its own header (or `end`) says; what is there is used
    damaged 1.0-1.1 s  these seconds of the file cannot be decoded: they are silence; what follows keeps its time
    gap 0.0-2.0 s      the file has no sound in these seconds: it starts late, was muted, or packets are lost; silence
    stream 1 of 2      the file has several sound streams and names no default: which one is used
    channel 1 of 4     dataset.channels is center, and the file does not say which of several it is: which one is used
    antiphase (channels: first)   the channels cancel in the mix; set dataset.channels to first, or auto
    first-channel      dataset.channels is auto, and the mix of the recording would cancel
    short              less than 25 ms, one frame of the encoders; it is padded to one frame
    silent             every sample is zero
    clipped            more than 1 % of its samples are at full scale

What the adapters of corpora say, of a turn that is there and keeps its place:

    other-label        iemocap: its label is none of the target's           (context, no label)
    undecided          iemocap: its evaluators did not agree                (context, no label)
    unevaluated        iemocap: nobody evaluated it, as `XX` turns          (context, no label)
    untimed            iemocap: its line has no times; it stays behind the line before it
    reversed-times     iemocap: it ends before it begins; the earlier time is taken for its start
    repeated           iemocap: its name was told before                    (context, no label, no audio)
    no-score           mosi: nobody scored it                               (context, no label)
    zero               mosi: score 0, neither negative nor positive         (context, no label)
    out-of-range       mosi: its score is not between -3 and 3
    unlisted           mosi: no split of the protocol names its video; that of `mode`, else train
    other-split        mosi: `mode` names another split than the protocol, which is what counts
"""

import errno
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import DataError
from pipeline.settings import parse_lines, read_lines, sole_writer, write_lines

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Seconds = Annotated[float, Field(ge=0)]
LARGEST_SCORE = (2 - 2**-23) * 2.0**127  # of float32, in which feature files hold scores
Score = Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE)]
OK = "ok"
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories of control characters, halves of characters and line ends
NAMES = ("id", "conversation", "speaker", "label")
UNSEEN = set("\u115f\u1160\u2800\u3164\uffa0")  # letters and signs that are drawn as nothing
MISSING = {"nan", "none", "null", "(null)", "nil", "na", "n/a", "n.a.", "nat", "missing", "undefined"}
MISSING |= {"#nv", "#n/a", "#n/a!", "#name?", "#ref!", "#value!", "#div/0!", "#null!", "#num!", "<na>"}  # of programs
DASHES = set("-_.?–—―−")
OPTIONAL = ("recognised", "extra", "content", "group")  # not in the line of an utterance that has none
SOURCES = {"audio": "recordings.jsonl", "text": "texts.jsonl"}  # beside the manifest, by the modality that they are for
KEY_DIGITS = 32  # hexadecimal
LONGEST_LINE = 1 << 24  # bytes
EXCERPT = 60  # characters of a text that names itself in a message
BEGINNING, KEY = b'{"id":', b'"sample_rate":'  # of a manifest, and what its lines alone hold


class Source(BaseModel):
    """What an encoder reads, which no split, label or order decides."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    id: str  # of a line of `SOURCES`: its `content_key`
    speaker: str | None = None
    text: str = ""
    audio: str | None = None  # path relative to the corpus root
    start: Seconds | None = None  # in that file
    end: Seconds | None = None
    samples: Annotated[int, Field(ge=0, lt=2**40)] = 0  # as decoded, at `sample_rate`; 0 means that there is no audio
    sample_rate: Annotated[int, Field(gt=0, lt=2**31)] | None = None
    content: str | None = None  # hash (hex) of the recording's bytes
    group: Annotated[int, Field(ge=0)] | None = None  # of a line of texts.jsonl: its conversation

    @property
    def name(self) -> str:
        """For messages."""
        if self.audio is None:
            return shorten(self.text, EXCERPT, placeholder=" ...")
        stretch = (
            "" if self.start is None and self.end is None else f", {self.start or 0:g} s to {self.end or 'its end'}"
        )
        return self.audio + stretch


class Utterance(Source):
    """One turn of a conversation."""

    conversation: str
    turn: int
    split: Split
    label: str | None = None
    score: Score | None = None
    recognised: str | None = None  # the recogniser's transcript; None, and not in the line, where there is none
    extra: dict[str, str] = {}  # what else the corpus says; not in the line where there is nothing
    channels: Annotated[int, Field(gt=0)] | None = None
    status: str = OK

    @property
    def name(self) -> str:
        return self.id


def content_key(source: Source, modality: str) -> str | None:
    """Hash (hex) of what an encoder of `modality` reads; None where there is nothing to encode.

    Utterances that share it have the same features, whatever they are called and wherever they lie.
    """
    if modality == "text":
        return key_of([source.text]) if source.text else None
    stretch = [source.start, source.end, source.samples, source.sample_rate]
    return key_of([source.content or source.audio, *stretch, source.speaker]) if source.samples else None


def learned_key(source: Source, modality: str) -> str | None:
    """Hash (hex) of the text, or of the recording and its times, whoever speaks; None where there is nothing.

    By it an encoder knows again what it was fine-tuned on, also where the table has learned who speaks.
    """
    if modality == "text":
        return content_key(source, "text")
    return key_of([source.content or source.audio, source.start, source.end]) if source.samples else None


def key_of(read: Sequence[object]) -> str:
    """Hash (hex) of everything that an encoder reads for an utterance."""
    return hashlib.sha256(json.dumps(read, ensure_ascii=False).encode()).hexdigest()[:KEY_DIGITS]


def sources_of(utterances: Iterable[Utterance], modality: str) -> list[Source]:
    """Everything that an encoder of `modality` reads: each recording once, and every turn that has words.

    Conversations are sorted by what their turns hold, and keep their turns together and in order, so that a
    conversation is one slice of the features: no name, split or order of conversations makes a difference.
    """
    conversations: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        if content_key(utterance, modality):
            conversations[utterance.conversation].append(utterance)
    fields = {"text", "speaker"} if modality == "text" else {*Source.model_fields} - {"id", "text", "group"}
    groups = []
    for turns in conversations.values():
        turns.sort(key=lambda turn: turn.turn)
        groups.append([Source(id=str(content_key(u, modality)), **u.model_dump(include=fields)) for u in turns])
    groups.sort(
        key=lambda group: (
            [(one.audio or "", one.start or 0.0, one.text, one.id) for one in group],
            [one.speaker or "" for one in group],
        )
    )
    if modality == "text":
        return [source.model_copy(update={"group": number}) for number, group in enumerate(groups) for source in group]
    return list({source.id: source for group in groups for source in group}.values())


def write_manifest(path: Path, utterances: Sequence[Utterance]) -> None:
    """Write JSON lines; the file appears whole or not at all."""
    write_lines(
        path,
        [
            utterance.model_dump_json(exclude={name for name in OPTIONAL if getattr(utterance, name) in (None, {})})
            for utterance in utterances
        ],
    )


def write_sources(manifest: Path, utterances: Sequence[Utterance]) -> None:
    """Write what encoders read beside the `manifest`: a file for each modality, the same for every split and label.

    texts.jsonl holds every turn, its conversation and its speaker, as a text may be read with those around it.
    """
    for modality, name in SOURCES.items():
        sources = sources_of(utterances, modality)
        write_lines(manifest.with_name(name), [source.model_dump_json(exclude_defaults=True) for source in sources])


@contextmanager
def sole_manifest(path: Path) -> Iterator[None]:
    """Be the only process that writes `path` and what lies beside it (`SOURCES`). That a manifest can be written there
    is seen before it takes long to make one; its folder is made.

    Raises:
        DataError: something else is there, which would be lost.
        BusyError: another process writes there.
        OSError: the folder cannot be made or written, or `path` is a folder.
    """
    if path.name in SOURCES.values():
        raise DataError(
            f"{path}: this name is taken by a file beside the manifest; name the manifest otherwise (--output)"
        )
    if path.is_file() and not _is_manifest(path):
        raise DataError(f"{path}: is not a manifest, and would be lost; name another file (--output), or move this one")
    with sole_writer(path), sole_writer(path.with_name(SOURCES["audio"])):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        write_manifest(partial := path.with_name(path.name + ".try"), [])
        partial.unlink()
        yield


def _is_manifest(path: Path) -> bool:
    with path.open("rb") as file:
        line = file.readline(LONGEST_LINE)
    return not line or (line.startswith(BEGINNING) and KEY in line)


def read_manifest(path: str | PathLike[str]) -> list[Utterance]:
    """The utterances of a manifest, checked.

    Raises:
        DataError: the file is missing, a line is not an utterance, or `check_utterances` refuses them.
    """
    path = Path(path)
    utterances = parse_lines(read_lines(path), Utterance, path)
    check_utterances(utterances, str(path))
    return utterances


def read_sources(path: Path, modality: str) -> list[Source]:
    """What an encoder of `modality` reads, of a manifest or of the file that `write_sources` made of it.

    Raises:
        DataError: as `read_manifest`.
    """
    lines = read_lines(path)
    if '"conversation":' in lines[0] or (lines == [""] and path.name not in SOURCES.values()):
        return sources_of(read_manifest(path), modality)
    return parse_lines(lines, Source, path)


def holds_controls(name: str | None) -> bool:
    """Whether a name could not be stored, or be told from another one."""
    return name is not None and any(unicodedata.category(character) in CONTROLS for character in name)


def same_spelling(name: str, case: bool = False) -> str:
    r"""What names share that look the same; or that differ in case alone, unless `case` counts.

    >>> {same_spelling(name) for name in ("Happy", "happy ", "ha\u200bppy")}
    {'happy'}
    """
    seen = "".join(
        character
        for character in unicodedata.normalize("NFKC", name)
        if not character.isspace()
        and unicodedata.category(character) not in ("Cf", "Cc")
        and character not in UNSEEN
        and not "\ufe00" <= character <= "\ufe0f"  # how an emoji is drawn
    )
    return seen if case else seen.casefold()


def looks_missing(label: str) -> bool:
    r"""Whether a table probably means that there is no label.

    >>> [looks_missing(label) for label in ("NaN", "-", "#N/A", "\u200b", "none of these", "+")]
    [True, True, True, True, False, False]
    """
    plain = same_spelling(label)
    return plain in MISSING or set(plain) <= DASHES


def reasons(status: str) -> list[str]:
    """What a status says, without the seconds that it names; nothing of `ok`.

    >>> reasons("damaged 1.0-1.1 s+no-text")
    ['damaged', 'no-text']
    """
    return [re.sub(r" \d.*", "", reason) for reason in status.split("+") if reason != OK]


def manifest_order(utterance: Utterance) -> tuple[int, str, int]:
    """Sorting key: split, conversation, turn."""
    return SPLITS.index(utterance.split), utterance.conversation, utterance.turn


def check_utterances(utterances: Sequence[Utterance], source: str) -> None:
    """Hold a manifest to its contract; `source` leads every message.

    Raises:
        DataError: there are none, a name holds control characters, an id is repeated, a
            conversation lies in two splits, turns have gaps, the order is not split, conversation, turn.
    """
    if not utterances:
        raise DataError(f"{source}: holds no utterance")
    for utterance in utterances:
        for name in NAMES:
            if holds_controls(value := getattr(utterance, name)):
                raise DataError(
                    f"{source}: '{utterance.id}': {name} {value!r} holds control characters; fix the table, and run "
                    "pipeline-prepare again"
                )
    identifier, count = Counter(utterance.id for utterance in utterances).most_common(1)[0]
    if count > 1:
        raise DataError(f"{source}: id '{identifier}' is given to {count} utterances; ids must be unique")
    splits: dict[str, str] = {}
    turns: Counter[str] = Counter()
    for utterance in utterances:
        split = splits.setdefault(utterance.conversation, utterance.split)
        if split != utterance.split:
            raise DataError(
                f"{source}: conversation '{utterance.conversation}' lies in two splits, {split} and "
                f"{utterance.split}; where numbers begin anew in each split, put its name in front of them; else keep "
                "each conversation in one, or let dataset.split: conversation make the splits"
            )
        if utterance.turn != turns[utterance.conversation]:
            raise DataError(
                f"{source}: conversation '{utterance.conversation}': expected turn "
                f"{turns[utterance.conversation]}, found {utterance.turn} ('{utterance.id}')"
            )
        turns[utterance.conversation] += 1
    if list(utterances) != sorted(utterances, key=manifest_order):
        raise DataError(f"{source}: not sorted by split, conversation and turn; run pipeline-prepare again")


def label_names(utterances: Iterable[Utterance], source: str) -> list[str]:
    """Labels of the train split, sorted: their positions are the classes.

    Raises:
        DataError: another split has a label that train lacks, which no model could learn.
    """
    utterances = list(utterances)
    names = sorted({u.label for u in utterances if u.split == "train" and u.label is not None})
    for utterance in utterances:
        if utterance.label is not None and utterance.label not in names:
            count = sum(u.label == utterance.label for u in utterances)
            to = next((name for name in names if same_spelling(name) == same_spelling(utterance.label)), None)
            to = None if looks_missing(utterance.label) else to
            key = f"set dataset.labels: {json.dumps({utterance.label: to})}, "
            raise DataError(
                f"{source}: label '{utterance.label}' ({count} utterances, such as '{utterance.id}' of the "
                f"{utterance.split} split) does not occur in train ({', '.join(names) or 'no labels'}); "
                f"{key if to or looks_missing(utterance.label) else ''}fix the label, leave it empty to keep the turn "
                "as unscored context, or split anew (dataset.split_seed)"
            )
    return names
