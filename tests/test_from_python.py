"""What `fusion` and `pipeline` offer to Python, and docs/from-python.md, whose code is one program that is run here."""

import inspect
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import fusion
import pipeline
from fusion.checkpoint import VERSION, load_model, load_seeds
from fusion.cli import train_app
from pipeline.datasets import read_rows
from pipeline.manifest import read_manifest
from pipeline.settings import ErcError, SettingsError, as_overrides
from pipeline.store import read_features, read_part
from tests.commands import ROOT
from tests.demo import write_piece

PAGE = (ROOT / "docs" / "from-python.md").read_text(encoding="utf-8")
PROGRAM = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
CHOSEN = {"train": 3, "validation": 1, "test": 2}  # conversations
SMALL: dict[str, Any] = {"model": {"dim": 8, "heads": 2, "audio_frames": 8}, "train": {"epochs": 1, "seeds": (3, 4)}}
FLAG = re.compile(r"(?<!\()--\w+")  # a flag that the message asks for, rather than names in passing: (--output)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's folder with a piece of the demo, on which the page's program has run."""
    folder = tmp_path_factory.mktemp("notebook")
    write_piece(folder / "data" / "demo", CHOSEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names: dict[str, Any] = {"__name__": "page"}
        exec(compile(PROGRAM, "docs/from-python.md", "exec"), names)
    shown = names["attention"][0, :, : len(names["heads_mean"])]
    assert torch.allclose(shown.sum(-1)[shown.sum(-1) > 0], torch.ones(()), atol=1e-4)
    assert names["text"].shape[:2] == names["text_mask"].shape
    assert set(names["wrong"]) <= set(names["table"].ids)
    return folder


def test_the_program_of_the_page_runs(project: Path) -> None:
    assert (project / "models" / "small" / "seed-1" / "model.safetensors").exists()


@pytest.mark.soak
def test_training_from_python_gives_the_weights_of_the_command(project: Path, tmp_path: Path) -> None:
    """Whatever number of threads torch has here."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"model": SMALL["model"], "train": {"epochs": 7}}))
    torch.set_num_threads(2)
    try:
        models = fusion.train(
            str(project / "data/python/feats.h5"), tmp_path / "a", train=SMALL["train"], params=tmp_path / "params.yaml"
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"model": SMALL["model"], "train": {"epochs": 1}}))
    arguments = ["--features", f"{project}/data/python/feats.h5", "--params", f"{tmp_path}/params.yaml"]
    done = CliRunner().invoke(train_app, [*arguments, "--set", "train.seeds=[3,4]", "--output", f"{tmp_path}/b"])
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in models.iterdir()) == ["seed-3", "seed-4"]
    for seed in models.iterdir():
        weights = (seed / "model.safetensors").read_bytes()
        assert weights == (tmp_path / "b" / seed.name / "model.safetensors").read_bytes()


@pytest.mark.parametrize("split", [None, "test"])
def test_a_dataset_holds_what_the_file_holds(project: Path, split: str | None) -> None:
    features = fusion.load_features(project / "data/python/feats.h5")
    dataset = fusion.FeatureDataset(features, split)
    here = [index for index, name in enumerate(features.utterances.splits) if split in (None, name)]
    assert len(dataset) == len(here)
    for index, item in zip(here, [dataset[position] for position in range(len(dataset))], strict=True):
        assert features.audio
        assert features.text
        np.testing.assert_array_equal(item.audio.numpy(), features.audio.rows(index).astype(np.float32))
        np.testing.assert_array_equal(item.text.numpy(), features.text.rows(index).astype(np.float32))
        assert (item.id, item.label) == (features.utterances.ids[index], features.utterances.labels[index])


def test_a_dataset_takes_a_path_as_other_functions_do(project: Path) -> None:
    path = project / "data/python/feats.h5"
    opened = fusion.FeatureDataset(fusion.load_features(path), "test")
    for given in (path, str(path)):
        dataset = fusion.FeatureDataset(given, "test")
        assert dataset.indices == opened.indices
        assert torch.equal(dataset[0].text, opened[0].text)


@pytest.mark.parametrize(
    ("read", "place"),
    [
        (read_features, "data/python/feats.h5"),
        (read_part, "data/python/audio.h5"),
        (read_manifest, "data/python/manifest.jsonl"),
        (read_rows, "data/demo/utterances.csv"),
        (load_model, "models/small/seed-0"),
        (load_seeds, "models/small"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_pages_and_the_notebook_read_files_with_takes_strings(
    project: Path, read: Callable[[Any], Any], place: str
) -> None:
    given = str(project / place)
    assert str(read(given))[:200] == str(read(Path(given)))[:200]


def test_a_device_of_torch_is_a_device(project: Path) -> None:
    loaded = fusion.load_model(project / "models/small/seed-0", torch.device("cpu"))
    assert {weights.device for weights in loaded.model.parameters()} == {torch.device("cpu")}


def test_importing_is_instant() -> None:
    script = "import sys, fusion, pipeline; print(*(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "h5py", "pydantic", "yaml", "typer"} & set(loaded)


def test_every_name_is_there_and_shown_to_who_looks() -> None:
    for package in (fusion, pipeline):
        assert {*package.__all__} <= {*dir(package)}
        assert all(getattr(package, name) for name in package.__all__)
    assert fusion.__version__ == VERSION
    with pytest.raises(AttributeError, match="module 'fusion' has no attribute 'evalute'"):
        _ = fusion.evalute  # type: ignore[attr-defined]


PLACES = {"path", "output", "features", "params", "models", "turns", "root", "audio_encoder", "text_encoder"}
PLACES |= {"manifest", "table", "model"}


def functions() -> dict[str, Callable[..., Any]]:
    """What is public and called."""
    found = {
        f"{module.__name__}.{name}": getattr(module, name) for module in (fusion, pipeline) for name in dir(module)
    }
    methods = {f"Predictor.{name}": getattr(fusion.Predictor, name) for name in ("load", "predict_table")}
    return {name: one for name, one in (found | methods).items() if inspect.isroutine(one)}


def test_public_functions_take_paths_of_every_kind() -> None:
    """Whatever names a place in the file system takes a string and a path; sections of parameters are mappings."""
    checked = 0
    for name, function in functions().items():
        if name.rpartition(".")[2].startswith("_"):
            continue
        known = {key: getattr(fusion, key) for key in fusion.__all__} | {"Prepared": object, "torch": torch}
        for parameter, hint in get_type_hints(function, localns=known).items():
            told = str(hint)
            if parameter in PLACES and "Mapping" not in told:
                assert "str" in told, (name, parameter)
                assert "os.PathLike[str]" in told, (name, parameter)
                checked += 1
    assert checked >= 15


def test_dictionaries_mean_what_params_yaml_means() -> None:
    given = {"columns": {"text": "a = b: 'c'"}, "root": Path("data/é"), "split": None}
    assert as_overrides(train={"seeds": range(3)}) == ["train.seeds=[0, 1, 2]"]
    assert as_overrides(dataset=given, train={"seeds": np.arange(2), "learning_rate": np.float64(1e-5)}) == [
        """dataset.columns.text="a = b: 'c'\"""",
        'dataset.root="data/é"',
        "dataset.split=null",
        "train.seeds=[0, 1]",
        "train.learning_rate=1e-05",
    ]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda f: fusion.train(f, model={"naem": "hbaf"}), "unknown key 'model.naem'; did you mean 'model.name'?"),
        (lambda f: fusion.train(f, model={"dim": "x"}), r"""override 'model.dim="x"': 'model.dim' is 'x': """),
        (lambda f: fusion.train(f, model="hbaf"), "model is 'hbaf'; expected the keys of section 'model' in a dict"),
        (lambda f: fusion.train(f, train={"seeds": {0, 1}}), r"'train.seeds' is \{0, 1\}; expected numbers, strings"),
        (lambda f: fusion.train(f, device="tpu"), "device 'tpu': no such device; here are auto, cpu"),
        (lambda f: fusion.train(f, params="none.yaml"), "none.yaml: no such file"),
        (lambda f: fusion.train(f, f.parent), "exists and is not a folder of models alone; name another one"),
        (lambda f: fusion.train("none.h5", "models"), "none.h5: no such feature file"),
        (
            lambda f: fusion.train(f, "models", jobs=0),
            "0 jobs: expected at least 1; leave jobs out for one on each core",
        ),
        (lambda f: fusion.train(f, params="a\0b"), "a\0b: cannot be read"),
        (lambda f: fusion.load_features("a\0b"), r"'a\\x00b': no path holds a null character"),
        (lambda f: fusion.FeatureDataset("none.h5"), "none.h5: no such feature file"),
        (
            lambda f: fusion.evaluate(f, f.parents[2] / "models/small/seed-0"),
            "of one seed; name the folder of all seeds, ",
        ),
        (lambda f: fusion.load_model("none"), "none: no such model folder"),
        (lambda f: fusion.evaluate(f, "none"), "none: no such model folder"),
        (lambda f: fusion.predict("none", []), "none: no such model folder"),
        (lambda f: fusion.predict(f.parents[2] / "models/small", "none.csv"), "none.csv: no such table"),
        (lambda f: fusion.predict(f.parents[2] / "models/small", "We lost."), "We lost.: no such table"),
        (lambda f: fusion.predict("none", [], split="test"), "split goes with features, found turns of type list"),
        (lambda f: fusion.predict("none", fusion.load_features(f), root="x"), "root goes with the path of a table"),
        (lambda f: fusion.predict("none", f, root="x"), "root goes with the path of a table"),
        (lambda f: pipeline.prepare("m.jsonl", dataset={"name": "mled"}), "did you mean 'meld'?"),
        (lambda f: pipeline.encode("none.jsonl", "f.h5"), "none.jsonl: no such manifest"),
    ],
)
def test_errors_are_for_python_too(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[Path], Any], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ErcError, match=expected.replace("?", r"\?")) as error:
        call(project / "data" / "python" / "feats.h5")
    assert not FLAG.search(str(error.value)), error.value
    assert not list(tmp_path.rglob("*.*"))


