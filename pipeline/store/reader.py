"""Reading feature files: a part or a joint file, opened, checked and mapped; `pipeline.store` defines the format."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from pipeline.errors import ErcError, StoreError
from pipeline.store.guard import NOTHING, Guard
from pipeline.store.identity import CorpusNote, Identity
from pipeline.store.seal import MAKE, check_seal

Dtype = Literal["float16", "float32"]

MODALITIES = ("audio", "text")
SPLITS = ("train", "validation", "test")  # in the order of a file
UNLABELLED = -1
WIDEST = 1 << 24  # numbers in a row; many times what any encoder gives


@dataclass(frozen=True)
class Part:
    """One modality of all utterances, in the order of a file or, by `take`, in another one that shares its values."""

    values: np.ndarray  # (rows, dim) or (rows, layers, dim), read-only memory map
    offsets: np.ndarray  # (utterances + 1,) int64: where rows would lie in this order; where they do, `starts` says
    checksums: np.ndarray  # (utterances,) uint64
    ids: list[str]
    identity: Identity
    plan: str
    path: Path
    failed: Mapping[str, str] = field(default_factory=dict)  # id -> status; these utterances have no rows
    slots: np.ndarray | None = None  # (utterances,) int64: the place of each in the file, -1 = nowhere; None: its order
    file_starts: np.ndarray | None = None  # (utterances,) int64, with `slots`
    guard: Guard | None = None  # of the file; None: these rows are of no file
    sources: list[str] | None = None  # what each is called in the file, "" where it has none of it; None: its ids
    learned: np.ndarray | None = None  # (utterances,) boolean: the encoder was fine-tuned on its label; None: on none

    @property
    def starts(self) -> np.ndarray:
        """(utterances,) int64: the first of the rows of each in `values`."""
        return self.offsets[:-1] if self.file_starts is None else self.file_starts

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.values.shape[1:])) * self.values.dtype.itemsize

    @property
    def size(self) -> int:
        """Bytes of the rows of all utterances."""
        return int(self.offsets[-1]) * self.row_bytes

    def take(self, places: np.ndarray, ids: list[str]) -> "Part":
        """Those utterances whose places (utterances,) int64 are given, called `ids`; -1: one without rows."""
        # each column gets a last element, which place -1 finds: an utterance without rows
        starts, checksums = np.append(self.starts, 0), np.append(self.checksums, np.uint64(NOTHING))
        slots = np.append(np.arange(len(self.ids)) if self.slots is None else self.slots, -1)
        lengths = np.append(np.diff(self.offsets), 0)[places]
        failed = {
            name: self.failed[self.ids[place]]
            for name, place in zip(ids, places, strict=True)
            if place >= 0 and self.ids[place] in self.failed
        }
        slots = slots[places]
        called = [*(self.ids if self.sources is None else self.sources), ""]
        return replace(
            self,
            sources=[called[place] for place in places],
            learned=None if self.learned is None else np.append(self.learned, False)[places],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            checksums=checksums[places],
            ids=ids,
            failed=failed,
            slots=slots,
            file_starts=starts[places],
            guard=self.guard and replace(self.guard, names=ids, slots=slots),
        )

    @property
    def digest(self) -> str:
        """Hash (hex) of shape, offsets and checksums: two parts with one digest hold the same features."""
        digest = hashlib.sha256(f"{self.values.dtype.str}{self.values.shape[1:]}".encode())
        digest.update(self.offsets.tobytes())
        digest.update(self.checksums.tobytes())
        return digest.hexdigest()

    def rows(self, index: int) -> np.ndarray:
        """Features of utterance `index`: (frames or tokens, dim), or (.., layers, dim).

        Raises:
            StoreError: they are damaged, which is looked at when they are first asked for.
        """
        if self.guard and not self.guard.seen[index if self.slots is None else self.slots[index]]:
            self.check(np.array([index]))
        start = self.starts[index]
        return self.values[start : start + self.offsets[index + 1] - self.offsets[index]]

    def check(self, indices: np.ndarray | None = None) -> None:
        """See that the rows of utterances (n,) int64, or of all, are those that were written; each is read once a run.

        Raises:
            StoreError: some are not, or hold values that no encoder gives; they are named.
        """
        if self.guard:
            places = np.arange(len(self.ids)) if self.slots is None else self.slots
            places = places if indices is None else places[indices]
            self.guard.check(places[places >= 0])


@dataclass(frozen=True)
class Utterances:
    """The table of utterances, sorted by split, conversation, turn; columns of one length."""

    ids: list[str]
    conversations: list[str]
    turns: np.ndarray  # int64
    speakers: list[str]  # "" = not known
    splits: list[str]  # train | validation | test
    labels: np.ndarray  # int64 into the label names, -1 = unlabelled
    scores: np.ndarray  # float32, nan = none

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Features:
    """A joint file, opened: the table, the label names and the parts that it has."""

    path: Path
    utterances: Utterances
    label_names: list[str]
    audio: Part | None
    text: Part | None
    corpus: CorpusNote | None = None  # where the file says what it is

    @property
    def digest(self) -> str:
        """Hash (hex) that changes with any id, split, label, identity or feature: the feature-file hash."""
        parts = {name: part for name in MODALITIES if (part := getattr(self, name)) is not None}
        return _digest(self.utterances, self.label_names, {name: _fingerprint(part) for name, part in parts.items()})

    def count_learned(self, modality: str, tested: np.ndarray) -> int:
        """Of how many utterances marked in `tested` (utterances,) the encoder of `modality` learned the label."""
        part = getattr(self, modality)
        return 0 if part is None or part.learned is None else int((part.learned & tested).sum())

    def resplit(self, splits: Mapping[str, str]) -> "Features":
        """The same utterances with other splits, by conversation, as the file would be; features are shared."""
        table = self.utterances
        names = [splits[conversation] for conversation in table.conversations]
        keys = [(SPLITS.index(name), *key) for name, *key in zip(names, table.conversations, table.turns, strict=True)]
        places = np.array(sorted(range(len(table)), key=keys.__getitem__))

        def take(column: Sequence[str]) -> list[str]:
            return [column[place] for place in places]

        ids = take(table.ids)
        utterances = Utterances(
            ids=ids,
            conversations=take(table.conversations),
            turns=table.turns[places],
            speakers=take(table.speakers),
            splits=take(names),
            labels=table.labels[places],
            scores=table.scores[places],
        )
        audio, text = (part.take(places, ids) if part else None for part in (self.audio, self.text))
        return replace(self, utterances=utterances, audio=audio, text=text)


def source_digest(keys: Iterable[str]) -> str:
    """Hash (hex) of what utterances are called in the file of a part: of what they were encoded from, in order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]


