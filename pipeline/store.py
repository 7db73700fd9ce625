"""The feature file: ragged features of one or two modalities in HDF5, laid out flat.

A *part* (`data/audio.h5`, `data/text.h5`, or a group of a self-contained file) holds one modality:

    values     (rows, dim) or (rows, layers, dim), little-endian float16 or float32, contiguous, uncompressed
    offsets    (utterances + 1,) int64: utterance i owns rows offsets[i] .. offsets[i + 1]
    checksums  (utterances,) uint64 of each utterance's bytes; 0 means not written yet
    ids        (utterances,) UTF-8, in manifest order
    failed     one JSON object, id -> status, of the utterances that could not be encoded; only where there are any.
               They have no rows, as those without this modality.
    attributes `format`, `version`, `kind`, `identity` (JSON: which encoder made it), `plan` (hash of its inputs)

A *joint file* (`data/feats.h5`) holds the table `/utterances` with one column an array, the label names, and the
parts `/audio` and `/text`: as external links with relative names, or copied in. It records each part's identity and
digest, so that its own bytes change whenever a feature does, and a part that was exchanged is refused. Its attribute
`corpus`, where there is one, says what the corpus is (`pipeline.corpus_note`).

A file begins with its seal (`pipeline.seal`), which is checked before HDF5 reads it.

Nothing in a file depends on time, machine or folder: the same input gives the same bytes. Values are returned as
read-only memory maps; no HDF5 handle stays open, so a reader may fork.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from pipeline.corpus_note import CorpusNote
from pipeline.errors import StoreError, reason_and_mend
from pipeline.identity import Identity
from pipeline.seal import FORMAT, USER_BLOCK, VERSION, check_seal, seal
from pipeline.settings import ErcError

Dtype = Literal["float16", "float32"]

MODALITIES = ("audio", "text")
STRUCTURE = 1 << 14  # bytes that HDF5 needs beside the arrays, more than enough
UNLABELLED = -1


@dataclass(frozen=True)
class Part:
    """One modality of all utterances."""

    values: np.ndarray  # (rows, dim) or (rows, layers, dim), read-only memory map
    offsets: np.ndarray  # (utterances + 1,) int64
    checksums: np.ndarray  # (utterances,) uint64
    ids: list[str]
    identity: Identity
    plan: str
    path: Path
    failed: Mapping[str, str] = field(default_factory=dict)  # id -> status; these utterances have no rows

    @property
    def digest(self) -> str:
        """Hash (hex) of shape, offsets and checksums: two parts with one digest hold the same features."""
        digest = hashlib.sha256(f"{self.values.dtype.str}{self.values.shape[1:]}".encode())
        digest.update(self.offsets.tobytes())
        digest.update(self.checksums.tobytes())
        return digest.hexdigest()

    def rows(self, index: int) -> np.ndarray:
        """Features of utterance `index`: (frames or tokens, dim), or (.., layers, dim)."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]


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


def read_features(path: Path) -> Features:
    """The joint file at `path`, linked or self-contained.

    Raises:
        StoreError: the file or a linked part is missing, damaged, of another version, or was exchanged.
    """
    with _open(path) as file:
        _check_kind(file, path, "joint")
        utterances = _read_utterances(file["utterances"])
        label_names = json.loads(file.attrs["label_names"])
        links = {name: file.get(name, getlink=True) for name in MODALITIES if name in file.keys()}  # noqa: SIM118
        fingerprints = {name: str(file.attrs[f"{name}_fingerprint"]) for name in links}
        parts = {
            name: _read_part_group(file[name], path)
            for name, link in links.items()
            if not isinstance(link, h5py.ExternalLink)
        }
        targets = {name: link.filename for name, link in links.items() if name not in parts}
        digest = str(file.attrs["digest"])
        corpus = CorpusNote.from_json(json.loads(file.attrs["corpus"])) if "corpus" in file.attrs else None
    for name, target in targets.items():
        parts[name] = _follow_link(path, name, target)
    for name, part in parts.items():
        if _fingerprint(part) != fingerprints[name] or part.ids != utterances.ids:
            raise StoreError(
                f"{path}: its {name} part {part.path} is not the one that it was joined with (other features or "
                "another encoder); run pipeline-join again, or dvc repro"
            )
    features = Features(path, utterances, label_names, parts.get("audio"), parts.get("text"), corpus)
    if features.digest != digest:
        raise StoreError(f"{path}: damaged: its table does not match its own hash; run pipeline-join again")
    return features


