"""dvc.yaml: the whole way on a piece of the demo, and which edit runs which stages."""

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipeline.params import AudioParams, TextParams
from pipeline.settings import Section
from tests.commands import PAGES, Command, commands_of
from tests.test_commands import reason_not_to_run
from tests.warm import warm_scripts

ROOT = Path(__file__).parents[1]
ALWAYS = ["prepare", "finetune-audio", "finetune-text"]
READING = [
    *ALWAYS,
    "audio",
    "text",
    "degrade",
    "features",
    "train",
    "evaluate",
    "report",
]  # in the order of the pipeline
STAGES = ["corpus", *READING]


class Project:
    """A DVC project with this repository's dvc.yaml and sources, and a short corpus."""

    def __init__(self, folder: Path, scripts: Path) -> None:
        self.folder, self.scripts = folder, scripts
        for name in ("pipeline", "fusion"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".dvcignore", ".gitignore", "data/.gitignore"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
        shutil.copytree(ROOT / "data" / "demo", folder / "data" / "demo")
        self._shorten_corpus(folder / "data" / "demo" / "utterances.csv")
        self.params = yaml.safe_load((ROOT / "params.yaml").read_text())
        self.edit("train", epochs=1, seeds=[0])
        self.edit("evaluate", resamples=10, missing=[0.5], degrade=None)
        self.edit("model", dim=8, heads=2, audio_frames=8)
        self.run("git", "init", "--quiet")
        self.run("git", "add", ".")
        self.run("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "all")

    @staticmethod
    def _shorten_corpus(table: Path) -> None:
        header, *rows = table.read_text(encoding="utf-8").splitlines()
        kept: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for row in rows:
            split = next(name for name in kept if f",{name}," in row)
            conversation = row.split(",")[0]
            if conversation in kept[split] or len(kept[split]) < (4 if split == "train" else 2):
                kept[split] += [conversation] if conversation not in kept[split] else []
        chosen = {conversation for conversations in kept.values() for conversation in conversations}
        table.write_text("\n".join([header, *(r for r in rows if r.split(",")[0] in chosen)]) + "\n", encoding="utf-8")

    def edit(self, section: str, **values: object) -> None:
        self.params[section] |= values
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params))

    def run(self, *command: str) -> str:
        environment = os.environ | {
            "PATH": os.pathsep.join([str(self.scripts), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.folder),
            **{f"GIT_{role}_{kind}": "t@example.org" for role in ("AUTHOR", "COMMITTER") for kind in ("NAME", "EMAIL")},
        }
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self, *targets: str) -> list[str]:
        """The stages that `dvc repro` runs."""
        return re.findall(r"Running stage '([\w-]+)'", self.run("dvc", "repro", *targets))

    def would_run(self) -> set[str]:
        """The stages that changed, and all that read what those write."""
        stages = yaml.safe_load((self.folder / "dvc.yaml").read_text())["stages"]
        with contextlib.chdir(self.folder), Repo() as repo:  # what `dvc status` prints, seconds sooner
            running = set(repo.status())
        for name in READING:
            written = {out for stage in running for out in [*stages[stage]["outs"], *stages[stage].get("metrics", [])]}
            if written & set(stages[name]["deps"]):
                running.add(name)
        return running


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project")
    with warm_scripts(folder / "bin") as scripts:
        project = Project(folder / "project", scripts)
        assert sorted(project.repro()) == sorted(STAGES)
        yield project
    shutil.rmtree(folder, ignore_errors=True)


