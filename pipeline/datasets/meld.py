"""MELD (declare-lab/MELD, GPL-3.0): the release's three CSVs, and its clips or conversions of them.

    train_sent_emo.csv   train_splits/dia0_utt0.mp4
    dev_sent_emo.csv     dev_splits_complete/
    test_sent_emo.csv    output_repeated_splits_test/

below `dataset.root`, or in its folders train, dev and test, as the archives unpack them; their names may be of another
case. A clip may be converted to .wav or .flac under its stem; where a clip lies there twice, the conversion is taken.
Dialogue numbers repeat in every split, so ids begin with it: `train/0/3` is dia3_utt3 of the split. Utterance numbers
have gaps, which `prepare` closes.

StartTime and EndTime are times of the episode, not of the clip; they are carried along with the other columns, and
nothing reads them (test 155, 3 ends where it starts, and its clip has sound).

Published: utterances and speakers as the authors' README states them, labels as in their official CSVs. The README
states 1,039 dialogues of train, by the highest number: there is no dialogue 60, and the CSV has 1,038. Recordings are
all clips (emo-box/EmoBox lists them) but two: train dia125_utt3 cannot be decoded, dev dia110_utt7 is missing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from pipeline.datasets.corpus import Corpus, Counts, Turn, target_of
from pipeline.datasets.repairs import HIDDEN_FILES, Repairs, as_on_disk, folder_notes, repair_controls, text_alone
from pipeline.datasets.table import Row, read_rows
from pipeline.errors import DataError
from pipeline.params import DatasetParams

FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
SUFFIXES = (".flac", ".wav", ".mp4")  # in the order of preference
FIELDS = ("Utterance", "Speaker", "Dialogue_ID", "Utterance_ID")  # besides the label's column
LABELS: dict[str, tuple[str, ...]] = {
    "emotion": ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
    "sentiment": ("negative", "neutral", "positive"),
}
UNANNOTATED = "final_videos_test"  # how the extra files of the test folder begin


def _of(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test, "all": train + validation + test}


PUBLISHED: Counts = {
    "utterances": _of(9_989, 1_109, 2_610),
    "conversations": _of(1_038, 114, 280),
    "speakers": {"train": 260, "validation": 47, "test": 100},
    "recordings": _of(9_988, 1_108, 2_610),
}
PUBLISHED_LABELS: Mapping[str, Counts] = {
    "emotion": {
        "label anger": _of(1_109, 153, 345),
        "label disgust": _of(271, 22, 68),
        "label fear": _of(268, 40, 50),
        "label joy": _of(1_743, 163, 402),
        "label neutral": _of(4_710, 470, 1_256),
        "label sadness": _of(683, 111, 208),
        "label surprise": _of(1_205, 150, 281),
    },
    "sentiment": {
        "label negative": _of(2_945, 406, 833),
        "label neutral": _of(4_710, 470, 1_256),
        "label positive": _of(2_334, 233, 521),
    },
}


def read(params: DatasetParams) -> Corpus:
    """The turns of the release at `dataset.root`; without any clip, of its texts alone, which a note says.

    Raises:
        DataError: a CSV is missing or malformed, lacks a column, or has a number or label that is none.
    """
    root, target, repaired = Path(params.root), target_of(params), Repairs(params.encoding)
    clips = {name: dict(_clips(root, name)) for name in FOLDERS}
    hidden = sum(1 for name in FOLDERS for folder in _folders(root, name) for _ in folder.glob("._*"))
    repaired.update({HIDDEN_FILES: hidden} if hidden else {})
    turns = [
        turn
        for name in FOLDERS
        for turn in _turns(_table(root, name), name, target, clips[name], any(clips.values()), repaired)
    ]
    published: Counts = {**PUBLISHED, **PUBLISHED_LABELS[target]}
    if params.split != "given":  # of whole numbers alone, as the splits are others
        published = {what: {"all": columns["all"]} for what, columns in published.items() if "all" in columns}
    notes, warnings = list(_notes(turns, clips)), list[str]()
    if not any(clips.values()):
        notes, warnings = text_alone(root, f"no clips in {', '.join(FOLDERS.values())} of dataset.root")
    return Corpus(turns, repaired, [*folder_notes(root, _places()), *notes], published, warnings=warnings)


def _table(root: Path, name: str) -> Path:
    table = f"{name}_sent_emo.csv"
    for place in (table, f"{name}/{table}"):
        path = root / as_on_disk(root, PurePosixPath(place))
        if path.is_file():
            return path
    raise DataError(
        f"{root / table}: no such file, nor {name}/{table}; set dataset.root to the folder with MELD's three CSVs"
    )


def _places() -> list[str]:
    """Where clips may lie, relative to the root."""
    return [place for name, folder in FOLDERS.items() for place in (folder, f"{name}/{folder}")]


def _folders(root: Path, name: str) -> list[Path]:
    places = [place for place in _places() if PurePosixPath(place).name == FOLDERS[name]]
    return [root / as_on_disk(root, PurePosixPath(place)) for place in places]


def _clips(root: Path, name: str) -> Iterator[tuple[str, str]]:
    """Stem -> path relative to the root, for every file that may be a clip."""
    for folder in _folders(root, name):
        found = [path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() in SUFFIXES]
        for path in sorted(found, key=lambda path: -SUFFIXES.index(path.suffix.lower())):  # the preferred one is last
            yield path.stem, path.relative_to(root).as_posix()


def _turns(
    path: Path, name: str, target: str, clips: Mapping[str, str], has_clips: bool, repaired: Repairs
) -> Iterator[Turn]:
    rows = read_rows(path, repaired)
    for column in (*FIELDS, target.capitalize()):
        if column not in rows[0].cells:
            raise DataError(f"{path}: no column '{column}'; it has {', '.join(rows[0].cells)}; take the official CSV")
    for row in rows:
        dialogue, utterance = _number(row, "Dialogue_ID"), _number(row, "Utterance_ID")
        stem = f"dia{dialogue}_utt{utterance}"
        yield Turn(
            conversation=f"{SPLITS[name]}/{dialogue}",
            order=utterance,
            id=f"{SPLITS[name]}/{dialogue}/{utterance}",
            speaker=repair_controls(row.cells["Speaker"], repaired).strip() or None,
            split=SPLITS[name],
            label=_label(row, target),
            text=repair_controls(row.cells["Utterance"], repaired),
            audio=clips.get(stem, f"{FOLDERS[name]}/{stem}.mp4") if has_clips else None,
            extra={key: cell.strip() for key, cell in row.cells.items() if key not in FIELDS and cell.strip()},
            where=row.where,
        )


def _number(row: Row, column: str) -> int:
    cell = row.cells[column].strip()
    if not (cell.isascii() and cell.isdigit() and len(cell) < 10):
        raise DataError(f"{row.where}: {column} '{cell}' is not a number; take the official CSV")
    return int(cell)


def _label(row: Row, target: str) -> str | None:
    label = row.cells[target.capitalize()].strip().lower()
    if label and label not in LABELS[target]:
        raise DataError(f"{row.where}: {target} '{label}' is none of {', '.join(LABELS[target])}")
    return label or None


def _notes(turns: list[Turn], clips: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    annotated = {turn.audio for turn in turns}
    extra = [path for found in clips.values() for path in found.values() if path not in annotated]
    known = sum(UNANNOTATED in path for path in extra)
    if known:
        yield f"{known} files {UNANNOTATED}* have no annotation, as in the release: ignored"
    if len(extra) > known:
        others = [path for path in extra if UNANNOTATED not in path]
        yield f"{len(others)} other clips have no annotation, such as {others[0]}: ignored"
