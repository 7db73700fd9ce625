"""Decoding: every format gives what was written, and every bad recording an issue instead of an exception."""

import os
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.functional import resample as reference_resample

from pipeline.media import Channels, Recording, Stretch, resample
from pipeline.media.decoding import decode, decode_stretches, resampled_length
from tests.pipeline.made import SURROUND, as_stored, cut, sound, write_encoded, write_film, write_wav

RATE = 16_000


def values(recording: Recording) -> np.ndarray:
    return recording.samples.astype(np.float64)


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["u8", "s16", "s24", "s32", "f32", "f64"])
def test_a_wav_file_decodes_to_what_was_written(tmp_path: Path, kind: str, rate: int) -> None:
    samples = sound(0.2, rate)
    recording = decode(write_wav(tmp_path / "a.wav", samples, rate, kind))
    assert (recording.sample_rate, recording.channels, recording.issues) == (rate, 1, [])
    assert recording.samples.dtype == np.float32
    exact = kind in ("u8", "s16", "s24", "f32")  # float32 holds these, the others to its own precision
    np.testing.assert_allclose(values(recording), as_stored(samples, kind)[:, 0], rtol=0, atol=0 if exact else 2**-25)


@pytest.mark.parametrize("channels", [1, 2])
def test_integers_of_64_bits_are_read(tmp_path: Path, channels: int) -> None:
    samples = sound(0.2, RATE, channels)
    recording = decode(write_encoded(tmp_path / "a.wav", samples, RATE, "pcm_s64le"), "first")
    assert recording.issues == []
    np.testing.assert_allclose(values(recording), samples[:, 0], rtol=0, atol=2**-14)


@pytest.mark.parametrize("kind", ["s16", "s24", "f32"])
@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ("downmix", lambda written: written.mean(axis=1)),
        ("center", lambda written: written[:, 2]),
        ("first", lambda written: written[:, 0]),
    ],
)
def test_six_channels_become_one_as_asked(
    tmp_path: Path, kind: str, channels: Channels, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    samples = sound(0.2, 48_000, channels=6)
    recording = decode(write_wav(tmp_path / "six.wav", samples, 48_000, kind, SURROUND), channels)
    assert (recording.channels, recording.issues) == (6, [])
    np.testing.assert_allclose(values(recording), expected(as_stored(samples, kind)), rtol=0, atol=1e-7)


def test_six_channels_without_names_are_those_of_5_1(tmp_path: Path) -> None:
    samples = sound(0.2, 48_000, channels=6)
    recordings = [
        decode(write_wav(tmp_path / "bare.wav", samples, 48_000), "center"),
        decode(write_encoded(tmp_path / "a.flac", samples, 48_000, "flac"), "center"),
    ]
    for recording in recordings:
        assert (recording.channels, recording.issues) == (6, [])
        np.testing.assert_allclose(values(recording), samples[:, 2], rtol=0, atol=2**-14)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_a_centre_that_the_file_does_not_name_is_reported(tmp_path: Path, count: int) -> None:
    samples = sound(0.2, RATE, channels=count)
    path = write_wav(tmp_path / "bare.wav", samples, RATE)
    path.write_bytes(2 * path.read_bytes())  # once of two that are joined
    recording = decode(path, "center")
    assert recording.issues == [f"channel 1 of {count}"]
    np.testing.assert_array_equal(values(recording), np.tile(as_stored(samples, "s16")[:, 0], 2))
    assert [decode(path, other).issues for other in ("first", "downmix")] == [[], []]


def test_without_a_centre_channel_the_first_is_taken(tmp_path: Path) -> None:
    samples = sound(0.2, RATE, channels=2)
    recording = decode(write_wav(tmp_path / "two.wav", samples, RATE), "center")
    np.testing.assert_array_equal(values(recording), as_stored(samples, "s16")[:, 0])


def test_flac_is_lossless(tmp_path: Path) -> None:
    samples = sound(0.3, 24_000, channels=2)
    recording = decode(write_encoded(tmp_path / "a.flac", samples, 24_000, "flac"))
    assert (recording.sample_rate, recording.channels, recording.issues) == (24_000, 2, [])
    np.testing.assert_allclose(values(recording), samples.mean(axis=1), rtol=0, atol=2**-15)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.ogg", "libopus", 48_000),
        ("a.opus", "libopus", 24_000),
        ("a.webm", "libopus", 16_000),
        ("a.mp3", "libmp3lame", 44_100),
        ("a.m4a", "aac", 44_100),
        ("a.mp4", "aac", 48_000),
        ("a.aac", "aac", 48_000),
    ],
)
def test_lossy_formats_keep_the_sound_and_its_length(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    samples = sound(1.0, rate)
    recording = decode(write_encoded(tmp_path / name, samples, rate, codec))
    assert recording.issues == []
    assert len(recording.samples) / recording.sample_rate == pytest.approx(1.0, abs=0.05)
    written = resample(samples[:, 0], rate, 8_000).numpy()
    found = resample(recording.samples, recording.sample_rate, 8_000).numpy()
    middle = found[1_000:7_000]  # the codecs of raw streams begin with silence: find the written sound in what came out
    likeness = [np.corrcoef(middle, written[lag : lag + 6_000])[0, 1] for lag in range(600, 1_401)]
    assert max(likeness) > 0.9


def test_the_sound_of_a_film_is_decoded(tmp_path: Path) -> None:
    recording = decode(write_film(tmp_path / "film.mp4", sound(1.0, 48_000)))
    assert (recording.sample_rate, recording.issues) == (48_000, [])
    assert len(recording.samples) == pytest.approx(48_000, rel=0.05)


@given(seam=st.floats(0.0, 1.0))
@settings(max_examples=15, deadline=None)
def test_stretches_tile_a_recording(tmp_path_factory: pytest.TempPathFactory, seam: float) -> None:
    path = tmp_path_factory.getbasetemp() / "whole.flac"
    if not path.exists():
        write_encoded(path, sound(1.0, RATE), RATE, "flac")
    whole, before, after = decode(path), decode(path, end=seam), decode(path, start=seam)
    np.testing.assert_array_equal(np.concatenate([before.samples, after.samples]), whole.samples)


STRETCHES = [
    *(Stretch(), Stretch(0.2, 0.4), Stretch(0.4, 0.9), Stretch(0.1, None), Stretch(None, 0.3), Stretch(0.35, 0.45)),
    *(
        Stretch(0.5, 0.5),
        Stretch(1.9, 2.5),
        Stretch(3.0, 4.0),
        Stretch(0.0, 0.01),
        Stretch(1.5, 1.9),
        Stretch(9.0, None),
    ),
    *(Stretch(0.064, 0.064), Stretch(0.064, 0.5)),
]


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.aac", "a.ogg", "a.mp4"])
@pytest.mark.sampled(6)
def test_all_stretches_of_one_pass_are_as_each_alone(tmp_path: Path, name: str, share: float) -> None:
    codecs = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".ogg": "libopus"}
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = tmp_path / name
    cut(write_encoded(path, sound(2.0, 48_000, 2), 48_000, codecs.get(path.suffix, "aac"), **options), share)
    together = dict(decode_stretches(path, "first", STRETCHES[::-1]))
    assert set(together) == set(STRETCHES)
    for stretch in STRETCHES:
        alone = decode(path, "first", stretch.start, stretch.end)
        found = together[stretch]
        np.testing.assert_array_equal(found.samples, alone.samples)
        assert (found.sample_rate, found.channels, found.issues) == (alone.sample_rate, alone.channels, alone.issues)


