"""Damage of every kind, over and over: flipped bytes, full disks, locked files, folders that may not be written."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import Identity, PartLayout, SlotWriter, Utterances, read_part, write_joint

FLIPS = 200
ROOT = Path(__file__).parents[3]
ROWS = [3, 0, 17, 8, 1, 30, 0, 5, 12, 9]
IDS = [f"film {number // 4}/{number % 4}" for number in range(len(ROWS))]


def layout(**changes: Any) -> PartLayout:
    given = {
        "ids": IDS,
        "rows": ROWS,
        "row_shape": (16,),
        "dtype": "float16",
        "identity": Identity({"modality": "audio", "model": "made", "layers": [1, 2]}),
        "plan": "plan",
    }
    return PartLayout(**(given | changes))


def rows_of(seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(count, 16)).astype(np.float16) for count in ROWS]


def table() -> Utterances:
    count = len(IDS)
    films = [name.split("/")[0] for name in IDS]
    numbers = np.arange(count)
    return Utterances(
        IDS, films, numbers % 4, [""] * count, ["train"] * count, numbers % 2, np.zeros(count, np.float32)
    )


def write_part(target: Path, seed: int = 0) -> Path:
    """A part in which one utterance could not be encoded."""
    with SlotWriter(target, layout()) as writer:
        kept = [index for index in range(len(ROWS)) if index != 3]
        writer.write(kept, [rows_of(seed)[index] for index in kept])
        writer.finish({3: "timed-out"})
    return target


def write_copied(target: Path) -> Path:
    parts = {
        name: read_part(write_part(target.with_name(f"{name}.h5"), seed)) for seed, name in enumerate(("audio", "text"))
    }
    write_joint(target, table(), ["joy", "anger"], parts, copy=True)
    return target


def write_linked(target: Path) -> Path:
    write_joint(
        target, table(), ["joy", "anger"], {"audio": read_part(write_part(target.with_name("audio.h5")))}, copy=False
    )
    return target


# one process that imports once and forks for every flip: a crash of the reader is the end of a fork, and is seen
FLIPPING = """
    import json, os, sys
    from pathlib import Path
    from pipeline.inspect import inspect_file
    from pipeline.errors import StoreError

    path, flips = Path(sys.argv[1]), json.loads(sys.argv[2])
    content = path.read_bytes()
    for position, flip in flips:
        damaged = bytearray(content)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                inspect_file(path, verify=True)
                outcome = "accepted"
            except StoreError as error:
                outcome = str(error)
            except BaseException as error:
                outcome = f"traceback: {error!r}"
            os.write(writer, outcome.encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as outcome:
            told = outcome.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps([position, flip, told if not status else f"killed: {status}"]))
"""


def flipped(path: Path, seed: int) -> list[tuple[int, int, str]]:
    """What the reader says of `path` with one byte changed: positions, what was changed, its words."""
    generator = np.random.default_rng(seed)
    size = path.stat().st_size
    at = np.concatenate([generator.integers(0, 512, FLIPS // 4), generator.integers(0, size, FLIPS - FLIPS // 4)])
    flips = [[int(position), int(generator.integers(1, 256))] for position in at]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FLIPPING), str(path), json.dumps(flips)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    outcomes = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(outcomes) == FLIPS
    return outcomes


@pytest.mark.parametrize(
    "write", [write_linked, *(pytest.param(write, marks=pytest.mark.soak) for write in (write_part, write_copied))]
)
def test_two_hundred_flipped_bytes_are_refused_or_named_and_nothing_crashes(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path / "feats.h5")
    whole, named = path.read_bytes(), 0
    for position, flip, told in flipped(path, seed=len(whole)):
        where = f"byte {position} of {len(whole)}, changed by {flip}: {told}"
        assert told not in ("", "accepted"), where
        assert not told.startswith(("traceback", "killed")), where
        assert str(path) in told, where
        if "do not match their checksum" in told:
            named += any(f"'{name}'" in told for name in IDS)
        else:
            assert any(word in told for word in ("damaged", "truncated", "version", "not a feature file")), where
    assert (named > 20) == (write is not write_linked)  # a linking file has no values of its own


@pytest.mark.soak
def test_the_named_utterance_is_the_one_whose_byte_was_flipped(tmp_path: Path) -> None:
    path = write_part(tmp_path / "audio.h5")
    part, content = read_part(path), path.read_bytes()
    first = content.index(part.values.tobytes())
    owner = np.repeat(np.arange(len(IDS)), np.diff(part.offsets))
    for position, flip, told in flipped(path, seed=0):
        row = (position - first) // part.values[:1].nbytes
        if 0 <= row < len(owner):
            assert f"1 of {len(IDS)} utterances do not match their checksum: '{IDS[owner[row]]}'" in told, (flip, told)


WRITING = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from pipeline.errors import StoreError
    from pipeline.store import SlotWriter
    from tests.pipeline.store.test_soak import layout, rows_of

    target = Path(sys.argv[1])
    big = layout(rows=[300] * 10, row_shape=(512,))
    arrays = [np.full((300, 512), index, np.float16) for index in range(10)]
    with SlotWriter(target, big) as writer:
        writer.write([0, 1], arrays[:2])
        size = writer.partial.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
        try:
            for index in range(2, 10):
                writer.write([index], arrays[index:index + 1])
            print("no error")
        except StoreError as error:
            print(error)
"""


