"""Writing slot by slot: interruption, resumption, damage, a full disk."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import DataError, StoreError
from pipeline.inspect import inspect_file
from pipeline.join import failures
from pipeline.store import Identity, PartLayout, SlotWriter, Utterances, read_features, read_part, write_joint
from pipeline.store.seal import USER_BLOCK, check_seal, seal

ROWS = [3, 0, 5, 2]


def layout(**changes: object) -> PartLayout:
    given = {
        "ids": ["a", "b", "c", "d"],
        "rows": ROWS,
        "row_shape": (4,),
        "dtype": "float16",
        "identity": Identity({"model": "made"}),
        "plan": "plan",
    }
    return PartLayout(**(given | changes))  # type: ignore[arg-type]


def content() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=(rows, 4)).astype(np.float32) for rows in ROWS]


def write_all(target: Path) -> bytes:
    with SlotWriter(target, layout()) as writer:
        writer.write(range(4), content())
        writer.finish()
    return target.read_bytes()


def test_a_resumed_file_is_byte_identical(tmp_path: Path) -> None:
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        writer.write([2, 1], [content()[2], content()[1]])
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        assert writer.done.tolist() == [False, True, True, False]
        writer.write([0, 3], [content()[0], content()[3]])
        writer.finish()
    assert (tmp_path / "part.h5").read_bytes() == write_all(tmp_path / "undisturbed.h5")
    assert not (tmp_path / "part.h5.partial").exists()


def test_a_slot_whose_bytes_were_lost_is_done_again(tmp_path: Path) -> None:
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        writer.write([0, 2], [content()[0], content()[2]])
    partial, stored = tmp_path / "part.h5.partial", content()[0].astype("<f2").tobytes()
    assert partial.read_bytes().count(stored) == 1  # as if power failed before these bytes reached the disk:
    partial.write_bytes(partial.read_bytes().replace(stored, bytes(len(stored))))
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        assert writer.done.tolist() == [False, False, True, False]


def test_no_bit_of_an_interrupted_file_changes_the_finished_one(tmp_path: Path) -> None:
    """Wherever it lies: in values, checksums, names, the library's own structure or the note."""
    whole, partial = write_all(tmp_path / "undisturbed.h5"), tmp_path / "part.h5.partial"
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        writer.write([2, 1], [content()[2], content()[1]])
        writer.take_note(budget=4)
    begun = partial.read_bytes()
    for bit in range(0, 8 * len(begun), 997):
        changed = bytearray(begun)
        changed[bit // 8] ^= 1 << bit % 8
        partial.write_bytes(changed)
        with SlotWriter(tmp_path / "part.h5", layout()) as writer:
            assert writer.note == {"budget": 4} or not writer.note
            missing = [index for index in range(4) if not writer.done[index]]
            writer.write(missing, [content()[index] for index in missing])
            writer.finish()
        assert (tmp_path / "part.h5").read_bytes() == whole, bit


@pytest.mark.parametrize(
    "changes", [{"plan": "other"}, {"identity": Identity({"model": "other"})}, {"row_shape": (5,)}]
)
def test_other_work_starts_afresh_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object]
) -> None:
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        writer.write([0], content()[:1])
    with caplog.at_level(logging.WARNING), SlotWriter(tmp_path / "part.h5", layout(**changes)) as writer:
        assert not writer.done.any()
    assert "starting afresh" in caplog.text


def test_a_damaged_partial_file_starts_afresh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "part.h5.partial").write_bytes(b"half a header")
    with caplog.at_level(logging.WARNING), SlotWriter(tmp_path / "part.h5", layout()) as writer:
        assert not writer.done.any()
    assert "damaged" in caplog.text


def test_an_unfinished_file_cannot_be_finished(tmp_path: Path) -> None:
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        writer.write([0], content()[:1])
        with pytest.raises(StoreError, match="3 utterances did not reach the disk intact, the first 'b'"):
            writer.finish()
    assert not (tmp_path / "part.h5").exists()


def test_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    with (
        SlotWriter(tmp_path / "part.h5", layout()) as writer,
        pytest.raises(DataError, match=r"'a': encoded to shape \(2, 4\), but \(3, 4\) was laid out"),
    ):
        writer.write([0], [np.zeros((2, 4))])


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    with SlotWriter(tmp_path / "part.h5", layout()) as writer, pytest.raises(DataError, match="dtype: float32"):
        writer.write([0], [np.full((3, 4), value)])