def test_a_second_run_runs_no_stage(project: Project) -> None:
    assert project.repro() == []


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("evaluate", {"resamples": 20}, {"evaluate", "report"}),
        ("evaluate", {"missing": []}, {"evaluate", "report"}),
        ("evaluate", {"degrade": {"word_errors": [0.5]}}, {"degrade", "evaluate", "report"}),
        ("train", {"epochs": 2}, {"train", "evaluate", "report"}),
        ("features", {"copy_parts": True}, {"features", "train", "evaluate", "report"}),
        ("dataset", {"channels": "first"}, set(READING)),
        ("loss", {"relative": 0.0}, {"train", "evaluate", "report"}),
        ("model", {"hbaf": {"context": "none"}}, {"train", "evaluate", "report"}),
        ("model", {"hcam": {"blocks": 1}}, set()),
        ("model", {"name": "concat"}, {"train", "evaluate", "report"}),
        ("text", {"layers": [1]}, {"text", "degrade", "features", "train", "evaluate", "report"}),
        ("text", {"past_turns": 2}, {"finetune-text", *READING[READING.index("text") :]}),
        ("audio", {"layers": [2]}, {"audio", "degrade", "features", "train", "evaluate", "report"}),
    ],
)
def test_an_edit_runs_only_what_depends_on_it(
    project: Project, section: str, values: dict[str, object], expected: set[str]
) -> None:
    before = dict(project.params[section])
    project.edit(section, **values)
    assert project.would_run() == expected
    project.edit(section, **before)


@pytest.mark.parametrize(
    "values",
    [{"split": "conversation", "test_share": 0.3}, {"fold": 2, "protocol": "62-31", "columns": {"label": "cue"}}],
)
@pytest.mark.soak
def test_another_split_fold_or_label_runs_no_encoder(project: Project, values: dict[str, object]) -> None:
    before = dict(project.params["dataset"])
    project.edit("dataset", **values)
    ran = project.repro("features")
    assert ran[0] == "prepare"
    assert not {"audio", "text"} & {*ran}
    project.edit("dataset", **before)
    assert not {"audio", "text"} & {*project.repro()}


@pytest.mark.soak
def test_a_label_in_the_table_runs_no_encoder_and_another_text_runs_its_own(project: Project) -> None:
    table = project.folder / "data" / "demo" / "utterances.csv"
    before = table.read_text(encoding="utf-8")
    header, first, *rows = before.splitlines(keepends=True)
    cells = dict(zip(next(csv.reader([header])), next(csv.reader([first])), strict=True))
    label = next(one for one in ("anger", "joy") if one != cells["label"])
    table.write_text("".join([header, first.replace(cells["label"], label), *reversed(rows)]), encoding="utf-8")
    assert not {"audio", "text"} & {*project.repro("features")}
    table.write_text("".join([header, first.replace(cells["text"], "Nobody said this."), *rows]), encoding="utf-8")
    assert {"audio", "text"} & {*project.repro("features")} == {"text"}
    table.write_text(before, encoding="utf-8")
    assert not {"audio", "text"} & {*project.repro()}


