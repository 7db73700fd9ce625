"""Cached features -> trained fusion models and their scores.

What Python programs use is here (docs/from-python.md); the commands call the same functions. Nothing is imported before
it is used.

>>> import fusion
>>> features = fusion.load_features("data/feats.h5")                              # doctest: +SKIP
>>> models = fusion.train(features, "models/hcam", model={"name": "hcam"})        # doctest: +SKIP
>>> fusion.evaluate(features, models).summaries["weighted_f1"].mean               # doctest: +SKIP
>>> fusion.predict(models, [fusion.Turn("We lost."), fusion.Turn("Again?")])      # doctest: +SKIP
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fusion.checkpoint import VERSION, LoadedModel
    from fusion.data import FeatureDataset, FeatureItem
    from fusion.evaluation import Evaluation
    from fusion.models import HBAF, HCAM
    from fusion.prediction import Prediction, Predictor, Turn
    from pipeline.store import Features

    __version__ = VERSION
else:

    def __getattr__(name: str) -> object:
        from pipeline.settings import door

        return door(__name__, __file__)("VERSION" if name == "__version__" else name)


__all__ = [
    "HBAF",
    "HCAM",
    "Evaluation",
    "FeatureDataset",
    "FeatureItem",
    "Features",
    "LoadedModel",
    "Prediction",
    "Predictor",
    "Turn",
    "__version__",
    "evaluate",
    "load_features",
    "load_model",
    "predict",
    "train",
]


def load_features(path: str | PathLike[str]) -> "Features":
    """The feature file at `path`, opened: its utterances, labels and mapped arrays. No rows are read yet.

    `features.audio.rows(i)` is the array (frames, dim) of utterance i, `features.text.rows(i)` that of its tokens, and
    `features.utterances` holds ids, conversations, speakers, splits, labels and scores.

    Raises:
        StoreError: the file or a linked part is missing, damaged, or of another version.
    """
    from pipeline.store import read_features

    return read_features(Path(path))


def train(
    features: "Features | str | PathLike[str]",
    output: str | PathLike[str] | None = None,
    *,
    model: Mapping[str, Any] | None = None,
    loss: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    params: str | PathLike[str] | None = None,
    device: "str | torch.device" = "auto",
    jobs: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Train a model for each seed, selected on validation; an interrupted call is continued by the next one.

    Args:
        features: a feature file, or what `load_features` returned.
        output: the folder of the models, `seed-<n>` each; models/<model.name> by default.
        model, loss, train: sections of params.yaml, such as `model={"name": "hbaf", "dim": 32}`.
        params: a params.yaml whose values hold where these name none; without it, the defaults of `fusion-train`.
        device: auto, cpu, cuda or cuda:<n>.
        jobs: seeds that are trained side by side; one for each core by default, always one on a GPU.
        overwrite: whether other models in the folder may be replaced; the very same are never trained again.

    Returns:
        The folder of the models: `load_model(folder / "seed-0")` reads one, `evaluate` and `predict` take all.

    Raises:
        SettingsError: a key or value is not accepted.
        FeatureError, TrainingError, OutputError: the features lack what the model needs, no device, no place to write.
    """
    from fusion.params import read_recipe, report_unused
    from fusion.runtime import pick_device
    from fusion.training import train_seeds
    from pipeline.settings import as_overrides

    overrides = as_overrides(model=model, loss=loss, train=train)
    recipe = read_recipe(_path(params), overrides)
    report_unused(overrides, [recipe])
    folder = Path(output or Path("models") / recipe.model.name)
    with _as_commands_do():
        train_seeds(_opened(features), recipe, folder, pick_device(device), jobs, overwrite)
    return folder


def load_model(path: str | PathLike[str], device: "str | torch.device" = "auto") -> "LoadedModel":
    """The trained model of one seed, such as models/hbaf/seed-0: `.model` (a torch module), `.provenance`, `.history`.

    Raises:
        ModelError: the folder is missing, incomplete or damaged, or holds the models of several seeds.
        TrainingError: there is no such device.
    """
    from fusion.checkpoint import load_model
    from fusion.runtime import pick_device
    from pipeline.settings import as_torch_starts, keep_generators

    with as_torch_starts(), keep_generators():
        return load_model(Path(path), pick_device(device))


