"""CMU-MOSI: both layouts, both standard splits and all targets; every known fault has its status."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.datasets import mosi, repairs
from pipeline.errors import DataError, ErcError
from pipeline.params import DatasetParams
from pipeline.preparation import check_published, prepare, summary
from pipeline.preparation.stage import Prepared
from tests.pipeline.releases.mosi import SCORES, SEGMENTS, TEST, TRAIN, VALIDATION, write_release, write_table

RELEASE, TABLE = "release", "table"
WRITERS: dict[str, Callable[[Path], Path]] = {RELEASE: write_release, TABLE: write_table}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp("mosi") / name) for name, write in WRITERS.items()}


def params(root: Path, **values: Any) -> DatasetParams:
    return DatasetParams(name="mosi", root=str(root), **values)


@pytest.fixture(scope="module")
def prepared(roots: dict[str, Path]) -> dict[str, Prepared]:
    return {name: prepare(params(root)) for name, root in roots.items()}


@pytest.mark.parametrize(
    ("layout", "audio", "text"),
    [
        (RELEASE, "Audio/WAV_16000/Segmented/2iD-tVS8NPw_2.wav", "OPINION 2, IN TRUTH"),
        (TABLE, "Raw/2iD-tVS8NPw/2.mp4", "opinion 2, in truth"),
    ],
)
def test_a_segment_is_read_with_all_that_the_release_says_of_it(
    prepared: dict[str, Prepared], layout: str, audio: str, text: str
) -> None:
    turn = next(utterance for utterance in prepared[layout].utterances if utterance.id == "2iD-tVS8NPw_2")
    assert (turn.conversation, turn.turn, turn.split, turn.speaker) == ("2iD-tVS8NPw", 1, "train", None)
    assert (turn.label, turn.score, turn.text, turn.audio) == ("nonnegative", 1.8, text, audio)
    assert turn.samples > 0
    assert turn.status == "ok"


@pytest.mark.parametrize("layout", WRITERS)
def test_the_segments_of_a_video_are_its_turns_in_order(prepared: dict[str, Prepared], layout: str) -> None:
    turns = [u for u in prepared[layout].utterances if u.conversation == TEST[0]]
    assert [turn.id for turn in turns] == [f"{TEST[0]}_{number}" for number in range(1, len(SCORES) + 1)]
    assert [turn.score for turn in turns] == pytest.approx(SCORES)


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        (
            "nonnegative",
            ["negative", *["nonnegative"] * 3, "negative", *["nonnegative"] * 2, "negative", "nonnegative"],
        ),
        ("positive", ["negative", "positive", None, "positive", "negative", *["positive"] * 2, "negative", "positive"]),
        ("seven", ["-3", "2", "0", "2", "0", "0", "3", "-2", "1"]),
        ("score", [None] * 9),
    ],
)
def test_labels_of_a_target(roots: dict[str, Path], target: str, labels: list[str | None]) -> None:
    utterances = prepare(params(roots[RELEASE], target=target)).utterances
    turns = [utterance for utterance in utterances if utterance.conversation == TEST[1]]
    assert [turn.label for turn in turns] == labels
    assert [turn.score for turn in turns] == pytest.approx(SCORES)  # whatever the target
    assert [turn.status for turn in turns] == ["zero" if target == "positive" and s == 0 else "ok" for s in SCORES]


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            RELEASE,
            {
                "03bSnISJMiM_10": "missing-file+no-score",
                "03bSnISJMiM_11": "missing-file+no-text+out-of-range",
                **{f"_unlisted-1_{number}": "unlisted" for number in range(1, 10)},
            },
        ),
        (
            TABLE,
            {
                "03bSnISJMiM_3": "no-score",
                "03bSnISJMiM_4": "other-split",
                **{f"_unlisted-1_{number}": "unlisted" for number in range(1, 10)},
            },
        ),
    ],
)
def test_every_known_fault_has_its_status(prepared: dict[str, Prepared], layout: str, expected: dict[str, str]) -> None:
    found = {u.id: u.status for u in prepared[layout].utterances if u.status != "ok"}
    assert found == expected
    assert len(prepared[layout].utterances) == len(SEGMENTS) + (2 if layout == RELEASE else 0)


def test_what_was_repaired_or_left_out_is_counted(prepared: dict[str, Prepared]) -> None:
    assert prepared[RELEASE].repaired == {mosi.HIDDEN_FILES: 1}
    assert prepared[TABLE].repaired == {mosi.CONTRADICTIONS: 1, repairs.BYTES: 1}
    repaired = next(turn for turn in prepared[TABLE].utterances if turn.id == "03bSnISJMiM_2")
    assert repaired.text == "it’s fine"


@pytest.mark.parametrize("layout", WRITERS)
def test_the_standard_folds_share_no_video(prepared: dict[str, Prepared], layout: str) -> None:
    splits = {u.conversation: u.split for u in prepared[layout].utterances}  # of each video one: prepare sees to it
    assert splits == {
        **dict.fromkeys(TRAIN, "train"),
        **dict.fromkeys(VALIDATION, "validation"),
        **dict.fromkeys(TEST, "test"),
    }


def test_the_other_split_holds_validation_out_of_train(roots: dict[str, Path]) -> None:
    prepared = prepare(params(roots[TABLE], protocol="62-31"))
    splits = {u.conversation: u.split for u in prepared.utterances}
    assert {video for video, split in splits.items() if split == "test"} == {TRAIN[0], TEST[0]}
    assert Counter(splits.values())["validation"] == 1  # out of train
    assert {u.conversation for u in prepared.utterances if "unlisted" in u.status} == {TRAIN[2]}
    assert not [u for u in prepared.utterances if "other-split" in u.status]  # label.csv names the other protocol's
    assert {str(difference).split(",")[0] for difference in prepared.differences} == {
        "utterances", "conversations", "recordings",
    }  # fmt: skip


SEGMENTS_OF_EACH = """
    03bSnISJMiM:13 0h-zjBukYpk:25 1DmNV9C1hbY:14 1iG0909rllw:30 2WGyTLYerpo:63 2iD-tVS8NPw:30 5W7Z1C_fDaE:24
    6Egk_28TtTM:12 6_0THN4chvY:14 73jzhE8R1TQ:19 7JsX8y1ysxY:39 8OtFthrtaJM:23 8d-gEyoeBzc:30 8qrpnFRGt2A:26
    9J25DZhivz8:25 9T9Hf74oK10:25 9c67fiY0wGQ:12 9qR7uwkblbs:33 Af8D0E4ZXaw:31 BI97DNYfe5I:31 BXuRRbG0Ugk:31
    Bfr499ggo-0:22 BioHAh1qJAQ:30 BvYR0L6f2Ig:26 Ci-AH39fi3Y:44 Clx4VXItLTE:31 Dg_0XKD0Mf4:18 G-xst2euQUc:21
    G6GlGvlkxAQ:29 GWuJjcEuzt8:18 HEsqda8_d0Q:34 I5y0__X72p0:39 Iu2PFX3z_1s:16 IumbAb8q2dM:22 Jkswaaud0hk:20
    LSi-o-IrDMs:29 MLal-t_vJPM:18 Njd1F0vZSm4:13 Nzq88NnDkEk:32 OQvJTdtJ2H4:16 OtBXNcAL_lE:24 Oz06ZWiO20M:25
    POKffnXeBds:13 PZ-lDQFboO8:12 QN9ZIUWUXsY:18 Qr1Ca94K55A:14 Sqr0AcuoNnk:22 TvyZBvOMOTc:15 VCslbP0mgZI:17
    VbQk4H8hgr0:55 Vj1wYRQjB-o:9 W8NXH0Djyww:32 WKA5OygbEKI:22 X3j2zQgwYgE:11 ZAIRrfG22O0:9 ZUXBRvtny7o:34
    _dI--eQ6qVU:28 aiEXnCPZubE:30 atnd_PF-Lbs:21 bOL9jKpeJRs:34 bvLlb-M3UXU:25 c5xsKMxpXnc:15 c7UH_rxdZv4:33
    cM3Yna7AavY:16 cW1FSBF59ik:24 cXypl4FnoZo:29 d3_k5Xpfmik:19 d6hH302o4v8:43 dq3Nf_lMPnE:15 etzxEpPuc6I:19
    f9O3YtZ2VfI:30 f_pcplsH_V0:15 fvVhgmXxadc:14 iiK8YX8oH1E:18 jUzDDGyPkXU:27 k5Y_838nuGo:31 lXPQBPVc5Cw:30
    nbWiPyCm4g0:10 nzpVDcQ0ywM:24 ob23OKe5a9Q:14 pLTX3ipuDJI:16 phBUpBr1hSo:21 rnaNMUZpvvg:22 tIrG4oNLFzE:18
    tStelxIAHjw:16 tmZoasNr4rU:20 v0zCBqDeKcE:16 vvZ4IcEtiZc:12 vyB00TXsimI:22 wMbj6ajWbic:30 yDtzw_Y-7RU:24
    yvsjCA6Y5Fc:23 zhpQhgha_KU:35
