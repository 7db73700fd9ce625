"""The feature file: round trips, refusals, damage."""

import fcntl
import io
import multiprocessing
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.inspect import inspect_file
from pipeline.join import stand_ins
from pipeline.store import (
    CorpusNote,
    Features,
    Identity,
    PartLayout,
    Reference,
    SlotWriter,
    Utterances,
    read_features,
    read_part,
    write_joint,
)
from pipeline.store.seal import FORMAT, VERSION, seal
from tests.pipeline.made import part_from_arrays, write_features

IDS = ["a/0", "a/1", "bé/0", "c/0"]
IDENTITY = Identity({"modality": "audio", "model": "made", "layers": [1, 2]})


def table(**columns: object) -> Utterances:
    given = {
        "ids": IDS,
        "conversations": ["a", "a", "bé", "c"],
        "turns": np.array([0, 1, 0, 0]),
        "speakers": ["Ann", "", "Bob", "Ann"],
        "splits": ["train", "train", "validation", "test"],
        "labels": np.array([0, 1, -1, 0]),
        "scores": np.array([0.5, np.nan, -1.0, 3.0], np.float32),
    }
    return Utterances(**(given | columns))  # type: ignore[arg-type]


def arrays(seed: int = 0, rows: tuple[int, ...] = (3, 0, 5, 1), shape: tuple[int, ...] = (4,)) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(count, *shape)).astype(np.float16) for count in rows]


