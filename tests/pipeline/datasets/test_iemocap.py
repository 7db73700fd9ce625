"""IEMOCAP: every line of the release's format is read, every known fault has its status, folds are apart."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.datasets import Corpus, iemocap, repairs
from pipeline.datasets import corpus as targets
from pipeline.errors import DataError, ErcError
from pipeline.manifest import Utterance
from pipeline.params import DatasetParams
from pipeline.preparation import check_published, prepare, summary
from pipeline.preparation.stage import Prepared
from pipeline.settings import SettingsError
from tests.pipeline.releases.iemocap import EMOTIONS, HEADER, write_faults, write_release

FAULTY = "Ses01F_impro02"
SESSIONS = range(1, 6)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faults(tmp_path_factory.mktemp("iemocap") / "IEMOCAP_full_release")


def params(root: Path, **values: Any) -> DatasetParams:
    return DatasetParams(name="iemocap", root=str(root), **values)


@pytest.fixture(scope="module")
def four(release: Path) -> Prepared:
    return prepare(params(release))


@pytest.fixture(scope="module")
def faulty(four: Prepared) -> list[Utterance]:
    return [utterance for utterance in four.utterances if utterance.conversation == FAULTY]


def by_id(utterances: list[Utterance]) -> dict[str, Utterance]:
    return {utterance.id.removeprefix(f"{FAULTY}_"): utterance for utterance in utterances}


def test_a_turn_is_read_with_all_that_the_release_says_of_it(four: Prepared) -> None:
    turn = next(utterance for utterance in four.utterances if utterance.id == "Ses05M_script01_1_M000")
    assert (turn.conversation, turn.turn, turn.split) == ("Ses05M_script01_1", 1, "test")
    assert (turn.label, turn.text, turn.speaker, turn.status) == ("happy", "This is turn 1.", "Ses05_M", "ok")
    assert turn.audio == "Session5/sentences/wav/Ses05M_script01_1/Ses05M_script01_1_M000.wav"
    assert (turn.start, turn.end) == (None, None)  # the recording is of this turn alone
    assert turn.samples > 0


def test_the_speaker_is_the_actor_whoever_wears_the_markers(four: Prepared) -> None:
    speakers = {turn.speaker for turn in four.utterances if turn.conversation.startswith("Ses02")}
    assert speakers == {"Ses02_F", "Ses02_M"}


def test_faulty_turns_keep_their_place_in_the_order_of_start(faulty: list[Utterance]) -> None:
    names = [utterance.id.removeprefix(f"{FAULTY}_") for utterance in faulty]
    assert names == [
        "FXX0", "line11", "F000", "M000", "F001", "M001", "F002", "MXX0", "M002", "F003", "M003", "M000#2", "line13",
        "F099",
    ]  # fmt: skip


def test_every_known_fault_has_its_status(faulty: list[Utterance]) -> None:
    found = {name: utterance.status for name, utterance in by_id(faulty).items()}
    assert found == {
        "FXX0": "no-audio+unevaluated+reversed-times",
        "line11": "no-audio+unevaluated+untimed",
        "F000": "ok",
        "M000": "ok",
        "F001": "reversed-times",
        "M001": "missing-file",
        "F002": "ok",
        "MXX0": "no-audio+unevaluated",
        "M002": "other-label",
        "F003": "undecided",
        "M003": "other-label",
        "M000#2": "no-audio+repeated",
        "line13": "no-audio+unevaluated+untimed",
        "F099": "no-text",
    }


def test_texts_and_speakers_of_faulty_lines(faulty: list[Utterance]) -> None:
    found = by_id(faulty)
    assert (found["line11"].text, found["line11"].speaker) == ("Yeah.", "Ses01_M")
    assert (found["line13"].text, found["line13"].speaker) == ("(they leave)", None)
    assert found["M000"].text == "He said “no”."
    assert found["M000#2"].text == "The same name again."


def test_what_was_repaired_or_left_out_is_counted(four: Prepared) -> None:
    assert four.repaired == {iemocap.HIDDEN_FILES: 5, iemocap.OVERLAPS: 2, iemocap.UNKNOWN_LINES: 1, repairs.BYTES: 1}
    assert repairs.CONTROLS not in four.repaired


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        ("four", {"angry": 11, "happy": 22, "neutral": 12, "sad": 11}),
        ("six", {"angry": 11, "excited": 11, "frustrated": 11, "happy": 11, "neutral": 12, "sad": 11}),
    ],
)
def test_labels_of_a_target(release: Path, target: str, labels: dict[str, int]) -> None:
    corpus = iemocap.read(params(release, target=target))
    found = Counter(turn.label for turn in corpus.turns)
    del found[None]
    assert found == labels
    assert len(corpus.turns) == 11 * len(EMOTIONS) + 6  # the six that nobody evaluated, or only evaluated


@pytest.mark.parametrize("fold", [0, *SESSIONS])
def test_folds_share_no_conversation_and_no_speaker_with_their_test_session(release: Path, fold: int) -> None:
    prepared = prepare(params(release, fold=fold))
    tested = {u.conversation for u in prepared.utterances if u.split == "test"}
    assert {name[:5] for name in tested} == {f"Ses0{fold or 5}"}
    others = [u for u in prepared.utterances if u.split != "test"]
    assert not [u for u in others if u.conversation[:5] == f"Ses0{fold or 5}"]
    assert not {u.speaker for u in others} & {f"Ses0{fold or 5}_F", f"Ses0{fold or 5}_M"}
    validation = {u.conversation for u in others if u.split == "validation"}
    assert validation
    assert not validation & {u.conversation for u in others if u.split == "train"}


def test_a_session_may_validate(release: Path) -> None:
    prepared = prepare(params(release, validation_session=1))
    sessions = {
        split: {u.conversation[:5] for u in prepared.utterances if u.split == split}
        for split in ("train", "validation", "test")
    }
    assert sessions == {"train": {"Ses02", "Ses03", "Ses04"}, "validation": {"Ses01"}, "test": {"Ses05"}}
    four = iemocap.published(iemocap.TARGETS["four"], {"validation": 1, "test": 5})
    assert (four["labelled"]["validation"], four["labelled"]["test"]) == (1_085, 1_241)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation_session": 5}, "dataset.validation_session is 5, the test split"),
        ({"validation_session": 2, "fold": 2}, "dataset.validation_session is 2, the test split"),
        ({"validation_session": 1, "split": "speaker"}, "makes a session the validation split, but dataset.split is"),
    ],
)
def test_a_session_of_validation_that_cannot_be_is_refused(release: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        iemocap.read(params(release, **values))


def test_the_folds_test_every_turn_once(release: Path) -> None:
    tested = Counter(
        turn.id for fold in SESSIONS for turn in iemocap.read(params(release, fold=fold)).turns if turn.split == "test"
    )
    assert set(tested.values()) == {1}
    assert set(tested) == {turn.id for turn in iemocap.read(params(release)).turns}


def test_differences_to_the_published_counts_are_explained(four: Prepared) -> None:
    printed = summary(four)
    assert "published: 2 of 16 counts are found" in printed  # speakers, in all and of the test session
    assert "differs: 14 counts, as the table shows, most of all recordings, all: " in printed
    told = [str(difference) for difference in four.differences]
    assert "recordings, test: 16, published 2170 (no status says why)" in told
    reasons = "other-label 22, undecided 11, no-audio 5, unevaluated 4, untimed 2"
    assert any(one.startswith(f"label angry, all: 11, published 1103 ({reasons}") for one in told)
    (recordings,) = [one for one in told if one.startswith("recordings, all: ")]
    assert recordings.endswith("(no-audio 5, missing-file 1)")  # no status that is of labels or of times
    with pytest.raises(DataError, match="counts differ from the published ones"):
        check_published(four)


def test_a_release_as_published_differs_in_nothing(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mechanism, on the counts of the fabricated release; those of the real one are not available as files."""
    monkeypatch.setattr(iemocap, "DIALOGUES", {1: 3, 2: 2, 3: 2, 4: 2, 5: 2})
    monkeypatch.setattr(iemocap, "RECORDINGS", {1: 24, 2: 16, 3: 16, 4: 16, 5: 16})
    codes = {"ang": 11, "exc": 11, "fru": 11, "hap": 11, "neu": 12, "sad": 11}
    monkeypatch.setattr(iemocap, "CODE_COUNTS", codes)
    monkeypatch.setattr(iemocap, "SESSION_CODES", {5: dict.fromkeys(codes, 2)})
    for target in iemocap.TARGETS:
        check_published(prepare(params(release, target=target)))