"""


@pytest.mark.parametrize(
    ("protocol", "videos", "segments"),
    [
        ("sdk", {"train": 52, "validation": 10, "test": 31}, {"train": 1_284, "validation": 229, "test": 686}),
        ("62-31", {"train": 62, "test": 31}, {"train": 1_447, "test": 752}),
    ],
)
def test_the_standard_folds_have_the_published_sizes(
    protocol: Any, videos: dict[str, int], segments: dict[str, int]
) -> None:
    counts = {video: int(count) for video, count in (pair.split(":") for pair in SEGMENTS_OF_EACH.split())}
    splits = mosi.SPLITS[protocol]
    assert splits.keys() == counts.keys()  # 93, none in two
    assert Counter(splits.values()) == videos
    found = {split: sum(counts[video] for video, one in splits.items() if one == split) for split in videos}
    assert found == segments
    published = mosi.published(protocol, with_splits=True)
    assert {split: published["utterances"][split] for split in videos if split in published["utterances"]}.items() <= (
        segments.items()
    )
    assert published["utterances"]["all"] == sum(counts.values())


def test_scores_are_counted_in_the_summary(prepared: dict[str, Prepared]) -> None:
    """One of the 29 segments of train has none."""
    assert re.search(r"^scored +28 +18 +18 +64$", summary(prepared[RELEASE]), re.MULTILINE)


def test_differences_to_the_published_counts_are_explained(prepared: dict[str, Prepared]) -> None:
    printed = summary(prepared[RELEASE])
    assert "published: 0 of 12 counts are found" in printed
    assert "differs: 12 counts, as the table shows, most of all " in printed
    told = [str(difference) for difference in prepared[RELEASE].differences]
    assert "recordings, train: 27, published 1284 (missing-file 2)" in told
    assert "conversations, test: 2, published 31 (no status says why)" in told
    with pytest.raises(DataError, match="12 counts differ from the published ones"):
        check_published(prepared[RELEASE])


def test_a_release_as_published_differs_in_nothing(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mechanism, on the counts of the fabricated release."""
    monkeypatch.setattr(mosi, "ALL", {"segments": 63, "videos": 7})
    monkeypatch.setattr(mosi, "SEGMENTS", {"sdk": {"train": 27, "validation": 18, "test": 18}})
    monkeypatch.setattr(mosi, "VIDEOS", {"sdk": {"train": 3, "validation": 2, "test": 2}})
    check_published(prepare(params(roots[TABLE])))