def test_stretches_come_as_they_end_without_waiting_for_the_rest(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sound(2.0, RATE), RATE)
    asked = [Stretch(1.0, 1.5), Stretch(0.0, 1.9), Stretch(0.1, 0.2)]
    assert [stretch for stretch, _ in decode_stretches(path, "downmix", asked)] == [asked[2], asked[0], asked[1]]


def test_a_stretch_is_cut_at_the_sample(tmp_path: Path) -> None:
    samples = sound(1.0, RATE)
    recording = decode(write_wav(tmp_path / "a.wav", samples, RATE), start=0.25, end=0.5)
    np.testing.assert_array_equal(values(recording), as_stored(samples, "s16")[4_000:8_000, 0])
    assert recording.issues == []


@pytest.mark.parametrize(
    ("start", "end", "issues"),
    [
        (0.5, 1.2, ["truncated"]),
        (0.5, 1.05, []),  # time stamps are seldom exact
        (1.5, 2.0, ["empty-audio"]),
        (0.5, 0.5, ["empty-audio"]),
        (0.5, 0.51, ["short"]),
        (1.5, None, ["empty-audio"]),
    ],
)
def test_a_stretch_beyond_the_recording_is_named(
    tmp_path: Path, start: float, end: float | None, issues: list[str]
) -> None:
    assert decode(write_wav(tmp_path / "a.wav", sound(1.0, RATE), RATE), start=start, end=end).issues == issues


def with_sample(value: float) -> np.ndarray:
    samples = sound(0.2, RATE)
    samples[100] = value
    return samples


def with_header(path: Path, offset: int, form: str, value: int) -> Path:
    """A WAV file with a field of its header set to `value`."""
    content = bytearray(write_wav(path, sound(0.5, RATE), RATE).read_bytes())
    struct.pack_into(form, content, offset, value)
    path.write_bytes(content)
    return path


