"""The manifest: what is written is read, and what breaks its contract is refused with its line."""

import json
import re
import resource
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.join import table_of
from pipeline.manifest import (
    Utterance,
    check_utterances,
    label_names,
    manifest_order,
    read_manifest,
    read_sources,
    write_manifest,
    write_sources,
)
from pipeline.settings import parse_lines, read_lines
from tests.forked import exit_status, fork

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # line ends, NUL and emoji too


def utterance(conversation: str = "c", turn: int = 0, split: str = "train", **fields: Any) -> Utterance:
    return Utterance(
        **{"id": f"{conversation}/{turn}", "conversation": conversation, "turn": turn, "split": split, **fields}
    )


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6),
    score=st.none() | st.floats(-3, 3),
    start=st.none() | st.floats(0, 1e4),
)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], score: float | None, start: float | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    written = [utterance(turn=turn, text=text, score=score, start=start) for turn, text in enumerate(texts)]
    write_manifest(path, written)
    assert read_manifest(path) == written


def test_a_thousand_utterances_round_trip_in_order(tmp_path: Path) -> None:
    splits = ["test", "train", "validation"]
    shuffled = [utterance(f"c{number % 97}", number // 97, splits[number % 97 % 3]) for number in range(1_000)]
    written = sorted(shuffled, key=manifest_order)
    write_manifest(tmp_path / "deep" / "manifest.jsonl", written)
    found = read_manifest(tmp_path / "deep" / "manifest.jsonl")
    assert found == written
    assert [u.split for u in found] == sorted((u.split for u in found), key=["train", "validation", "test"].index)


def test_an_interrupted_write_leaves_the_old_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [utterance()])
    broken = utterance(turn=1).model_copy(update={"text": "\ud83d"})  # UTF-8 has no form for half a character
    with pytest.raises(ValueError, match="surrogates not allowed"):
        write_manifest(path, [utterance(), broken])
    assert read_manifest(path) == [utterance()]


def test_what_is_carried_along_is_read_again_and_absent_where_there_is_nothing(tmp_path: Path) -> None:
    written = [utterance(extra={"camera": "left"}), utterance(turn=1)]
    write_manifest(tmp_path / "manifest.jsonl", written)
    assert read_manifest(tmp_path / "manifest.jsonl") == written
    with_extra, without = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert '"extra":{"camera":"left"}' in with_extra
    assert "extra" not in without


def test_no_bit_of_a_manifest_changes_in_silence(tmp_path: Path) -> None:
    """Nor of what encoders read: a label or a text that still parses is refused, too, unless its check is taken out."""
    written = [utterance(text="so?", label="joy"), utterance(turn=1, label="anger", speaker="Ann")]
    write_manifest(tmp_path / "manifest.jsonl", written)
    write_sources(tmp_path / "manifest.jsonl", written)
    for name, read in (
        ("manifest.jsonl", read_manifest),
        ("recordings.jsonl", partial(read_sources, modality="audio")),
        ("texts.jsonl", partial(read_sources, modality="text")),
    ):
        content, before = (tmp_path / name).read_bytes(), read(tmp_path / name)
        for bit in range(8 * len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(changed)
            with suppress(DataError):
                assert read(tmp_path / name) == before, changed
    lines = re.sub(r',"check":"[^"]+"', "", content.decode()).replace("so?", "so!")
    (tmp_path / name).write_text(lines)
    assert read_sources(tmp_path / name, "text")[0].text == "so!"
    (tmp_path / name).write_bytes(content.replace(b"so?", b"so!"))
    with pytest.raises(DataError, match=r"line 1: damaged or edited .* take 'check' out of the line to keep an edit"):
        read_sources(tmp_path / name, "text")


@pytest.mark.parametrize("change", ["cut", "doubled", "without a line"])
def test_whole_lines_that_are_lost_or_come_along_are_counted(tmp_path: Path, change: str) -> None:
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [utterance(turn=turn) for turn in range(3)])
    first, second, last = path.read_text().splitlines(keepends=True)
    changed = {"cut": [first, second], "doubled": [first, second, last] * 2, "without a line": [first, last]}[change]
    path.write_text("".join(changed))
    with pytest.raises(DataError, match=rf"holds {len(changed)} lines?, but (3 were written|its last one is missing)"):
        read_sources(path, "text")
    content = path.read_text()
    path.write_text(content[: content.rindex(',"check"')] + "}")
    assert len(parse_lines(read_lines(path), Utterance, path)) == len(changed)


def line(**changes: Any) -> str:
    return utterance().model_copy(update=changes).model_dump_json()


BROKEN = {
    "cut line": (line()[:-9], "line 1: 'line': Invalid JSON"),
    "not JSON": ("hello", "line 1: 'line': Invalid JSON"),
    "a list": ("[]", "line 1: 'line': Input should be an object"),
    "unknown field": (line()[:-1] + ',"mood":1}', "line 1: 'mood': Extra inputs are not permitted"),
    "turn a text": (line().replace('"turn":0', '"turn":"0"'), "line 1: 'turn': Input should be a valid integer"),
    "no id": (line().replace('"id":"c/0",', ""), "line 1: 'id': Field required"),
    "unknown split": (line(split="dev"), "line 1: 'split': Input should be 'train', 'validation' or 'test'"),
    "a score beyond float32": (line().replace('"score":null', '"score":-1e39'), "line 1: 'score': Input should be gr"),
    "no moment": (line().replace('"end":null', '"end":NaN'), "line 1: 'end': Input should be a finite number"),
    "endless": (line().replace('"start":null', '"start":Infinity'), "line 1: 'start': Input should be a finite number"),
    "before the start": (line().replace('"start":null', '"start":-1'), "line 1: 'start': Input should be greater than"),
    "more samples than any": (line().replace('"samples":0', '"samples":1' + 30 * "0"), "line 1: 'samples': Input"),
    "fewer samples than none": (line().replace('"samples":0', '"samples":-1'), "line 1: 'samples': Input should be"),
    "no rate": (line().replace('"sample_rate":null', '"sample_rate":0'), "line 1: 'sample_rate': Input should be"),
    "second line": (line() + "\n{}", "line 2: 'id': Field required"),
    "nothing": ("", "holds no utterance"),
    "blank lines": ("\n\n", "holds no utterance"),
}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    content, expected = BROKEN[name]
    (tmp_path / "manifest.jsonl").write_text(content)
    with pytest.raises(DataError) as error:
        read_manifest(tmp_path / "manifest.jsonl")
    assert expected in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "manifest.jsonl"))