def test_no_command_holds_what_a_user_may_write_freely() -> None:
    """Such as `dataset.root`, which a shell would split at its blanks; commands read it from params.yaml."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {found for stage in stages.values() for found in re.findall(r"\$\{.*?\}", stage["cmd"])} == {"${model.name}"}


@pytest.mark.soak
@pytest.mark.parametrize(
    "name", ["my corpus", 'it\'s "mine"', "a $HOME ${x}", "~odd", "~/mine", "Gespräche ✓", "a;b&c(d)*"]
)
def test_a_corpus_may_lie_in_a_folder_of_any_name(
    project: Project, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(project.params["dataset"])
    root = name if name[0] == "~" else f"data/{name}"
    shutil.copytree(project.folder / "data" / "demo", copy := project.folder / root.replace("~/", f"{tmp_path}/"))
    (copy / "notes.txt").write_text(name)  # the same corpus elsewhere makes nothing due but its manifest
    project.edit("dataset", root=root)
    assert {"corpus", "report"} <= {*project.repro()}
    assert "data:audio" in (project.folder / "results" / "report" / "index.html").read_text(encoding="utf-8")
    assert project.repro() == []
    project.edit("dataset", **before)
    assert project.repro()[0] == "corpus"  # a link to the one before would have everything made of it


@pytest.mark.soak
def test_weights_that_change_in_a_folder_of_the_same_name_are_noticed_by_all_that_encode_with_them(
    project: Project,
) -> None:
    before, encoder = dict(project.params["text"]), project.folder / "mine"
    shutil.copytree(project.folder / "pipeline" / "encoders" / "weights" / "tiny-bert", encoder)
    project.edit("text", encoder="mine")
    project.repro("text")
    project.run("dvc", "commit", "--force", "degrade")
    assert not {"text", "degrade"} & project.would_run()
    (encoder / "config.json").write_text((encoder / "config.json").read_text() + "\n")
    assert project.would_run() >= {"text", "degrade", "features"}
    assert "audio" not in project.would_run()
    project.edit("text", **before)
    assert not {"text", "audio"} & {*project.repro()}  # from DVC's own cache


@pytest.mark.soak
def test_a_further_level_of_noise_encodes_that_level_alone(project: Project) -> None:
    """Although DVC deletes the folder with the others before it runs the stage."""
    before = dict(project.params["audio"]), dict(project.params["evaluate"])
    project.edit("audio", encoder="log-mel")
    project.edit("evaluate", degrade={"noise": [20]})
    encoded = re.compile(r"^audio-noise-(\d+)dB.h5: .*, encoded$", flags=re.MULTILINE)
    assert encoded.findall(project.run("dvc", "repro", "--single-item", "degrade")) == ["20"]
    project.edit("evaluate", degrade={"noise": [5, 20]})
    assert encoded.findall(project.run("dvc", "repro", "--single-item", "degrade")) == ["5"]
    folder = project.folder / "data" / "degraded"
    assert sorted(path.name for path in folder.iterdir()) == ["audio-noise-20dB.h5", "audio-noise-5dB.h5"]
    project.edit("audio", **before[0])
    project.edit("evaluate", **before[1])
    assert project.repro() == []  # from DVC's own cache
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("modality", "section"), [("audio", AudioParams), ("text", TextParams)])
def test_a_stage_depends_on_every_key_of_its_section_but_finetune(modality: str, section: type[Section]) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in (modality, "degrade"):
        named = [key for key in stages[stage]["params"] if key.startswith(f"{modality}.")]
        assert named == [f"{modality}.{key}" for key in section.model_fields if key != "finetune"]
    assert f"{modality}.finetune" in stages[f"finetune-{modality}"]["params"]


def test_a_stage_depends_on_what_is_in_the_encoder_folders_that_the_user_names() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    expected = {f"finetune-{one}": [f"{one}.finetune.encoder"] for one in ("audio", "text")}
    expected |= {"audio": ["audio.encoder"], "text": ["text.encoder"], "degrade": ["audio.encoder", "text.encoder"]}
    for stage, keys in expected.items():
        assert {f"data/.encoders/{key}" for key in keys} <= set(stages[stage]["deps"])
        assert set(keys) <= set(stages["corpus"]["params"])


@pytest.mark.soak
def test_the_experiments_of_the_pages_run(project: Project) -> None:
    """Every command of DVC and git in README and docs, in order; the second page repeats those of the first."""
    commands = {page: [one.text for one in commands_of(page) if is_of_dvc(one)] for page in PAGES}
    (first, *others) = [found for found in commands.values() if found]
    assert {one for found in others for one in found} <= set(first)
    assert first.pop(0) == "dvc repro"  # the fixture's
    printed = {command: project.run("bash", "-c", command) for command in first}
    ran = [re.findall(r"Running stage '([\w-]+)'", output) for output in printed.values()]
    assert [stages for stages in ran if stages] == [["train", "evaluate", "report"]]
    shown = next(output for command, output in printed.items() if command.startswith("dvc exp show"))
    assert "none" in shown  # which is what was changed; scores of so small a model may be the same
    assert project.run("git", "status", "--porcelain", "--untracked-files=no") == ""
    assert project.repro() == []


def is_of_dvc(command: Command) -> bool:
    return command.name in ("dvc", "git") and not reason_not_to_run(command)


def test_metrics_and_plots_are_shown(project: Project) -> None:
    assert "weighted_f1" in project.run("dvc", "metrics", "show", "--json")
    project.run("dvc", "plots", "show")
    page = (project.folder / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    assert all(title in page for title in ("Confusion on the test split", "Loss by epoch", "Validation score by epoch"))
    assert "robustness_missing.png" in page


def test_result_files_agree_with_each_other(project: Project) -> None:
    results = project.folder / "results"
    metrics = json.loads((results / "details.json").read_text(encoding="utf-8"))
    with (results / "predictions.csv").open(encoding="utf-8", newline="") as file:
        predictions = list(csv.DictReader(file))
    with (results / "confusion.csv").open(encoding="utf-8", newline="") as file:
        confusion = list(csv.DictReader(file))
    assert [(row["true"], row["predicted"]) for row in predictions] == [
        (row["actual"], row["predicted"]) for row in confusion
    ]
    assert {row["split"] for row in predictions} == {"test"}
    correct = sum(row["true"] == row["predicted"] for row in predictions) / len(predictions)
    assert f"{correct:.6f}".rstrip("0") in json.dumps(metrics)
    assert {row["run"] for row in predictions} == {metrics["run"]["id"]}


def test_an_edit_of_the_page_scores_nothing_again(project: Project) -> None:
    script = project.folder / "fusion" / "report" / "assets" / "main.js"
    before = script.read_text(encoding="utf-8")
    script.write_text(before + "// edited\n", encoding="utf-8")
    assert project.would_run() == {"report"}
    script.write_text(before, encoding="utf-8")


def test_every_source_that_a_stage_names_exists() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        for dependency in stage.get("deps", []):
            if dependency.startswith(("pipeline/", "fusion/")):
                assert (ROOT / dependency).exists(), dependency


SPOKEN = """
from collections import Counter
from pathlib import Path

