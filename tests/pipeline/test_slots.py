"""Writing slot by slot: interruption, resumption, damage, a full disk."""

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.slots import PartLayout, SlotWriter
from pipeline.store import Identity, StoreError, read_part

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
        values_at = writer._values_at
    with (tmp_path / "part.h5.partial").open("r+b") as file:  # as if power failed before these bytes reached the disk
        file.seek(values_at)
        file.write(bytes(8))
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        assert writer.done.tolist() == [False, False, True, False]


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


def test_an_unreadable_partial_file_starts_afresh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "part.h5.partial").write_bytes(b"half a header")
    with caplog.at_level(logging.WARNING), SlotWriter(tmp_path / "part.h5", layout()) as writer:
        assert not writer.done.any()
    assert "unreadable" in caplog.text


def test_an_unfinished_file_cannot_be_finished(tmp_path: Path) -> None:
    with SlotWriter(tmp_path / "part.h5", layout()) as writer:
        writer.write([0], content()[:1])
        with pytest.raises(StoreError, match="3 utterances did not reach the disk intact, the first 'b'"):
            writer.finish()
    assert not (tmp_path / "part.h5").exists()


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    with (
        SlotWriter(tmp_path / "part.h5", layout()),
        pytest.raises(StoreError, match="another process is writing it"),
    ):
        SlotWriter(tmp_path / "part.h5", layout())


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
        from pipeline.slots import PartLayout, SlotWriter
        from pipeline.store import Identity, StoreError
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
    assert "no room for part.h5.partial, which needs 1.536 GB" in run.stdout
    assert list(tmp_path.iterdir()) == []
