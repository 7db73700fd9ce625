"""A folder to hand on, made of the folder of one seed.

model.safetensors, config.json, history.json    as training wrote them: it loads wherever a seed's folder does
README.md                                       the model card, with test scores where results are given
model.onnx                                      if asked for
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from fusion.checkpoint.card import model_card, read_scores
from fusion.checkpoint.folder import FILES, HASHED, LoadedModel, load_model, write_hashes
from fusion.errors import OutputError
from fusion.runtime import holds, write_file, writing
from pipeline.settings import publish, sole_writer

ONNX = "model.onnx"
CARD = "README.md"


@dataclass(frozen=True)
class Shared:
    """What `share_model` did."""

    model: LoadedModel
    written: bool  # false: the very same was there


def share_model(
    folder: Path,
    output: Path,
    results: Path | None = None,
    onnx: bool = False,
    accept_edits: bool = False,
    overwrite: bool = False,
) -> Shared:
    """Write the model in `folder` to `output`, which appears whole.

    Args:
        folder: of one seed, such as models/hbaf/seed-0; it stays as it is.
        results: what fusion-evaluate wrote of it, for the test scores of the card.
        onnx: whether there is to be a model.onnx.
        accept_edits: whether files of `folder` may be others than training wrote, such as a config.json with other
            label names; `output` gets hashes of its own.
        overwrite: whether another shared model in `output` may be replaced.

    Raises:
        ModelError: the folder is missing, incomplete or damaged.
        ResultError: the results are missing or damaged, or of another model.
        OutputError: `output` is something else than such a folder or cannot be written, it holds another model or card
            and `overwrite` is not given, or ONNX's packages are missing.
        BusyError: another process writes `output`.
    """
    loaded = load_model(folder, edited=accept_edits)
    with sole_writer(output) as place:
        return Shared(loaded, _write(loaded, place, results, onnx, overwrite))


def _write(loaded: LoadedModel, output: Path, results: Path | None, onnx: bool, overwrite: bool) -> bool:
    """Whether anything was written."""
    folder = loaded.folder
    _check_replaceable(output, folder)
    scores = read_scores(results, loaded.provenance) if results else None
    contents = {name: (folder / name).read_bytes() for name in HASHED}
    contents[CARD] = model_card(loaded.provenance, scores, onnx).encode()
    differing = [name for name, content in contents.items() if not holds(output / name, content)]
    if not differing and (output / ONNX).exists() == onnx:
        return False
    if (output / CARD).exists() and differing and not overwrite:
        raise OutputError(
            f"{output}: holds another model or card ({', '.join(differing)} differ); name another folder with "
            "--output, or replace it with --overwrite"
        )
    if onnx:
        contents[ONNX] = _export(loaded)
    partial = output.with_name(output.name + ".tmp")
    with writing(output):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, content in contents.items():
            write_file(partial / name, content)
        write_hashes(partial)
        publish(partial, output)
    return True


def _export(loaded: LoadedModel) -> bytes:
    from fusion.checkpoint.onnx import export_onnx  # here, because torch's exporter takes seconds to import

    return export_onnx(loaded)


def _check_replaceable(output: Path, folder: Path) -> None:
    """Refuse to delete what is not a folder that was shared before."""
    if output == folder.resolve() or output in folder.resolve().parents or folder.resolve() in output.parents:
        raise OutputError(f"{output}: in or around the model's own folder; name another one with --output")
    if not output.exists():
        return
    with writing(output):
        found = {path.name for path in output.iterdir()} if output.is_dir() else None
    if found is None or (found and not set(FILES) <= found) or found - {*FILES, ONNX}:
        raise OutputError(f"{output}: exists and is not a folder of one shared model; name another one with --output")
