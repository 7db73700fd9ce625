"""Where models lie, without loading them: no heavy library, so that a wrong name is told at once."""

from pathlib import Path

from fusion.errors import ModelError


def partial_folder(folder: Path) -> Path:
    """Where training works until all seeds are done: beside `folder`, which DVC deletes before a stage runs."""
    return folder.with_name(folder.name + ".partial")


def check_model_folder(folder: Path) -> None:
    """Raise ModelError where there is no such folder."""
    if not folder.is_dir():
        interrupted = partial_folder(folder).is_dir()
        mend = "training was interrupted, run fusion-train again" if interrupted else "train it with fusion-train"
        raise ModelError(f"{folder}: no such model folder; {mend}, or name the folder that fusion-train wrote")