def run_python(script: str, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
    """What `script` prints; it must end well."""
    run = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_file_size_limit_amid_the_writing_is_one_line_and_what_is_finished_stays(tmp_path: Path) -> None:
    told = run_python(WRITING, str(tmp_path / "audio.h5"))
    assert told.count("\n") == 1
    assert "audio.h5.partial: cannot be written (File too large); raise the limit on the size of files (ulimit" in told
    assert told.endswith(", then run the command again: finished work is kept\n")
    big = layout(rows=[300] * 10, row_shape=(512,))
    with SlotWriter(tmp_path / "audio.h5", big) as writer:
        done = writer.done.tolist()
        assert done[:2] == [True, True]
        assert not all(done)
        missing = [index for index, is_done in enumerate(done) if not is_done]
        writer.write(missing, [np.full((300, 512), index, np.float16) for index in missing])
        writer.finish()
    assert np.array_equal(read_part(tmp_path / "audio.h5").rows(7), np.full((300, 512), 7))


FULL = """
    import os, sys
    from pathlib import Path
    import numpy as np
    from pipeline.errors import StoreError
    from pipeline.store import SlotWriter, read_part, write_joint
    from tests.pipeline.store.test_soak import layout, table

    folder = Path(sys.argv[1])
    filler = folder / "filler"

    def leave(size):
        space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize
        with filler.open("wb") as file:
            file.write(bytes(max(0, free - size)))

    def told(work, *arguments):
        try:
            work(*arguments)
            print("no error")
        except StoreError as error:
            print(error)

    big = layout(rows=[300] * 10, row_shape=(512,))
    arrays = [np.full((300, 512), index, np.float16) for index in range(10)]

    leave(1_000_000)
    told(SlotWriter, folder / "audio.h5", big)  # does not fit from the start
    print(sorted(path.name for path in folder.iterdir()))
    filler.unlink()

    fallocate, os.posix_fallocate = os.posix_fallocate, lambda *_: None  # a disk that promises more than it has
    with SlotWriter(folder / "audio.h5", big) as writer:
        writer.write([0, 1, 2], arrays[:3])
        leave(400_000)
        told(lambda: [writer.write([index], arrays[index:index + 1]) for index in range(3, 10)])
        filler.unlink()
    os.posix_fallocate = fallocate
    with SlotWriter(folder / "audio.h5", big) as writer:
        print(int(writer.done.sum()))
        missing = [index for index in range(9) if not writer.done[index]]
        writer.write(missing, [arrays[index] for index in missing])
        leave(1_000_000)
        told(writer.finish, {9: "changed"})  # no room for the copy
        filler.unlink()
        print(sorted(path.name for path in folder.iterdir()))
        writer.finish({9: "changed"})
    part = read_part(folder / "audio.h5")
    leave(1_000_000)
    told(write_joint, folder / "feats.h5", table(), ["joy", "anger"], {"audio": part}, True)
    filler.unlink()
    print(sorted(path.name for path in folder.iterdir()))
"""


def may_mount() -> bool:
    """Whether a file system of our own can be had here."""
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_mount(), reason="no file system can be mounted here")
def test_a_full_disk_is_one_line_at_every_step_and_what_is_finished_stays(tmp_path: Path) -> None:
    """A file system of 8 MB in the place of the folder, seen by that process alone."""
    mounted = ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=8m tmpfs "{tmp_path}" && exec "$@"', "sh")
    laying, left, writing, done, marking, kept, joining, end = run_python(
        FULL, str(tmp_path), prefix=mounted
    ).splitlines()
    assert re.search(r"audio.h5.partial: no room for it \(No space left on device: it needs \d\.\d MB, ", laying)
    assert left == "['filler']"
    assert "audio.h5.partial: cannot be written (No space left on device); make room, then run the command" in writing
    assert 3 <= int(done) < 10
    assert "audio.h5.partial.marked: no room for it" in marking
    assert "make room, then run the command again: finished work is kept" in marking
    assert kept == "['audio.h5.partial']"
    assert "feats.h5: cannot be written (No space left on device); make room" in joining
    assert end == "['audio.h5']"


READ_ONLY = """
    import os, sys
    from pathlib import Path
    # before rights go
    import h5py, numpy as np, pipeline.store.slot_writer, pipeline.inspect, tests.pipeline.store.test_soak as soak
    from pipeline.errors import StoreError
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        pipeline.store.slot_writer.SlotWriter(Path(sys.argv[1]), soak.layout())
    except StoreError as error:
        print(error)
"""


@pytest.mark.parametrize("name", ["audio.h5", "new/audio.h5"])
def test_a_read_only_folder_is_one_line(tmp_path: Path, name: str) -> None:
    """Root may write everywhere, so the process lets go of its rights."""
    script, folder = READ_ONLY, tmp_path / "data"
    folder.mkdir(mode=0o555)
    parents = [parent for parent in (folder, *folder.parents) if not parent.stat().st_mode & 0o001]
    if os.getuid() == 0:
        for parent in parents:  # of the folder of tests, which is root's alone
            parent.chmod(parent.stat().st_mode | 0o011)
    told = run_python(script, str(folder / name))
    assert told.count("\n") == 1
    assert "cannot be written (Permission denied); see to the disk, its room and its permissions" in told
    assert not list(folder.iterdir())
