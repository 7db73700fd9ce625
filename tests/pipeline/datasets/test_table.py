"""The table adapter: what people have in CSV, TSV and JSONL becomes turns, or one clear refusal."""

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.datasets import Corpus, Turn, repairs, table
from pipeline.errors import DataError
from pipeline.params import Columns, DatasetParams
from tests.pipeline.made import rows_of, write_rows

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30).map(str.strip)


def read(path: Path, **columns: str) -> Corpus:
    return table.read(DatasetParams(name="table", root=str(path.parent), table=path.name, columns=Columns(**columns)))


def read_text(path: Path, content: str | bytes) -> Corpus:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(path)


def refusal(path: Path, content: str | bytes, **columns: str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        read(path, **columns)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "A.CSV"])
def test_every_kind_of_table_gives_the_same_turns(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_rows(path.with_suffix(path.suffix.lower()), rows_of(2)).rename(path)
    first = read(path).turns[1]
    assert first == Turn(
        conversation="c0",
        order=1,
        speaker="s1",
        split="train",
        label="anger",
        text="turn 1 of conversation 0",
        audio="c0-1.wav",
    )
    assert len(read(path).turns) == 4


@given(texts=st.lists(TEXTS, min_size=1, max_size=8), kind=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
@settings(max_examples=60, deadline=None)
def test_any_text_survives_the_table(tmp_path_factory: pytest.TempPathFactory, texts: list[str], kind: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"texts.{kind}"
    write_rows(path, [{"id": str(number), "text": text} for number, text in enumerate(texts)])
    assert [turn.text for turn in read(path).turns] == texts


def test_only_text_is_needed(tmp_path: Path) -> None:
    turns = read_text(tmp_path / "a.csv", "text\nhello\nworld\n").turns
    assert [(turn.conversation, turn.text) for turn in turns] == [("000001", "hello"), ("000002", "world")]
    assert {turn.audio for turn in turns} == {None}


def test_without_a_turn_column_rows_follow_each_other(tmp_path: Path) -> None:
    turns = read_text(tmp_path / "a.csv", "conversation,text\nb,1\na,2\nb,3\n").turns
    assert [turn.order for turn in turns] == sorted(turn.order for turn in turns)


def test_columns_are_found_by_the_users_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Utterance,Emotion,label\nhello,joy,7\n")
    (turn,) = read(path, text="Utterance", label="Emotion").turns
    assert (turn.text, turn.label) == ("hello", "joy")


@pytest.mark.parametrize(
    ("written", "split"),
    [
        ("train", "train"),
        ("Dev", "validation"),
        ("VAL", "validation"),
        ("valid", "validation"),
        ("test", "test"),
        ("", None),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path: Path, written: str, split: str | None) -> None:
    assert read_text(tmp_path / "a.csv", f"split,text\n{written},x\n").turns[0].split == split


def test_empty_lines_are_no_turns(tmp_path: Path) -> None:
    turns = read_text(tmp_path / "a.csv", "\n\nconversation,text\n\na,1\n,\n\na,2\n\n").turns
    assert [turn.text for turn in turns] == ["1", "2"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system_are_read(tmp_path: Path, end: str) -> None:
    assert [t.text for t in read_text(tmp_path / "a.csv", f"id,text{end}1,x{end}2,y{end}").turns] == ["x", "y"]


def test_cells_may_hold_line_breaks_and_delimiters(tmp_path: Path) -> None:
    turns = read_text(tmp_path / "a.csv", 'id,text\n1,"two\nlines, and ""quotes"""\n2,x\n').turns
    assert [turn.text for turn in turns] == ['two\nlines, and "quotes"', "x"]


def test_rows_that_quotes_may_have_joined_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"Well, he said\thappy\nand left."\tsad\n"a\nb"\tsad\n')
    corpus = read(tmp_path / "a.tsv")
    assert len(corpus.turns) == 2
    assert corpus.repaired == {f"rows of several lines by their quotes (lines 2 to 3); {table.MAY_BE_ROWS}": 1}


def test_bytes_that_are_not_utf8_cost_no_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\nZażółć \x96 jaźń\n".encode().replace(b"\xc2\x96", b"\x96"))
    assert read(tmp_path / "a.csv").turns[0].text == "Zażółć – jaźń"


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert read_text(tmp_path / "a.csv", "\ufefftext\nhello\n").turns[0].text == "hello"
    assert read_text(tmp_path / "a.jsonl", '\ufeff{"text": "hello"}\n').turns[0].text == "hello"


WRITTEN = {
    "gbk": ["我很高兴见到你", "你为什么不早点告诉我", "真是太好了！"],
    "big5": ["我很高興見到你", "你為什麼不早點告訴我", "真是太好了！"],
    "shift_jis": ["とても嬉しいです", "どうして教えてくれなかったの？", "最高だ！"],
    "euc_jp": ["とても嬉しいです", "どうして教えてくれなかったの？", "最高だ！"],
    "euc_kr": ["정말 기뻐요", "왜 말 안 했어?", "너무 좋다!"],
    "mac_roman": ["It’s fine, don’t worry", "Il est allé à l’école", "“Naïve” — dit-elle"],
    "cp850": ["Il est allé à l'école", "C'est déjà l'été", "Der Käse schmeckt süß"],
    "cp1251": ["Я очень рад тебя видеть", "Почему ты мне не сказал?", "Как же хорошо!"],
    "koi8_r": ["Я очень рад тебя видеть", "Почему ты мне не сказал?", "Как же хорошо!"],
    "cp1253": ["Χαίρομαι που σε βλέπω", "Γιατί δεν μου το είπες;", "Πολύ ωραία!"],
    "cp1250": ["Gęślą jaźń żółtą", "Příliš žluťoučký kůň", "Dlaczego mi nie powiedziałeś?"],
}


@pytest.mark.parametrize("encoding", WRITTEN)
def test_a_wrong_encoding_is_named_with_the_key_that_reads_it(tmp_path: Path, encoding: str) -> None:
    content = "id\ttext\n" + "".join(f"{number}\t{text}\n" for number, text in enumerate(WRITTEN[encoding]))
    path = tmp_path / "a.tsv"
    path.write_bytes(content.encode(encoding))
    ((told, count),) = read(path).repaired.items()
    assert told.startswith(f"lines that were not UTF-8, read as cp1252, but look like {encoding} (")
    assert told.endswith(f"; if so, set dataset.encoding: {encoding}")
    assert count == 3
    params = DatasetParams(name="table", root=str(tmp_path), table="a.tsv", encoding=encoding)
    assert [turn.text for turn in table.read(params).turns] == WRITTEN[encoding]
    assert not table.read(params).repaired


def test_lines_whose_encoding_nobody_guesses_are_shown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\nBugün çok mutluyum\nşükür\n".encode("cp1254"))
    ((told, _),) = read(tmp_path / "a.csv").repaired.items()
    assert told == f"{repairs.BYTES} ('Bugün çok mutluyum'); if that is wrong, set dataset.encoding"


@pytest.mark.parametrize(
    "text", ["café", "It’s “fine” …", "Señor, ¿qué pasa?", "ÜBER ÄRGER – 5 €", "Größe, süß", "naïve"]
)
def test_no_other_encoding_is_guessed_for_cp1252(tmp_path: Path, text: str) -> None:
    assert list(read_text(tmp_path / "a.tsv", f"text\n{text}\n".encode("cp1252")).repaired) == [repairs.BYTES]


def test_utf16_is_read_where_the_user_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,žluť\n", encoding="utf-16")
    params = DatasetParams(name="table", root=str(tmp_path), table="a.csv", encoding="utf-16")
    assert table.read(params).turns[0].text == "žluť"


def test_a_line_that_is_not_of_the_stated_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,x\n2,caf\xe9\n")
    with pytest.raises(DataError, match=r"a\.csv, line 3: not utf-8 .*; fix dataset\.encoding"):
        table.read(DatasetParams(name="table", root=str(tmp_path), table="a.csv", encoding="utf-8"))


@pytest.mark.parametrize("length", [131_073, 1_000_000])
def test_a_cell_may_hold_a_whole_interview(tmp_path: Path, length: int) -> None:
    assert len(read_text(tmp_path / "a.csv", f"id,text\n1,{'x' * length}\n").turns[0].text) == length


@pytest.mark.parametrize(
    "content",
    [
        "sep=,\nid,text\n1,x\n",
        "sep=;\r\nid;text\r\n1;x\r\n",
        '\ufeff"SEP=|"\nid|text\n1|x\n',
        "sep=\t\nid\ttext\n1\tx\n",
    ],
)
def test_the_line_that_excel_asks_for_names_the_delimiter(tmp_path: Path, content: str) -> None:
    (turn,) = read_text(tmp_path / "a.csv", content).turns
    assert (turn.id, turn.text, turn.extra) == ("1", "x", {})
    assert turn.where == f"{tmp_path / 'a.csv'}, line 3"


@pytest.mark.parametrize(
    "content", [",text\n0,x\n1,y\n", "Unnamed: 0,text\n7,x\n3,y\n", ",Unnamed: 0,text\n0,0,x\n1,1,y\n"]
)
def test_the_index_of_pandas_is_no_column(tmp_path: Path, content: str) -> None:
    corpus = read_text(tmp_path / "a.csv", content)
    assert [(turn.text, turn.extra) for turn in corpus.turns] == [("x", {}), ("y", {})]
    assert list(corpus.repaired) == [table.INDEX]
    assert not any("not used" in note for note in corpus.notes)


def test_an_unnamed_column_of_something_else_is_carried_along(tmp_path: Path) -> None:
    (turn,) = read_text(tmp_path / "a.csv", "text,\nx,seen twice\n").turns
    assert turn.extra == {"Unnamed: 1": "seen twice"}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_cp1252_lines_among_utf8_are_read_and_counted(tmp_path: Path, name: str) -> None:
    head, row = {"a.csv": (b"id,text\n", b"%d,%s\n"), "a.tsv": (b"id\ttext\n", b"%d\t%s\n")}.get(
        name, (b"", b'{"id": "%d", "text": "%s"}\n')
    )
    content = head + row % (1, b"It\x92s caf\xe9") + row % (2, "It’s café 😀".encode())
    corpus = read_text(tmp_path / name, content)
    assert [turn.text for turn in corpus.turns] == ["It’s café", "It’s café 😀"]
    assert corpus.repaired == {repairs.BYTES: 1}


def test_controls_of_a_wrong_conversion_get_their_meaning_back(tmp_path: Path) -> None:
    corpus = read_text(tmp_path / "a.csv", "id,text\n1,It\x92s \x93so\x94\x85\n2,plain\n")
    assert [turn.text for turn in corpus.turns] == ["It’s “so”…", "plain"]
    assert corpus.repaired == {repairs.CONTROLS: 1}


def test_half_a_character_is_replaced_and_counted(tmp_path: Path) -> None:
    corpus = read_text(tmp_path / "a.jsonl", '{"text": "cut \\ud83d"}\n{"text": "whole \\ud83d\\ude00"}\n')
    assert [turn.text for turn in corpus.turns] == ["cut ?", "whole 😀"]
    assert corpus.repaired == {repairs.SURROGATES: 1}


def test_a_text_of_two_thousand_words_is_read_whole(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(2_000))
    assert read(write_rows(tmp_path / "a.csv", [{"text": text}])).turns[0].text == text


def test_jsonl_rows_may_lack_keys_and_hold_numbers(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"text": "x", "turn": 1, "start": 0.5, "conversation": 7},
        {"conversation": 7, "turn": 0, "text": None},
    ]
    turns = read(write_rows(tmp_path / "a.jsonl", lines)).turns
    assert [(t.conversation, t.order, t.text, t.start) for t in turns] == [("7", 1, "x", 0.5), ("7", 0, "", None)]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_columns_that_no_field_takes_are_carried_along(tmp_path: Path, name: str) -> None:
    rows = [{"text": "x", "camera": "left ", "take": "3"}, {"text": "y", "camera": "", "take": "4"}]
    corpus = read(write_rows(tmp_path / name, rows))
    assert [turn.extra for turn in corpus.turns] == [{"camera": "left", "take": "3"}, {"take": "4"}]
    assert corpus.notes[0] == "columns that are not used, only carried along: camera, take"


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        ({"text": "x", "file": "clips/1.WAV"}, "file (recordings? name it with dataset.columns.audio), mood"),
        ({"text": "x", "path": "D:\\a b.m4a"}, "path (recordings? name it with dataset.columns.audio), mood"),
        ({"audio": "a.wav", "video": "a.mp4"}, "video, mood"),
        ({"text": "x", "remark": "at 3.5"}, "remark, mood"),
    ],
)
def test_a_column_that_looks_like_recordings_is_named_with_its_key(
    tmp_path: Path, cells: dict[str, str], named: str
) -> None:
    corpus = read(write_rows(tmp_path / "a.csv", [cells | {"mood": "calm"}] * 3))
    assert corpus.notes[0] == f"columns that are not used, only carried along: {named}"


def test_what_is_no_text_is_carried_along_as_json(tmp_path: Path) -> None:
    content = '{"text": "x", "words": [{"w": "é", "at": 0.5}], "sure": true, "none": null, "nan": NaN}\n'
    assert read_text(tmp_path / "a.jsonl", content).turns[0].extra == {
        "words": '[{"w": "é", "at": 0.5}]',
        "sure": "true",
    }


def parquet_of(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_keeps_numbers_categories_and_absent_cells(tmp_path: Path) -> None:
    path = parquet_of(
        tmp_path / "a.parquet",
        text=pyarrow.array(["x", None]).dictionary_encode(),
        start=pyarrow.array([0.5, float("nan")], pyarrow.float32()),
        turn=pyarrow.array([2, 1], pyarrow.int8()),
        conversation=["c", "c"],
        day=[datetime.date(2020, 1, 2), None],
        sound=[{"bytes": b"RIFF", "path": "a.wav"}, None],
    )
    first, second = read(path).turns
    assert (first.text, first.start, first.order, second.text, second.start) == ("x", 0.5, 2, "", None)
    assert first.extra == {"day": "2020-01-02", "sound": '{"bytes": "<bytes>", "path": "a.wav"}'}
    assert second.extra == {}


def test_recordings_inside_a_parquet_table_are_refused(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", text=["x"], audio=[{"bytes": b"RIFF", "path": "a.wav"}])
    with pytest.raises(DataError, match="row 1: 'audio' is a dict; expected a text, a number or null"):
        read(path)


def test_a_broken_parquet_table_is_refused(tmp_path: Path) -> None:
    assert "a.parquet: not a Parquet file that can be read" in refusal(tmp_path / "a.parquet", "id,text\n1,x\n")
    path = parquet_of(tmp_path / "b.parquet", text=["a text of some length"] * 100)
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), 7):
        broken = content.copy()
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        try:
            assert len(read(path).turns) == 100
        except DataError as error:
            assert "b.parquet" in str(error)  # noqa: PT017


def test_parquet_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_of(tmp_path / "a.parquet", text=["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install pyarrow, or save the table as"):
        read(path)


def test_a_missing_table_says_which_parameters_name_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv: no such table; fix dataset\.root and dataset\.table"):
        read(tmp_path / "a.csv")


def test_a_folder_in_place_of_the_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match=r"a\.csv: cannot be read \(Is a directory\)"):
        read(tmp_path / "a.csv")


def test_a_spreadsheet_is_refused_with_what_is_read_instead(tmp_path: Path) -> None:
    assert "must end in .csv, .tsv, .jsonl, .parquet; convert it" in refusal(tmp_path / "a.xlsx", "x")


@pytest.mark.parametrize("content", ["", "\n\n", "id,text\n", "\ufeff"])
def test_a_table_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    assert "holds no rows" in refusal(tmp_path / "a.csv", content)
    if "id" not in content:
        assert "holds no rows" in refusal(tmp_path / "a.jsonl", content)


MALFORMED = {
    "ragged, long": ("id,text\n1,x\n2,well, no\n", "line 3: 3 cells, expected 2 as in the header; quote cells"),
    "ragged, short": ("id,text\n1\n", "line 2: 1 cells, expected 2"),
    "name twice": ("id,text,id\n1,x,2\n", "column name 'id' is given twice in the header (id, text, id)"),
    "open quote": ('id,text\n1,"x\n2,y\n', "line 3: unexpected end of data; look for a cell whose quote is not closed"),
    "quote inside": ('id,text\n1,"x"y\n', "double the quotes inside quoted cells"),
    "bars": ("id|text\n1|x\n", "the header is a single cell, 'id|text'; cells are separated by commas"),
    "semicolons": ("id;text\n1;x\n", "the header is a single cell, 'id;text'; cells are separated by commas"),
    "no modality": ("id,words\n1,x\n", "neither a text nor an audio column; name them in dataset.columns"),
    "empty conversation": ("conversation,text\na,x\n,y\n", "line 3: the conversation is empty"),
    "empty turn": ("turn,text\n0,x\n,y\n", "line 3: the turn is empty; number it"),
    "bad turn": ("turn,text\nfirst,x\n", "line 2: turn 'first' is not a number"),
    "turn in two numbers": ("turn,text\n1_0,x\n", "line 2: turn '1_0' is not a number; number the turns, or leave"),
    "start with an underscore": ("start,text\n1_000,x\n", "line 2: start '1_000' is not a number"),
    "bad score": ("score,text\n1.5,x\nhigh,y\n", "line 3: score 'high' is not a number"),
    "score beyond float32": ("score,text\n-1e39,x\n", "line 2: score '-1e39' is beyond 3.4e+38, the largest number"),
    "score NaN": ("score,text\nnan,x\n", "line 2: score 'nan' is not a number"),
    "bad start": (
        'start,text\n"00:01:02,5",x\n',
        "line 2: start '00:01:02,5' is not a number; write seconds, such as 62.5",
    ),
    "decimal comma": ('score,text\n"1,5",x\n', "line 2: score '1,5' is not a number; use a decimal point: 62.5"),
    "infinite end": ("end,text\ninf,x\n", "line 2: end 'inf' is not a number"),
    "unknown split": ("split,text\ntrian,x\n", "line 2: split 'trian' is none of train, validation,"),
    "after a long cell": ('score,text\n1,"two\nlines"\nx,y\n', "line 4: score 'x'"),
    "NUL": ("id,text\n1,a\0b\n", "holds NUL bytes; save it as UTF-8"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_table_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    content, expected = MALFORMED[name]
    message = refusal(tmp_path / "a.csv", content)
    assert expected in message
    assert message.startswith(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_utf16_is_refused_by_name(tmp_path: Path, name: str, encoding: str) -> None:
    assert "save it as UTF-8 text (UTF-16 is read with dataset.encoding" in refusal(
        tmp_path / name, "id,text\n1,x\n".encode(encoding)
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "x"', "line 2: not JSON"),
        ('[{"text": "x"},', "line 2: not JSON (Expecting value: line 1 column 16 (char 15)); expected an object {..}"),
        ('["x"]', "line 2: expected a JSON object, found a list"),
        ('{"text": ["x", "y"]}', "line 2: 'text' is a list; expected a text, a number or null"),
        ('{"text": {"en": "x"}}', "line 2: 'text' is a dict"),
        ('{"text": true}', "line 2: 'text' is a bool"),
        ('{"text": ' + "[" * 100_000, "line 2: not JSON"),
    ],
)
def test_malformed_json_lines_are_refused_with_their_line(tmp_path: Path, line: str, expected: str) -> None:
    assert expected in refusal(tmp_path / "a.jsonl", json.dumps({"text": "fine"}) + "\n" + line + "\n")


@pytest.mark.parametrize("name", ["\ufefflabel", "\u200blabel", " label\u00a0", "Gefu\u0308hl"])
def test_column_names_are_read_without_what_nobody_sees(tmp_path: Path, name: str) -> None:
    path, columns = tmp_path / "a.csv", {"label": "Gef\u00fchl"} if name.startswith("G") else {}
    path.write_text(f"\ufeff{name},text\njoy,x\n", encoding="utf-8")
    (turn,) = read(path, **columns).turns
    assert turn.label == "joy"


def test_a_column_that_is_not_there_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.csv", "Utterance,Speaker\nx,y\n", text="Uterance")
    assert (
        "no column 'Uterance' (dataset.columns.text); it has Utterance, Speaker; did you mean 'Utterance'?" in message
    )
    assert "did you mean" not in refusal(tmp_path / "a.csv", "Utterance,Speaker\nx,y\n", text="zzz")


def test_names_of_rows_that_r_writes_are_explained(tmp_path: Path) -> None:
    message = refusal(tmp_path / "t.tsv", "text\tlabel\n1\thello\tjoy\n2\tagain\tsad\n")
    assert "line 2: 3 cells, expected 2 as in the header; if rows begin with their name, as R writes them" in message


def test_times_in_nanoseconds_do_not_keep_a_table_from_being_read(tmp_path: Path) -> None:
    stamps = pyarrow.array([1, 1_700_000_000_123_456_789], pyarrow.timestamp("ns"))
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "recorded": stamps}), tmp_path / "t.parquet")
    turns = read(tmp_path / "t.parquet").turns
    assert [turn.text for turn in turns] == ["a", "b"]
    assert turns[1].extra["recorded"].startswith("2023-11-14")
