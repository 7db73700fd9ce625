"""Every command in README and docs is run, in the order of its page, on a piece of the demo; or NOT_RUN says why not.

Sizes are those of SIZES; the commands are as they stand on the page. Commands of DVC and git are run by test_dvc.py,
and with ERC_JUPYTER=1 in the environment the notebook by a kernel of Jupyter, rather than in this process.
"""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair
import nbformat
import pytest
import torch
import yaml
from nbclient import NotebookClient
from typer.testing import CliRunner

from fusion.evaluation import draw_png
from pipeline.settings import check_section
from tests.commands import PAGES, ROOT, Command, blocks_of, check_options, commands_in_prose, commands_of, extras
from tests.demo import write_piece
from tests.pipeline.made import sound, write_rows, write_wav
from tests.test_readme import APPS, SECTIONS

SIZES = {
    "train": {"epochs": 1, "seeds": [0]},
    "model": {"dim": 8, "heads": 2, "audio_frames": 8},
    "evaluate": {"resamples": 10, "permutations": 10, "missing": [0.5]},
}
CONVERSATIONS = {"train": 3, "validation": 2, "test": 2}
RUN_BY = {  # other tests run all commands of these pages, on files of the names that are given there
    "docs/importing-features.md": "test_importing_docs.py",
    "docs/adding-a-corpus.md": "test_adding_a_corpus.py",
    "docs/adding-a-model.md": "test_adding_a_model.py",
    "docs/prediction.md": "test_prediction_docs.py",
    "docs/sharing.md": "fusion/checkpoint/test_export.py",
}
NOT_RUN = {  # what a command begins with, and why it is not run here
    "make demo": "an install of minutes, then dvc repro, which test_dvc.py runs",
    "make real-demo": "an install and real weights; test_real_demo.py goes its whole way",
    "make test": "these are the tests",
    "make docs": "test_site.py builds the site",
    "dvc exp run --name fold": "five times the whole way, on a corpus under licence; test_corpora.py joins folds",
    "dvc exp run --run-all": "as above",
    "for k in": "as above",
    "fusion-folds results/folds": "as above",
    "for command in": "changes the shell's own files; test_completion.py asks every command for its script",
    "pip install": "the network; test_extras_exist looks at the names",
    "ray ": "a cluster; test_cluster.py starts one of its own",
    "python benchmarks/meld_text.py": "real texts and half an hour",
    "python scripts/compare_references.py": "clones of other people's code; test_references.py makes one",
    "pipeline-audio --set audio.encoder=egemaps": "an extra that is not installed; test_egemaps.py",
    "fusion-train --features data/feats.h5 --params params/": "minutes; test_authors_settings.py does, at toy size",
    "fusion-ablate --features data/feats.h5 --params params/": "as above",
    "source ": "the shell's own",
    "hf ": "a hub",
    "git clone ": "the network",
}
EVERY = [command for page in PAGES for command in commands_of(page)]
RUN_ELSEWHERE = {command.text for command in EVERY if command.page in RUN_BY}


def reason_not_to_run(command: Command) -> str | None:
    if "cluster.engine=ray" in command.text:
        return NOT_RUN["ray "]
    return next((why for beginning, why in NOT_RUN.items() if command.text.startswith(beginning)), None)