def evaluate(
    features: "Features | str | PathLike[str]",
    models: str | PathLike[str],
    *,
    evaluate: Mapping[str, Any] | None = None,
    params: str | PathLike[str] | None = None,
    device: "str | torch.device" = "auto",
) -> "Evaluation":
    """Score the models of all seeds in a folder on the test split; no file is written.

    Args:
        features: a feature file, or what `load_features` returned.
        models: the folder that `train` returned.
        evaluate: section `evaluate` of params.yaml, such as `{"resamples": 200}`.
        params: a params.yaml whose values hold where `evaluate` names none.
        device: auto, cpu, cuda or cuda:<n>.

    Raises:
        SettingsError: a key or value is not accepted.
        ModelError: a model cannot be loaded, or was trained on other encoders or labels.
        FeatureError: there is no test split, or nothing in it can be scored.
    """
    from fusion.evaluation import evaluate as score
    from fusion.params import EvaluateParams
    from fusion.runtime import pick_device
    from pipeline.settings import as_overrides, read_section

    section = read_section(_path(params), "evaluate", EvaluateParams, as_overrides(evaluate=evaluate))
    with _as_commands_do():
        return score(_opened(features), Path(models), section, pick_device(device))


def predict(
    models: str | PathLike[str],
    turns: "Iterable[Turn] | Features | str | PathLike[str]",
    *,
    split: str | None = None,
    root: str | PathLike[str] | None = None,
    audio_encoder: str | PathLike[str] | None = None,
    text_encoder: str | PathLike[str] | None = None,
    device: "str | torch.device" = "auto",
) -> "list[Prediction]":
    """What the models say of each turn, the mean over seeds. For several calls, a `Predictor` loads them once.

    Args:
        models: the folder of a seed, or of all seeds.
        turns: `Turn`s; or what `load_features` returned, or its path (.h5); or the path of a table, a row a turn.
        split: of features; all by default.
        root: the folder of the recordings that a table names; the table's own by default.
        audio_encoder, text_encoder: folders of encoders that are neither built in nor on the hub.
        device: auto, cpu, cuda or cuda:<n>.

    Raises:
        ModelError: a folder is missing or damaged, or features are of other encoders.
        EncoderError, DataError, RecordingError: an encoder is not available, or a turn is not what it must be; or
            `split` or `root` is given beside something else than features or a table.
    """
    from fusion.errors import RecordingError
    from fusion.prediction import Predictor
    from pipeline.store import Features

    if isinstance(turns, str | PathLike) and Path(turns).suffix == ".h5":
        turns = load_features(turns)
    table = isinstance(turns, str | PathLike)
    for name, given, fits, what in (
        ("split", split, isinstance(turns, Features), "features"),
        ("root", root, table, "the path of a table"),
    ):
        if given is not None and not fits:
            raise RecordingError(f"{name} goes with {what}, found turns of type {type(turns).__name__}; leave it out")
    with Predictor.load(models, device, audio_encoder, text_encoder) as predictor:
        if isinstance(turns, Features):
            return predictor.predict_features(turns, split)
        if isinstance(turns, str | PathLike):
            return predictor.predict_table(turns, root)
        return predictor.predict(turns)


def __dir__() -> list[str]:
    return __all__


def _path(given: str | PathLike[str] | None) -> Path | None:
    return None if given is None else Path(given)


def _opened(features: "Features | str | PathLike[str]") -> "Features":
    return load_features(features) if isinstance(features, str | PathLike) else features


@contextmanager
def _as_commands_do() -> Iterator[None]:
    """One thread to a process: faster for operations this small, and the numbers of the commands on any machine; and
    torch in the modes in which a command has it.
    """
    import torch

    from pipeline.settings import as_torch_starts, keep_generators, settle_cublas

    settle_cublas()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with as_torch_starts(), keep_generators():
            yield
    finally:
        torch.set_num_threads(threads)