def text_file(path: Path) -> Path:
    path.write_text("This is no recording.\n" * 100)
    return path


def bytes_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


BAD: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "missing": (lambda path: path, ["missing-file"]),
    "folder": (folder, ["missing-file"]),
    "name too long": (lambda path: path.with_name("x" * 300), ["missing-file"]),
    "text": (text_file, ["undecodable"]),
    "no bytes": (lambda path: bytes_file(path, b""), ["undecodable"]),
    "header only": (lambda path: bytes_file(path, b"RIFF\x24\0\0\0WAVE"), ["undecodable"]),
    "noise": (lambda path: bytes_file(path, np.random.default_rng(0).bytes(20_000)), ["undecodable"]),
    "unknown codec": (lambda path: with_header(path, 20, "<H", 0x1234), ["undecodable"]),
    "no rate": (lambda path: with_header(path, 24, "<I", 0), ["undecodable"]),
    "absurd rate": (lambda path: with_header(path, 24, "<I", 8_797_824), ["undecodable"]),
    "no samples": (lambda path: write_wav(path, np.zeros((0, 1)), RATE), ["empty-audio"]),
    "video without sound": (lambda path: write_film(path.with_suffix(".mp4")), ["no-sound-stream"]),
    "NaN": (lambda path: write_wav(path, with_sample(np.nan), RATE, "f32"), ["not-finite"]),
    "infinity": (lambda path: write_wav(path, with_sample(-np.inf), RATE, "f64"), ["not-finite"]),
    "beyond float32": (lambda path: write_wav(path, with_sample(1e300), RATE, "f64"), ["not-finite"]),
}
ODD: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "one sample": (lambda path: write_wav(path, np.full((1, 1), 0.5), RATE), ["short"]),
    "399 samples": (lambda path: write_wav(path, sound(399 / RATE, RATE), RATE), ["short"]),
    "400 samples": (lambda path: write_wav(path, sound(400 / RATE, RATE), RATE), []),
    "silent": (lambda path: write_wav(path, np.zeros((RATE, 1)), RATE), ["silent"]),
    "one silent sample": (lambda path: write_wav(path, np.zeros((1, 1)), RATE), ["short", "silent"]),
    "clipped": (lambda path: write_wav(path, sound(0.5, RATE, level=4), RATE), ["clipped"]),
    "clipped, 8 bit": (lambda path: write_wav(path, sound(0.5, RATE, level=4), RATE, "u8"), ["clipped"]),
    "one peak at full scale": (lambda path: write_wav(path, with_sample(1.0), RATE), []),
    "float beyond full scale": (lambda path: write_wav(path, sound(0.5, RATE, level=4), RATE, "f32"), ["clipped"]),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_recording_has_no_samples_and_its_reason(tmp_path: Path, name: str) -> None:
    make, issues = BAD[name]
    recording = decode(make(tmp_path / "a.wav"))
    assert recording.issues == issues
    assert len(recording.samples) == 0


FORBIDDEN = """
    import os, sys
    from pathlib import Path
    import av
    from pipeline.media.decoding import decode  # before rights go
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    for path in sys.argv[1:]:
        print(*decode(Path(path)).issues)
"""