ODD = st.sampled_from(  # JSON, or nearly so
    [
        *["null", "true", "[]", "{}", '{"a":1}', '{"a":"b"}', '""', '" "', r'"\u0000"', r'"\ud83d"'],
        *['"joy"', '"test"', '"train"', '"c1"', '"c0/0"'],
        *["0", "1", "-1", "2", "0.5", "1e400", "NaN", "-Infinity", "9" * 40, "0x1", "[" * 500],
    ]
)
SOUND = [
    utterance(conversation, turn, split, label="joy", text=f"it’s {turn}", samples=800, sample_rate=8_000, channels=1)
    for conversation, split in (("c0", "train"), ("c1", "validation"), ("c2", "test"))
    for turn in range(2)
]
LINES = st.integers(0, len(SOUND) - 1)


def test_a_dirty_manifest_is_read_whole_or_refused_by_our_own_error(tmp_path: Path) -> None:
    """Values of any field changed, lines repeated, removed and swapped, bytes changed, the end cut off."""
    path, outcomes = tmp_path / "manifest.jsonl", Counter[bool]()

    @given(
        values=st.lists(st.tuples(LINES, st.sampled_from(list(Utterance.model_fields)), ODD), max_size=2),
        order=st.lists(LINES, max_size=len(SOUND) + 1),
        byte=st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        kept=st.floats(0, 1),
        dirt=st.sets(st.sampled_from(["values", "order", "byte", "kept"]), min_size=1, max_size=2),
    )
    @settings(max_examples=max(250, settings().max_examples), deadline=None)
    def holds(
        values: list[tuple[int, str, str]], order: list[int], byte: tuple[float, int], kept: float, dirt: set[str]
    ) -> None:
        lines = [json.loads(record.model_dump_json()) for record in SOUND]
        fields = [{name: json.dumps(value) for name, value in line.items()} for line in lines]
        for index, name, value in values if "values" in dirt else []:
            fields[index][name] = value
        written = ["{" + ",".join(f'"{name}": {value}' for name, value in line.items()) + "}" for line in fields]
        chosen = [written[index] for index in order] if "order" in dirt else written
        content = bytearray("".join(line + "\n" for line in chosen).encode())
        if "byte" in dirt and content:
            content[int(byte[0] * len(content))] = byte[1]
        path.write_bytes(content[: int(kept * len(content))] if "kept" in dirt else content)
        outcomes[read_or_refused(path)] += 1

    holds()
    assert min(outcomes[True], outcomes[False]) > 0, outcomes  # how often is up to the generator


