"""docs/importing-features.md keeps its word: its commands run, in order, on files of the names that it gives."""

import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from pipeline.imports.pickles import LAYOUTS
from pipeline.params import ImportParams
from pipeline.settings import check_section
from pipeline.store import read_features
from tests.pipeline.imported import pad, write_pickle
from tests.pipeline.imports.test_published_layouts import COSMIC, MMSA, TUPLES
from tests.pipeline.made import write_rows
from tests.test_readme import APPS

DOCS = (Path(__file__).parents[1] / "docs" / "importing-features.md").read_text(encoding="utf-8")
COMMANDS = [
    *re.findall(r"^ {4}((?:pipeline|fusion)-.*)$", DOCS, flags=re.MULTILINE),
    *re.findall(r"\| `(pipeline-import [^`]*)` \|", DOCS),
]
DIM = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file that the page names."""
    root = tmp_path_factory.mktemp("docs")
    (root / "params.yaml").write_text("model: {dim: 8, heads: 2}\ntrain: {epochs: 1}\nevaluate: {resamples: 10}\n")
    rows = [
        {"id": f"u{c}-{turn}", "conversation": f"c{c}", "turn": turn, "split": split, "label": ("joy", "anger")[turn]}
        for c, split in enumerate(["train", "train", "train", "validation", "test", "test"])
        for turn in range(2)
    ]
    write_rows(root / "turns.csv", rows)
    write_rows(root / "words.csv", [{**row, "text": f"Turn {number}."} for number, row in enumerate(rows)])
    table = [f"dataset.{key}" for key in ("name=table", f"root={root}", "table=words.csv")]
    given = [option for one in table for option in ("--set", one)]
    manifest, text = str(root / "data" / "manifest.jsonl"), str(root / "data" / "text.h5")
    for name, places in {"pipeline-prepare": [], "pipeline-text": ["--manifest", manifest]}.items():
        output = text if places else manifest
        done = CliRunner().invoke(
            APPS[name], [*given, *places, "--output", output, "--params", str(root / "params.yaml")]
        )
        assert done.exit_code == 0, done.output
    random = np.random.default_rng(0)
    arrays = {str(row["id"]): random.normal(size=(random.integers(1, 5), DIM)).astype(np.float32) for row in rows}
    for name, array in arrays.items():
        for place in ("wav2vec", "folder"):
            (root / place).mkdir(exist_ok=True)
        np.save(root / "wav2vec" / f"{name}.npy", array)
        np.savez(root / "folder" / f"{name}.npz", hidden=array, attention=array)
    np.savez(root / "roberta.npz", **arrays)  # type: ignore[arg-type]
    with h5py.File(root / "groups.h5", "w") as file:
        for name, array in arrays.items():
            file[f"{name}/features"] = array
            file[f"{name}/intervals"] = np.zeros((len(array), 2))
    with h5py.File(root / "all.h5", "w") as file:
        for name, array in arrays.items():
            file[f"audio/{name}"] = array
    lengths = [len(array) for array in arrays.values()]
    np.save(root / "flat.npy", np.concatenate(list(arrays.values())))
    np.save(root / "lengths.npy", lengths)
    (root / "ids.txt").write_text("\n".join(arrays))
    values, mask = pad(list(arrays.values()))
    np.savez(root / "padded.npz", text=values, lengths=lengths, mask=mask)
    np.save(root / "vectors.npy", np.stack([array[0] for array in arrays.values()]))
    np.savez(root / "vectors.npz", np.load(root / "vectors.npy"))
    for file_name, naming, delimiter in (("opensmile.csv", "name", ";"), ("named.csv", "clip", ",")):
        lines = [delimiter.join([name, *map(str, array[0])]) for name, array in arrays.items()]
        (root / file_name).write_text("\n".join([delimiter.join([naming, "a", "b", "c", "d"]), *lines]))
    np.savetxt(root / "ordered.csv", np.stack([array[0] for array in arrays.values()]), delimiter=",")
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, root / "tensors.pt")
    write_pickle(root / "dict.pkl", arrays)
    write_pickle(root / "IEMOCAP_features.pkl", TUPLES["IEMOCAP of DialogueRNN, MMGCN, COGMEN"], 2)
    write_pickle(root / "iemocap_features_roberta.pkl", COSMIC["IEMOCAP of COSMIC"])
    write_pickle(root / "unaligned_50.pkl", MMSA)
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """In the order of the page: training comes after the import that it needs."""
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)
    name, *arguments = shlex.split(command)
    if name == "pipeline-import":  # as readers do, who have one kind of features
        (folder / "data" / "imported.h5").unlink(missing_ok=True)
    result = CliRunner().invoke(APPS[name], arguments)
    assert result.exit_code == 0, result.stderr
    if name == "pipeline-import":
        output = arguments[arguments.index("--output") + 1] if "--output" in arguments else "data/imported.h5"
        features = read_features(folder / output)
        assert len(features.utterances) in (10, 12)
        assert not re.search(r"no utterance(?! labelled)", result.stdout)  # a split of ten may lack a label


def test_there_are_commands_for_every_form() -> None:
    assert len(COMMANDS) >= 19


def test_the_table_and_the_parameters_of_the_page_are_real() -> None:
    block = re.search(r"^ {4}import:\n(?: {6}.*\n)+", DOCS, flags=re.MULTILINE)
    assert block is not None
    content = yaml.safe_load(block[0])["import"]
    assert check_section(content, "import", ImportParams, "docs") == ImportParams()


def test_every_published_layout_is_on_the_page() -> None:
    named = set(re.findall(r"`(\w+)`", DOCS))
    for names in LAYOUTS.values():
        assert str(len(names)) in DOCS
        assert {name for name in names if name in ("text", "audio", "visual", "roberta2", "roberta4")} <= named