BAD_FILES = {
    "columns": ("label.csv", "video_id,clip_id,label\na,1,2\n", "no column 'text' among video_id, clip_id, label"),
    "clip": ("label.csv", "video_id,clip_id,text,label\na,one,t,2\n", "line 2: clip_id 'one' is not a whole number"),
    "video": ("label.csv", "video_id,clip_id,text,label\n ,1,t,2\n", "line 2: the video_id is empty"),
    "label": ("label.csv", "video_id,clip_id,text,label\na,1,t,nan\n", "line 2: label 'nan' is not a number"),
    "mode": ("label.csv", "video_id,clip_id,text,label,mode\na,1,t,2,tset\n", "line 2: mode 'tset' is none of train"),
    "transcript": ("Transcript/Segmented/a.annotprocessed", "1 HELLO\n", "is not of the form '<segment>_DELIM_<text>'"),
    "told twice": ("Transcript/Segmented/a.annotprocessed", "1_DELIM_A\n1_DELIM_B\n", "line 2: segment 1 is repeated"),
    "scores": (
        "Labels/OpinionLevelSentiment.csv",
        "0.5,1.0,a,1\n",
        "line 1: expected start, end, video, segment, score",
    ),
    "scored twice": ("Labels/OpinionLevelSentiment.csv", "0,1,a,1,2\n0,1,a,1,3\n", "segment 1 of a is scored again"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_cannot_be_understood_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    for file, content in (
        ("Labels/OpinionLevelSentiment.csv", "0,1,a,1,2\n"),
        ("Transcript/Segmented/a.annotprocessed", "1_DELIM_A\n"),
        BAD_FILES[name][:2],
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError) as error:
        mosi.read(params(tmp_path))
    assert BAD_FILES[name][2] in str(error.value)
    assert BAD_FILES[name][0] in str(error.value)


def test_a_folder_that_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither label.csv .* nor Transcript/Segmented"):
        mosi.read(params(tmp_path))
    (tmp_path / "Transcript" / "Segmented").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no Labels/OpinionLevelSentiment.csv"):
        mosi.read(params(tmp_path))


def test_clip_numbers_that_a_spreadsheet_made_decimal_name_their_recordings(tmp_path: Path) -> None:
    (tmp_path / "label.csv").write_text("video_id,clip_id,text,label\na,2.0,t,1\na,0001,t,1\n")
    (tmp_path / "Raw" / "a").mkdir(parents=True)
    (tmp_path / "Raw" / "a" / "2.mp4").touch()
    turns = mosi.read(params(tmp_path)).turns
    assert [(turn.order, turn.audio) for turn in turns] == [(2, "Raw/a/2.mp4"), (1, "Raw/a/0001.mp4")]


CELLS = {
    "video_id": st.sampled_from(["tmZoasNr4rU", "03bSnISJMiM", "WKA5OygbEKI", "a", "../a", "", "\x85", "#NAME?"]),
    "clip_id": st.one_of(st.integers(0, 4).map(str), st.sampled_from(["1.0", "x", "", "١", "9" * 9])),
    "text": st.text(max_size=12).map(lambda text: text.replace('"', "'").replace("\n", " ")),
    "label": st.one_of(st.floats(-3, 3).map(str), st.sampled_from(["", "nan", "1e400", "4", "x"])),
    "annotation": st.sampled_from(["Negative", "neutral", "", "?"]),
    "mode": st.sampled_from(["train", "valid", "test", "", "tset"]),
}


@st.composite
def dirty_table(draw: st.DrawFn) -> bytes:
    """Rows that are nearly those of label.csv, some of them not UTF-8."""
    rows = [",".join(CELLS)]
    for _ in range(draw(st.integers(0, 5))):
        cells = [draw(cell) for cell in CELLS.values()][: draw(st.sampled_from([6, 6, 6, 5]))]
        rows.append(",".join(f'"{cell}"' for cell in cells))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join(rows).encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "cp1252", "utf-16"])), errors="replace")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=dirty_table())
