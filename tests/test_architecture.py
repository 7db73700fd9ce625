"""The rules of the house, read from the imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("pipeline", "fusion")
    for path in sorted((ROOT / package).rglob("*.py"))
}
CORPORA = ("meld", "iemocap", "mosi", "nemo")


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Modules of this project that `path` imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: Iterator[ast.AST] = iter(_run_at_import(tree)) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in [node.module, *members] if name in MODULES)


def _run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from ast.walk(node)


def test_pipeline_never_imports_fusion() -> None:
    for name, path in MODULES.items():
        if name.startswith("pipeline"):
            assert not [found for found in imports(path) if found.startswith("fusion")], name


PUBLISHED = {"pipeline.store", "pipeline.settings"}
COMPOSED = {"fusion.recordings": {"pipeline.recordings"}}  # the one place that asks the pipeline to encode


def test_fusion_takes_only_store_and_settings_from_pipeline() -> None:
    for name, path in MODULES.items():
        if name.startswith("fusion"):
            taken = {found for found in imports(path) if found.startswith("pipeline.")}
            assert taken <= PUBLISHED | COMPOSED.get(name, set()), name


def test_the_pipeline_is_asked_to_encode_only_when_that_is_called() -> None:
    for name, modules in COMPOSED.items():
        assert modules <= set(imports(MODULES[name]))
        assert not modules & set(imports(MODULES[name], top_level_only=True))


def test_there_is_no_import_circle() -> None:
    graph = {name: set(imports(path, top_level_only=True)) - {name} for name, path in MODULES.items()}
    for name, found in graph.items():  # `from package import module` needs the package only to find the module
        graph[name] = {other for other in found if not name.startswith(other + ".")}
    remaining = dict(graph)
    while remaining:
        free = [name for name, found in remaining.items() if not found & remaining.keys()]
        assert free, f"a circle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


def test_no_corpus_is_named_in_fusion() -> None:
    for name, path in MODULES.items():
        if name.startswith("fusion"):
            content = path.read_text(encoding="utf-8").lower()
            assert not [corpus for corpus in CORPORA if corpus in content], name


def test_modules_stay_within_one_idea() -> None:
    """STYLE: usually 40 to 200 lines; the feature-file format is the longest on purpose."""
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: length for name, length in lengths.items() if length > 500}
    assert not [name for name in MODULES if name.split(".")[-1] in ("utils", "common", "helpers")]


def loaded_by(statement: str) -> set[str]:
    """Top-level names of all modules that `statement` loads, in a fresh interpreter."""
    script = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize("module", ["fusion.cli", "pipeline.cli"])
def test_commands_import_no_heavy_library(module: str) -> None:
    assert not loaded_by(f"import {module}") & {
        "transformers",
        "torchaudio",
        "dvc",
        "torch",
        "sklearn",
        "h5py",
        "av",
        "ray",
    }


@pytest.mark.parametrize("module", ["fusion.cli", "pipeline.cli"])
def test_help_loads_no_torch(module: str) -> None:
    """Nor does the help of the commands before it, in the same process."""
    apps = sorted(name for name in vars(import_module(module)) if name.endswith("_app"))
    assert apps
    statement = (
        f"import sys, contextlib, io, {module} as commands\nsys.argv = ['command', '--help']\n"
        f"for app in {apps}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        getattr(commands, app)()\n"
        "    assert 'torch' not in sys.modules, app"
    )
    assert "torch" not in loaded_by(statement)


TRAINING = "fusion.train, fusion.evaluate, fusion.models, fusion.predict_command"
ENCODING = "pipeline.extract, pipeline.encoders.speech, pipeline.encoders.text, pipeline.finetune.trainer"


def test_training_loads_no_encoder_library_and_encoding_neither_dvc_nor_av() -> None:
    """Machines that only encode what is decoded, or train, may lack both."""
    assert not loaded_by(
        f"import sys, {TRAINING}\n"
        "assert not {'transformers', 'torchaudio', 'dvc', 'av'} & set(sys.modules), 'training'\n"
        f"import {ENCODING}"
    ) & {"dvc", "av"}