def test_published_counts_agree_with_each_other() -> None:
    four, six = iemocap.TARGETS["four"], iemocap.TARGETS["six"]
    assert iemocap.published(four, {})["labelled"] == {"all": 5_531}
    assert iemocap.published(six, {"test": 5})["labelled"] == {"all": 7_380, "test": 1_622}
    assert sum(iemocap.RECORDINGS.values()) == 10_039
    assert [iemocap.published(four, {"test": fold})["labelled"]["test"] for fold in SESSIONS] == [
        1_085, 1_023, 1_151, 1_031, 1_241,
    ]  # fmt: skip
    for code in ("ang", "exc", "hap", "neu", "sad"):
        assert sum(counts[code] for counts in iemocap.SESSION_CODES.values()) == iemocap.CODE_COUNTS[code]


def test_other_splits_than_the_protocols_are_not_held_to_its_test_counts(release: Path) -> None:
    corpus = iemocap.read(params(release, split="speaker"))
    assert all(set(columns) == {"all"} for columns in corpus.published.values())


def test_targets_are_those_that_the_adapter_knows() -> None:
    assert targets.TARGETS["iemocap"] == tuple(iemocap.TARGETS)


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("iemocap", "fuor", "'dataset.target' is 'fuor'; iemocap accepts four | six; did you mean 'four'?"),
        (
            "table",
            "four",
            "'dataset.target' is 'four'; table accepts null only: its label is the column of dataset.columns.label",
        ),
    ],
)
def test_a_target_of_another_corpus_is_refused(release: Path, name: Any, target: str, expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        prepare(DatasetParams(name=name, root=str(release), target=target))
    assert str(error.value) == expected


BAD_LINES = {
    "no times": ("EmoEvaluation", "[6.2901]\tSes05F_impro01_F000\tneu\n", "is not of the form '[<start> - <end>]"),
    "no emotion": ("EmoEvaluation", "[1.0 - 2.0]\tSes05F_impro01_F000\n", "is not of the form"),
    "emotion": (
        "EmoEvaluation",
        "[1.0 - 2.0]\tSes05F_impro01_F000\tglee\t[1, 1, 1]\n",
        "emotion 'glee' is none of ang",
    ),
    "twice": (
        "EmoEvaluation",
        "[1.0 - 2.0]\tSes05F_impro01_F000\tneu\n[1.0 - 2.0]\tSes05F_impro01_F000\tsad\n",
        "line 2: turn 'Ses05F_impro01_F000' is evaluated again, and differently",
    ),
    "transcription": ("transcriptions", "Ses05F_impro01_F000 [1.0 2.0] Hello.\n", "line 1: 'Ses05F_impro01_F000 [1.0"),
    "NUL": ("transcriptions", "Ses05F_impro01_F000 [1.0-2.0]: He\0llo.\n", "holds NUL bytes"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_names_a_turn_and_cannot_be_understood_is_an_error(tmp_path: Path, name: str) -> None:
    folder, content, expected = BAD_LINES[name]
    path = tmp_path / "Session5" / "dialog" / folder / "Ses05F_impro01.txt"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DataError) as error:
        iemocap.read(params(tmp_path))
    assert expected in str(error.value)
    assert str(path) in str(error.value)


def test_a_folder_that_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no Session5/dialog, and session 5 is the test split; set"):
        iemocap.read(params(tmp_path))


def test_sessions_that_are_missing_are_said(tmp_path: Path) -> None:
    release = write_release(tmp_path)
    (release / "Session3" / "dialog").rename(release / "elsewhere")
    assert iemocap.read(params(release)).notes == ["sessions that are missing: 3"]
    with pytest.raises(DataError, match="Session3/dialog"):
        iemocap.read(params(release, fold=3))


@pytest.mark.parametrize(("folder", "what"), [("EmoEvaluation", "label"), ("transcriptions", "text")])
def test_sessions_without_evaluations_or_transcriptions_are_said(tmp_path: Path, folder: str, what: str) -> None:
    """Whether the folder is gone or holds nothing but files of another system."""
    release = write_release(tmp_path)
    assert iemocap.read(params(release)).notes == []
    shutil.rmtree(release / "Session2" / "dialog" / folder)
    for path in (release / "Session4" / "dialog" / folder).iterdir():
        path.rename(path.with_name(f"._{path.name}"))
    corpus = iemocap.read(params(release))
    assert corpus.notes == [f"sessions without files in dialog/{folder}, whose turns have no {what}: 2, 4"]
    told = {turn.conversation[:5] for turn in corpus.turns if getattr(turn, what)}
    assert told == {"Ses01", "Ses03", "Ses05"}


NAMES = st.sampled_from(
    ["Ses05F_impro01_F000", "Ses05F_impro01_M000", "Ses05F_impro01_MXX0", "Ses05F_impro01_", "M", ""]
)
SECONDS = st.one_of(
    st.floats(0, 400).map("{:08.4f}".format), st.sampled_from(["", "-1", "1.2.3", "1e3", "nan", "9" * 30])
)
WORDS = st.text(max_size=20)
CODES = st.sampled_from([*EMOTIONS, "oth", "NEU", "glee", "", "x" * 80])


@st.composite
def dirty(draw: st.DrawFn, form: str) -> bytes:
    """Lines that are nearly of a `form`, some of them not UTF-8."""
    lines = []
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.integers(0, 5)) == 0:
            lines.append(draw(WORDS))
        else:
            lines.append(
                form.format(
                    name=draw(NAMES), start=draw(SECONDS), end=draw(SECONDS), text=draw(WORDS), code=draw(CODES)
                )
            )
    end = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    return end.join(lines).encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "cp1252", "utf-16"])), errors="replace")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    transcription=dirty("{name} [{start}-{end}]: {text}"),
    evaluation=dirty("[{start} - {end}]\t{name}\t{code}\t[2.5, 2, 1]"),
)
@example(transcription=b"", evaluation=b"\xef\xbb\xbf[000.0000 - 000.0000]\tSes05F_impro01_F000\tang\t[2.5, 2, 1]")
@example(transcription=b"M: Yeah.\nF\n\xef\xbb\xbf", evaluation=HEADER.encode())
def test_dirty_lines_make_turns_or_our_own_error(tmp_path: Path, transcription: bytes, evaluation: bytes) -> None:
    root = tmp_path / "release"
    for folder, content in (("transcriptions", transcription), ("EmoEvaluation", evaluation)):
        path = root / "Session5" / "dialog" / folder / "Ses05F_impro01.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        corpus = iemocap.read(params(root))
    except DataError:
        return
    check_nothing_is_dropped(corpus, transcription, evaluation)
    try:
        prepare(params(root))  # one conversation has no train split
    except ErcError:
        return