@example(content=b"video_id,clip_id,text,label\ntmZoasNr4rU,1,a,1\n03bSnISJMiM,1,a,-1\nWKA5OygbEKI,1,a,\n")
def test_dirty_rows_make_turns_or_our_own_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "label.csv").write_bytes(content)
    try:
        turns = mosi.read(params(tmp_path)).turns
    except DataError:
        return
    assert len(turns) == content.rstrip().count(b"\n")
    try:
        assert len(prepare(params(tmp_path)).utterances) == len(turns)
    except ErcError:
        return


LINES = st.lists(
    st.one_of(
        st.builds("{}_DELIM_{}".format, st.integers(0, 5), st.text(max_size=8)),
        st.sampled_from(["", "1_DELIM_", "x_DELIM_a", "1_DELIM", " 7 _DELIM_ seven "]),
    ),
    max_size=5,
)
SCORED = st.lists(
    st.one_of(
        st.builds("0.5,1.5,tmZoasNr4rU,{},{}".format, st.integers(0, 5), st.floats(-3, 3)),
        st.sampled_from(["", "0,1,,1,2", "0,1,a,1,x", "0,1,a", "a,b,03bSnISJMiM,1,", "0,1,a,-1,2"]),
    ),
    max_size=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, scored=SCORED)
def test_dirty_lines_of_the_release_make_turns_or_our_own_error(
    tmp_path: Path, lines: list[str], scored: list[str]
) -> None:
    for file, content in (
        ("Transcript/Segmented/tmZoasNr4rU.annotprocessed", lines),
        ("Labels/OpinionLevelSentiment.csv", scored),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes("\n".join(content).encode("utf-8", errors="replace"))
    try:
        turns = mosi.read(params(tmp_path)).turns
    except DataError:
        return
    told = {("tmZoasNr4rU", int(line.partition("_")[0])) for line in "\n".join(lines).split("\n") if line.strip()}
    rated = {(line.split(",")[2], int(line.split(",")[3])) for line in scored if line}
    assert {(turn.conversation, turn.order) for turn in turns} == told | rated
    assert len(turns) == len(told | rated)


def test_recordings_of_another_kind_are_found_and_a_release_without_any_is_its_texts(tmp_path: Path) -> None:
    (tmp_path / "label.csv").write_text("video_id,clip_id,text,label\na,1,t,1\na,2,t,1\n")
    found = mosi.read(params(tmp_path))
    assert [turn.audio for turn in found.turns] == [None, None]
    assert found.notes == ["no recordings such as Raw/a/1.mp4 in dataset.root: every turn is its text alone"]
    (tmp_path / "Raw" / "a").mkdir(parents=True)
    (tmp_path / "Raw" / "a" / "1.wav").touch()
    found = mosi.read(params(tmp_path))
    assert ([turn.audio for turn in found.turns], found.notes) == (["Raw/a/1.wav", "Raw/a/2.mp4"], [])


@pytest.mark.parametrize("name", ["Raw/a/1.WAV", "RAW/a/1.flac", "raw/A/1.MKV"])
def test_recordings_are_found_however_the_disk_spells_them(tmp_path: Path, name: str) -> None:
    (tmp_path / "label.csv").write_text("video_id,clip_id,text,label\na,1,t,1\n")
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    found = mosi.read(params(tmp_path))
    assert ([turn.audio for turn in found.turns], found.notes) == ([name], [])
