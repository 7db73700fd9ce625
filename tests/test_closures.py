"""What decides a stage, or a run of an ablation table, is what it reaches by imports: no less, and no more."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion.training.several_seeds import CODE
from pipeline.settings import closure as closures
from pipeline.settings.closure import closure, closure_digest
from scripts import stage_dependencies
from scripts.stage_dependencies import DVC, ROOT, STAGES, dependencies, rewritten


def names(*entries: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in closure(*entries)}


def test_dvc_yaml_names_the_closure_of_every_stage() -> None:
    content = DVC.read_text(encoding="utf-8")
    assert rewritten(content) == content, "run python scripts/stage_dependencies.py"


def test_a_stage_without_an_entry_would_be_noticed() -> None:
    import yaml

    assert set(yaml.safe_load(DVC.read_text(encoding="utf-8"))["stages"]) == set(STAGES)


@pytest.mark.parametrize(
    ("stage", "needs", "does_not_need"),
    [
        ("audio", "pipeline/encoders/speech.py", "pipeline/encoders/text.py"),
        ("text", "pipeline/encoders/text.py", "pipeline/encoders/speech.py"),
        ("audio", "pipeline/media", "pipeline/extraction/cluster.py"),
        ("prepare", "pipeline/datasets", "pipeline/encoders/speech.py"),
        ("train", "fusion/objective", "fusion/report"),
        ("evaluate", "fusion/inference.py", "fusion/training"),
        ("report", "fusion/report", "fusion/training/loop.py"),
    ],
)
def test_a_stage_depends_on_what_it_uses(stage: str, needs: str, does_not_need: str) -> None:
    found = dependencies(STAGES[stage])
    assert needs in found
    assert not [path for path in found if path.startswith(does_not_need)]


def test_training_depends_on_what_picks_the_weights_that_are_kept() -> None:
    found = names(*CODE)
    assert {"fusion/objective/selection.py", "fusion/params.py", "fusion/runtime/device.py"} <= found
    assert not {path for path in found if path.startswith(("fusion/report", "fusion/evaluation", "fusion/ablation"))}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the sources that may be edited, looked at in place of the original."""
    for package in closures.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    monkeypatch.setattr(closures, "ROOT", tmp_path)
    monkeypatch.setattr(stage_dependencies, "ROOT", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    closures.read_source.cache_clear()
    closures.find_source.cache_clear()
    closures.reached.cache_clear()


def edit(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
    forget()


def test_an_edit_of_the_report_repeats_no_run(packages: Path) -> None:
    before = closure_digest(*CODE)
    for path in (packages / "fusion" / "report").rglob("*.py"):
        edit(path)
    assert closure_digest(*CODE) == before


def test_an_edit_of_the_selection_repeats_every_run(packages: Path) -> None:
    before = closure_digest(*CODE)
    edit(packages / "fusion" / "objective" / "selection.py")
    assert closure_digest(*CODE) != before


def test_a_new_import_becomes_a_dependency(packages: Path) -> None:
    (packages / "pipeline" / "media" / "added.py").write_text("def added() -> int:\n    return 1\n")
    assert not any("added" in path for path in dependencies(STAGES["text"]))
    module = packages / "pipeline" / "encoders" / "text.py"
    content = module.read_text(encoding="utf-8")
    used = "from pipeline.media.added import added\n\n    added()\n    device = choose_device(device)\n"
    edited = content.replace("    device = choose_device(device)\n", "    " + used, 1)
    assert edited != content
    module.write_text(edited, encoding="utf-8")
    forget()
    assert "pipeline/media/added.py" in dependencies(STAGES["text"])


def test_unknown_entries_are_named() -> None:
    with pytest.raises(LookupError, match=r"there is no module 'fusion\.nothing'"):
        closure("fusion.nothing:fit")
    with pytest.raises(LookupError, match=r"fusion\.training\.loop defines no 'nothing'"):
        closure("fusion.training.loop:nothing")


def test_the_script_says_whether_dvc_yaml_is_up_to_date() -> None:
    script = ROOT / "scripts" / "stage_dependencies.py"
    assert subprocess.run([sys.executable, script, "--check"], cwd=ROOT).returncode == 0