def check_nothing_is_dropped(corpus: Corpus, transcription: bytes, evaluation: bytes) -> None:
    """Every line of the transcription is a turn, and so is, behind them, every turn that was evaluated only."""
    mark = b"\xef\xbb\xbf"  # which some editors put in front of UTF-8
    written = [line for line in transcription.removeprefix(mark).split(b"\n") if text_of(line)]
    lines = evaluation.removeprefix(mark).split(b"\n")
    evaluated = {line.split(b"\t")[1].decode() for line in lines if line.strip().startswith(b"[")}
    ids = [turn.id or "" for turn in corpus.turns]
    assert len(set(ids)) == len(ids)
    transcribed, alone = ids[: len(written)], ids[len(written) :]
    assert len(transcribed) == len(written)
    assert set(alone) == evaluated - set(transcribed)


def text_of(line: bytes) -> str:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError:
        return line.decode("cp1252", errors="replace").strip()


def test_a_fold_is_not_asked_for_beside_other_splits(release: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.fold 2 makes a session the test split, but dataset.split is 'conv"):
        iemocap.read(params(release, fold=2, split="conversation"))
    notes = prepare(params(release, split="conversation")).notes
    assert "the corpus' own splits are set aside: dataset.split is conversation" in notes


def test_a_release_without_recordings_is_its_texts_and_that_is_said(tmp_path: Path) -> None:
    release = write_release(tmp_path)
    for session in SESSIONS:
        shutil.rmtree(release / f"Session{session}" / "sentences")
    found = iemocap.read(params(release))
    assert found.notes == ["no recordings in Session*/sentences/wav of dataset.root: every turn is its text alone"]
    assert {turn.audio for turn in found.turns} == {None}


def test_recordings_in_a_folder_of_another_spelling_or_of_another_kind_are_no_release_of_texts(tmp_path: Path) -> None:
    release = write_release(tmp_path)
    for session in SESSIONS:
        (release / f"Session{session}" / "sentences").rename(release / f"Session{session}" / "Sentences")
    assert iemocap.read(params(release)).notes == []
    for path in release.rglob("*.wav"):
        path.rename(path.with_suffix(".flac"))
    with pytest.raises(DataError, match=r"none of the .* name and lay them out as the release does"):
        prepare(params(release))


def test_folders_of_another_case_keep_their_labels_and_are_named(release: Path, four: Prepared, tmp_path: Path) -> None:
    root = shutil.copytree(release, tmp_path / "release")
    (root / "Session2" / "dialog" / "EmoEvaluation").rename(root / "Session2" / "dialog" / "emoevaluation")
    (root / "Session3").rename(root / "SESSION3")
    found = prepare(params(root))
    assert [(u.id, u.label, u.status) for u in found.utterances] == [(u.id, u.label, u.status) for u in four.utterances]
    (note,) = [note for note in found.notes if note.startswith("folders that the disk spells in another way")]
    assert "'Session2/dialog/emoevaluation' for 'Session2/dialog/EmoEvaluation'" in note
    assert "'SESSION3/dialog/transcriptions' for 'Session3/dialog/transcriptions'" in note