def read_part(path: Path) -> Part:
    """The part file at `path`; its rows are not verified (`damaged_utterances` does that).

    Raises:
        StoreError: the file is missing, damaged, unfinished or of another version.
    """
    with _open(path) as file:
        part = _read_part_group(file, path)
    if not part.checksums.all():
        missing = int((part.checksums == 0).sum())
        raise StoreError(f"{path}: unfinished: {missing} of {len(part.ids)} utterances are not written; run dvc repro")
    return part


def kind_of(path: Path) -> Literal["part", "joint"]:
    """Whether `path` is a part or a joint file; raises StoreError as the readers do."""
    with _open(path) as file:
        return "joint" if file.attrs["kind"] == "joint" else "part"


def damaged_utterances(part: Part) -> Iterator[str]:
    """Ids of the utterances whose bytes do not match their checksum; reads every row once."""
    for index, (utterance, expected) in enumerate(zip(part.ids, part.checksums, strict=True)):
        if checksum(part.rows(index)) != expected:
            yield utterance


def checksum(rows: np.ndarray) -> int:
    """The first 64 bits of the SHA-1 of an utterance's bytes, never 0 (which marks a slot as not written).

    It guards against accidents; processors hash SHA-1 faster than anything else in the standard library of this size.
    """
    content = np.ascontiguousarray(rows).data.cast("B") if rows.size else b""
    digest = hashlib.sha1(content, usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "little") or 1


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the disk while `path` is written becomes one clear error."""
    try:
        yield
    except ErcError:
        raise
    except (OSError, RuntimeError) as error:  # HDF5 raises either where a file cannot grow
        reason, mend = reason_and_mend(error, "see to the disk, its room and its permissions, or name another place")
        raise StoreError(
            f"{path}: cannot be written ({reason}); {mend}, then run the command again: finished work is kept"
        ) from error


def try_size(path: Path, size: int) -> None:
    """Let `path`, which is made anew, grow to `size` bytes; where it cannot, HDF5 would tell so at length.

    Raises:
        OSError: the disk is too full, a limit is lower, or the folder cannot be written.
    """
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading; whatever h5py raises on damage becomes one clear error."""
    check_seal(path)
    try:
        with h5py.File(path, "r", locking=False) as file:  # a finished file is never changed, whoever holds it
            yield file
    except ErcError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(
            f"{path}: not a readable feature file, truncated or damaged ({reason}); delete it and run dvc repro"
        ) from error


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
        raise StoreError(f"{path}: damaged: its offsets, checksums, ids and values do not fit together; delete it")
    failed = json.loads(_read_strings(group["failed"])[0]) if "failed" in group else {}
    identity, plan = Identity.from_json(group.attrs["identity"]), str(group.attrs["plan"])
    return Part(values, offsets, checksums, ids, identity, plan, path, failed)


def _map_values(values: h5py.Dataset, path: Path) -> np.ndarray:
    offset = values.id.get_offset()
    if values.size == 0:
        return np.empty(values.shape, values.dtype)
    if offset is None or values.dtype.str not in ("<f2", "<f4"):
        raise StoreError(f"{path}: 'values' must be contiguous little-endian float16 or float32, found {values.dtype}")
    mapped = np.memmap(path, values.dtype, mode="r", offset=offset, shape=values.shape)
    return mapped.view(np.ndarray)  # slices of a plain array are made in half the time


def _follow_link(path: Path, name: str, target: str) -> Part:
    linked = path.parent / target
    if not linked.exists():
        raise StoreError(
            f"{path}: its {name} part {linked} is gone; put it back beside it (dvc repro, or dvc checkout), or write "
            "a self-contained file where all parts are at hand with pipeline-join --copy"
        )
    return read_part(linked)


def _read_utterances(table: h5py.Group) -> Utterances:
    utterances = Utterances(
        ids=_read_strings(table["id"]),
        conversations=_read_strings(table["conversation"]),
        turns=table["turn"][()],
        speakers=_read_strings(table["speaker"]),
        splits=_read_strings(table["split"]),
        labels=table["label"][()],
        scores=table["score"][()],
    )
    if len({len(column) for column in vars(utterances).values()}) != 1:
        raise ValueError("the columns of /utterances differ in length")
    return utterances