def test_a_recording_that_may_not_be_read_is_told_with_the_systems_reason(tmp_path: Path) -> None:
    """Root may read everything, so the process lets go of its rights."""
    single, within = write_wav(tmp_path / "a.wav", sound(0.1, RATE), RATE), tmp_path / "closed" / "b.wav"
    write_wav(within, sound(0.1, RATE), RATE)
    single.chmod(0)
    within.parent.chmod(0o600)
    if os.getuid() == 0:
        for parent in [parent for parent in single.parents if not parent.stat().st_mode & 0o001]:
            parent.chmod(parent.stat().st_mode | 0o011)
    command = [sys.executable, "-c", textwrap.dedent(FORBIDDEN), str(single), str(within), str(tmp_path / "c.wav")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    within.parent.chmod(0o700)
    assert run.stdout.splitlines() == ["unreadable (Permission denied)"] * 2 + ["missing-file"]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_recording_keeps_its_samples_and_is_named(tmp_path: Path, name: str) -> None:
    make, issues = ODD[name]
    recording = decode(make(tmp_path / "a.wav"))
    assert recording.issues == issues
    assert len(recording.samples)
    assert np.isfinite(recording.samples).all()


CUT: dict[str, tuple[str, dict[str, str]]] = {
    "a.flac": ("flac", {}),
    "a.ogg": ("libopus", {}),
    "a.webm": ("libopus", {}),
    "a.mp3": ("libmp3lame", {}),
    "a.aac": ("aac", {}),
    "a.mp4": ("aac", {"movflags": "faststart"}),
    "a.aiff": ("pcm_s16be", {}),
    "a.wav": ("pcm_s16le", {}),
}


@pytest.mark.parametrize("share", [0.9, 0.5])
@pytest.mark.parametrize("name", CUT)
def test_what_is_left_of_a_truncated_file_is_used_and_named(tmp_path: Path, name: str, share: float) -> None:
    codec, options = CUT[name]
    path = write_encoded(tmp_path / name, sound(4.0, 48_000), 48_000, codec, **options)
    whole = decode(path)
    left = decode(cut(path, share))
    assert (whole.issues, left.issues) == ([], ["truncated"])
    assert 0 < len(left.samples) < len(whole.samples)
    same = len(left.samples) - 4_096  # decoders may end a broken stream with a guess
    np.testing.assert_allclose(left.samples[:same], whole.samples[:same], rtol=0, atol=1e-6)


def test_an_mp4_whose_index_was_cut_off_is_undecodable(tmp_path: Path) -> None:
    path = write_encoded(tmp_path / "a.mp4", sound(1.0, 48_000), 48_000, "aac")
    assert decode(cut(path, 0.9)).issues == ["undecodable"]


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_file_written_to_a_pipe_is_whole(tmp_path: Path, size: int) -> None:
    content = bytearray(write_wav(tmp_path / "a.wav", sound(0.5, RATE), RATE).read_bytes())
    struct.pack_into("<I", content, 4, size)
    struct.pack_into("<I", content, 40, size)
    (tmp_path / "a.wav").write_bytes(content)
    recording = decode(tmp_path / "a.wav")
    assert (len(recording.samples), recording.issues) == (8_000, [])


def test_a_wav_header_that_counts_itself_is_whole(tmp_path: Path) -> None:
    path = with_header(tmp_path / "a.wav", 4, "<I", 44 + 16_000)  # some programs state the file's size
    assert decode(path).issues == []


def test_a_stream_of_varying_bit_rate_is_whole(tmp_path: Path) -> None:
    """Its length is stated nowhere, and FFmpeg's guess from the bit rate is far off."""
    samples = np.concatenate([np.zeros((2 * 48_000, 1)), sound(1.0, 48_000)])
    recording = decode(write_encoded(tmp_path / "a.aac", samples, 48_000, "aac"))
    assert recording.issues == []
    assert len(recording.samples) / 48_000 == pytest.approx(3.0, abs=0.05)


def test_a_playlist_cannot_make_the_decoder_call_a_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n"
        (tmp_path / "a.m3u8").write_text(playlist)
        assert decode(tmp_path / "a.m3u8").issues == ["undecodable"]
        with pytest.raises(BlockingIOError):  # nobody called
            server.accept()


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.mp4", "a.webm"])
def test_no_damage_raises(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    codecs = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".mp4": "aac", ".webm": "libopus"}
    intact = write_encoded(path, sound(0.3, 48_000), 48_000, codecs[path.suffix]).read_bytes()
    random = np.random.default_rng(0)
    for attempt in range(40):
        damaged = bytearray(intact)
        for position in random.integers(0, len(intact) if attempt % 2 else 300, 5):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        recording = decode(path)
        assert len(recording.samples) or recording.issues
        assert np.isfinite(recording.samples).all()


@given(
    samples=st.integers(1, 3_000),
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]),
    target=st.sampled_from([8_000, 16_000, 24_000]),
)
@settings(max_examples=60, deadline=None)
def test_resampled_lengths_and_values_agree_with_torchaudio(samples: int, rate: int, target: int) -> None:
    waveform = sound(samples / rate, rate)[:, 0]
    expected = reference_resample(torch.from_numpy(waveform), rate, target)
    assert resampled_length(len(waveform), rate, target) == len(expected)
    assert torch.allclose(resample(waveform, rate, target).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_samples_that_may_not_be_written_are_resampled_without_a_warning() -> None:
    samples = np.arange(8, dtype=np.float32)
    samples.flags.writeable = False
    assert resample(samples, RATE, RATE).tolist() == samples.tolist()


@pytest.mark.parametrize("rate", [11_127, 16_001, 22_254, 44_056, 47_999])
def test_rates_without_a_common_divisor_keep_pitch_and_length(rate: int) -> None:
    waveform = np.sin(2 * np.pi * 1_000 * np.arange(rate) / rate)
    resampled = resample(waveform, rate, RATE).numpy()
    assert len(resampled) == resampled_length(rate, rate, RATE) == RATE
    assert np.abs(np.fft.rfft(resampled)).argmax() == pytest.approx(1_000, abs=1)
