"""Ways to keep ragged features on disk: this project's store, and what others do.

Axes: frames, dim.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from pipeline.encoders import batches_under_budget
from pipeline.encoders.speech import LARGEST_BATCH
from pipeline.store import Identity, PartLayout, SlotWriter, read_part

FRAME_SAMPLES = 320  # of wav2vec2
FRAMES_A_SECOND = 50
Rows = Callable[[int], np.ndarray]  # an utterance's number -> (frames, dim)


@dataclass(frozen=True)
class Layout:
    """One way; `write` leaves a file or folder at a path that does not exist, `open` gives its utterances back."""

    write: Callable[[Path, Sequence[np.ndarray]], None]
    open: Callable[[Path], AbstractContextManager[Rows]]


def write_store(path: Path, features: Sequence[np.ndarray]) -> None:
    """As `pipeline-audio` on a GPU: by its batches, each on disk and marked before the next one, then all verified."""
    rows = [len(array) for array in features]
    ids = [f"{number:05d}" for number in range(len(features))]
    layout = PartLayout(ids, rows, features[0].shape[1:], "float16", Identity({"model": "none"}), "benchmark")
    with SlotWriter(path, layout) as writer:
        for batch in batches_under_budget(rows, LARGEST_BATCH["cuda"] * FRAMES_A_SECOND):
            writer.write(batch, [features[index] for index in batch])
        writer.finish()


@contextmanager
def open_store(path: Path) -> Iterator[Rows]:
    """Rows of the memory map."""
    yield read_part(path).rows


def write_data_sets(path: Path, features: Sequence[np.ndarray], compression: str | None) -> None:
    """A data set of HDF5 for each utterance."""
    with h5py.File(path, "w") as file:
        for number, array in enumerate(features):
            file.create_dataset(str(number), data=array, compression=compression)


@contextmanager
def open_data_sets(path: Path) -> Iterator[Rows]:
    """Rows of one data set each."""
    with h5py.File(path, "r") as file:
        yield lambda number: file[str(number)][()]


def write_arrays(path: Path, features: Sequence[np.ndarray]) -> None:
    """A .npy file for each utterance."""
    path.mkdir()
    for number, array in enumerate(features):
        np.save(path / f"{number}.npy", array)


@contextmanager
def open_arrays(path: Path) -> Iterator[Rows]:
    """Rows of one file each."""
    yield lambda number: np.load(path / f"{number}.npy")


STORE, GZIP = "store", "gzip"
LAYOUTS = {
    STORE: Layout(write_store, open_store),
    GZIP: Layout(partial(write_data_sets, compression="gzip"), open_data_sets),
    "data sets": Layout(partial(write_data_sets, compression=None), open_data_sets),
    "npy": Layout(write_arrays, open_arrays),
}