def self_contained(path: Path, seed: int = 0) -> Path:
    write_features(path, table(), ["joy", "anger"], (arrays(seed), IDENTITY), (arrays(seed + 1), IDENTITY))
    return path


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A joint file with two linked parts, made as the pipeline makes them."""
    parts = {}
    for seed, name in enumerate(("audio", "text")):
        content = arrays(seed)
        layout = PartLayout(IDS, [len(array) for array in content], (4,), "float16", IDENTITY, "plan")
        with SlotWriter(tmp_path / f"{name}.h5", layout) as writer:
            writer.write(range(4), content)
            writer.finish()
        parts[name] = read_part(tmp_path / f"{name}.h5")
    write_joint(tmp_path / "feats.h5", table(), ["joy", "anger"], parts, copy=False)
    return tmp_path / "feats.h5"


def same(left: Features, right: Features) -> bool:
    return left.digest == right.digest and all(
        np.array_equal(getattr(left, name).values, getattr(right, name).values) for name in ("audio", "text")
    )


def test_linked_and_self_contained_files_read_the_same(linked: Path, tmp_path: Path) -> None:
    features = read_features(linked)
    assert features.audio is not None
    assert features.text is not None
    write_joint(tmp_path / "copy.h5", table(), ["joy", "anger"], {"audio": features.audio, "text": features.text}, True)
    assert same(features, read_features(tmp_path / "copy.h5"))


def test_what_a_file_says_of_its_corpus_is_read_and_changes_no_hash(linked: Path, tmp_path: Path) -> None:
    features = read_features(linked)
    note = CorpusNote("mine", "CC BY 4.0", (Reference("HCAM", "weighted_f1", 0.5, "a paper"),))
    parts = {"audio": features.audio, "text": features.text}
    write_joint(tmp_path / "noted.h5", table(), ["joy", "anger"], parts, True, note)  # type: ignore[arg-type]
    found = read_features(tmp_path / "noted.h5")
    assert (features.corpus, found.corpus) == (None, note)
    assert same(features, found)
    assert "corpus: mine; licence: CC BY 4.0" in inspect_file(tmp_path / "noted.h5").to_text()


def test_the_tiny_encoders_are_named_where_people_speak(tmp_path: Path) -> None:
    given = {name: (arrays(), Identity({"model": model})) for name, model in (("audio", "tiny"), ("text", "minilm"))}
    write_features(tmp_path / "feats.h5", table(), ["joy", "anger"], given["audio"], given["text"])
    features = read_features(tmp_path / "feats.h5")
    (note,) = stand_ins(features, "table")
    assert note.startswith("audio: of the tiny encoder")
    assert note.endswith("set audio.encoder to a real one")
    assert stand_ins(features, "demo") == []


def test_values_labels_and_order_round_trip_exactly(tmp_path: Path) -> None:
    features = read_features(self_contained(tmp_path / "feats.h5"))
    assert features.audio is not None
    for index, array in enumerate(arrays()):
        assert np.array_equal(features.audio.rows(index), array)
    assert features.utterances.ids == IDS
    assert features.utterances.speakers == ["Ann", "", "Bob", "Ann"]
    assert features.utterances.labels.tolist() == [0, 1, -1, 0]
    assert features.label_names == ["joy", "anger"]
    assert np.isnan(features.utterances.scores[1])


def test_inspect_counts_scores_where_there_are_any(tmp_path: Path) -> None:
    report = inspect_file(self_contained(tmp_path / "feats.h5"))
    assert report.scored == {"train": 1, "validation": 1, "test": 1}
    assert "  train: 2 (anger 1, joy 1; scored 1)" in report.to_text().splitlines()
    unscored = table(scores=np.full(4, np.nan, np.float32))
    write_features(tmp_path / "none.h5", unscored, ["joy", "anger"], (arrays(), IDENTITY), None)
    report = inspect_file(tmp_path / "none.h5")
    assert report.scored == {}
    assert "  train: 2 (anger 1, joy 1)" in report.to_text().splitlines()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = self_contained(tmp_path / "one.h5"), self_contained(tmp_path / "two.h5")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": np.array([1, 1, -1, 0])},
        {"splits": ["train", "train", "test", "test"]},
        {"ids": ["a/0", "a/1", "b/0", "c/0"]},
        {"scores": np.array([0.5, np.nan, -1.0, 2.0], np.float32)},
    ],
)
def test_digest_changes_with_the_table(tmp_path: Path, changed: dict[str, object]) -> None:
    write_features(tmp_path / "one.h5", table(), ["joy", "anger"], (arrays(), IDENTITY), None)
    write_features(tmp_path / "two.h5", table(**changed), ["joy", "anger"], (arrays(), IDENTITY), None)
    assert read_features(tmp_path / "one.h5").digest != read_features(tmp_path / "two.h5").digest


def test_digest_changes_with_features_and_identity(tmp_path: Path) -> None:
    digests = set()
    for number, (seed, identity) in enumerate([(0, IDENTITY), (1, IDENTITY), (0, Identity({"model": "other"}))]):
        write_features(tmp_path / f"{number}.h5", table(), ["joy", "anger"], (arrays(seed), identity), None)
        digests.add(read_features(tmp_path / f"{number}.h5").digest)
    assert len(digests) == 3


@given(
    rows=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    shape=st.sampled_from([(1,), (3,), (2, 3)]),
    dtype=st.sampled_from([np.float16, np.float32]),
)
@settings(max_examples=40, deadline=None)
def test_any_ragged_part_round_trips(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], shape: tuple[int, ...], dtype: type
) -> None:
    content = [array.astype(dtype) for array in arrays(0, tuple(rows), shape)]
    count = len(rows)
    utterances = Utterances(
        [f"u{index}" for index in range(count)],
        ["c"] * count,
        np.arange(count),
        [""] * count,
        ["train"] * count,
        np.zeros(count, np.int64),
        np.zeros(count, np.float32),
    )
    path = tmp_path_factory.mktemp("part") / "feats.h5"
    write_features(path, utterances, ["x"], None, (content, IDENTITY))
    part = read_features(path).text
    assert part is not None
    assert part.values.dtype == dtype
    assert all(np.array_equal(part.rows(index), array) for index, array in enumerate(content))
    part.check()


def test_a_missing_linked_part_is_named_with_both_ways_to_fix_it(linked: Path) -> None:
    (linked.parent / "text.h5").unlink()
    with pytest.raises(StoreError, match=r"text part .*text\.h5 is gone.*dvc repro.*--copy"):
        read_features(linked)


def test_an_exchanged_part_is_refused(linked: Path) -> None:
    shutil.copy(linked.parent / "text.h5", linked.parent / "audio.h5")
    with pytest.raises(StoreError, match=r"audio part .* is not the one that it was joined with"):
        read_features(linked)


def test_a_moved_folder_still_reads(linked: Path, tmp_path: Path) -> None:
    before = read_features(linked)
    digest = before.digest
    shutil.copytree(linked.parent, tmp_path / "elsewhere" / "data")
    assert read_features(tmp_path / "elsewhere" / "data" / "feats.h5").digest == digest


def test_parts_of_other_utterances_cannot_be_joined(tmp_path: Path) -> None:
    part = part_from_arrays(tmp_path / "audio.h5", ["x", "y", "z", "w"], arrays(), IDENTITY)
    with pytest.raises(StoreError, match="other utterances than the table"):
        write_joint(tmp_path / "feats.h5", table(), ["joy", "anger"], {"audio": part}, copy=True)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = self_contained(tmp_path / "feats.h5")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"truncated: .* dvc repro"):
        read_features(path)


def test_any_hdf5_program_can_tell_what_a_file_is(linked: Path) -> None:
    """The format's definition: attributes name format, version and encoder; values are plain and contiguous."""
    with h5py.File(linked) as joint, h5py.File(linked.parent / "audio.h5") as part:
        for file in (joint, part):
            assert (file.attrs["format"], file.attrs["version"]) == (FORMAT, VERSION)
        assert Identity.from_json(part.attrs["identity"]) == IDENTITY
        assert np.array_equal(joint["audio"]["values"][:3], arrays(0)[0])  # HDF5 itself follows the relative link
        assert part["values"].chunks is None
        assert part["values"].compression is None