def _read_strings(dataset: h5py.Dataset) -> list[str]:
    return [value.decode("utf-8") for value in dataset[()].tolist()]


def write_joint(
    path: Path,
    utterances: Utterances,
    label_names: Sequence[str],
    parts: Mapping[str, Part],
    copy: bool,
    corpus: CorpusNote | None = None,
) -> None:
    """Write the joint file: `parts` linked by their relative names, or copied in when `copy`.

    Raises:
        StoreError: a part is of other utterances than the table, or lies where no relative link can name it; the disk
            does not take it.
    """
    for name, part in parts.items():
        if part.ids != utterances.ids:
            raise StoreError(
                f"{part.path}: made from other utterances than the manifest "
                f"({len(part.ids)} against {len(utterances)}, or another order); run pipeline-{name} again"
            )
    fingerprints = {name: _fingerprint(part) for name, part in parts.items()}
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path):
            _write_joint(partial, path, utterances, label_names, parts, fingerprints, copy, corpus)
            partial.replace(path)
            sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_joint(
    partial: Path,
    path: Path,
    utterances: Utterances,
    label_names: Sequence[str],
    parts: Mapping[str, Part],
    fingerprints: Mapping[str, str],
    copy: bool,
    corpus: CorpusNote | None,
) -> None:
    try_size(partial, _joint_size(utterances, parts, copy))
    values = []
    with h5py.File(partial, "w", userblock_size=USER_BLOCK) as file:
        _write_header(file, "joint")
        file.attrs["label_names"] = json.dumps(list(label_names), ensure_ascii=False)
        file.attrs["digest"] = _digest(utterances, label_names, fingerprints)
        if corpus:
            file.attrs["corpus"] = json.dumps(corpus.to_json(), ensure_ascii=False)
        _write_utterances(file.create_group("utterances"), utterances)
        for name, part in parts.items():
            file.attrs[f"{name}_fingerprint"] = fingerprints[name]
            if copy:
                values.append(_copy_part(file.create_group(name), part))
            else:
                file[name] = h5py.ExternalLink(_relative_name(part.path, path), "/")
    seal(partial, values)


def _joint_size(utterances: Utterances, parts: Mapping[str, Part], copy: bool) -> int:
    """Bytes of a joint file, rounded up."""
    columns = (utterances.ids, utterances.conversations, utterances.speakers, utterances.splits)
    table = sum(map(strings_size, columns)) + 20 * len(utterances)  # turn, label, score
    return STRUCTURE + table + sum(part_size(part.ids, part.values.nbytes) for part in parts.values() if copy)


def part_size(ids: Sequence[str], values: int) -> int:
    """Bytes of a part with so many bytes of values, rounded up."""
    return STRUCTURE + strings_size(ids) + 16 * len(ids) + values  # offsets, checksums


def strings_size(strings: Sequence[str]) -> int:
    """Bytes of strings that all take the room of the longest."""
    return len(strings) * max((len(string.encode()) for string in strings), default=0)


def write_features(
    path: Path,
    utterances: Utterances,
    label_names: Sequence[str],
    audio: tuple[Sequence[np.ndarray], Identity] | None,
    text: tuple[Sequence[np.ndarray], Identity] | None,
) -> None:
    """Write one self-contained joint file from arrays in memory, one (rows, dim) array an utterance."""
    parts = {}
    for name, given in (("audio", audio), ("text", text)):
        if given is not None:
            parts[name] = part_from_arrays(path, utterances.ids, *given)
    write_joint(path, utterances, label_names, parts, copy=True)


def part_from_arrays(path: Path, ids: Sequence[str], rows: Sequence[np.ndarray], identity: Identity) -> Part:
    """A part in memory from one (rows, dim) array an utterance; float16 stays, all else becomes float32."""
    dtype = "<f2" if rows[0].dtype == np.float16 else "<f4"
    rows = [np.asarray(array, dtype) for array in rows]
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in rows])]).astype(np.int64)
    checksums = np.array([checksum(array) for array in rows], np.uint64)
    return Part(np.concatenate(rows), offsets, checksums, list(ids), identity, "", path)


