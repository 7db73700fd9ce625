"""CMU-MOSI (Zadeh et al., 2016): opinions on film; the segments of a video are its turns, scored from -3 to 3.

The raw release:

    Labels/OpinionLevelSentiment.csv              no header: start, end, video, segment, score
    Transcript/Segmented/<video>.annotprocessed   <segment>_DELIM_<text>
    Audio/WAV_16000/Segmented/<video>_<segment>.wav

The convention of MMSA, whose other columns are not read:

    label.csv                                     video_id, clip_id, text, label, annotation, mode
    Raw/<video_id>/<clip_id>.mp4

Targets: `nonnegative` (negative below 0, else nonnegative), `positive` (negative, positive; a score of 0 is context),
`seven` (the score cut to -3 .. 3 and rounded, halves to the even number, as acc-7 is commonly computed) and `score` (no
label). Every video has one speaker, whom the release does not name, so none is given.

Splits, by video: `sdk`: the standard folds of the CMU Multimodal SDK, 52 / 10 / 31 videos with 1,284 / 229 / 686
segments, which the column `mode` of MMSA's label.csv states too. `62-31`: 62 videos for training and 31 for the test,
1,447 / 752 segments (Poria et al., ACL 2017), as the lists of segments state that these authors published with their
features (`text_train.csv`, `text_test.csv` and `transcripts.csv` of declare-lab's repository for that paper).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline.datasets.corpus import Corpus, Counts, Turn, target_of
from pipeline.datasets.repairs import HIDDEN_FILES, SOUNDS, Repairs, as_on_disk, read_lines, repair_controls, text_alone
from pipeline.datasets.table import SPLIT_NAMES, parse_number, read_rows
from pipeline.errors import DataError
from pipeline.params import DatasetParams

SDK = {
    "train": """
        03bSnISJMiM 0h-zjBukYpk 1DmNV9C1hbY 1iG0909rllw 2WGyTLYerpo 2iD-tVS8NPw 5W7Z1C_fDaE 6Egk_28TtTM 6_0THN4chvY
        73jzhE8R1TQ 7JsX8y1ysxY 8OtFthrtaJM 8d-gEyoeBzc 8qrpnFRGt2A 9J25DZhivz8 9T9Hf74oK10 9c67fiY0wGQ 9qR7uwkblbs
        Af8D0E4ZXaw BI97DNYfe5I BXuRRbG0Ugk Bfr499ggo-0 BioHAh1qJAQ BvYR0L6f2Ig Ci-AH39fi3Y Clx4VXItLTE Dg_0XKD0Mf4
        G-xst2euQUc G6GlGvlkxAQ GWuJjcEuzt8 HEsqda8_d0Q I5y0__X72p0 Iu2PFX3z_1s IumbAb8q2dM Jkswaaud0hk LSi-o-IrDMs
        MLal-t_vJPM Njd1F0vZSm4 Nzq88NnDkEk OQvJTdtJ2H4 OtBXNcAL_lE Oz06ZWiO20M POKffnXeBds PZ-lDQFboO8 QN9ZIUWUXsY
        Qr1Ca94K55A Sqr0AcuoNnk TvyZBvOMOTc VCslbP0mgZI VbQk4H8hgr0 Vj1wYRQjB-o W8NXH0Djyww""",
    "validation": """
        WKA5OygbEKI X3j2zQgwYgE ZAIRrfG22O0 ZUXBRvtny7o _dI--eQ6qVU aiEXnCPZubE atnd_PF-Lbs bOL9jKpeJRs bvLlb-M3UXU
        c5xsKMxpXnc""",
    "test": """
        c7UH_rxdZv4 cM3Yna7AavY cW1FSBF59ik cXypl4FnoZo d3_k5Xpfmik d6hH302o4v8 dq3Nf_lMPnE etzxEpPuc6I f9O3YtZ2VfI
        f_pcplsH_V0 fvVhgmXxadc iiK8YX8oH1E jUzDDGyPkXU k5Y_838nuGo lXPQBPVc5Cw nbWiPyCm4g0 nzpVDcQ0ywM ob23OKe5a9Q
        pLTX3ipuDJI phBUpBr1hSo rnaNMUZpvvg tIrG4oNLFzE tStelxIAHjw tmZoasNr4rU v0zCBqDeKcE vvZ4IcEtiZc vyB00TXsimI
        wMbj6ajWbic yDtzw_Y-7RU yvsjCA6Y5Fc zhpQhgha_KU""",
}
TEST_OF_62_31 = """
    03bSnISJMiM 0h-zjBukYpk 1iG0909rllw 2WGyTLYerpo 8d-gEyoeBzc 9J25DZhivz8 9c67fiY0wGQ Af8D0E4ZXaw BI97DNYfe5I
    BXuRRbG0Ugk Ci-AH39fi3Y Clx4VXItLTE Dg_0XKD0Mf4 G-xst2euQUc GWuJjcEuzt8 I5y0__X72p0 Iu2PFX3z_1s Jkswaaud0hk
    Njd1F0vZSm4 Nzq88NnDkEk OQvJTdtJ2H4 Sqr0AcuoNnk Vj1wYRQjB-o ZUXBRvtny7o cM3Yna7AavY cW1FSBF59ik iiK8YX8oH1E
    tStelxIAHjw tmZoasNr4rU vvZ4IcEtiZc vyB00TXsimI