def test_a_part_in_another_order_is_the_same_linked_and_copied(linked: Path, tmp_path: Path) -> None:
    part = read_part(tmp_path / "audio.h5")
    places = np.array([2, -1, 0, 2])
    view = part.take(places, ["c", "none", "a", "again"])
    assert view.values is part.values
    assert view.take(np.array([3, 1]), ["x", "y"]).slots.tolist() == [2, -1]  # type: ignore[union-attr]
    assert view.digest != part.digest == part.take(np.arange(len(IDS)), IDS).digest
    for copy in (True, False):
        target = tmp_path / f"view-{copy}.h5"
        write_joint(target, table(ids=view.ids), ["joy", "anger"], {"audio": view}, copy)
        found = read_features(target).audio
        assert found is not None
        assert (found.digest, found.slots is None) == (view.digest, copy)
        found.check()
        for index, place in enumerate(places):
            np.testing.assert_array_equal(found.rows(index), part.rows(place) if place >= 0 else part.values[:0])


def test_a_file_of_the_version_before_is_read(tmp_path: Path) -> None:
    path = self_contained(tmp_path / "feats.h5")
    content = path.read_bytes()
    path.write_bytes(content.replace(f'"version": {VERSION}'.encode(), b'"version": 2', 1))
    assert read_features(path).utterances.ids == IDS


def test_another_version_is_refused_by_number(tmp_path: Path) -> None:
    path = self_contained(tmp_path / "feats.h5")
    content = path.read_bytes()
    path.write_bytes(content.replace(f'"version": {VERSION}'.encode(), b'"version": 9', 1))
    with pytest.raises(StoreError, match=f"version 9 of the format, this program reads versions 2, {VERSION}"):
        read_features(path)


