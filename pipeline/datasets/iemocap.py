"""IEMOCAP: the tree of the release (Busso et al., 2008), `Session1` .. `Session5`, each with two actors of its own.

    dialog/transcriptions/<dialogue>.txt    Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
    dialog/EmoEvaluation/<dialogue>.txt     [6.2901 - 8.2357]   Ses01F_impro01_F000   neu   [2.5000, 2.5000, 2.5000]
    sentences/wav/<dialogue>/<turn>.wav

The letter in a turn's own name says who speaks; that of the dialogue, who wears the markers. Behind the line of a turn
follow those of its evaluators (`C-E2:`, `A-E3:`), whose majority it states. Other things that the transcriptions hold:

- `XX` turns (`Ses03F_impro05_MXX0`), which nobody evaluated and of which there is no recording;
- lines `M: Yeah.`, which have no name and no times;
- turns that begin while another one lasts, and some that end before they begin.

All keep their place in the order of start, those without an evaluation as context without a label. Copies from a Mac
hold `._` files, which are left out.

The release has 10,039 recorded and evaluated turns of 151 dialogues. Its majority labels are counted by session in the
papers that leave one session out (four classes: 1,085, 1,023, 1,151, 1,031 and 1,241 turns, 5,531 in all); counts of
frustrated turns were found for all sessions together and for the fifth.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pipeline.datasets.corpus import Corpus, Counts, Turn, target_of
from pipeline.datasets.repairs import (
    HIDDEN_FILES,
    SOUNDS,
    Repairs,
    as_on_disk,
    folder_notes,
    read_lines,
    repair_controls,
    text_alone,
)
from pipeline.errors import DataError
from pipeline.params import DatasetParams

DIALOGUES = {1: 28, 2: 30, 3: 32, 4: 30, 5: 31}
RECORDINGS = {1: 1_819, 2: 1_811, 3: 2_136, 4: 2_103, 5: 2_170}
CODE_COUNTS = {"ang": 1_103, "exc": 1_041, "fru": 1_849, "hap": 595, "neu": 1_708, "sad": 1_084}
SESSION_CODES = {
    1: {"ang": 229, "exc": 143, "hap": 135, "neu": 384, "sad": 194},
    2: {"ang": 137, "exc": 210, "hap": 117, "neu": 362, "sad": 197},
    3: {"ang": 240, "exc": 151, "hap": 135, "neu": 320, "sad": 305},
    4: {"ang": 327, "exc": 238, "hap": 65, "neu": 258, "sad": 143},
    5: {"ang": 170, "exc": 299, "fru": 381, "hap": 143, "neu": 384, "sad": 245},
}


def published(codes: Mapping[str, str], sessions: Mapping[str, int]) -> Counts:
    """The counts of a target (`codes`: the release's code -> label), in all and of each split that is a session."""
    counts = {
        "conversations": {"all": sum(DIALOGUES.values())},
        "speakers": {"all": 2 * len(DIALOGUES)},
        "recordings": {"all": sum(RECORDINGS.values())},
        **_labels(codes, CODE_COUNTS, "all"),
    }
    for split, session in sessions.items():
        own = {
            "conversations": {split: DIALOGUES[session]},
            "speakers": {split: 2},
            "recordings": {split: RECORDINGS[session]},
            **_labels(codes, SESSION_CODES[session], split),
        }
        counts = {what: {**own.get(what, {}), **columns} for what, columns in counts.items()}
    return counts


def _labels(codes: Mapping[str, str], counted: Mapping[str, int], column: str) -> dict[str, dict[str, int]]:
    """Counts of each label, and of all where every one of them is known."""
    sums: dict[str, int] = {}
    for code, label in codes.items():
        if code in counted:
            sums[label] = sums.get(label, 0) + counted[code]
    labels = {f"label {label}": {column: number} for label, number in sums.items()}
    return ({"labelled": {column: sum(sums.values())}} if set(codes) <= set(counted) else {}) | labels


SESSIONS = (1, 2, 3, 4, 5)
FOLDERS = {"transcriptions": "text", "EmoEvaluation": "label"}  # of a session's dialogues -> what they say of a turn
TARGETS: dict[str, dict[str, str]] = {  # the release's code -> label
    "four": {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"},
    "six": {
        "ang": "angry", "exc": "excited", "fru": "frustrated", "hap": "happy", "neu": "neutral", "sad": "sad",
    },
}  # fmt: skip
UNDECIDED = "xxx"
CODES = ("ang", "dis", "exc", "fea", "fru", "hap", "neu", "oth", "sad", "sur", UNDECIDED)
OVERLAPS = "turns that begin before an earlier one has ended: in order of start"
UNKNOWN_LINES = "lines of EmoEvaluation that are neither a turn's nor an evaluator's, left out"
SIX_NOTE = (
    "the majority labels of the release make 7,380 turns of six classes; the 7,433 of many papers are those of feature "
    "files with 53 more happy turns than the release names"
)

NAME = r"(?P<name>Ses\w{1,60}_(?P<speaker>[FM])(?:XX)?\d{1,6})"
TIMES = r"\[\s*(?P<start>\d+(?:\.\d*)?)\s*-\s*(?P<end>\d+(?:\.\d*)?)\s*\]"
TRANSCRIBED = re.compile(rf"{NAME}\s*(?:{TIMES})?\s*:(?P<text>.*)", re.ASCII)
UNNAMED = re.compile(r"(?P<speaker>[FM])\s*:(?P<text>.*)", re.ASCII)
EVALUATED = re.compile(rf"{TIMES}\s+{NAME}\s+(?P<code>\w+)\s*(?:\[.*)?", re.ASCII)
OF_EVALUATORS = re.compile(r"[AC]-\w+\s*:|%", re.ASCII)


@dataclass(frozen=True)
class Times:
    """When a turn is said, in seconds of its dialogue."""

    start: float
    end: float

    @property
    def reversed(self) -> bool:
        """Whether it ends before it begins."""
        return self.end < self.start


@dataclass(frozen=True)
class Evaluation:
    """What the evaluators of a turn agreed on."""

    code: str
    times: Times


@dataclass(frozen=True)
class Line:
    """A line of a transcription."""

    name: str | None
    speaker: str | None
    times: Times | None
    text: str


@dataclass(frozen=True)
class Described:
    """A turn, from its line and its evaluators."""

    name: str
    time: int  # 1, or more where the transcription repeats the name
    line: Line
    evaluation: Evaluation | None
    before: float  # where the line before it starts

    @property
    def times(self) -> list[Times]:
        """The evaluators' first, which every recorded turn has."""
        evaluated = self.evaluation.times if self.evaluation and self.time == 1 else None
        return [times for times in (evaluated, self.line.times) if times]

    @property
    def span(self) -> Times | None:
        """The first of its times that is not reversed; else the earlier moment of the first, if there is no better."""
        first = next((times for times in self.times if not times.reversed), None)
        return first or (Times(self.times[0].end, self.times[0].end) if self.times else None)

    @property
    def start(self) -> float:
        """What orders the turns of a dialogue."""
        return self.span.start if self.span else self.before


def read(params: DatasetParams) -> Corpus:
    """The turns of the release under `root`, of which session `fold` (5 where it is 0) is the test split, and session
    `validation_session`, unless it is 0, that of validation.

    Raises:
        DataError: a session is asked for twice or beside splits of another kind, it is missing, a file cannot be read,
            or a line that names a turn cannot be understood.
    """
    asked = {"fold": params.fold, "validation_session": params.validation_session}
    for key, session in asked.items():
        if session and params.split != "given":
            split = {"fold": "test", "validation_session": "validation"}[key]
            raise DataError(
                f"dataset.{key} {session} makes a session the {split} split, but dataset.split is '{params.split}'; "
                f"set dataset.split: given, or dataset.{key}: 0"
            )
    root, chosen = Path(params.root), {"test": params.fold or SESSIONS[-1]}
    if params.validation_session == chosen["test"]:
        raise DataError(
            f"dataset.validation_session is {chosen['test']}, the test split (dataset.fold); choose another one"
        )
    chosen |= {"validation": params.validation_session} if params.validation_session else {}
    found = [number for number in SESSIONS if _folder(root, number, "dialog").is_dir()]
    for split, session in chosen.items():
        if session not in found:
            key = {"test": "fold", "validation": "validation_session"}[split]
            raise DataError(
                f"{root}: holds no Session{session}/dialog, and session {session} is the {split} split; set "
                f"dataset.root to the folder of the release that holds Session1 to Session5, or choose another "
                f"dataset.{key}"
            )
    repaired = Repairs(params.encoding)
    codes = TARGETS[target_of(params)]
    splits = {session: split for split, session in chosen.items()}
    turns = [
        _turn(described, root, session, dialogue, codes, splits.get(session, "train"))
        for session in found
        for dialogue in _dialogues(root, session, repaired)
        for described in _read_dialogue(root, session, dialogue, repaired)
    ]
    notes, warnings = [*_notes(root, found), *[SIX_NOTE] * (target_of(params) == "six")], list[str]()
    if not _has_recordings(root, found):
        silent, warnings = text_alone(root, "no recordings in Session*/sentences/wav of dataset.root")
        notes, turns = [*notes, *silent], [replace(turn, audio=None) for turn in turns]
    counts = published(codes, chosen if params.split == "given" else {})
    return Corpus(turns, repaired, notes, counts, warnings=warnings)


def _folder(root: Path, session: int, *inside: str) -> Path:
    """A folder or file of a session, whatever the case in which the disk has its name."""
    return root / as_on_disk(root, PurePosixPath(f"Session{session}", *inside))


def _has_recordings(root: Path, found: list[int]) -> bool:
    """Whether there is any file with sound where sentences lie, however the disk spells its folder or ending."""
    sentences = (_folder(root, number, "sentences") for number in found)
    return any(path.suffix.lower() in SOUNDS for folder in sentences for path in folder.rglob("[!.]*"))


def _notes(root: Path, found: list[int]) -> Iterator[str]:
    """Folders under another name, and sessions of which something is missing as a whole."""
    yield from folder_notes(root, (f"Session{number}/dialog/{folder}" for number in found for folder in FOLDERS))
    lacking = {"sessions that are missing": [number for number in SESSIONS if number not in found]}
    for folder, what in FOLDERS.items():
        lacking[f"sessions without files in dialog/{folder}, whose turns have no {what}"] = [
            number for number in found if not any(_folder(root, number, "dialog", folder).glob("[!.]*.txt"))
        ]
    for what, sessions in lacking.items():
        if sessions:
            yield f"{what}: {', '.join(map(str, sessions))}"


def _dialogues(root: Path, session: int, repaired: Repairs) -> list[str]:
    """Names of the dialogues that were transcribed or evaluated."""
    names = set()
    for folder in FOLDERS:
        for path in _folder(root, session, "dialog", folder).glob("*.txt"):
            if path.name.startswith("."):
                repaired[HIDDEN_FILES] += 1
            else:
                names.add(path.stem)
    return sorted(names)


def _read_dialogue(root: Path, session: int, dialogue: str, repaired: Repairs) -> list[Described]:
    """Its turns in the order of start; one without times stays behind the line before it."""
    transcribed, evaluated = (_folder(root, session, "dialog", folder, f"{dialogue}.txt") for folder in FOLDERS)
    evaluations = _read_evaluations(evaluated, repaired)
    lines = list(_read_transcription(transcribed, repaired))
    named = {line.name for line in lines}
    lines += [Line(name, _speaker(name), given.times, "") for name, given in evaluations.items() if name not in named]
    count: Counter[str] = Counter()
    turns: list[Described] = []
    for number, line in enumerate(lines, start=1):
        name = line.name or f"{dialogue}_line{number}"
        count[name] += 1
        turns.append(Described(name, count[name], line, evaluations.get(name), turns[-1].start if turns else 0.0))
    overlaps = _count_overlaps([turn.span for turn in turns if turn.span])
    if overlaps:
        repaired[OVERLAPS] += overlaps
    return turns


def _turn(described: Described, root: Path, session: int, dialogue: str, codes: Mapping[str, str], split: str) -> Turn:
    audio = PurePosixPath(f"Session{session}", "sentences", "wav", dialogue, f"{described.name}.wav")
    recorded = described.time == 1 and (described.evaluation is not None or (root / as_on_disk(root, audio)).is_file())
    return Turn(
        conversation=dialogue,
        order=described.start,
        id=described.name if described.time == 1 else f"{described.name}#{described.time}",
        speaker=f"Ses{session:02}_{described.line.speaker}" if described.line.speaker else None,
        split=split,
        label=codes.get(described.evaluation.code) if described.evaluation and described.time == 1 else None,
        text=described.line.text,
        audio=audio.as_posix() if recorded else None,
        issues=tuple(_issues(described, codes)),
    )


def _issues(described: Described, codes: Mapping[str, str]) -> Iterator[str]:
    """Statuses of a turn."""
    if described.time > 1:
        yield "repeated"
    elif described.evaluation is None:
        yield "unevaluated"
    elif described.evaluation.code == UNDECIDED:
        yield "undecided"
    elif described.evaluation.code not in codes:
        yield "other-label"
    if described.span is None:
        yield "untimed"
    if any(times.reversed for times in described.times):
        yield "reversed-times"


def _count_overlaps(spans: list[Times]) -> int:
    """How many begin before an earlier one has ended."""
    count, latest = 0, 0.0
    for span in sorted(spans, key=lambda given: given.start):
        count += span.start < latest
        latest = max(latest, span.end)
    return count


def _read_transcription(path: Path, repaired: Repairs) -> Iterator[Line]:
    """Its lines; none where nobody transcribed the dialogue."""
    for number, text in enumerate(read_lines(path, repaired) if path.exists() else [], start=1):
        text = text.strip()
        matched = TRANSCRIBED.fullmatch(text)
        if matched:
            yield Line(matched["name"], matched["speaker"], _times(matched), repair_controls(matched["text"], repaired))
        elif text.startswith("Ses"):
            raise DataError(
                f"{path}, line {number}: {text[:60]!r} is not of the form '<turn> [<start>-<end>]: <text>'; fix it"
            )
        elif text:
            unnamed = UNNAMED.fullmatch(text)
            speaker, said = (unnamed["speaker"], unnamed["text"]) if unnamed else (None, text)
            yield Line(None, speaker, None, repair_controls(said, repaired))


def _read_evaluations(path: Path, repaired: Repairs) -> dict[str, Evaluation]:
    """By turn; none where nobody evaluated the dialogue."""
    evaluations: dict[str, Evaluation] = {}
    for number, text in enumerate(read_lines(path, repaired) if path.exists() else [], start=1):
        text = text.strip()
        if not text or OF_EVALUATORS.match(text):
            continue
        if not text.startswith("[") and "Ses" not in text:
            repaired[UNKNOWN_LINES] += 1
            continue
        found = EVALUATED.fullmatch(text)
        where = f"{path}, line {number}"
        if not found:
            raise DataError(
                f"{where}: {text[:60]!r} is not of the form '[<start> - <end>] <turn> <emotion> [...]'; fix the line"
            )
        evaluation = Evaluation(found["code"].lower(), Times(float(found["start"]), float(found["end"])))
        if evaluation.code not in CODES:
            raise DataError(f"{where}: emotion '{found['code'][:60]}' is none of {', '.join(CODES)}; fix the line")
        if evaluations.setdefault(found["name"], evaluation) != evaluation:
            raise DataError(
                f"{where}: turn '{found['name']}' is evaluated again, and differently; leave one of the lines"
            )
    return evaluations


def _times(found: re.Match[str]) -> Times | None:
    return Times(float(found["start"]), float(found["end"])) if found["start"] else None


def _speaker(name: str) -> str:
    """F or M, of a turn's name."""
    return name.rpartition("_")[2][0]
