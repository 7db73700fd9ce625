"""fusion-predict as a user types it."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fusion.cli import predict_app
from fusion.prediction import Predictor, Turn
from fusion.prediction.stream import LONGEST_LINE
from pipeline.store import Identity
from tests.fusion.made import tiny_recipe, train_made
from tests.fusion.recorded import Recorded
from tests.pipeline.made import write_params, write_rows

FIELDS = ["conversation", "turn", "speaker", "id", "predicted", "probabilities", "status", "seeds"]


def run(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(predict_app, [str(a) for a in arguments], input=stdin, catch_exceptions=False)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def models(recorded: Recorded) -> Path:
    return recorded.train(direction="past")


def test_a_table_gives_a_row_for_each_turn(recorded: Recorded, models: Path, tmp_path: Path) -> None:
    asked = ["--model", models, "--table", recorded.table, "--root", recorded.root, "--output"]
    count, conversations = len(recorded.utterances), len({u.conversation for u in recorded.utterances})
    for name in ("out/p.csv", "out/p.jsonl"):
        done = run(*asked, tmp_path / name)
        assert done.exit_code == 0, done.stderr
        said = f"{tmp_path / name}: {count} turns of {conversations} conversations, 1 model; all ok"
        assert done.stdout.splitlines()[-1] == said
        assert done.stderr == ""  # no progress bar where there is no terminal
    lines = records((tmp_path / "out" / "p.jsonl").read_text())
    rows = read_csv(tmp_path / "out" / "p.csv")
    assert len(lines) == len(rows) == count
    assert {u.id for u in recorded.utterances} == {line["id"] for line in lines}
    for line, row in zip(lines, rows, strict=True):
        assert list(line)[: len(FIELDS)] == FIELDS
        assert row["id"] == line["id"]
        assert row["predicted"] == line["predicted"] in recorded.features.label_names
        assert float(row[f"p_{line['predicted']}"]) == pytest.approx(max(line["probabilities"].values()), abs=1e-4)
        assert (row["seeds"], line["seeds"]) == ("0", [0])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p.csv", "p.jsonl"]


def test_columns_of_the_table_come_along_and_its_labels_are_scored(
    recorded: Recorded, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = recorded.features.label_names[:2]
    rows = [
        {"words": "We lost.", "Emotion": first.upper(), "room": "=A1", "file": "1.ogg", "status": "new"},
        {"words": "We won!", "Emotion": "bored", "room": "kitchen", "file": "", "status": ""},
        {"words": "Again?", "Emotion": second, "room": "", "file": "2.ogg", "status": "old"},
    ]
    table = write_rows(tmp_path / "t.csv", rows)
    columns = {"text": "words", "label": "Emotion", "speaker": "who"}  # of the table that models were trained on
    write_params(tmp_path / "params.yaml", dataset={"columns": columns, "labels": {first.upper(): first}})
    monkeypatch.chdir(tmp_path)
    asked = ["--model", models.absolute(), "--table", table, "--output", "p.csv"]
    done = run(*asked)
    assert done.exit_code == 0, done.stderr
    told = "room, file (recordings? name it with dataset.columns.audio), status"
    assert f"t.csv: columns that are not used, only carried along: {told}" in caplog.text
    scored, last = done.stdout.splitlines()
    assert scored.startswith("2 turns with a label in the table: weighted_f1 ")
    assert scored.endswith("; labels that the model does not know are not scored: 'bored' 1")
    assert last.startswith("p.csv: 3 turns of 3 conversations, 1 model; ")
    found = read_csv(tmp_path / "p.csv")
    assert [row["words"] for row in found] == [row["words"] for row in rows]
    assert [row["Emotion"] for row in found] == [row["Emotion"] for row in rows]
    assert [(row["room"], row["input_status"]) for row in found] == [("'=A1", "new"), ("kitchen", ""), ("", "old")]
    assert run(*asked).stdout.rstrip().endswith("; it was there already, unchanged")
    write_rows(table, rows[:2])
    refused = run(*asked)
    assert (refused.exit_code, "--output p.csv: holds something else; name another" in refused.stderr) == (2, True)
    assert run(*asked, "--overwrite").exit_code == 0
    asked[-1] = "q.csv"
    assert "no column 'who' (dataset.columns.speaker)" in run(*asked, "--params", "params.yaml").stderr
    write_rows(table, [{"text": "We lost.", "label": first}])  # by the fields' own names
    assert run(*asked).stdout.startswith("1 turn with a label in the table: ")
    (row,) = read_csv(tmp_path / "q.csv")
    assert (row["text"], row["label"]) == ("We lost.", first)


def test_models_of_scores_give_scores(recorded: Recorded, tmp_path: Path) -> None:
    models = recorded.train(target="score")
    done = run("--model", models, "--text", "Hello.", "--output", tmp_path / "p.csv")
    assert done.exit_code == 0, done.stderr
    (row,) = read_csv(tmp_path / "p.csv")
    assert list(row) == ["conversation", "turn", "speaker", "id", "score", "status", "seeds"]
    (line,) = records(run("--model", models, "--text", "Hello.").stdout)
    assert float(row["score"]) == pytest.approx(line["score"], abs=1e-5)
    assert "probabilities" not in line


def test_turns_can_be_typed_and_what_is_amiss_is_counted(recorded: Recorded, models: Path) -> None:
    audio = [recorded.root / str(u.audio) for u in recorded.utterances[:2]]
    typed = [
        "--audio",
        audio[0],
        "--text",
        "Hello.",
        "--audio",
        "",
        "--text",
        "Bye.",
        "--audio",
        audio[1],
        "--text",
        "",
    ]
    done = run("--model", models, *typed, "--speaker", "Ann", "--speaker", "Bob", "--speaker", "")
    assert done.exit_code == 0, done.stderr
    found = records(done.stdout)
    assert [(one["turn"], one["speaker"], one["status"]) for one in found] == [
        (0, "Ann", "ok"),
        (1, "Bob", "no-audio"),
        (2, None, "no-text"),
    ]
    assert done.stderr == "3 turns of 1 conversation, 1 model; 1 no-audio, 1 no-text\n"


def test_features_are_taken_too(recorded: Recorded, models: Path) -> None:
    done = run("--model", models, "--features", recorded.features.path, "--split", "test")
    assert [one["id"] for one in records(done.stdout)] == [u.id for u in recorded.utterances if u.split == "test"]
    refused = run("--model", models, "--features", recorded.features.path, "--split", "tset")
    assert refused.exit_code == 2
    assert "feats.h5: there is no split 'tset'; it has train, validation, test" in refused.stderr


REFUSALS = {
    "no source": ([], "give one of --table, --audio and --text, --features, --stream; found none of them"),
    "two sources": (["--table", "t.csv", "--stream"], "found --table and also --stream"),
    "another number of texts": (["--audio", "a", "--audio", "b", "--text", "c"], "2 --audio, 1 --text: give as many"),
    "another number of speakers": (["--text", "c", "--speaker", "a", "--speaker", "b"], "1 --text, 2 --speaker"),
    "root of typed turns": (["--text", "c", "--root", "x"], "--root goes with --table or --stream, not with --audio"),
    "split of a table": (["--table", "t.csv", "--split", "test"], "--split goes with --features, not with --table"),
    "output of a stream": (["--stream", "--output", "p.csv"], "--output goes with .*, not with --stream"),
    "ending": (["--text", "c", "--output", "p.txt"], r"--output p\.txt: must end in \.jsonl or \.csv"),
    "its own source": (["--table", "t.csv", "--output", "./t.csv"], "is both read and written"),
    "a place that is taken": (["--text", "c", "--output", "taken/p.csv"], "taken/p.csv: cannot be written"),
    "no recording": (["--audio", "x.wav"], r"x\.wav: no such file, expected a recording; fix --audio"),
    "one recording of two": (["--audio", "t.csv", "--audio", "x.wav"], r"x\.wav: no such file, expected a recording"),
    "a long name": (["--audio", "n" * 5000], "n: no such file, expected a recording; fix --audio"),
    "a folder": (["--audio", "."], r"\.: a folder, expected a recording; fix --audio"),
    "no root": (["--stream", "--root", "x"], "x: no such folder; --root names the one in which the recordings lie"),
    "no table": (["--table", "x.csv"], r"x\.csv: no such file, expected a table; fix --table"),
    "no features": (["--features", "x.h5"], r"x\.h5: no such file, expected a feature file; fix --features"),
    "no model": (["--text", "c"], "nowhere: no such model folder"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("text\nHello.\n")
    (tmp_path / "taken").write_text("a file")
    done = run("--model", "nowhere", *arguments)
    assert done.exit_code == 2
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "taken"]


def test_wrong_command_lines_are_told_before_torch_is_imported() -> None:
    wrong: list[list[str]] = [[], ["--audio", "nowhere.wav"], ["--text", "Hello."]]
    script = (
        "import sys\nfrom fusion.cli import predict_app\nfor arguments in WRONG:\n"
        "    try:\n        predict_app(['--model', 'nowhere', *arguments])\n"
        "    except SystemExit as end:\n        print(end.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script.replace("WRONG", repr(wrong))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2 False\n" * 3


def test_typed_turns_of_which_nothing_can_be_used_are_refused(recorded: Recorded, models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no sound")
    done = run("--model", models, "--audio", tmp_path / "a.txt", "--audio", "", "--output", tmp_path / "p.csv")
    assert done.exit_code == 2
    told = f"turn 0 ({tmp_path / 'a.txt'}) is undecodable, no-text; turn 1 is no-audio, no-text; give a recording"
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "p.csv").exists()
    assert "turn 0 is no-audio, no-text" in run("--model", models, "--text", "").stderr
    sound = recorded.root / str(recorded.utterances[0].audio)
    assert f"turn 0 ({sound}) is no-text" in run("--model", recorded.train("text"), "--audio", sound).stderr
    one_of_two = run("--model", models, "--audio", tmp_path / "a.txt", "--text", "", "--audio", "", "--text", "Hello.")
    assert [one["status"] for one in records(one_of_two.stdout)] == ["undecodable+no-text+context-only", "no-audio"]


def test_a_stream_gives_turn_by_turn_what_the_whole_gives(recorded: Recorded, models: Path) -> None:
    turns = [u for u in recorded.utterances if u.conversation == recorded.utterances[-1].conversation]
    lines = [json.dumps({"text": u.text, "audio": u.audio, "speaker": u.speaker}) for u in turns]
    done = run("--model", models, "--stream", "--root", recorded.root, stdin="\n".join(lines))
    with Predictor.load(models, "cpu") as predictor:
        whole = predictor.predict([Turn(u.text, recorded.root / str(u.audio)) for u in turns])
    found = records(done.stdout)
    assert len(found) == len(whole) > 2
    for one, expected in zip(found, whole, strict=True):
        assert one["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
    assert done.stderr == f"{len(turns)} lines answered, 0 refused\n"


def test_a_line_that_cannot_be_answered_is_told_and_the_stream_goes_on(models: Path, tmp_path: Path) -> None:
    lines = [
        b'{"text": "Hello."}',
        b"",
        b"Hello.",
        b'["Hello."]',
        b'{"txt": "Hello."}',
        b'{"text": 5}',
        b'{"text": "\xff"}',
        b"[" * 100_000,
        b'{"text": "' + b"a" * LONGEST_LINE + b'"}',
        b'{"audio": "../x.wav"}',
        b'{"text": "a", "start": NaN}',
        b'{"text": "a", "start": 2, "end": 1}',
        b'{"text": "half \\ud800"}',
    ]
    done = run("--model", models, "--stream", "--root", tmp_path, stdin=b"\n".join(lines))
    found = records(done.stdout)
    assert [one.get("turn", one.get("line")) for one in found] == [0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1]
    assert "unknown key 'txt'; did you mean 'text'?" in found[3]["error"]
    assert "longer than" in found[7]["error"]
    assert found[8]["error"].startswith("recording '../x.wav' lies outside")
    assert not [one for one in found if one.get("error", "").startswith("line")]  # the number has its own key
    assert done.stderr == "2 lines answered, 10 refused\n"
    assert done.exit_code == 0


def test_a_model_of_one_imported_modality_answers_turns_of_the_other_alone(recorded: Recorded, tmp_path: Path) -> None:
    """Typed and streamed; where all it learned from was imported there is nothing that a stream could ask."""
    audio, text = recorded.features.audio, recorded.features.text
    assert audio is not None
    assert text is not None
    imported = {
        name: replace(part, identity=Identity({"model": "imported", "modality": name, "values": "0"}))
        for name, part in (("audio", audio), ("text", text))
    }
    one, both = replace(recorded.features, audio=imported["audio"]), replace(recorded.features, **imported)  # type: ignore[arg-type]
    for name, features in (("one", one), ("both", both)):
        train_made(features, tmp_path / name, tiny_recipe(epochs=1))
    typed = run("--model", tmp_path / "one", "--text", "Hello.")
    sound = str(recorded.utterances[0].audio)
    lines = [json.dumps(line) for line in ({"text": "Hello."}, {"text": "Hello.", "audio": sound})]
    streamed = run("--model", tmp_path / "one", "--stream", "--root", recorded.root, stdin="\n".join(lines))
    assert streamed.stderr == "1 lines answered, 1 refused\n"
    first, second = records(streamed.stdout)
    assert first["probabilities"] == records(typed.stdout)[0]["probabilities"]
    assert "audio features that were imported" in second["error"]
    refused = run("--model", tmp_path / "both", "--stream", "--root", recorded.root, stdin=lines[0])
    assert refused.exit_code == 2
    assert "it can only predict the utterances of that import (--features)" in refused.stderr


def test_conversations_of_a_stream_are_told_apart_and_the_last_turn_ends_one(models: Path) -> None:
    said = [("a", False), ("b", False), ("a", True), ("a", False), ("b", False)]
    lines = [json.dumps({"text": "Hello.", "conversation": name, "last": last}) for name, last in said]
    found = records(run("--model", models, "--stream", stdin="\n".join(lines)).stdout)
    assert [(one["conversation"], one["turn"]) for one in found] == [("a", 0), ("b", 0), ("a", 1), ("a", 0), ("b", 1)]


def test_names_that_a_spreadsheet_would_run_are_defused_in_csv_alone(models: Path, tmp_path: Path) -> None:
    formula = '=HYPERLINK("http://x","y")'
    rows = [{"conversation": formula, "speaker": name, "text": formula} for name in ("+1+2", "@a", "-7", "Ann")]
    table = write_rows(tmp_path / "t.csv", rows)
    for name in ("p.csv", "p.jsonl"):
        assert run("--model", models, "--table", table, "--output", tmp_path / name).exit_code == 0
    found = read_csv(tmp_path / "p.csv")
    assert [row["speaker"] for row in found] == ["'+1+2", "'@a", "-7", "Ann"]
    assert {row["conversation"] for row in found} == {"'" + formula}
    assert {row["id"][:2] for row in found} == {"'="}
    lines = records((tmp_path / "p.jsonl").read_text())
    assert [line["speaker"] for line in lines] == ["+1+2", "@a", "-7", "Ann"]
    assert {line["conversation"] for line in lines} == {formula}