@pytest.mark.parametrize("content", [b"", b"not hdf5", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "feats.h5"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not a feature file"):
        read_features(path)


def open_in_a_notebook(path: Path) -> h5py.File:
    return h5py.File(path)


def open_for_writing(path: Path) -> h5py.File:
    return h5py.File(path, "r+")


def open_with_locks(path: Path) -> h5py.File:
    return h5py.File(path, locking=True)


def locked_by_another_program(path: Path) -> io.BufferedRandom:
    opened = path.open("r+b")
    fcntl.flock(opened, fcntl.LOCK_EX)
    return opened


@pytest.mark.parametrize(
    ("hold", "name"),
    [
        (open_in_a_notebook, "feats.h5"),
        (open_in_a_notebook, "audio.h5"),
        (open_with_locks, "feats.h5"),
        (open_for_writing, "feats.h5"),
        (open_for_writing, "audio.h5"),
        (locked_by_another_program, "feats.h5"),
    ],
)
def test_a_file_that_is_open_elsewhere_is_read_all_the_same(linked: Path, hold: Any, name: str) -> None:
    with hold(linked.parent / name):
        assert inspect_file(linked, verify=True).verified
        assert inspect_file(linked.parent / "audio.h5", verify=True).verified
    assert inspect_file(linked, verify=True).verified


def test_interrupted_work_that_is_open_elsewhere_is_kept(tmp_path: Path) -> None:
    layout = PartLayout(["a", "b"], [1, 1], (4,), "float32", IDENTITY, "plan")
    with SlotWriter(tmp_path / "audio.h5", layout) as writer:
        writer.write([0], [np.ones((1, 4), np.float32)])
    with h5py.File(tmp_path / "audio.h5.partial", locking=False), SlotWriter(tmp_path / "audio.h5", layout) as writer:
        assert writer.done.tolist() == [True, False]


@pytest.mark.parametrize(
    "head", [b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512), bytes(512)], ids=["Matlab", "unfinished"]
)
def test_nobody_is_advised_to_delete_a_file_that_was_not_proved_wrong(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "features.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["values"] = np.ones(3)
    with path.open("r+b") as opened:
        opened.write(head)
    with pytest.raises(StoreError, match=r"not a finished feature file.*name another") as error:
        read_part(path)
    assert "delete" not in str(error.value)


def test_a_file_that_the_disk_does_not_give_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "feats.h5"
    path.symlink_to("/proc/self/mem")  # whose first byte no system reads
    with pytest.raises(StoreError, match=r"feats\.h5: cannot be read \(Input/output error\)") as error:
        read_features(path)
    assert not re.search("damaged|delete", str(error.value))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such feature file"):
        read_features(tmp_path / "feats.h5")


def test_a_part_is_no_joint_file(linked: Path) -> None:
    with pytest.raises(StoreError, match=r"holds a part, expected a joint file such as data/feats\.h5"):
        read_features(linked.parent / "audio.h5")


def test_every_flipped_byte_is_refused_or_its_utterance_named(tmp_path: Path) -> None:
    path = self_contained(tmp_path / "feats.h5")
    content = path.read_bytes()
    for position in np.random.default_rng(0).choice(len(content), 200, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"damaged|truncated|version|do not match their checksum|not a feature"):
            inspect_file(path, verify=True)


def link_a_column(path: Path) -> None:
    with h5py.File(path.parent / "other.h5", "w") as other:
        other["x"] = np.arange(4)
    with h5py.File(path, "r+") as file:
        del file["utterances/turn"]
        file["utterances/turn"] = h5py.ExternalLink("other.h5", "x")


def store_elsewhere(path: Path) -> None:
    (path.parent / "other.bin").write_bytes(bytes(64))
    with h5py.File(path, "r+") as file:
        del file["utterances/turn"]
        file["utterances"].create_dataset("turn", (4,), "<i8", external=[(str(path.parent / "other.bin"), 0, 32)])


def link_outside(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["audio"]
        file["audio"] = h5py.ExternalLink("../audio.h5", "/")


@pytest.mark.parametrize(
    ("borrow", "found"),
    [
        (link_a_column, "'utterances/turn' takes its bytes from another file"),
        (store_elsewhere, "'utterances/turn' takes its bytes from another file"),
        (link_outside, "its audio part is named ../audio.h5, outside its folder"),
    ],
)
def test_bytes_of_other_files_are_refused(linked: Path, borrow: Callable[[Path], None], found: str) -> None:
    borrow(linked)
    seal(linked, [])
    with pytest.raises(StoreError, match=re.escape(found)):
        read_features(linked)


def claim(group: h5py.Group, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """An array that says it is so large, without a byte of it."""
    del group[name]
    group.create_dataset(name, shape, dtype, chunks=(1,) * len(shape))


def claim_attribute(file: h5py.File) -> None:
    """An attribute that was small, with a dimension written over."""
    file.attrs["label_names"] = np.zeros(1237, "i1")
    path = Path(file.filename)
    file.close()
    path.write_bytes(path.read_bytes().replace((1237).to_bytes(8, "little"), (1 << 40).to_bytes(8, "little")))


HUGE = 1 << 40
NOT_OURS: dict[str, Callable[[h5py.File], object]] = {
    "ids": lambda file: claim(file["audio"], "ids", "S1", (HUGE,)),
    "offsets": lambda file: claim(file["audio"], "offsets", "<i8", (HUGE,)),
    "checksums": lambda file: claim(file["audio"], "checksums", "<u8", (HUGE,)),
    "values": lambda file: claim(file["audio"], "values", "<f2", (HUGE, 4)),
    "width": lambda file: claim(file["audio"], "values", "<f2", (1, HUGE)),
    "a column": lambda file: claim(file["utterances"], "speaker", "S1", (HUGE,)),
    "an attribute": claim_attribute,
    "nested JSON": lambda file: file.attrs.create("label_names", "[" * 50_000),
    "a label too many": lambda file: file["utterances/label"].write_direct(np.array([0, 1, -1, 7])),
    "splits out of order": lambda file: file["utterances/split"].write_direct(
        np.array([b"test", b"train", b"train", b"train"], file["utterances/split"].dtype)
    ),
    "an unknown split": lambda file: file["utterances/split"].write_direct(
        np.array([b"train"] * 3 + [b"tests"], file["utterances/split"].dtype)
    ),
    "groups in groups": lambda file: file.create_group("/".join("x" * 5_000)),
    "a soft link": lambda file: file.__setitem__("utterances/turn2", h5py.SoftLink("/audio/ids")),
}


@pytest.mark.parametrize("change", NOT_OURS)
def test_what_a_sealed_file_claims_is_bounded_before_there_is_memory_for_it(tmp_path: Path, change: str) -> None:
    path = self_contained(tmp_path / "feats.h5")
    with h5py.File(path, "r+") as file:
        NOT_OURS[change](file)
    seal(path, [])
    with pytest.raises(StoreError, match=r"feats\.h5: undamaged, but not laid out as this program reads it"):
        read_features(path)


def flip(path: Path, utterance: int) -> None:
    """A bit of the last value of an utterance of the audio in `path`."""
    part = read_part(path)
    with path.open("r+b") as file:
        file.seek(int(part.values.base.offset) + int(part.offsets[utterance + 1]) * part.row_bytes - 1)  # type: ignore[attr-defined]
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 64]))


def test_rows_are_compared_with_their_checksum_before_their_first_use(linked: Path) -> None:
    flip(linked.parent / "audio.h5", 2)
    features = read_features(linked)
    assert features.audio
    assert features.audio.rows(0).shape == (3, 4)
    told = r"audio\.h5: 1 of 4 utterances do not match their checksum: 'bé/0'; the file was damaged after"
    for part in (features.audio, features.resplit({"a": "test", "bé": "train", "c": "train"}).audio):
        assert part
        with pytest.raises(StoreError, match=told):
            part.rows(part.ids.index("bé/0"))
        with pytest.raises(StoreError, match=told):
            part.check()
    assert features.audio.rows(3).shape == (1, 4)
    with pytest.raises(StoreError, match=told):
        write_joint(linked.with_name("copy.h5"), table(), ["joy", "anger"], {"audio": features.audio}, copy=True)
    assert sorted(path.name for path in linked.parent.iterdir()) == ["audio.h5", "feats.h5", "text.h5"]


def test_what_was_compared_once_is_not_again_by_any_process_forked_later(linked: Path) -> None:
    part = read_features(linked).audio
    assert part
    child = multiprocessing.get_context("fork").Process(target=part.check)
    child.start()
    child.join()
    assert child.exitcode == 0
    flip(linked.parent / "audio.h5", 2)
    part.check()


@pytest.mark.parametrize(
    ("dtype", "value"), [("<f2", np.nan), ("<f2", -np.inf), ("<f4", np.inf), ("<f4", -1e16), ("<f4", 3e38)]
)
def test_values_that_no_encoder_gives_are_named(linked: Path, dtype: str, value: float) -> None:
    rows = [array.astype(dtype) for array in arrays()]
    rows[2][1, 3] = value
    write_features(linked, table(), ["joy", "anger"], None, (rows, IDENTITY))  # as a program of another maker could
    found = read_features(linked).text
    assert found
    with pytest.raises(
        StoreError, match=r"1 of 4 utterances hold values that are not finite or beyond 1e\+15.*: 'bé/0'"
    ):
        found.check()
