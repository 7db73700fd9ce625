"""Decoding in processes: the same samples, a limit for hanging ones, a second try for crashing ones, no leftovers."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.media import Decoders, Recording, Stretch
from pipeline.media.decoding import decode, decode_stretches
from pipeline.params import DatasetParams
from pipeline.preparation import prepare, summary
from tests.pipeline.made import rows_of, sound, write_corpus, write_encoded, write_wav

RATE = 16_000
WHOLE = Stretch()
ODD = "tests.pipeline.odd_decoder"


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoder processes that hang and die where a file's name says so."""
    monkeypatch.setattr("pipeline.media.decoders.MODULE", ODD)


def is_running(process: int) -> bool:
    """Whether the process is there, and no corpse."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: object, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


def processes_of(decoders: Decoders) -> list[int]:
    return [process.popen.pid for process in decoders.processes]


def whole(decoders: Decoders, path: Path) -> Recording:
    ((_, recording),) = decoders.decode_stretches(path, "downmix", [WHOLE])
    return recording


def wav(path: Path, seconds: float = 0.2, seed: int = 0) -> Path:
    return write_wav(path, sound(seconds, RATE, seed=seed), RATE)


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    with Decoders(limit_seconds=60, workers=2) as decoders:
        yield decoders


def test_samples_and_issues_are_those_of_decoding_here(tmp_path: Path, decoders: Decoders) -> None:
    album = write_encoded(tmp_path / "long.m4a", sound(3.0, 48_000, 2), 48_000, "aac")
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    stretches = [Stretch(1.0, 2.0), Stretch(0.25, 0.5), Stretch(2.5), Stretch(5.0, 6.0), Stretch(0.0, 0.01)]
    for path in (album, wav(tmp_path / "a.wav"), broken, tmp_path / "none.wav"):
        expected = list(decode_stretches(path, "first", stretches))
        found = list(decoders.decode_stretches(path, "first", stretches))
        assert [stretch for stretch, _ in found] == [stretch for stretch, _ in expected]
        for (_, left), (_, right) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(left.samples, right.samples)
            assert (left.sample_rate, left.channels, left.issues) == (right.sample_rate, right.channels, right.issues)


def test_a_recording_stays_as_it_was_while_others_are_decoded(tmp_path: Path, decoders: Decoders) -> None:
    first = whole(decoders, wav(tmp_path / "a.wav", seed=1))
    before = first.samples.copy()
    whole(decoders, wav(tmp_path / "b.wav", seed=2))
    np.testing.assert_array_equal(first.samples, before)


def test_processes_start_when_they_are_needed_and_end_with_the_pool(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav")
    with Decoders(workers=4) as decoders:
        assert not processes_of(decoders)
        for _ in range(3):
            whole(decoders, path)
        (process,) = processes_of(decoders)
        assert is_running(process)
    assert not is_running(process)
    with pytest.raises(RuntimeError, match="closed"):
        whole(decoders, path)


def test_threads_share_the_pool_and_each_gets_its_own_recording(tmp_path: Path, decoders: Decoders) -> None:
    paths = [wav(tmp_path / f"{number}.wav", 0.05 * (1 + number % 3), seed=number) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: whole(decoders, path), paths))
    for path, recording in zip(paths, found, strict=True):
        np.testing.assert_array_equal(recording.samples, decode(path).samples)
    assert len(processes_of(decoders)) == 2


def test_a_hanging_recording_is_given_up_and_others_are_not_affected(tmp_path: Path, odd: None) -> None:
    paths = [wav(tmp_path / name) for name in ("hang.wav", "a.wav", "b.wav", "c.wav")]
    with Decoders(limit_seconds=1.0, workers=2) as decoders, ThreadPoolExecutor(4) as pool:
        found = [recording.issues for recording in pool.map(lambda path: whole(decoders, path), paths)]
        assert found == [["timed-out"], [], [], []]
        assert wait_until(lambda: len(processes_of(decoders)) <= 2)


def test_a_stopped_process_counts_as_hanging(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav")
    with Decoders(limit_seconds=0.5, workers=1) as decoders:
        whole(decoders, path)
        (process,) = processes_of(decoders)
        os.kill(process, signal.SIGSTOP)
        assert whole(decoders, path).issues == ["timed-out"]
        assert not is_running(process)
        assert whole(decoders, path).issues == []


@pytest.mark.soak
def test_the_limit_is_for_progress_not_for_length(tmp_path: Path, odd: None) -> None:
    """A recording that takes longer than the limit, and is being decoded all the while."""
    with Decoders(limit_seconds=1.0, workers=1) as decoders:
        started = time.monotonic()
        assert whole(decoders, wav(tmp_path / "slow.wav")).issues == []
        assert time.monotonic() - started > 1.0


def test_a_process_that_is_killed_is_replaced_and_its_recording_tried_again(tmp_path: Path, odd: None) -> None:
    path = wav(tmp_path / "crash-once.wav")
    with Decoders(workers=1) as decoders:
        np.testing.assert_array_equal(whole(decoders, path).samples, decode(path).samples)
        (process,) = processes_of(decoders)
        os.kill(process, signal.SIGKILL)  # while it has nothing to do
        assert whole(decoders, wav(tmp_path / "a.wav")).issues == []
        assert processes_of(decoders) != [process]


def test_a_recording_that_crashes_every_decoder_is_named_so(tmp_path: Path, odd: None) -> None:
    with Decoders(workers=1) as decoders:
        assert whole(decoders, wav(tmp_path / "crash-always.wav")).issues == ["decoder-crashed"]
        assert whole(decoders, wav(tmp_path / "a.wav")).issues == []


@pytest.mark.parametrize(("name", "issue"), [("late-hang.wav", "timed-out"), ("late-crash.wav", None)])
def test_stretches_that_were_delivered_are_kept(tmp_path: Path, odd: None, name: str, issue: str | None) -> None:
    """A process that dies behind each stretch gives two of three; the third is given up."""
    stretches = [Stretch(0.0, 0.1), Stretch(0.1, 0.2), Stretch(0.2, 0.3)]
    path = wav(tmp_path / name, 0.4)
    with Decoders(limit_seconds=1.0, workers=1) as decoders:
        found = dict(decoders.decode_stretches(path, "downmix", stretches))
    lost = stretches[1:] if issue else stretches[2:]
    for stretch in stretches:
        expected = decode(path, "downmix", stretch.start, stretch.end)
        if stretch in lost:
            assert found[stretch].issues == [issue or "decoder-crashed"]
            assert not len(found[stretch].samples)
        else:
            np.testing.assert_array_equal(found[stretch].samples, expected.samples)


def test_a_caller_that_turns_away_leaves_no_process_at_work(tmp_path: Path, odd: None) -> None:
    path = wav(tmp_path / "late-hang.wav")
    with Decoders(workers=1) as decoders:
        next(recordings := decoders.decode_stretches(path, "downmix", [Stretch(0, 0.1), Stretch(0.1, 0.2)]))
        (process,) = processes_of(decoders)
        recordings.close()  # type: ignore[attr-defined]
        assert not is_running(process)
        assert whole(decoders, wav(tmp_path / "a.wav")).issues == []


@pytest.mark.soak
def test_prepare_puts_hanging_and_crashing_files_into_the_manifest(tmp_path: Path, odd: None) -> None:
    rows = rows_of()
    rows[0]["audio"], rows[3]["audio"] = "hang.wav", "crash-always.wav"
    write_corpus(tmp_path, rows)
    prepared = prepare(DatasetParams(name="table", root=str(tmp_path), table="table.csv", decode_seconds=1.0))
    status = {utterance.audio: utterance.status for utterance in prepared.utterances}
    assert {name: found for name, found in status.items() if found != "ok"} == {
        "hang.wav": "timed-out",
        "crash-always.wav": "decoder-crashed",
    }
    assert len(status) == len(rows)
    assert "status timed-out: 'c0/0', hang.wav" in summary(prepared)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["a.wav", "hang.wav"])
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent_however_it_ends(tmp_path: Path, name: str, kill: signal.Signals) -> None:
    """Also one that hangs; and Ctrl-C, which a terminal gives to the whole group, is told of once."""
    path = wav(tmp_path / name)
    script = textwrap.dedent(
        f"""
        import signal, time
        from pathlib import Path
        from threading import Thread
        import pipeline.media.decoders
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
        from pipeline.media.decoding import Stretch
        pipeline.media.decoders.MODULE = {ODD!r}
        with pipeline.media.decoders.Decoders(workers=1) as decoders:
            job = decoders.decode_stretches(Path({str(path)!r}), "downmix", [Stretch()])
            thread = Thread(target=lambda: list(job), daemon=True)
            thread.start()
            thread.join(2.0)
            print(*[process.popen.pid for process in decoders.processes], flush=True)
            time.sleep(60)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[3],
    )
    assert parent.stdout is not None
    process = int(parent.stdout.readline())
    assert is_running(process)
    os.killpg(parent.pid, kill)
    _, errors = parent.communicate(timeout=30)
    assert wait_until(lambda: not is_running(process))
    if kill == signal.SIGINT:
        assert errors.count("KeyboardInterrupt") == 1, errors