def read_features(path: str | PathLike[str]) -> Features:
    """The joint file at `path`, linked or self-contained.

    Raises:
        StoreError: the file or a linked part is missing, damaged, of another version, or was exchanged.
    """
    path = Path(path)
    with _open(path) as file:
        _check_kind(file, path, "joint")
        utterances = _read_utterances(file["utterances"])
        label_names = json.loads(file.attrs["label_names"])
        _check_table(utterances, label_names)
        links = {name: file.get(name, getlink=True) for name in MODALITIES if name in file.keys()}  # noqa: SIM118
        fingerprints = {name: str(file.attrs[f"{name}_fingerprint"]) for name in links}
        parts = {
            name: _read_part_group(file[name], path)
            for name, link in links.items()
            if not isinstance(link, h5py.ExternalLink)
        }
        targets = {name: link.filename for name, link in links.items() if name not in parts}
        slots = {name: file[f"{name}_slots"][()] for name in targets if f"{name}_slots" in file}
        digest = str(file.attrs["digest"])
        corpus = CorpusNote.from_json(json.loads(file.attrs["corpus"])) if "corpus" in file.attrs else None
    for name, target in targets.items():
        part = _follow_link(path, name, target)
        if name in slots and np.isin(slots[name], np.arange(-1, len(part.ids))).all():
            part = part.take(slots[name].astype(np.int64), utterances.ids)
        parts[name] = part
    for name, part in parts.items():
        if _fingerprint(part) != fingerprints[name] or part.ids != utterances.ids:
            raise StoreError(
                f"{path}: its {name} part {part.path} is not the one that it was joined with (other features, "
                "another encoder, or an earlier version); run pipeline-join again, or dvc repro"
            )
    features = Features(path, utterances, label_names, parts.get("audio"), parts.get("text"), corpus)
    if features.digest != digest:
        raise StoreError(f"{path}: damaged: its table does not match its own hash; run pipeline-join again")
    return features


def read_part(path: str | PathLike[str], modality: str | None = None) -> Part:
    """The part file at `path`, or the part of a `modality` that a self-contained joint file holds.

    Its rows are looked at when they are read (`Part.rows`, `Part.check`).

    Raises:
        StoreError: the file is missing, damaged, unfinished or of another version, or holds no such part.
    """
    path = Path(path)
    with _open(path) as file:
        whole = modality is None or file.attrs["kind"] != "joint"
        part = _read_part_group(file if whole else _own_part(file, modality, path), path)
    if not part.checksums.all():
        missing = int((part.checksums == 0).sum())
        raise StoreError(f"{path}: unfinished: {missing} of {len(part.ids)} utterances are not written; {MAKE}")
    return part


