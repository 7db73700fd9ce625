"""Clips for encoders: in any order, from threads, each long recording decoded once, the samples those of `decode`."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ClipError
from pipeline.manifest import Utterance
from pipeline.media import Clips, Decoders, resample
from pipeline.media.decoding import decode
from pipeline.params import DatasetParams
from pipeline.preparation import prepare
from tests.pipeline.made import sound, write_corpus, write_encoded, write_wav

RATE = 24_000
ENCODER_RATE = 16_000


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Overlapping, repeated and lacking turns of a long recording, and two recordings of one turn each."""
    write_encoded(tmp_path / "long.m4a", sound(6.0, RATE), RATE, "aac")
    write_wav(tmp_path / "own.wav", sound(0.5, RATE), RATE)
    write_wav(tmp_path / "part.wav", sound(2.0, RATE), RATE)
    cuts = [(4.0, 5.5), (0.0, 1.0), (0.5, 2.0), (2.0, 2.5), (0.5, 2.0), (7.0, 8.0), (5.0, "")]
    rows: list[dict[str, Any]] = [{"audio": "long.m4a", "start": start, "end": end} for start, end in cuts]
    rows += [{"audio": "own.wav", "start": "", "end": ""}, {"audio": "part.wav", "start": 0.5, "end": 1.0}]
    splits = ["train"] * 7 + ["validation", "test"]
    write_corpus(tmp_path, [row | {"split": split} for row, split in zip(rows, splits, strict=True)])
    return prepare(DatasetParams(name="table", root=str(tmp_path), table="table.csv")).utterances