def test_an_empty_part_is_a_part(tmp_path: Path) -> None:
    empty = layout(rows=[0, 0, 0, 0])
    with SlotWriter(tmp_path / "part.h5", empty) as writer:
        writer.write(range(4), [np.empty((0, 4))] * 4)
        writer.finish()
    assert read_part(tmp_path / "part.h5").values.shape == (0, 4)


def test_a_full_disk_shows_before_anything_is_encoded(tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk; the folder is left as it was."""
    script = textwrap.dedent(
        f"""
        import resource, signal
        from pathlib import Path
        from pipeline.store import PartLayout, SlotWriter
        from pipeline.store import Identity; from pipeline.errors import StoreError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        layout = PartLayout(["a"], [1_000_000], (768,), "float16", Identity({{}}), "plan")
        try:
            SlotWriter(Path({str(tmp_path)!r}) / "part.h5", layout)
        except StoreError as error:
            print(error)
        """
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "part.h5.partial: no room for it (File too large: it needs 1.536 GB" in run.stdout
    assert list(tmp_path.iterdir()) == []


def failing(target: Path, failures: dict[int, str]) -> None:
    """A part in which utterances `failures` were not encoded."""
    with SlotWriter(target, layout()) as writer:
        kept = [index for index in range(4) if index not in failures]
        writer.write(kept, [content()[index] for index in kept])
        writer.finish(failures)


def test_failures_are_named_and_have_no_rows(tmp_path: Path) -> None:
    failing(tmp_path / "part.h5", {2: "timed-out", 0: "changed"})
    part = read_part(tmp_path / "part.h5")
    assert part.failed == {"a": "changed", "c": "timed-out"}
    assert [len(part.rows(index)) for index in range(4)] == [0, 0, 0, 2]
    assert np.array_equal(part.rows(3), content()[3].astype(np.float16))
    part.check()
    assert [path.name for path in tmp_path.iterdir()] == ["part.h5"]
    write_all(tmp_path / "whole.h5")
    assert read_part(tmp_path / "whole.h5").digest != part.digest


def test_a_part_without_failures_is_laid_out_as_ever(tmp_path: Path) -> None:
    write_all(tmp_path / "part.h5")
    with h5py.File(tmp_path / "part.h5") as file:
        assert set(file) == {"values", "offsets", "checksums", "ids"}
        assert set(file.attrs) == {"format", "version", "kind", "identity", "plan"}
    assert read_part(tmp_path / "part.h5").failed == {}


def test_many_failures_fit(tmp_path: Path) -> None:
    """More than the 64 KB that HDF5 gives to an attribute."""
    ids = [f"a conversation with a long name/{number}" for number in range(3000)]
    with SlotWriter(tmp_path / "part.h5", layout(ids=ids, rows=[1] * 3000)) as writer:
        writer.finish(dict.fromkeys(range(3000), "missing-file"))
    assert read_part(tmp_path / "part.h5").failed == dict.fromkeys(ids, "missing-file")


def test_runs_of_utterances_are_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks smaller than an utterance, failures at both ends and beside each other."""
    monkeypatch.setattr("pipeline.store.slot_writer.BLOCK", 7)
    rows = [2, 3, 0, 5, 1, 4, 2]
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(count, 4)).astype(np.float16) for count in rows]
    failed = {0: "changed", 3: "changed", 4: "timed-out", 6: "changed"}
    with SlotWriter(tmp_path / "part.h5", layout(ids=list("abcdefg"), rows=rows)) as writer:
        kept = [index for index in range(7) if index not in failed]
        writer.write(kept, [arrays[index] for index in kept])
        writer.finish(failed)
    part = read_part(tmp_path / "part.h5")
    for index, array in enumerate(arrays):
        assert np.array_equal(part.rows(index), array[:0] if index in failed else array)
    part.check()