def lay_out_part(
    group: h5py.Group,
    ids: Sequence[str],
    rows: Sequence[int],
    row_shape: tuple[int, ...],
    dtype: Dtype,
    identity: Identity,
    plan: str,
    failed: Mapping[str, str],
) -> h5py.Dataset:
    """Create every data set of a part at its final size and return `values`, still to be filled.

    The structure of the file never changes afterwards, so writing into the slots cannot make it unreadable.
    """
    _write_header(group, "part")
    group.attrs["identity"] = identity.to_json()
    group.attrs["plan"] = plan
    offsets = np.concatenate([[0], np.cumsum(rows)]).astype("<i8")
    group.create_dataset("offsets", data=offsets, track_times=False)
    group.create_dataset("checksums", data=np.zeros(len(ids), "<u8"), track_times=False)
    _write_strings(group, "ids", ids)
    if failed:  # no attribute: HDF5 gives those 64 KB
        _write_strings(group, "failed", [json.dumps(dict(failed), sort_keys=True, ensure_ascii=False)])
    return _reserve(group, "values", (int(offsets[-1]), *row_shape), dtype)


def _reserve(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """A contiguous data set whose place in the file is fixed now and whose bytes are left alone."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(dtype).newbyteorder("<"))
    h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=creation)
    return group[name]


def _copy_part(group: h5py.Group, part: Part) -> tuple[int, int]:
    """Copy a part into `group`; returns (offset, bytes) of its values."""
    dtype: Dtype = "float16" if part.values.dtype.itemsize == 2 else "float32"
    rows = np.diff(part.offsets).tolist()
    values = lay_out_part(group, part.ids, rows, part.values.shape[1:], dtype, part.identity, part.plan, part.failed)
    group["checksums"][...] = part.checksums
    step = max(1, (64 << 20) // max(1, part.values[:1].nbytes))  # 64 MiB at a time
    for start in range(0, len(part.values), step):
        values[start : start + step] = part.values[start : start + step]
    return values.id.get_offset() or 0, part.values.nbytes


def sync(folder: Path) -> None:
    """Have the names in a folder on disk before going on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_header(group: h5py.Group, kind: Literal["part", "joint"]) -> None:
    group.attrs["format"] = FORMAT
    group.attrs["version"] = VERSION
    group.attrs["kind"] = kind


def _write_utterances(table: h5py.Group, utterances: Utterances) -> None:
    _write_strings(table, "id", utterances.ids)
    _write_strings(table, "conversation", utterances.conversations)
    _write_strings(table, "speaker", utterances.speakers)
    _write_strings(table, "split", utterances.splits)
    table.create_dataset("turn", data=np.asarray(utterances.turns, "<i8"), track_times=False)
    table.create_dataset("label", data=np.asarray(utterances.labels, "<i8"), track_times=False)
    table.create_dataset("score", data=np.asarray(utterances.scores, "<f4"), track_times=False)


def _write_strings(group: h5py.Group, name: str, strings: Sequence[str]) -> None:
    encoded = [string.encode("utf-8") for string in strings]
    width = max(map(len, encoded), default=1) or 1
    dtype = h5py.string_dtype("utf-8", width)
    group.create_dataset(name, data=np.array(encoded, dtype=dtype), track_times=False)


def _relative_name(target: Path, path: Path) -> str:
    try:
        return target.absolute().relative_to(path.parent.absolute()).as_posix()
    except ValueError:
        raise StoreError(
            f"{target}: lies outside the folder of {path}, where a relative link cannot name it; "
            "move it there, or join with --copy"
        ) from None


def _fingerprint(part: Part) -> str:
    """What a joint file remembers of a part: its identity and digest, as one JSON line."""
    return json.dumps({"identity": part.identity.to_json(), "digest": part.digest}, sort_keys=True)


def _digest(utterances: Utterances, label_names: Sequence[str], fingerprints: Mapping[str, str]) -> str:
    columns = (utterances.ids, utterances.conversations, utterances.speakers, utterances.splits, list(label_names))
    digest = hashlib.sha256(json.dumps([columns, dict(fingerprints)], sort_keys=True, ensure_ascii=False).encode())
    digest.update(np.asarray(utterances.turns, "<i8").tobytes())
    digest.update(np.asarray(utterances.labels, "<i8").tobytes())
    digest.update(np.asarray(utterances.scores, "<f4").tobytes())
    return digest.hexdigest()
