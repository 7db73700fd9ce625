"""Whatever a stranger's table, recordings or model folder hold: nothing runs, and nothing but the output is written."""

import json
import multiprocessing
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fusion.checkpoint.folder import write_hashes
from fusion.prediction import Predictor, Turn
from tests.fusion.recorded import Recorded
from tests.fusion.watched import CHANGES, main
from tests.pipeline.made import write_rows


class Payload:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


@dataclass
class Lab:
    """A folder in which everything hostile lies, and what came of it."""

    folder: Path
    jobs: dict[str, list[str]]
    port: int = 0

    @property
    def mark(self) -> Path:
        """Appears when something runs."""
        return self.folder / "pwned"

    def model(self, good: Path, name: str, change: Callable[[Path], None]) -> None:
        """A job that predicts with a copy of the seed folder `good`, which is changed before."""
        folder = Path(shutil.copytree(good, self.folder / "models" / name))
        change(folder)
        if (folder / "config.json").is_file():  # whoever made the folder can make its hashes, too
            write_hashes(folder)
        self.jobs[name] = ["--model", str(folder), "--text", "Hello."]

    def config(self, good: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """The same, of which config.json is changed."""

        def edit(folder: Path) -> None:
            content = json.loads((folder / "config.json").read_text())
            change(content)
            (folder / "config.json").write_text(json.dumps(content))

        self.model(good, name, edit)


def strange_names(lab: Lab) -> list[str]:
    address = f"127.0.0.1:{lab.port}/x.wav"
    return [
        "-x.wav",
        f"http://{address}",
        f"tcp://{address}",
        "concat:a.wav|b.wav",
        "pipe:0",
        "file:///etc/passwd",
        "data:audio/wav;base64,AAAA",
        f"subfile,,start,0,end,9,,:http://{address}",
        "a\nb.wav",
        "\x1b[31m.wav",
        f"$(touch {lab.mark.name})",
        f"; touch {lab.mark.name};",
        f"|touch {lab.mark.name}",
        "~root/x.wav",
        "n" * 5000,
        "playlist.m3u8",
        "sound.mpd",
    ]


def set_up(recorded: Recorded, lab: Lab) -> Path:
    """All jobs; returns the folder of a good model, which was moved here."""
    good = lab.folder / "moved" / "model"
    shutil.copytree(recorded.train() / "seed-0", good)
    shutil.copy(sound_of(recorded), lab.folder / "a.ogg")
    lab.jobs["moved"] = ["--model", str(good), "--audio", "a.ogg", "--text", "Hello."]
    root = lab.folder / "recordings"
    root.mkdir()
    address = f"http://127.0.0.1:{lab.port}/x.ts"
    (root / "playlist.m3u8").write_text(f"#EXTM3U\n#EXTINF:5,\n{address}\n#EXTINF:5,\nfile:///etc/passwd\n")
    (root / "sound.mpd").write_text(f'<?xml version="1.0"?><MPD><BaseURL>{address}</BaseURL></MPD>')
    out = lab.folder / "out"

    names = [{"text": "Hello.", "audio": name} for name in strange_names(lab)]
    table = write_rows(lab.folder / "names.jsonl", names)
    lab.jobs["names"] = ["--model", str(good), "--table", str(table), "--root", str(root), "--output", f"{out}/n.csv"]
    texts = ["\x1b[2Jcleared", "=cmd|' /C calc'!A0", "word " * 200_000, "a\0b", "‮", "${jndi:ldap://x}", "$(id)"]
    for text in texts:
        typed = text.replace("\0", "")  # no argument can hold it
        lab.jobs[f"text {text[:12]!r}"] = ["--model", str(good), "--text", typed]
    for name in ("../x.wav", "/etc/passwd", "a/../../x.wav"):
        outside = write_rows(lab.folder / f"{len(lab.jobs)}.csv", [{"text": "Hello.", "audio": name}])
        lab.jobs[f"outside {name}"] = ["--model", str(good), "--table", str(outside), "--root", str(root)]

    pickled = pickle.dumps(Payload(lab.mark))
    lab.model(good, "weights that are a pickle", lambda folder: place(folder / "model.safetensors", pickled))
    lab.model(good, "a pickle beside", lambda folder: place(folder / "pytorch_model.bin", pickled))
    lab.model(good, "history that is a pickle", lambda folder: place(folder / "history.json", pickled))
    lab.model(
        good, "code beside", lambda folder: place(folder / "modeling.py", f"open({str(lab.mark)!r}, 'w')".encode())
    )
    lab.config(good, "auto_map", lambda content: content.update(auto_map={"AutoModel": "modeling.HBAF"}))
    lab.config(good, "an unknown argument", lambda content: content.update(__class__="os.system"))
    lab.config(good, "a dim that is a text", lambda content: content.update(dim="8"))
    lab.config(good, "a dim without end", lambda content: content["sizes"].update(audio_dim=10**18))
    lab.config(good, "no classes", lambda content: content.update(classes=[1]))
    lab.config(good, "labels that are none", lambda content: content["erc"].update(labels=[{}, 1]))
    lab.config(good, "labels of a terminal", lambda content: content["erc"].update(labels=list("\x1b\x07\x9b\n")))
    lab.config(good, "a model of its own", lambda content: content["erc"].update(model="\x1b[31mos.system"))
    lab.config(good, "no temperature", lambda content: content["erc"]["calibration"].update(temperature=0))
    lab.config(good, "an encoder that is a text", lambda content: content["erc"].update(text="tiny"))
    for name in ("/etc", "../../models", f"http://127.0.0.1:{lab.port}/x", str(lab.folder / "encoder")):
        lab.config(good, f"encoder {name}", lambda content, name=name: content["erc"]["text"].update(model=name))
        revised = {"model": name, "revision": "a" * 40}
        lab.config(good, f"encoder {name} revised", lambda content, to=revised: content["erc"]["text"].update(to))
    lab.model(good, "nested", lambda folder: place(folder / "config.json", b"[" * 200_000))
    lab.model(good, "a link to itself", link_to_itself)
    encoder = lab.folder / "encoder"
    encoder.mkdir()
    place(encoder / "pytorch_model.bin", pickled)
    place(encoder / "modeling.py", f"open({str(lab.mark)!r}, 'w')".encode())
    config = {"model_type": "bert", "auto_map": {"AutoConfig": "modeling.C", "AutoModel": "modeling.M"}}
    for name, content in (("own code", config | {"model_type": "own"}), ("a pickle", config)):
        place(encoder / "config.json", json.dumps(content).encode())
        asked = ["--model", str(good), "--text", "Hello.", "--text-encoder"]
        lab.jobs[f"encoder folder with {name}"] = [*asked, str(shutil.copytree(encoder, lab.folder / f"with {name}"))]
    return good


def sound_of(recorded: Recorded) -> Path:
    return recorded.root / str(recorded.utterances[0].audio)


def place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def link_to_itself(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


@dataclass
class Told:
    """What came of all jobs."""

    lab: Lab
    told: dict[str, dict[str, Any]]
    seen: list[str]
    appeared: set[str]
    asked: int  # connections


@pytest.fixture(scope="module")
def told(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("hostile")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        lab = Lab(folder, {}, server.getsockname()[1])
        good = set_up(recorded, lab)
        jobs = {"good": str(good), "sound": str(sound_of(recorded)), "arguments": list(lab.jobs.values())}
        (folder / "jobs.json").write_text(json.dumps(jobs))
        before = {str(path) for path in folder.rglob("*")}
        process = multiprocessing.get_context("fork").Process(target=main, args=(folder,))
        process.start()
        process.join()
        assert process.exitcode == 0  # its traceback is on stderr
        asked = 0
        try:
            while True:
                server.accept()[0].close()
                asked += 1
        except TimeoutError:
            pass
    found = json.loads((folder / "told.json").read_text())
    appeared = {str(path) for path in folder.rglob("*")} - before - {str(folder / "told.json")}
    return Told(lab, dict(zip(lab.jobs, found["told"], strict=True)), found["seen"], appeared, asked)


@pytest.mark.soak
def test_a_model_that_was_moved_predicts_with_nothing_else_at_hand(told: Told, recorded: Recorded) -> None:
    """In another process and folder, without the features, the parameters and the project it was trained in."""
    one = told.told["moved"]
    assert one["status"] == 0, one
    with Predictor.load(recorded.train(), "cpu") as predictor:
        (expected,) = predictor.predict([Turn("Hello.", sound_of(recorded))])
    assert json.loads(one["out"])["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)


def test_nothing_runs(told: Told) -> None:
    assert not told.lab.mark.exists()
    runs = [event for event in told.seen if event.startswith(("os.system", "os.exec", "os.posix", "subprocess"))]
    assert runs  # the decoders
    assert [event for event in runs if "from pipeline.media.decoder_process import main" not in event] == []
    named = {event for event in told.seen if event.startswith("pickle.")}
    own = ("pickle.find_class ('pipeline.", "pickle.find_class ('builtins', 'getattr')")  # what decoders answer, whose
    assert {event for event in named if not event.startswith(own)} == set()  # enumeration 3.11.2 looks up by getattr


def test_nothing_but_the_output_is_written(told: Told) -> None:
    out = str(told.lab.folder / "out")
    assert told.appeared == {out, f"{out}/n.csv"}
    touched = {event.split(" ", 1)[1] for event in told.seen if event.startswith(("write ", *CHANGES))}
    assert f"{out}/n.csv.tmp" in touched
    pipes = {place for place in touched if place.isdigit()}
    assert {place for place in touched - pipes if not place.startswith((out, "/dev/null"))} == set()


def test_nobody_is_asked_over_a_network(told: Told) -> None:
    assert told.asked == 0
    assert [event for event in told.seen if event.startswith("socket.")] == []


def test_strange_names_of_recordings_leave_their_turns_with_a_status(told: Told) -> None:
    one = told.told["names"]
    assert one["status"] == 0, one
    count = len(strange_names(told.lab))
    assert f"{count} turns of {count} conversations, 1 model; 15 missing-file, 2 undecodable" in one["out"]


def test_any_text_of_which_something_can_be_seen_is_answered(told: Told) -> None:
    jobs = {name: one for name, one in told.told.items() if name.startswith("text ")}
    assert len(jobs) == 7
    unseen = jobs.pop(f"text {chr(0x202E)!r}")  # turns what follows it from right to left
    assert (unseen["status"], unseen["raised"]) == (2, None)
    assert "nothing that was given can be used: turn 0 is no-audio, no-text" in unseen["err"]
    for one in jobs.values():
        assert one["status"] == 0, one
        assert "\x1b" not in one["out"] + one["err"]
    assert "cut-text" in told.told["text 'word word wo'"]["err"]


def test_recordings_outside_are_refused(told: Told) -> None:
    for name, one in told.told.items():
        if name.startswith("outside "):
            assert one["status"] == 2
            assert "lies outside" in one["err"]


HARMLESS = ("a pickle beside", "code beside", "labels of a terminal")  # what is not looked at, or may well be


def test_a_model_folder_that_is_not_what_it_must_be_is_refused_in_a_line(told: Told) -> None:
    for name, one in told.told.items():
        if name in HARMLESS or name.startswith(("moved", "text ", "names", "outside ")):
            continue
        assert one["raised"] is None, (name, one)
        assert one["status"] == 2, (name, one)
        said = [line for line in one["err"].splitlines() if "Warning: " not in line and not line.startswith("  ")]
        assert len(said) == 1, (name, one)  # torch warns of a pickle before it refuses it
        assert said[0].startswith("error: ")
        assert "\x1b" not in one["err"]


def test_what_lies_beside_is_not_looked_at(told: Told) -> None:
    for name in HARMLESS:
        assert told.told[name]["status"] == 0, told.told[name]
        assert not {"\x1b", "\x07", "\x9b"} & set(told.told[name]["out"])