def test_what_is_neither_written_nor_failed_is_not_passed_over(tmp_path: Path) -> None:
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        writer.write([0], content()[:1])
        with pytest.raises(StoreError, match="2 utterances did not reach the disk intact, the first 'b'"):
            writer.finish({2: "changed"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.h5.partial"]


def test_parts_with_failures_are_joined_copied_and_inspected(tmp_path: Path) -> None:
    failing(tmp_path / "audio.h5", {1: "changed", 2: "timed-out"})
    part = read_part(tmp_path / "audio.h5")
    names, numbers = list("abcd"), np.zeros(4, np.int64)
    table = Utterances(names, names, numbers, names, ["train"] * 4, numbers, np.zeros(4, np.float32))
    for copy in (False, True):
        write_joint(tmp_path / "feats.h5", table, ["x"], {"audio": part}, copy)
        features = read_features(tmp_path / "feats.h5")
        assert features.audio is not None
        assert features.audio.failed == {"b": "changed", "c": "timed-out"}
        assert failures(features) == [
            "audio: 2 utterances could not be encoded and are without it (1 changed, 1 timed-out)"
        ]
        report = inspect_file(tmp_path / "feats.h5", verify=True)
        assert "2 of these could not be encoded: 'b' changed, 'c' timed-out" in report.to_text()
        assert json.loads(report.to_json())["parts"]["audio"]["failed"] == features.audio.failed


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the system is asked to do from now on, in order; a mark is a write of eight bytes."""
    calls: list[str] = []

    def record(name: str, label: Callable[..., str]) -> None:
        called = getattr(os, name)

        def recording(*arguments: Any, **others: Any) -> Any:
            calls.append(label(*arguments))
            return called(*arguments, **others)

        monkeypatch.setattr(os, name, recording)

    def of(descriptor: int) -> str:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return "folder" if path.is_dir() else path.suffix.removeprefix(".")

    record("pwrite", lambda descriptor, content, _: f"{'mark' if len(content) == 8 else 'rows'} {of(descriptor)}")
    record("fdatasync", lambda descriptor: f"sync {of(descriptor)}")
    record("fsync", lambda descriptor: f"sync {of(descriptor)}")
    record("replace", lambda old, new: f"rename {Path(old).suffix} {Path(new).suffix}")
    record("unlink", lambda path: f"unlink {Path(path).suffix}")
    return calls


def test_power_may_fail_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are on disk before their marks, all of it before the seal, the seal before the name, names at once."""
    calls = calls_of(monkeypatch)
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        assert calls == ["unlink .new", "sync new", "rename .new .partial", "sync folder", "unlink .marked"]
        calls.clear()
        writer.write([0, 2], [content()[0], content()[2]])
        assert calls == ["rows partial", "rows partial", "sync partial", "mark partial", "mark partial"]
        writer.write([1, 3], [content()[1], content()[3]])
        calls.clear()
        writer.finish()
    sealed = "sync partial"
    assert calls == ["sync partial", sealed, "rename .partial .h5", "sync folder"]


def test_power_may_fail_while_failures_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished file has its name, on disk, before the partial one goes."""
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        writer.write([0, 1, 3], [content()[index] for index in (0, 1, 3)])
        calls = calls_of(monkeypatch)
        writer.finish({2: "changed"})
    written = [call for call in calls if call.split()[0] in ("rows", "mark")]
    assert {call.split()[1] for call in written} == {"marked"}  # the partial file stays as it is
    assert calls[-6:] == [
        "mark marked",
        *("sync marked", "sync marked"),  # all, then the seal
        "rename .marked .h5",
        "sync folder",
        "unlink .partial",
    ]


@pytest.mark.parametrize("moment", ["lay_out", "SlotFile.copy_slots", "SlotFile.seal"])
def test_a_run_that_ends_while_failures_are_marked_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        writer.write([0, 1, 3], [content()[index] for index in (0, 1, 3)])
        with monkeypatch.context() as patch:

            def full(*_: object) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(f"pipeline.store.slot_writer.{moment}", full)
            with pytest.raises(
                StoreError, match=r"part\.h5\.partial: cannot be written \(No space left on device\); make"
            ):
                writer.finish({2: "changed"})
    assert [path.name for path in tmp_path.iterdir()] == ["part.h5.partial"]
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        assert writer.done.tolist() == [True, True, False, True]
        writer.finish({2: "changed"})
    failing(tmp_path / "undisturbed.h5", {2: "changed"})
    assert (tmp_path / "part.h5").read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()


def test_a_finished_file_can_be_read_whoever_holds_it(tmp_path: Path) -> None:
    write_all(tmp_path / "part.h5")
    with (tmp_path / "part.h5").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run = subprocess.run(
            [
                sys.executable,
                "-c",
                f"from pipeline.inspect import *; inspect_file(Path({str(tmp_path / 'part.h5')!r}))",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 0, run.stderr


def test_a_folder_in_place_of_the_file_shows_before_anything_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "part.h5").mkdir()
    with pytest.raises(StoreError, match=r"part\.h5: is a folder"):
        SlotWriter(tmp_path / "part.h5", layout())


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_a_seal_leaves_the_file_whole_whatever_version_of_hdf5_it_follows(tmp_path: Path, version: str) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=USER_BLOCK, libver=version) as file:
        file["audio/values"] = [1, 2]
    seal(path, [])
    check_seal(path)
    with h5py.File(path) as file:
        assert file["audio/values"][:].tolist() == [1, 2]
