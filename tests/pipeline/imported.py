"""Ready features as people have them: the same small corpus in every form that `pipeline-import` reads."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from pipeline.imports import import_features
from pipeline.imports.layout import Given
from pipeline.imports.stage import Imported
from pipeline.params import Columns, DatasetParams, ImportParams
from pipeline.store import Features, read_features
from tests.pipeline.made import write_rows

SPLITS = ("train", "train", "validation", "test")
DIM = 4


def rows_of_table(conversations: int = 4, turns: int = 3) -> list[dict[str, Any]]:
    """A table in an order that is not that of the manifest: test first, turns backwards."""
    return [
        {
            "id": f"u{conversation}-{turn}",
            "conversation": f"c{conversation}",
            "turn": turn,
            "speaker": f"s{turn % 2}",
            "split": SPLITS[conversation % len(SPLITS)],
            "label": ("anger", "joy")[turn % 2],
        }
        for conversation in reversed(range(conversations))
        for turn in reversed(range(turns))
    ]


def arrays_of(rows: Sequence[Mapping[str, Any]], dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Id -> (rows, dim); the second utterance has no rows."""
    random = np.random.default_rng(seed)
    lengths = [0 if index == 1 else int(random.integers(1, 6)) for index in range(len(rows))]
    return {
        row["id"]: random.normal(size=(length, DIM)).astype(dtype) for row, length in zip(rows, lengths, strict=True)
    }


def pad(arrays: Sequence[np.ndarray], front: bool = False, fill: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(utterances, positions, dim) and its mask."""
    positions = max(map(len, arrays))
    padded = np.full((len(arrays), positions, arrays[0].shape[1]), fill, arrays[0].dtype)
    mask = np.zeros((len(arrays), positions), bool)
    for index, array in enumerate(arrays):
        place = slice(positions - len(array), None) if front else slice(0, len(array))
        padded[index, place], mask[index, place] = array, True
    return padded, mask


def write_pickle(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def in_folder(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    (root / "folder").mkdir()
    for name, array in arrays.items():
        np.save(root / "folder" / f"{name}.npy", array)
    return Given("audio", str(root / "folder"))


def in_folder_of_npz(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    (root / "folders" / "deep").mkdir(parents=True)
    for name, array in arrays.items():
        np.savez(root / "folders" / "deep" / f"{name}.npz", hidden=array, other=np.zeros(2))
    return Given("audio", f"{root / 'folders'}:hidden")


def in_npz(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    np.savez_compressed(root / "all.npz", **arrays)  # type: ignore[arg-type]
    return Given("audio", str(root / "all.npz"))


def in_hdf5(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    with h5py.File(root / "all.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(f"features/{name}", data=array, compression="gzip", chunks=(1, DIM), maxshape=(None, 4))
    return Given("audio", f"{root / 'all.h5'}:features")


def flat(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    np.save(root / "flat.npy", np.concatenate(list(arrays.values())))
    np.save(root / "lengths.npy", [len(array) for array in arrays.values()])
    return Given("audio", str(root / "flat.npy"), lengths=str(root / "lengths.npy"))


def flat_in_hdf5(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    """With ids of its own, in another order than the table's."""
    names = sorted(arrays)
    with h5py.File(root / "flat.h5", "w") as file:
        file["values"] = np.concatenate([arrays[name] for name in names])
        file["lengths"] = [len(arrays[name]) for name in names]
        file["ids"] = [name.encode() for name in names]
    path = root / "flat.h5"
    return Given("audio", f"{path}:values", lengths=f"{path}:lengths", ids=f"{path}:ids")


def padded(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    """With lengths; NaN is padding, so nothing of it may come along."""
    values, _ = pad(list(arrays.values()), fill=np.nan)
    (root / "lengths.txt").write_text("".join(f"{len(array)}\n" for array in arrays.values()))
    np.save(root / "padded.npy", values)
    return Given("audio", str(root / "padded.npy"), lengths=str(root / "lengths.txt"))


def masked(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    """With a mask; the padding is in front."""
    values, mask = pad(list(arrays.values()), front=True, fill=7.0)
    np.savez(root / "masked.npz", values=values, mask=mask.astype(np.int64))
    return Given("audio", f"{root / 'masked.npz'}:values", mask=f"{root / 'masked.npz'}:mask")


def pickled(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    return Given("audio", str(write_pickle(root / "dict.pkl", dict(arrays), protocol=2)))


def pickled_by_conversation(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    by_conversation: dict[str, list[np.ndarray]] = {}
    for name, array in sorted(arrays.items()):
        by_conversation.setdefault(f"c{name[1]}", []).append(array)
    return Given("audio", f"{write_pickle(root / 'tree.pkl', {'x': by_conversation})}:x")


def listed(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    """A .npy of arrays of several lengths, which numpy pickles, in the order of the table."""
    several = np.empty(len(arrays), object)
    several[:] = list(arrays.values())
    np.save(root / "several.npy", several)
    return Given("audio", str(root / "several.npy"))


def tensors(root: Path, arrays: Mapping[str, np.ndarray]) -> Given:
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, root / "all.pt")
    return Given("audio", str(root / "all.pt"))


FORMS = (
    *(in_folder, in_folder_of_npz, in_npz, in_hdf5, flat, flat_in_hdf5, padded, masked),
    *(pickled, pickled_by_conversation, listed, tensors),
)


def run(
    root: Path,
    *given: Given,
    rows: Sequence[Mapping[str, Any]] | None = None,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    overwrite: bool = True,
    **params: Any,
) -> tuple[Imported, Features]:
    """Import to `root/out.h5` with a table of `rows`; none where they are None."""
    table = None if rows is None else write_rows(root / "table.csv", rows)
    dataset = DatasetParams(columns=Columns(**dict(columns or {})))
    imported = import_features(table, given, root / "out.h5", ImportParams(**params), dataset, strict, overwrite)
    return imported, read_features(root / "out.h5")


def by_id(features: Features, modality: str = "audio") -> dict[str, np.ndarray]:
    """Id -> rows of a feature file."""
    part = getattr(features, modality)
    return {name: np.array(part.rows(index)) for index, name in enumerate(features.utterances.ids)}