@pytest.fixture
def clips(tmp_path: Path, utterances: list[Utterance]) -> Iterator[Clips]:
    with Clips(utterances, tmp_path, "downmix", ENCODER_RATE, tmp_path / "scratch", decode_seconds=60) as clips:
        yield clips


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the recordings that were decoded, one for each time."""
    names: list[str] = []

    decode_stretches = Decoders.decode_stretches

    def counting(decoders: Decoders, path: Path, *arguments: Any) -> Iterator[Any]:
        names.append(path.name)
        yield from decode_stretches(decoders, path, *arguments)

    monkeypatch.setattr(Decoders, "decode_stretches", counting)
    return names


def test_every_clip_is_what_decode_gives_in_any_order(
    tmp_path: Path, utterances: list[Utterance], clips: Clips
) -> None:
    whole = [utterance for utterance in utterances if utterance.samples]
    assert len(whole) == 8
    for utterance in [*whole[::-1], *whole]:
        recording = decode(tmp_path / str(utterance.audio), "downmix", utterance.start, utterance.end)
        expected = resample(recording.samples, recording.sample_rate, ENCODER_RATE)
        np.testing.assert_array_equal(clips.load(utterance).numpy(), expected.numpy())


def test_threads_that_ask_at_once_decode_once(
    tmp_path: Path, utterances: list[Utterance], clips: Clips, passes: list[str]
) -> None:
    whole = [utterance for utterance in utterances if utterance.audio == "long.m4a" and utterance.samples] * 5
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(clips.load, whole))
    assert passes == ["long.m4a"]
    for first, again in zip(loaded, loaded[6:], strict=False):
        assert first.equal(again)


def test_prepare_decodes_every_recording_once(tmp_path: Path, utterances: list[Utterance], passes: list[str]) -> None:
    again = prepare(DatasetParams(name="table", root=str(tmp_path), table="table.csv")).utterances
    assert again == utterances
    assert sorted(passes) == ["long.m4a", "own.wav", "part.wav"]


def test_a_recording_that_changed_is_refused_turn_by_turn(tmp_path: Path, utterances: list[Utterance]) -> None:
    write_encoded(tmp_path / "long.m4a", sound(3.0, RATE), RATE, "aac")
    early, late = (next(u for u in utterances if u.start == start) for start in (0.5, 4.0))
    with Clips(utterances, tmp_path, "downmix", ENCODER_RATE, tmp_path / "scratch", decode_seconds=60) as clips:
        with pytest.raises(ClipError, match=r"long\.m4a has changed since the manifest was made; run"):
            clips.load(early)  # as long as before, of another recording
        with pytest.raises(
            ClipError, match=r"long\.m4a has changed since the manifest .* \(found empty-audio, expected \d+ samples\)"
        ) as told:
            clips.load(late)
    assert (told.value.utterance_id, told.value.status) == (late.id, "empty-audio")


def test_a_recording_that_vanishes_during_the_run_is_told_by_its_status(
    tmp_path: Path, utterances: list[Utterance], clips: Clips
) -> None:
    own = next(utterance for utterance in utterances if utterance.audio == "own.wav")
    clips.load(own)
    (tmp_path / "own.wav").unlink()
    with pytest.raises(ClipError, match=r"own\.wav: no such file, though the manifest has it") as told:
        clips.load(own)
    assert (told.value.utterance_id, told.value.status) == (own.id, "missing-file")


def test_sizes_are_told_in_samples(tmp_path: Path, utterances: list[Utterance]) -> None:
    own = next(utterance for utterance in utterances if utterance.audio == "own.wav")
    changes = [
        (lambda path: path.write_bytes(b""), "(found undecodable, expected 12000 samples)"),
        (lambda path: write_wav(path, sound(0.25, RATE), RATE), "(found 6000 samples, expected 12000 samples)"),
        (lambda path: write_wav(path, sound(1.5, 8000), 8000), "(found 12000 samples at 8000 Hz, expected 12000 sam"),
    ]
    with Clips(utterances, tmp_path, "downmix", ENCODER_RATE, tmp_path / "scratch", decode_seconds=60) as clips:
        for change, told in changes:
            change(tmp_path / "own.wav")  # type: ignore[no-untyped-call]
            with pytest.raises(ClipError, match=re.escape(told)):
                clips.load(own)


@pytest.mark.parametrize("seconds", [0.5, 0.25])
def test_a_recording_that_is_written_during_the_run_is_told_also_where_its_length_stays(
    tmp_path: Path, utterances: list[Utterance], clips: Clips, seconds: float
) -> None:
    own = next(utterance for utterance in utterances if utterance.audio == "own.wav")
    clips.load(own)
    write_wav(tmp_path / "own.wav", sound(seconds, RATE, seed=7), RATE)
    with pytest.raises(ClipError, match=r"own\.wav (changed while it was read|has changed since)") as told:
        clips.load(own)
    assert told.value.status == "changed"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("hang", "timed-out", r"decoding came no further for 1 s; raise audio\.decode_seconds"),
        ("crash-always", "decoder-crashed", "its decoder died, twice"),
        ("forbidden", "unreadable (Permission denied)", r"\.wav: unreadable \(Permission denied\); give .* the right"),
    ],
)
def test_a_recording_that_gives_its_decoder_nothing_is_told_by_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: str, told: str
) -> None:
    """Alone and as the recording of several turns, beside one that is well."""
    monkeypatch.setattr("pipeline.media.decoders.MODULE", "tests.pipeline.odd_decoder")
    places = {
        "alone": (f"{name}-1.wav", None, None),
        "first": (f"{name}-2.wav", None, 0.1),
        "last": (f"{name}-2.wav", 0.1, None),
        "well": ("well.wav", None, None),
    }
    given = {"conversation": "a", "split": "train", "samples": 4800, "sample_rate": RATE}
    records = {
        key: Utterance(id=key, turn=turn, audio=audio, start=start, end=end, **given)  # type: ignore[arg-type]
        for turn, (key, (audio, start, end)) in enumerate(places.items())
    }
    for audio, *_ in places.values():
        write_wav(tmp_path / audio, sound(0.2, RATE), RATE)
    with Clips(records.values(), tmp_path, "downmix", ENCODER_RATE, tmp_path, decode_seconds=1) as clips:
        for key in ("alone", "first", "last"):
            with pytest.raises(ClipError, match=told) as error:
                clips.load(records[key])
            assert (error.value.utterance_id, error.value.status) == (key, status)
        assert len(clips.load(records["well"])) == 3200


def test_nothing_is_left_beside_the_features(tmp_path: Path, utterances: list[Utterance], clips: Clips) -> None:
    clips.load(utterances[0])
    assert list((tmp_path / "scratch").iterdir()) == []


def test_recordings_of_one_turn_need_no_scratch_file(tmp_path: Path, utterances: list[Utterance], clips: Clips) -> None:
    for utterance in utterances:
        if utterance.audio != "long.m4a":
            clips.load(utterance)
    assert not (tmp_path / "scratch").exists()