def _own_part(file: h5py.File, modality: str | None, path: Path) -> h5py.Group:
    """The group of a joint file with a part of its own."""
    link = file.get(modality, getlink=True) if modality in file.keys() else None  # noqa: SIM118
    if isinstance(link, h5py.HardLink):
        return file[modality]
    if link:
        raise StoreError(f"{path}: takes its {modality} from {path.parent / link.filename}; join that file instead")
    held = " and ".join(name for name in MODALITIES if name in file.keys())  # noqa: SIM118
    raise StoreError(f"{path}: holds no {modality} features, only {held or 'a table'}; join a file that does")


def kind_of(path: Path) -> Literal["part", "joint"]:
    """Whether `path` is a part or a joint file; raises StoreError as the readers do."""
    with _open(path) as file:
        return "joint" if file.attrs["kind"] == "joint" else "part"


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading; whatever h5py raises becomes one clear error.

    The seal has shown by then that the file is whole, so what goes wrong is not damage.
    """
    check_seal(path)
    try:
        with open_hdf5(path) as file:
            _refuse_false(file, path)
            yield file
    except ErcError:
        raise
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read now ({' '.join(str(error).split())}); see to the disk and run the command again"
        ) from error
    except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{path}: undamaged, but not laid out as this program reads it ({reason}); {MAKE}") from error


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The HDF5 file at `path` for reading, whoever else has it open.

    By a Python file, since HDF5 refuses a path that this process has open in another way, such as in a notebook.
    """
    with path.open("rb") as opened, h5py.File(opened, "r") as file:
        yield file


def lies_elsewhere(dataset: h5py.Dataset) -> bool:
    """Whether the bytes of a data set are those of other files: external storage, or a virtual data set."""
    return bool(dataset.external) or bool(dataset.is_virtual)


def _refuse_false(file: h5py.File, path: Path) -> None:
    """Refuse all of HDF5's ways to bytes of other files, but for the links of a joint file to its parts; and arrays
    that claim to be larger than the file, before there is memory for them.

    Raises:
        StoreError: an array is of other files.
        ValueError: the file is not laid out as one of this project.
    """
    size = path.stat().st_size
    for name, item in _members(file):
        if item is None or (isinstance(item, h5py.Dataset) and lies_elsewhere(item)):
            raise StoreError(
                f"{path}: '{name.lstrip('/')}' takes its bytes from another file, which is refused; {MAKE}"
            )
        claims = {name: (item.shape, item.dtype)} if isinstance(item, h5py.Dataset) else {}
        for attribute in item.attrs:
            found = item.attrs.get_id(attribute)
            claims[f"{name}.attrs[{attribute!r}]"] = (found.shape, found.dtype)
        for what, (shape, dtype) in claims.items():
            if math.prod(shape) * dtype.itemsize > size:
                raise ValueError(f"'{what}' claims the shape {shape}, more than the file holds")


def _members(group: h5py.Group, depth: int = 0) -> Iterator[tuple[str, h5py.Group | h5py.Dataset | None]]:
    """The group and all that is in it; None where something is of another file, but for links to parts."""
    yield group.name, group
    for name in group:
        whole, link = f"{group.name.rstrip('/')}/{name}", group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            if depth or name not in MODALITIES:
                yield whole, None
        elif not isinstance(link, h5py.HardLink):
            raise ValueError(f"'{whole}' is a link")
        elif isinstance(item := group[name], h5py.Group):
            if depth:
                raise ValueError(f"'{whole}' is a group in a group")
            yield from _members(item, 1)
        elif isinstance(item, h5py.Dataset):
            yield whole, item


def _check_kind(group: h5py.Group, path: Path, kind: Literal["part", "joint"]) -> None:
    found = str(group.attrs["kind"])
    if found != kind:
        wanted = "a joint file such as data/feats.h5" if kind == "joint" else "a single modality such as data/audio.h5"
        raise StoreError(f"{path}: holds a {found}, expected {wanted}")