def read_or_refused(path: Path) -> bool:
    """Whether a manifest can be read; then it keeps its contract, is written again as it is, and makes a table."""
    try:
        found = read_manifest(path)
        names = label_names(found, str(path))
    except DataError:
        return False
    assert len(table_of(found, names).ids) == len(found) == sum(map(bool, path.read_text(encoding="utf-8").split("\n")))
    write_manifest(path, found)
    assert read_manifest(path) == found
    return True


def test_a_missing_manifest_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such manifest; run pipeline-prepare, or dvc repro"):
        read_manifest(tmp_path / "manifest.jsonl")


def test_a_folder_in_place_of_the_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\); name another manifest \(--manifest\)"):
        read_manifest(tmp_path)


def test_a_manifest_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(line(text="café").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_manifest(tmp_path / "manifest.jsonl")


CONTRACT = {
    "NUL": (
        [utterance(), utterance(turn=1, speaker="Joey\0")],
        r"a\.csv: 'c/1': speaker 'Joey\\x00' holds control char",
    ),
    "repeated id": (
        [utterance(id="x"), utterance(turn=1, id="x")],
        "id 'x' is given to 2 utterances; ids must be unique",
    ),
    "two splits": (
        [utterance(), utterance(turn=1, split="test")],
        "conversation 'c' lies in two splits, train and test",
    ),
    "gap": ([utterance(), utterance(turn=2)], r"conversation 'c': expected turn 1, found 2 \('c/2'\)"),
    "late start": ([utterance(turn=1)], "expected turn 0, found 1"),
    "order": ([utterance("b"), utterance("a")], "not sorted by split, conversation and turn"),
    "split order": ([utterance("a", split="test"), utterance("b")], "not sorted by split"),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_utterances_that_break_the_contract_are_refused(name: str) -> None:
    utterances, expected = CONTRACT[name]
    with pytest.raises(DataError, match=expected):
        check_utterances(utterances, "a.csv")


def test_classes_are_the_sorted_labels_of_train() -> None:
    utterances = [utterance(label="joy"), utterance(turn=1), utterance(turn=2, label="anger"), utterance(turn=3)]
    assert label_names(utterances, "a.csv") == ["anger", "joy"]
    assert label_names([utterance()], "a.csv") == []


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_train_lacks_is_refused_with_its_count(split: str) -> None:
    utterances = [utterance("a", label="joy"), utterance("b", split=split, label="jooy")]
    with pytest.raises(DataError, match=rf"label 'jooy' \(1 utterances, such as 'b/0' of the {split} split\).*\(joy\)"):
        label_names(utterances, "a.csv")


def test_a_full_disk_leaves_nothing_of_a_manifest_and_names_it(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    path = tmp_path / "manifest.jsonl"

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError, match="File too large") as error:
            write_manifest(path, [utterance(turn=turn, text="what is said") for turn in range(20)])
        assert error.value.filename == str(path)

    assert exit_status(fork(write)) == 0
    assert list(tmp_path.iterdir()) == []
