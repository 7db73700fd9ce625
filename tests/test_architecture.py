"""The rules of the house, read from the imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The order of each package: a room, or a file at the top, imports only what stands above it. `pipeline` stands above
# all of `fusion`.
ROOMS = {
    "pipeline": [
        "errors",  # the error tree
        "settings",  # strict params.yaml; what commands share; cores, memory and threads of the machine; the cluster
        "manifest",  # the Utterance record
        "params",  # the sections that pipeline owns
        "store",  # the feature file: reader, writer, identity, seal
        "media",  # any container -> mono samples at the encoder's rate
        "datasets",  # one file a corpus
        "encoders",  # speech and text encoders
        "preparation",  # pipeline-prepare
        "extraction",  # pipeline-audio, pipeline-text; Ray
        "degradation",  # pipeline-degrade
        "finetuning",  # pipeline-finetune
        "join",  # pipeline-join
        "imports",  # pipeline-import
        "inspect",  # pipeline-inspect
        "recordings",  # the public door for encoding new recordings
        "cli",  # one call a command
    ],
    "fusion": [
        "errors",  # the error tree
        "batch",  # Batch, Group, Output, Turns
        "runtime",  # device, memory, worker processes, files that appear whole or not at all
        "objective",  # tasks, losses, metrics, selection, calibration, statistics
        "tables",  # how numbers are written; knows the intervals of `objective`
        "layers",  # shared by models
        "models",  # one file a model, one table of names
        "params",  # the sections that fusion owns
        "data",  # a split of the feature file and its batches
        "inference",  # what a model answers on a split
        "linear",  # the linear reference
        "checkpoint",  # model folders, provenance, card, export
        "training",  # one model, several seeds
        "prediction",  # recordings or features -> labels
        "evaluation",  # evaluate, robustness, folds, and their files
        "ablation",  # variants, runs, comparison, tables
        "report",  # the page
        "cli",  # one call a command
    ],
}
LIMITS = {"pipeline": 73, "fusion": 79}  # modules, the doors (`__init__`) not counted
AT_THE_TOP = 8  # files, `__init__` among them
PUBLISHED = ("pipeline.store", "pipeline.settings")  # what fusion may import of pipeline
COMPOSED = {"fusion.prediction.recordings": "pipeline.recordings"}  # the one place that asks the pipeline to encode
BESIDE_THE_DOOR = {  # (importer, file of another room): why
    ("pipeline.imports.stage", "pipeline.datasets.table"): "the function of every adapter is called `read`"
}
CORPORA = ("meld", "iemocap", "mosi", "nemo")
HEAVY = {"transformers", "torchaudio", "dvc", "torch", "sklearn", "h5py", "av", "ray", "numpy", "pydantic", "rich"}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ROOMS
    for path in sorted((ROOT / package).rglob("*.py"))
}
DOORS = {name for name, path in MODULES.items() if path.name == "__init__.py"}


@dataclass(frozen=True)
class Import:
    """Something of this project that a module imports: a module, or a name that a door offers."""

    importer: str
    module: str
    name: str | None
    when_loaded: bool  # rather than when a function is called, or for types alone

    @property
    def found_in(self) -> str:
        """The module that defines it."""
        return offers(self.module).get(self.name or "", self.module)


def imports_of(importer: str) -> Iterator[Import]:
    """All of them, wherever they stand."""
    tree = ast.parse(MODULES[importer].read_text(encoding="utf-8"))
    loaded = set(_run_when_loaded(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield Import(importer, alias.name, None, node in loaded)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{importer}: a relative import"
            for alias in node.names if node.module in MODULES else ():
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES:
                    yield Import(importer, whole, None, node in loaded)
                else:
                    yield Import(importer, str(node.module), alias.name, node in loaded)


def _run_when_loaded(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(node, ast.FunctionDef):
            yield node
            yield from _run_when_loaded(node)


def offers(module: str) -> dict[str, str]:
    """What a door offers, by name, as its imports for mypy say it: the module that each name is from."""
    if module not in DOORS:
        return {}
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {
        alias.name: str(node.module)
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


IMPORTS = [one for name in MODULES if name not in DOORS for one in imports_of(name)]


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def place(module: str) -> int:
    """Where its room stands in the order of its package."""
    package, room = module.split(".")[:2]
    return ROOMS[package].index(room)


def test_every_file_is_in_a_room_of_the_list() -> None:
    found = {package: {name.split(".")[1] for name in MODULES if name.startswith(package + ".")} for package in ROOMS}
    assert found == {package: set(rooms) for package, rooms in ROOMS.items()}


def test_a_room_imports_only_rooms_above_it() -> None:
    """Also within functions, and for types alone."""
    downward = [
        f"{one.importer} imports {one.module}"
        for one in IMPORTS
        if one.importer.split(".")[0] == one.module.split(".")[0]
        and room_of(one.importer) != room_of(one.module)
        and place(one.module) >= place(one.importer)
    ]
    assert not downward


def test_a_room_is_entered_by_its_door() -> None:
    """What another room needs stands in the `__init__`; inside a room files import each other."""
    beside = {
        (one.importer, one.module)
        for one in IMPORTS
        if room_of(one.importer) != room_of(one.module) and one.module.count(".") > 1
    }
    within = {
        (one.importer, one.module)
        for one in IMPORTS
        if room_of(one.importer) == room_of(one.module) and one.module in DOORS
    }
    assert beside == set(BESIDE_THE_DOOR)
    assert not within


@pytest.mark.parametrize("door", sorted(DOORS - {"pipeline"}))  # which offers functions of its own alone
def test_a_door_offers_what_mypy_sees_and_loads_nothing_for_it(door: str) -> None:
    room = import_module(door)
    assert offers(door)
    for name, module in offers(door).items():
        assert getattr(room, name) is getattr(import_module(module), name)
        assert f"{door}.{name}" not in MODULES, "a file of this name would hide it once it is loaded"
    assert loaded_by(f"import {door}", prefix=door + ".") == set()


def test_a_door_offers_nothing_that_nobody_takes_but_what_is_public() -> None:
    taken = {(one.module, one.name) for one in IMPORTS}
    paths = [
        path
        for folder in ("tests", "benchmarks", "scripts", "docs", "notebooks")
        for path in (ROOT / folder).rglob("*")
    ]
    for path in [*paths, *(ROOT / package / "__init__.py" for package in ROOMS)]:
        if path.suffix in (".py", ".md", ".ipynb"):
            text = path.read_text(encoding="utf-8")
            taken |= {(door, name) for door in DOORS if door in text for name in offers(door) if name in text}
    assert not [(door, name) for door in DOORS for name in offers(door) if (door, name) not in taken]


def test_pipeline_never_imports_fusion() -> None:
    assert not [one for one in IMPORTS if one.importer.startswith("pipeline") and one.module.startswith("fusion")]


def test_fusion_takes_only_store_and_settings_from_pipeline() -> None:
    for one in IMPORTS:
        if one.importer.startswith("fusion") and one.module.startswith("pipeline"):
            assert one.module in (*PUBLISHED, COMPOSED.get(one.importer)), one


def test_the_pipeline_is_asked_to_encode_only_when_that_is_called() -> None:
    for importer, module in COMPOSED.items():
        asked = [one for one in IMPORTS if (one.importer, one.module) == (importer, module)]
        assert asked
        assert not [one for one in asked if one.when_loaded]


def test_there_is_no_import_circle() -> None:
    """Among files, whatever doors their imports go through, and also by imports within functions."""
    remaining = {name: set[str]() for name in MODULES if name not in DOORS}
    for one in IMPORTS:
        remaining[one.importer] |= {one.found_in} - DOORS - {one.importer}
    while remaining:
        free = [name for name, found in remaining.items() if not found & remaining.keys()]
        assert free, f"a circle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


@pytest.mark.parametrize("package", ROOMS)
def test_a_person_can_hold_the_house_in_their_head(package: str) -> None:
    modules = [name for name in MODULES if name.startswith(package + ".") and name not in DOORS]
    top = sorted(path.name for path in (ROOT / package).glob("*.py"))
    lines = {name: len(MODULES[name].read_text(encoding="utf-8").splitlines()) for name in modules}
    print(
        f"\n{package}: {len(modules)} modules in {len(ROOMS[package])} places, {sum(lines.values())} lines, top: {top}"
    )
    assert len(modules) <= LIMITS[package]
    assert len(top) <= AT_THE_TOP
    assert not {name: length for name, length in lines.items() if length > 500}
    assert not [name for name in modules if name.split(".")[-1] in ("utils", "common", "helpers")]


def test_tests_use_no_private_name_of_ours() -> None:
    ours = {
        name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (name := getattr(node, "name", None) or getattr(node, "attr", None) or getattr(node, "id", None))
        and isinstance(name, str)
        and isinstance(getattr(node, "ctx", ast.Store()), ast.Store)
    }
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            used = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                used.append(node.attr)
            private = [
                name for name in used if name[0] == "_" and name[1] != "_" and name in ours - {"_fields"}
            ]  # of named tuples
            assert not private, f"{path.name}, line {getattr(node, 'lineno', 0)}"


def test_no_corpus_is_named_in_fusion() -> None:
    for name, path in MODULES.items():
        if name.startswith("fusion"):
            content = path.read_text(encoding="utf-8").lower()
            assert not [corpus for corpus in CORPORA if corpus in content], name


def loaded_by(statement: str, prefix: str = "") -> set[str]:
    """Modules that `statement` loads in a fresh interpreter: those below `prefix`, or without one the top-level
    names.
    """
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    return {name for name in loaded if name.startswith(prefix)} if prefix else {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize("module", ["fusion.cli", "pipeline.cli"])
def test_commands_import_no_heavy_library(module: str) -> None:
    assert not loaded_by(f"import {module}") & HEAVY


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


TRAINING = (
    "fusion.training.several_seeds, fusion.evaluation.scores, fusion.evaluation.result_files, fusion.models.registry, "
    "fusion.prediction.command, fusion.prediction.predictor"
)
ENCODING = "pipeline.extraction.stage, pipeline.encoders.speech, pipeline.encoders.text, pipeline.finetuning.trainer"


@pytest.mark.soak
def test_training_loads_no_encoder_library_and_encoding_neither_dvc_nor_av() -> None:
    """Machines that only encode what is decoded, or train, may lack both."""
    assert not loaded_by(
        f"import sys, {TRAINING}\n"
        "assert not {'transformers', 'torchaudio', 'dvc', 'av'} & set(sys.modules), 'training'\n"
        f"import {ENCODING}"
    ) & {"dvc", "av"}