def _read_part_group(group: h5py.Group, path: Path) -> Part:
    _check_kind(group, path, "part")
    offsets = group["offsets"][()].astype(np.int64)
    checksums = group["checksums"][()].astype(np.uint64)
    ids = _read_strings(group["ids"])
    values = _map_values(group["values"], path)
    consistent = len(offsets) == len(ids) + 1 == len(checksums) + 1 and offsets[0] == 0
    if not consistent or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        raise StoreError(f"{path}: its offsets, checksums, ids and values do not fit together; {MAKE}")
    failed = dict(json.loads(_read_strings(group["failed"])[0])) if "failed" in group else {}
    identity, plan = Identity.from_json(group.attrs["identity"]), str(group.attrs["plan"])
    guard = Guard.of(path, values, offsets, checksums, ids)
    learned = group["learned"][()].astype(bool) if "learned" in group else None
    if learned is not None and learned.shape != (len(ids),):
        raise StoreError(f"{path}: its marks of what the encoder learned do not fit its ids; {MAKE}")
    return Part(values, offsets, checksums, ids, identity, plan, path, failed, guard=guard, learned=learned)


def _map_values(values: h5py.Dataset, path: Path) -> np.ndarray:
    offset = values.id.get_offset()
    if values.ndim not in (2, 3) or math.prod(values.shape[1:]) > WIDEST:
        raise ValueError(f"'values' has the shape {values.shape}")
    if values.size == 0:
        return np.empty(values.shape, values.dtype)
    if offset is None or values.dtype.str not in ("<f2", "<f4"):
        raise StoreError(f"{path}: 'values' must be contiguous little-endian float16 or float32, found {values.dtype}")
    mapped = np.memmap(path, values.dtype, mode="r", offset=offset, shape=values.shape)
    return mapped.view(np.ndarray)  # slices of a plain array are made in half the time


def _follow_link(path: Path, name: str, target: str) -> Part:
    if Path(target).is_absolute() or ".." in Path(target).parts:
        raise StoreError(f"{path}: its {name} part is named {target}, outside its folder, which is refused; join again")
    linked = path.parent / target
    if not linked.exists():
        raise StoreError(
            f"{path}: its {name} part {linked} is gone; put it back beside it (dvc repro, or dvc checkout), or write "
            "a self-contained file where all parts are available with pipeline-join --copy"
        )
    return read_part(linked, name)


def _read_utterances(table: h5py.Group) -> Utterances:
    return Utterances(
        ids=_read_strings(table["id"]),
        conversations=_read_strings(table["conversation"]),
        turns=table["turn"][()],
        speakers=_read_strings(table["speaker"]),
        splits=_read_strings(table["split"]),
        labels=table["label"][()],
        scores=table["score"][()],
    )


def _check_table(utterances: Utterances, label_names: Sequence[str]) -> None:
    """Raise ValueError unless every column is what it must be, as far as readers rely on it."""
    if len({len(column) for column in vars(utterances).values()}) != 1:
        raise ValueError("the columns of /utterances differ in length")
    if [array.dtype.kind for array in (utterances.turns, utterances.labels, utterances.scores)] != ["i", "i", "f"]:
        raise ValueError("turns and labels must be integers, scores floating-point numbers")
    if len({*utterances.ids}) != len(utterances) or len({*map(str, label_names)}) != len(label_names):
        raise ValueError("an id or a label is there twice")
    if not np.isin(utterances.labels, np.arange(UNLABELLED, len(label_names))).all():
        raise ValueError(f"a label is none of the {len(label_names)}")
    if sorted(utterances.splits, key=SPLITS.index) != utterances.splits:
        raise ValueError("utterances are not sorted by split")


def _read_strings(dataset: h5py.Dataset) -> list[str]:
    return [value.decode("utf-8") for value in dataset[()].tolist()]


def _fingerprint(part: Part) -> str:
    """What a joint file remembers of a part, as one JSON line: identity, digest, what its encoder learned, if any."""
    content = {"identity": part.identity.to_json(), "digest": part.digest}
    if part.learned is not None and part.learned.any():
        content["learned"] = hashlib.sha256(part.learned.tobytes()).hexdigest()
    return json.dumps(content, sort_keys=True)


def _digest(utterances: Utterances, label_names: Sequence[str], fingerprints: Mapping[str, str]) -> str:
    columns = (utterances.ids, utterances.conversations, utterances.speakers, utterances.splits, list(label_names))
    digest = hashlib.sha256(json.dumps([columns, dict(fingerprints)], sort_keys=True, ensure_ascii=False).encode())
    digest.update(np.asarray(utterances.turns, "<i8").tobytes())
    digest.update(np.asarray(utterances.labels, "<i8").tobytes())
    digest.update(np.asarray(utterances.scores, "<f4").tobytes())
    return digest.hexdigest()