from pipeline.datasets import Corpus, Turn, read_rows


def read(params):
    rows = [row.cells for row in read_rows(Path(params.root) / "utterances.csv")]
    for row in rows:
        row["order"] = int(row.pop("turn"))
        del row["cue"]
    return Corpus([Turn(**row) for row in rows])
"""


@pytest.mark.soak
def test_a_model_and_a_corpus_of_ones_own_go_all_the_way(tmp_path: Path) -> None:
    """Those of a folder outside of the package, with the lines in dvc.yaml that the pages ask for."""
    (gated, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding-a-model.md").read_text(), flags=re.DOTALL)
    with warm_scripts(tmp_path / "bin") as scripts:
        project = Project(tmp_path / "project", scripts)
        mine = project.folder / "mine"
        mine.mkdir()
        (mine / "gated.py").write_text(gated)
        (mine / "spoken.py").write_text(SPOKEN)
        stages = yaml.safe_load((project.folder / "dvc.yaml").read_text())
        for stage, module in {"prepare": "spoken", "train": "gated", "evaluate": "gated", "report": "gated"}.items():
            stages["stages"][stage]["deps"].append(f"mine/{module}.py")
        (project.folder / "dvc.yaml").write_text(yaml.safe_dump(stages))
        project.edit("dataset", name="mine.spoken:read")
        project.edit("model", name="mine.gated:Gated", mine={"gated:Gated": {"gate": False}})
        project.params["ablations"] = {
            "gate": {"model.mine.gated:Gated.gate": True},
            "concat": {"model.name": "concat"},
        }
        project.edit("train", seeds=[0])
        assert sorted(project.repro()) == sorted(STAGES)
        assert project.repro() == []
        project.run("fusion-ablate", "--features", "data/feats.h5")
        said = project.run("fusion-predict", "--model", "models/mine.gated:Gated", "--text", "We lost.")
        assert json.loads(said)["predicted"]
        (mine / "gated.py").write_text(gated + "# edited\n")
        assert project.would_run() == {"train", "evaluate", "report"}


@pytest.mark.soak
def test_fine_tuning_feeds_its_own_modality_and_while_off_nothing(project: Project) -> None:
    """The last test of the project: it leaves edits behind."""
    for modality in ("audio", "text"):
        project.edit(modality, finetune=project.params[modality]["finetune"] | {"seed": 7})
    assert sorted(project.repro()) == ["finetune-audio", "finetune-text"]  # the notes are the same
    learning = project.params["text"]["finetune"] | {"epochs": 1}
    project.edit("text", encoder="models/encoders/text", finetune=learning)
    assert project.repro("features") == ["corpus", "finetune-text", "text", "features"]
    assert (project.folder / "models" / "encoders" / "text" / "model.safetensors").exists()