"""
SPLITS: dict[str, dict[str, str]] = {  # of each protocol, video -> split; prepare makes the validation split of 62-31
    "sdk": {video: split for split, videos in SDK.items() for video in videos.split()},
    "62-31": {
        video: "test" if video in TEST_OF_62_31.split() else "train"
        for videos in SDK.values()
        for video in videos.split()
    },
}
ALL = {"segments": 2_199, "videos": 93}
SEGMENTS = {"sdk": {"train": 1_284, "validation": 229, "test": 686}, "62-31": {"test": 752}}
VIDEOS = {"sdk": {"train": 52, "validation": 10, "test": 31}, "62-31": {"test": 31}}


def published(protocol: Literal["sdk", "62-31"], with_splits: bool) -> Counts:
    """Counts of all segments and, `with_splits`, of those of the protocol."""
    segments = {"all": ALL["segments"], **(SEGMENTS[protocol] if with_splits else {})}
    videos = {"all": ALL["videos"], **(VIDEOS[protocol] if with_splits else {})}
    return {"utterances": segments, "conversations": videos, "recordings": segments}


LABELS = ("Labels/OpinionLevelSentiment.csv", "OpinionLevelSentiment.csv")
TRANSCRIPTS = "Transcript/Segmented"
TABLE = "label.csv"
COLUMNS = ("video_id", "clip_id", "text", "label")
LARGEST = 3.0  # score, positive or negative
CONTRADICTIONS = "annotations that are not the sign of their score, which is what counts"
SIGNS = {"negative": -1, "neutral": 0, "positive": 1}
SEGMENT = re.compile(r"\s*(?P<number>\d{1,6})\s*_DELIM_(?P<text>.*)", re.ASCII)


@dataclass(frozen=True)
class Segment:
    """What one line says of a segment."""

    video: str
    name: str  # as in the recording's name
    number: int
    text: str
    score: float | None
    audio: str | None
    mode: str | None = None  # the split that label.csv names


def read(params: DatasetParams) -> Corpus:
    """The segments under `root`, in the splits of `protocol`.

    Raises:
        DataError: neither layout is there, or a file or line is not of its form.
    """
    root = Path(params.root)
    repaired = Repairs(params.encoding)
    if (root / TABLE).exists():
        segments = _read_table(root, repaired)
    elif _transcripts(root).is_dir():
        segments = _read_release(root, repaired)
    else:
        raise DataError(
            f"{root}: holds neither {TABLE} (the convention of MMSA) nor {TRANSCRIPTS} (the raw release); set "
            "dataset.root to the folder with one of them"
        )
    target = target_of(params)
    files = _recordings(root)
    segments = [replace(one, audio=_recording(str(one.audio), files)) for one in segments]
    notes, warnings = list[str](), list[str]()
    if segments and not files:
        notes, warnings = text_alone(root, f"no recordings such as {segments[0].audio} in dataset.root")
        segments = [replace(one, audio=None) for one in segments]
    turns = [_turn(segment, target, params.protocol) for segment in segments]
    counts = published(params.protocol, with_splits=params.split == "given")
    return Corpus(turns, repaired, notes, counts, warnings=warnings)


def _transcripts(root: Path) -> Path:
    return root / as_on_disk(root, PurePosixPath(TRANSCRIPTS))


def _turn(segment: Segment, target: str, protocol: str) -> Turn:
    return Turn(
        conversation=segment.video,
        order=segment.number,
        id=f"{segment.video}_{segment.name}",
        split=SPLITS[protocol].get(segment.video, segment.mode or "train"),
        label=None if segment.score is None else label_of(segment.score, target),
        score=segment.score,
        text=segment.text,
        audio=segment.audio,
        issues=tuple(_issues(segment, target, protocol)),
    )


def _recordings(root: Path) -> dict[str, str]:
    """Files with sound below Raw or Audio, relative to the root: in small letters -> as the disk spells them."""
    folders = [path for path in root.iterdir() if path.name.lower() in ("raw", "audio")]
    found = (path for folder in folders for path in folder.rglob("[!.]*") if path.suffix.lower() in SOUNDS)
    names = sorted(path.relative_to(root).as_posix() for path in found)
    return {name.lower(): name for name in names}


def _recording(audio: str, files: Mapping[str, str]) -> str:
    """Of a segment: as the release has it, or converted to another kind under the same stem."""
    others = (Path(audio).with_suffix(suffix).as_posix() for suffix in SOUNDS)
    return next((files[name.lower()] for name in (audio, *others) if name.lower() in files), audio)


def label_of(score: float, target: str) -> str | None:
    """The label of a score under a target; None where it has none.

    >>> [label_of(score, "nonnegative") for score in (-0.2, 0.0)]
    ['negative', 'nonnegative']
    >>> [label_of(score, "positive") for score in (-0.2, 0.0, 0.4)]
    ['negative', None, 'positive']
    >>> [label_of(score, "seven") for score in (-3.0, -0.4, 0.5, 1.5, 2.6)]
    ['-3', '0', '0', '2', '3']
    """
    if target == "nonnegative":
        return "negative" if score < 0 else "nonnegative"
    if target == "positive":
        return None if score == 0 else "negative" if score < 0 else "positive"
    if target == "seven":
        return str(round(min(max(score, -LARGEST), LARGEST)))
    return None


def _issues(segment: Segment, target: str, protocol: str) -> Iterator[str]:
    """Statuses of a segment."""
    if segment.score is None:
        yield "no-score"
    elif abs(segment.score) > LARGEST:
        yield "out-of-range"
    elif segment.score == 0 and target == "positive":
        yield "zero"
    if segment.video not in SPLITS[protocol]:
        yield "unlisted"
    elif protocol == "sdk" and segment.mode and segment.mode != SPLITS["sdk"][segment.video]:
        yield "other-split"


def _read_table(root: Path, repaired: Repairs) -> list[Segment]:
    """The rows of label.csv."""
    path = root / TABLE
    rows = read_rows(path, repaired)
    missing = [name for name in COLUMNS if name not in rows[0].cells]
    if missing:
        raise DataError(f"{path}: no column '{missing[0]}' among {', '.join(rows[0].cells)}; take the {TABLE} of MMSA")
    segments = []
    for row in rows:
        where = row.where
        video, clip = row.cells["video_id"].strip(), row.cells["clip_id"].strip()
        if not video:
            raise DataError(f"{where}: the video_id is empty; fill it")
        score = parse_number(row.cells["label"].strip(), "label", where)
        _compare_sign(row.cells.get("annotation", ""), score, repaired)
        segments.append(
            Segment(
                video=video,
                name=clip.removesuffix(".0"),
                number=_clip_number(clip, where),
                text=repair_controls(row.cells["text"], repaired),
                score=score,
                audio=f"Raw/{video}/{clip.removesuffix('.0')}.mp4",
                mode=_mode(row.cells.get("mode", ""), where),
            )
        )
    return segments


def _clip_number(clip: str, where: str) -> int:
    if not re.fullmatch(r"\d{1,6}(\.0)?", clip, re.ASCII):
        raise DataError(f"{where}: clip_id '{clip[:60]}' is not a whole number")
    return int(float(clip))


def _mode(cell: str, where: str) -> str | None:
    mode = cell.strip().lower()
    if mode and mode not in SPLIT_NAMES:
        raise DataError(f"{where}: mode '{cell[:60]}' is none of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES.get(mode)


def _compare_sign(annotation: str, score: float | None, repaired: Repairs) -> None:
    sign = SIGNS.get(annotation.strip().lower())
    if sign is not None and score is not None and sign != (score > 0) - (score < 0):
        repaired[CONTRADICTIONS] += 1


def _read_release(root: Path, repaired: Repairs) -> list[Segment]:
    """The lines of the transcripts, and the scored segments that no transcript has."""
    scores = _read_scores(root, repaired)
    texts: dict[tuple[str, int], str] = {}
    for path in sorted(_transcripts(root).glob("*.annotprocessed")):
        if path.name.startswith("._"):
            repaired[HIDDEN_FILES] += 1
        else:
            texts |= _read_transcript(path, repaired)
    keys = [*texts, *(key for key in scores if key not in texts)]
    return [
        Segment(
            video=video,
            name=str(number),
            number=number,
            text=texts.get((video, number), ""),
            score=scores.get((video, number)),
            audio=f"Audio/WAV_16000/Segmented/{video}_{number}.wav",
        )
        for video, number in keys
    ]


def _read_transcript(path: Path, repaired: Repairs) -> dict[tuple[str, int], str]:
    texts: dict[tuple[str, int], str] = {}
    for number, line in enumerate(read_lines(path, repaired), start=1):
        if not line.strip():
            continue
        found = SEGMENT.fullmatch(line)
        where = f"{path}, line {number}"
        if not found:
            raise DataError(f"{where}: {line[:60]!r} is not of the form '<segment>_DELIM_<text>'; fix the line")
        key = path.stem, int(found["number"])
        if key in texts:
            raise DataError(f"{where}: segment {key[1]} is repeated; leave one line")
        texts[key] = repair_controls(found["text"], repaired).strip()
    return texts


def _read_scores(root: Path, repaired: Repairs) -> dict[tuple[str, int], float | None]:
    """By video and segment."""
    places = (root / as_on_disk(root, PurePosixPath(name)) for name in LABELS)
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise DataError(f"{root}: no {LABELS[0]}; it comes with the labels of the release: put it there")
    scores: dict[tuple[str, int], float | None] = {}
    for number, line in enumerate(read_lines(path, repaired), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 5 or not cells[2] or not re.fullmatch(r"\d{1,6}", cells[3], re.ASCII):
            raise DataError(f"{where}: expected start, end, video, segment, score; found {line[:60]!r}")
        key = cells[2], int(cells[3])
        if key in scores:
            raise DataError(f"{where}: segment {key[1]} of {key[0]} is scored again; leave one line")
        scores[key] = parse_number(cells[4], "score", where)
    return scores