def test_a_number_out_of_range_is_an_error_of_settings(project: Path) -> None:
    with pytest.raises(SettingsError, match=r"'evaluate\.resamples' is 1: "):
        fusion.evaluate(
            project / "data" / "python" / "feats.h5", project / "models" / "small", evaluate={"resamples": 1}
        )


@contextmanager
def by_default(settle: Callable[[Any], None], here: Any, otherwise: Any) -> Iterator[None]:
    settle(here)
    try:
        yield
    finally:
        settle(otherwise)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "float64": lambda: by_default(torch.set_default_dtype, torch.float64, torch.float32),
    "another device": lambda: by_default(torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def modes_and_generators() -> tuple[object, ...]:
    modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    numbers = random.getstate(), torch.get_rng_state().numpy().tobytes()
    return *modes, torch.get_default_dtype(), torch.get_default_device(), *numbers


def call_everything(project: Path, output: Path) -> list[Any]:
    """What the public functions give on the features of the page, without training for long."""
    file, models = project / "data/python/feats.h5", project / "models/small"
    trained = fusion.train(file, output, model=SMALL["model"], train={"epochs": 1, "seeds": [0]}, jobs=1)
    weights = fusion.load_model(trained / "seed-0").model.state_dict()
    scored = fusion.evaluate(file, models, evaluate={"resamples": 10})
    with fusion.Predictor.load(models) as predictor:
        running = predictor.conversation().add(fusion.Turn("We lost."))
    predictions = [*fusion.predict(models, file), *fusion.predict(models, [fusion.Turn("We lost.")]), running]
    manifest, features = project / "data/python/manifest.jsonl", output.with_name("feats.h5")
    corpus = {"name": "table", "root": str(project / "data/demo"), "table": "utterances.csv"}
    encoded = pipeline.encode(manifest, features, dataset=corpus, text={"precision": "float32"})
    digest = fusion.load_features(encoded).digest
    return [(trained / "seed-0/model.safetensors").read_bytes(), len(weights), scored.summaries, predictions, digest]


@pytest.fixture(scope="module")
def plain(project: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return call_everything(project, tmp_path_factory.mktemp("plain") / "models")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", MODES)
def test_the_modes_of_the_caller_change_nothing_and_are_left_as_they_are(
    project: Path, tmp_path: Path, plain: list[Any], mode: str
) -> None:
    with MODES[mode]():
        before = modes_and_generators()
        found = call_everything(project, tmp_path / "models")
        assert modes_and_generators() == before
    assert found == plain