def test_memory_returns(tmp_path: Path) -> None:
    """Samples of a long recording, 23 MB, are not held by what both processes share."""
    path = wav(tmp_path / "long.wav", 120.0)
    with Decoders(workers=1) as decoders:
        ((_, recording),) = decoders.decode_stretches(path, "downmix", [WHOLE])
        assert len(recording.samples) == 120 * RATE
        (process,) = decoders.processes
        assert os.fstat(process.memory).st_size == 0
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(2):
            os.kill(process.popen.pid, signal.SIGKILL)
            list(decoders.decode_stretches(path, "downmix", [Stretch(0.0, 0.1)]))
            (process,) = decoders.processes
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_where_no_process_can_start_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.media.decoders.MODULE", "pipeline.nowhere")
    with (
        Decoders(workers=1) as decoders,
        pytest.raises(DataError, match=r"no decoder process comes to life .* status 1"),
    ):
        whole(decoders, wav(tmp_path / "a.wav"))


def test_without_pyav_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('No module named av')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Decoders(workers=1) as decoders, pytest.raises(DataError, match=r"needs PyAV \(No module .* pip install av"):
        whole(decoders, wav(tmp_path / "a.wav"))


def test_a_decoder_process_loads_nothing_of_weight() -> None:
    script = "import sys, av, pipeline.media.decoder_process\nprint(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {"torch", "torchaudio", "pydantic", "h5py", "yaml", "scipy", "tqdm"}