def is_run_here(command: Command) -> bool:
    elsewhere = command.text in RUN_ELSEWHERE or command.name in ("dvc", "git")
    return not (elsewhere or reason_not_to_run(command))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves, of a piece of the demo."""
    folder = tmp_path_factory.mktemp("project")
    write_piece(folder / "data" / "demo", CONVERSATIONS)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, sizes in SIZES.items():
        params[section] |= sizes
    params["evaluate"]["degrade"] |= {"word_errors": [0.2], "noise": [10]}
    params["ablations"] = {
        name: params["ablations"][name] for name in ("no gate", "audio withheld", "hcam", "concat", "crossmodal")
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (folder / "pipeline").symlink_to(ROOT / "pipeline")  # the packaged tokenizer
    write_wav(folder / "my.wav", sound(1.0, 16_000), 16_000)
    write_rows(
        folder / "turns.csv", [{"audio": "my.wav", "text": text, "conversation": "c"} for text in ("Oh.", "No!")]
    )
    for line in (
        "pipeline-prepare",
        "pipeline-audio",
        "pipeline-text",
        "pipeline-join",
        "pipeline-degrade",
        "fusion-train --features data/feats.h5",
        "fusion-evaluate --features data/feats.h5",
    ):
        run(Command("make demo", line), folder)
    return folder


def run(command: Command, folder: Path) -> None:
    """In this process, which has loaded torch already."""
    name, *arguments = shlex.split(command.text)
    torch.set_num_threads(1)
    with contextlib.chdir(folder):
        if name == "jupyter":
            run_notebook(Path(arguments[1]))
            return
        done = CliRunner().invoke(APPS[name], arguments)
    assert done.exit_code == 0, f"{command.page}: {command.text}: {done.stderr} {done.exception!r}"


def run_notebook(path: Path) -> None:
    """Its cells, from which its three figures must come: in this process, or as ERC_JUPYTER=1 asks, by Jupyter itself.

    A kernel has torch to load again.
    """
    notebook = nbformat.read(path, 4)
    if os.environ.get("ERC_JUPYTER"):
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
        return
    shown: list[Any] = []
    names: dict[str, object] = {"display": shown.append}
    with contextlib.chdir(path.parent), altair.renderers.enable():
        for cell in notebook.cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, str(path), "exec"), names)
    assert len(shown) == 3
    assert all(draw_png(chart).startswith(b"\x89PNG") for chart in shown)


@pytest.fixture
def workspace(project: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy that a page may change."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder, symlinks=True)
    yield folder
    shutil.rmtree(folder)


HERE = [command for command in EVERY if is_run_here(command)]
RUN_HERE = [one for index, one in enumerate(HERE) if one.text not in {before.text for before in HERE[:index]}]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("page", sorted({command.page for command in RUN_HERE}))
def test_the_commands_of_a_page_run(page: str, workspace: Path) -> None:
    """Those that no page before it has."""
    for command in RUN_HERE:
        if command.page == page:
            run(command, workspace)


@pytest.mark.parametrize(
    "command", [one for one in EVERY if one.page not in RUN_BY], ids=lambda command: f"{command.page}: {command.text}"
)
def test_every_command_would_be_taken(command: Command) -> None:
    """Also those that are not run."""
    words = shlex.split(command.text)
    if command.name.startswith(("fusion-", "pipeline-")):
        check_options(command, words)
    elif command.name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert words[1] in targets
    elif command.name == "python":
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))
    elif command.name == "dvc":
        assert shutil.which("dvc")
        for override in re.findall(r"-S '?([\w.]+)=", command.text):
            params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
            for key in override.split("."):
                params = params[key]
    else:
        assert command.name in ("git", "jupyter") or reason_not_to_run(command), command.text


def test_options_of_commands_in_sentences_exist() -> None:
    found = [command for page in PAGES for command in commands_in_prose(page) if page not in RUN_BY]
    assert len(found) >= 5
    for command in found:
        check_options(command, shlex.split(command.text))


def test_no_reason_is_left_over() -> None:
    for beginning in NOT_RUN:
        assert any(command.text.startswith(beginning) for command in EVERY), beginning


def test_extras_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"erc-fusion\[(\w+)\]", (ROOT / page).read_text("utf-8"))}
    assert {"cluster", "parquet"} <= named <= extras()


def test_most_commands_are_run() -> None:
    assert len(RUN_HERE) >= 12
    assert {command.name for command in RUN_HERE} >= {"fusion-train", "fusion-predict", "fusion-ablate", "jupyter"}


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "attention.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_every_yaml_example_of_the_pages_is_accepted() -> None:
    found = 0
    for page in PAGES:
        for block in blocks_of(page):
            if not re.match(rf"({'|'.join(SECTIONS)}):\n", block):
                continue
            for name, content in yaml.safe_load(block).items():
                degrade = content.pop("degrade", None) if name == "evaluate" else None
                check_section(content, name, SECTIONS[name], page)
                if degrade:
                    check_section(degrade, "evaluate.degrade", SECTIONS["evaluate.degrade"], page)
                found += 1
    assert found >= 8
