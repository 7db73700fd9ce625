"""Sound on the clock of its file: as ffmpeg's command line gives it, and damage that costs itself alone.

Files that ffmpeg has to write, and the comparison with it, are skipped without it (`apt-get install ffmpeg`).
"""

import random
import shutil
import struct
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.media import Recording, resample
from pipeline.media.decoding import decode
from tests.pipeline.made import EXTENSIBLE, GUID, PCM, sound, write_encoded, write_wav

RATE = 44_100
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg: apt-get install ffmpeg")
SWEEP = "aevalsrc=0.3*sin(2*PI*(200+100*t)*t)+0.02*random(0):d={seconds}:s={rate}"  # alike at no two times


def ffmpeg(*arguments: object) -> bytes:
    return subprocess.run(
        ["ffmpeg", "-v", "fatal", "-y", *map(str, arguments)], check=True, stdout=subprocess.PIPE
    ).stdout


def picture(seconds: float) -> list[object]:
    return ["-f", "lavfi", "-i", f"testsrc=s=64x64:r=25:d={seconds}"]


def sweep(seconds: float, rate: int, channels: int = 1) -> list[object]:
    return ["-f", "lavfi", "-i", SWEEP.format(seconds=seconds, rate=rate), *(["-ac", 2] if channels == 2 else [])]


def as_ffmpeg(path: Path, recording: Recording, *outputs: list[object], before: bool = False) -> list[np.ndarray]:
    """What ffmpeg's command line makes of the file, mono, one array for each list of options: those of an output, or,
    `before`, those of the input.
    """
    targets = [path.with_name(f"{path.name}-{number}.f32") for number in range(len(outputs))]
    shape = ["-map", "0:a:0", "-ar", recording.sample_rate, "-f", "f32le"]
    if before:
        ffmpeg(*outputs[0], "-i", path, *shape, targets[0])
    else:
        cells = zip(outputs, targets, strict=True)
        ffmpeg("-i", path, *(one for options, target in cells for one in (*options, *shape, target)))
    return [np.fromfile(target, np.float32).reshape(-1, recording.channels).mean(axis=1) for target in targets]


def lag(found: np.ndarray, expected: np.ndarray) -> int:
    """By how many samples `found` comes later."""
    count = min(len(found), len(expected))
    spectra = [np.fft.rfft(samples[:count], 2 * count) for samples in (found, expected)]
    best = int(np.fft.irfft(spectra[0] * spectra[1].conj()).argmax())
    return best if best < count else best - 2 * count


def difference(found: np.ndarray, expected: np.ndarray, late: int) -> float:
    """Of the samples, `found` taken to come later by `late`, as a share of the sound."""
    found, expected = found[max(late, 0) :], expected[max(-late, 0) :]
    count = min(len(found), len(expected))
    return float(np.sqrt(np.mean((found[:count] - expected[:count]) ** 2) / np.mean(expected**2)))


def assert_same(found: np.ndarray, expected: np.ndarray, rate: int) -> None:
    """Same samples within 1 ms, same length within one packet."""
    assert abs(len(found) - len(expected)) < 0.03 * rate
    near = lag(found, expected)
    late = min(range(near - 2, near + 3), key=lambda late: difference(found, expected, late))
    assert abs(late) <= 0.001 * rate
    # AAC has noise in it that decoders make up; at another time the sound would differ by 1.4
    assert difference(found, expected, late) < 0.05


FORMATS = {
    "wav": ["pcm_s16le", "pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "adpcm_ms", "pcm_mulaw"],
    "flac": ["flac"],
    "mp3": ["libmp3lame"],
    "aac": ["aac"],
    "ac3": ["ac3"],
    "m4a": ["aac", "alac"],
    "mp4": ["aac", "libmp3lame", "libopus", "flac", "ac3"],
    "mov": ["aac", "pcm_s16le", "alac"],
    "3gp": ["aac"],
    "ogg": ["libvorbis", "libopus", "flac"],
    "opus": ["libopus"],
    "mkv": ["aac", "libopus", "libvorbis", "flac", "pcm_s16le", "libmp3lame", "ac3"],
    "webm": ["libopus", "libvorbis"],
    "ts": ["aac", "mp2", "ac3"],
    "mpg": ["mp2"],
    "avi": ["libmp3lame", "pcm_s16le"],
    "flv": ["aac", "libmp3lame"],
    "wma": ["wmav2"],
    "aiff": ["pcm_s16be"],
    "au": ["pcm_s16be"],
    "caf": ["pcm_s16le", "alac"],
    "w64": ["pcm_s16le"],
    "wv": ["wavpack"],
    "tta": ["tta"],
    "nut": ["pcm_s16le"],
}
LOSSY = ("aac", "libopus", "libvorbis", "libmp3lame", "wmav2")  # have two files in each container
FILMS = ("mp4", "mov", "mkv", "ts", "avi", "flv")  # one of their files has a picture
CASES = [
    (container, codec, rate, channels)
    for container, codecs in FORMATS.items()
    for codec in codecs
    for rate, channels in ((48_000, 2), (16_000 if codec == "libopus" else 44_100, 1))
    if channels == 2 or codec in LOSSY
]
assert len(CASES) >= 60


@needs_ffmpeg
@pytest.mark.parametrize(("container", "codec", "rate", "channels"), CASES)
@pytest.mark.sampled(7)
def test_decoding_is_as_ffmpeg_has_it(tmp_path: Path, container: str, codec: str, rate: int, channels: int) -> None:
    path, film = tmp_path / f"a.{container}", container in FILMS and channels == 2
    ffmpeg(*(picture(5) if film else []), *sweep(5, rate, channels), "-c:a", codec, "-strict", -2, path)
    dice = random.Random(f"{container}{codec}{rate}")
    places = [(first, first + dice.uniform(0.5, 1.5)) for first in (dice.uniform(0, 1), dice.uniform(1, 3.4))]
    whole = decode(path)
    stretches = [["-ss", start, "-to", end] for start, end in places]
    everything, *parts = as_ffmpeg(path, whole, ["-af", "aresample=async=1:first_pts=0"], *stretches)
    assert whole.issues == []
    # FFmpeg 8 leaves a third of the priming of Opus at 16 kHz in Matroska's first packet, which is 1.2 ms early for it
    first = round(0.02 * whole.sample_rate) if container in ("mkv", "webm") else 0
    assert_same(whole.samples[first:], everything[first:], whole.sample_rate)
    for (start, end), expected in zip(places, parts, strict=True):
        turn = decode(path, start=start, end=end)
        assert_same(turn.samples, expected, whole.sample_rate)
        first, last = (round(seconds * whole.sample_rate) for seconds in (start, end))
        np.testing.assert_array_equal(turn.samples, whole.samples[first:last])


TONE: list[object] = ["-i", "tone.wav"]
MUTED = ["-af", "aselect='not(between(t,3,5))'"]
LATE = [*picture(10), "-itsoffset", 2, *TONE]
# file -> how ffmpeg makes it, its status, and a place for a turn
CLOCKS: dict[str, tuple[list[object], str, float]] = {
    **{f"late.{kind}": ([*LATE, "-c:a", "aac"], "gap 0.0-2.0 s", 3.0) for kind in ("mp4", "mkv", "mov", "flv", "ts")},
    "late-opus.webm": ([*LATE, "-c:a", "libopus"], "gap 0.0-2.0 s", 3.0),
    "late-vorbis.webm": ([*LATE, "-c:a", "libvorbis"], "gap 0.0-2.0 s", 3.0),
    "late-pcm.mov": ([*LATE, "-c:a", "pcm_s16le"], "gap 0.0-2.0 s", 3.0),
    "late.mpg": ([*LATE, "-c:a", "mp2"], "gap 0.0-2.0 s", 3.0),
    "late.wmv": ([*LATE, "-c:a", "wmav2"], "gap 0.0-2.0 s", 3.0),
    "late-alone.m4a": (["-itsoffset", 2, *TONE, "-c:a", "aac"], "", 3.0),
    "late-alone.mka": (["-itsoffset", 2, *TONE, "-c:a", "libopus"], "", 3.0),
    "early.mp4": (["-itsoffset", 1, *picture(10), *TONE, "-c:a", "aac"], "", 3.0),
    "early.mkv": (["-itsoffset", 1, *picture(10), *TONE, "-c:a", "aac"], "", 3.0),
    **{f"muted.{kind}": ([*TONE, *MUTED, "-c:a", "aac"], "gap 3.0-5.0 s", 5.5) for kind in ("m4a", "mka", "ts", "nut")},
    "muted-opus.webm": ([*TONE, *MUTED, "-c:a", "libopus"], "gap 3.0-5.0 s", 5.5),
    "muted-vorbis.mka": ([*TONE, *MUTED, "-c:a", "libvorbis"], "gap 3.0-5.0 s", 5.5),
    "muted.ogg": ([*TONE, *MUTED, "-c:a", "libopus"], "gap 3.0-5.0 s", 5.5),
    "lost.m4a": (["-i", "tone.m4a", "-c", "copy", "-bsf:a", "noise=drop='between(n,100,140)'"], "gap 2.3-3.3 s", 4.0),
    "lost.flv": (["-i", "tone.m4a", "-c", "copy", "-bsf:a", "noise=drop='between(n,100,140)'"], "gap 2.3-3.3 s", 4.0),
    "lost.webm": (["-i", "tone.opus", "-c", "copy", "-bsf:a", "noise=drop='eq(n,100)'"], "gap 2.0-2.1 s", 4.0),
    "cut.mp4": (["-ss", 2.3, "-i", "film.mp4", "-c", "copy"], "", 3.0),
    "cut.mkv": (["-ss", 2.3, "-i", "film.mp4", "-c", "copy"], "", 3.0),
    "cut.m4a": (["-ss", 2.3, "-i", "tone.m4a", "-c", "copy"], "", 3.0),
    "cut.opus": (["-ss", 2.3, "-i", "tone.opus", "-c", "copy"], "", 3.0),
    **{f"cut-{place}.ogg": (["-ss", place, "-i", "tone.ogg", "-c", "copy"], "", 3.0) for place in (1.5, 2.3)},
    "negative.mkv": (
        ["-i", "film.mp4", "-c", "copy", "-output_ts_offset", -0.7, "-avoid_negative_ts", "disabled"],
        "",
        3.0,
    ),
    "negative.mp4": (
        ["-i", "tone.m4a", "-c", "copy", "-output_ts_offset", -1.3, "-avoid_negative_ts", "disabled"],
        "",
        3.0,
    ),
    "from-30.mkv": (["-i", "film.mp4", "-c", "copy", "-output_ts_offset", 30], "", 3.0),
    "from-30.ts": (["-i", "film.mp4", "-c", "copy", "-output_ts_offset", 30], "", 3.0),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the files of `CLOCKS` are made from."""
    folder = tmp_path_factory.mktemp("sources")
    ffmpeg(*sweep(8, RATE), folder / "tone.wav")
    for name, options in {
        "tone.m4a": ["-i", folder / "tone.wav"],
        "tone.opus": ["-i", folder / "tone.wav", "-c:a", "libopus"],
        "tone.ogg": ["-i", folder / "tone.wav", "-c:a", "libvorbis"],
        "film.mp4": [*picture(8), "-i", folder / "tone.wav", "-g", 25],
    }.items():
        ffmpeg(*options, folder / name)
    return folder


@needs_ffmpeg
@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.sampled(4)
def test_times_are_of_the_files_own_clock(sources: Path, tmp_path: Path, name: str) -> None:
    options, status, start = CLOCKS[name]
    path = tmp_path / name
    ffmpeg(*(sources / one if (sources / str(one)).is_file() else one for one in options), path)
    whole, turn = decode(path), decode(path, start=start, end=start + 1.2)
    assert whole.issues == [status] * bool(status)
    first = round(start * whole.sample_rate)
    np.testing.assert_array_equal(turn.samples, whole.samples[first : first + len(turn.samples)])
    seeks = path.suffix in (".ts", ".mpg")  # where ffmpeg takes the gap for a jump of the clock unless it seeks
    (expected,) = as_ffmpeg(path, whole, ["-ss", start, "-to", start + 1.2], before=seeks)
    assert_same(turn.samples, expected, whole.sample_rate)


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "mov"])
def test_a_tone_at_3_to_4_s_is_there_where_sound_starts_after_the_picture(tmp_path: Path, kind: str) -> None:
    tone = np.zeros((8 * RATE, 1))
    tone[RATE : 2 * RATE, 0] = 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)  # 3 to 4 s of the file
    write_wav(tmp_path / "tone.wav", tone, RATE)
    path = tmp_path / f"film.{kind}"
    ffmpeg(*picture(6), "-itsoffset", 2, "-i", tmp_path / "tone.wav", path)
    assert loudness(decode(path, start=3, end=4)) == pytest.approx(0.212, abs=0.002)
    before = decode(path, start=0, end=2.5)
    assert (before.issues[0], loudness(before) < 0.001) == ("gap 0.0-2.0 s", True)
    assert decode(path, start=0, end=1.5).issues == ["gap 0.0-2.0 s", "silent"]


def loudness(recording: Recording) -> float:
    return float(np.sqrt(np.mean(recording.samples**2)))


def encoded(path: Path, seconds: float = 10.0, rate: int = RATE, seed: int = 0, **options: str) -> Path:
    """A sweep with noise, which is alike at no two times."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).uniform(-0.02, 0.02, len(time))
    samples = (0.3 * np.sin(2 * np.pi * (200 + 100 * time) * time) + noise)[:, None]
    codecs = {".mp3": "libmp3lame", ".opus": "libopus", ".webm": "libopus", ".flac": "flac", ".ogg": "flac"}
    codecs |= {".wav": "pcm_s16le"}
    return write_encoded(path, samples, rate, options.pop("codec", codecs.get(path.suffix, "aac")), **options)


def overwritten(path: Path, share: float, count: int = 300) -> Path:
    content = bytearray(path.read_bytes())
    place = int(share * len(content))
    content[place : place + count] = random.Random(1).randbytes(count)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("a.m4a", "damaged 1.0-1.1 s"),
        ("a.mp3", "damaged 1.0-1.1 s"),
        ("a.mka", "damaged 0.9-5.0 s"),  # to the next cluster, of 5 s: as ffmpeg, 6.1 s of it are read
        ("a.webm", "damaged 1.0-5.0 s"),
        ("a.opus", "damaged 0.0-2.0 s"),  # two pages, of 1 s, one of them the first
        ("a.ogg", "gap 0.9-2.0 s"),  # whose pages are gone: the damage hit their headers
        ("a.flv", "damaged 1.0-1.1 s"),
        ("a.aac", "damaged 1.0-1.1 s"),
        ("a.flac", "damaged 0.8-0.9 s"),  # which FFmpeg decodes to noise
    ],
)
def test_damage_costs_itself_and_is_named_with_its_length(tmp_path: Path, name: str, status: str) -> None:
    path = encoded(tmp_path / name, rate=48_000 if name in ("a.opus", "a.webm") else RATE)
    intact = decode(path)
    damaged = decode(overwritten(path, 0.1))
    assert (intact.issues, damaged.issues) == ([], [status])
    assert len(damaged.samples) == pytest.approx(len(intact.samples), abs=0.03 * RATE)
    for start in (5.5, 8.0):
        turn = decode(path, start=start, end=start + 1)
        assert turn.issues == []
        assert_same(turn.samples, intact.samples[round(start * intact.sample_rate) :][: len(turn.samples)], RATE)


@pytest.mark.parametrize("name", ["a.mp3", "a.aac", "a.flac", "a.ogg", "a.opus", "a.mka", "a.wav"])
def test_recordings_joined_end_to_end_are_read_beyond_the_seam(tmp_path: Path, name: str) -> None:
    """Of several rates, too: the first one's is that of all."""
    parts = [encoded(tmp_path / f"1-{name}", 4, rate=48_000), encoded(tmp_path / f"2-{name}", 4, rate=48_000, seed=1)]
    if name != "a.mka":
        parts.append(encoded(tmp_path / f"3-{name}", 4, rate=24_000, seed=2))
    first, *others = (decode(part) for part in parts)
    joined = tmp_path / name
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    whole = decode(joined)
    assert (whole.sample_rate, whole.issues) == (48_000, [])
    position = len(first.samples)
    for other in others:
        written = resample(other.samples, other.sample_rate, 48_000).numpy()
        late = lag(whole.samples[position:], written)  # what codecs put before and behind the sound
        assert 0 <= late < 0.1 * 48_000
        assert_same(whole.samples[position + late :][9_600:180_000], written[9_600:180_000], 48_000)
        position += len(written)
    assert len(whole.samples) == pytest.approx(position, abs=0.1 * 48_000)


@pytest.mark.parametrize("name", ["a.flac", "a.opus", "a.wav", "a.mp3"])
def test_joined_recordings_whose_last_one_is_cut_short_are_truncated(tmp_path: Path, name: str) -> None:
    content = encoded(tmp_path / name, 4, rate=48_000).read_bytes()
    (tmp_path / name).write_bytes(content + content[: len(content) * 6 // 10])
    assert decode(tmp_path / name).issues == ["truncated"]


@pytest.mark.parametrize(
    ("name", "share", "status", "seam"),
    [
        ("a.flac", 0.6, "damaged 2.3-4.0 s", 4.0),  # its header has its length
        ("a.opus", 0.6, "damaged 2.0-2.1 s", 2.0),
        ("a.wav", 0.6, "damaged 2.4-2.5 s", 2.4),
        ("a.opus", 0.01, "damaged 0.0-0.1 s", 0.0),  # nothing is left but its first page
    ],
)
def test_what_follows_a_joined_recording_that_is_cut_short_is_read_and_the_loss_named(
    tmp_path: Path, name: str, share: float, status: str, seam: float
) -> None:
    part = encoded(tmp_path / name, 4, rate=48_000)
    whole, content = decode(part), part.read_bytes()
    part.write_bytes(content[: int(share * len(content))] + content)
    joined = decode(part)
    assert joined.issues == [status]
    assert len(joined.samples) == pytest.approx((seam + 4) * 48_000, abs=0.1 * 48_000)
    assert_same(joined.samples[-96_000:], whole.samples[-96_000:], 48_000)
    lost = decode(part, start=max(0.0, seam - 0.5), end=seam + 0.5)
    assert len(lost.samples) == (0.5 + min(seam, 0.5)) * 48_000
    assert lost.issues == [status]


@needs_ffmpeg
@pytest.mark.parametrize("quality", [2, 6])
def test_an_mp3_file_of_varying_bit_rate_without_a_length_header_is_whole(tmp_path: Path, quality: int) -> None:
    path = tmp_path / "a.mp3"
    write_wav(tmp_path / "a.wav", np.concatenate([np.zeros((5 * RATE, 1)), sound(5.0, RATE)]), RATE)
    ffmpeg("-i", tmp_path / "a.wav", "-q:a", quality, "-write_xing", 0, path)
    for _ in range(2):  # the decoder says the same of one file after the other
        assert decode(path).issues == []
    path.write_bytes(path.read_bytes()[:-30])
    assert decode(path).issues == ["truncated"]


@pytest.mark.parametrize("name", ["a.mp3", "a.aac"])
def test_frames_lost_from_a_raw_stream_are_as_long_as_their_bytes(tmp_path: Path, name: str) -> None:
    intact = decode(encoded(tmp_path / name))
    damaged = decode(overwritten(tmp_path / name, 0.3, count=2_000))
    assert damaged.issues == ["damaged 3.0-3.2 s"] or damaged.issues == ["damaged 3.0-3.3 s"]
    assert_same(damaged.samples[5 * RATE : 7 * RATE], intact.samples[5 * RATE : 7 * RATE], RATE)


def test_the_damaged_end_of_a_joined_recording_whose_header_has_no_length_is_named(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.flac", 4)
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])  # its length, as where it was written to a pipe
    path.write_bytes(content[:-9_000] + bytes(9_000) + content)
    assert decode(path).issues == ["damaged 3.8-4.0 s"]


@needs_ffmpeg
@pytest.mark.parametrize("name", ["a.wma", "a.w64"])
def test_a_file_that_is_shorter_than_its_header_says_is_truncated(tmp_path: Path, name: str) -> None:
    ffmpeg(*sweep(5, RATE), tmp_path / name)
    assert decode(tmp_path / name).issues == []
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(0.6 * len(content))])
    assert decode(tmp_path / name).issues == ["truncated"]


def test_a_fragmented_file_that_cannot_be_read_beyond_its_damage_is_truncated(tmp_path: Path) -> None:
    """FFmpeg, which knows the fragments that it met, takes their end for that of the file."""
    path = encoded(tmp_path / "a.mp4", movflags="frag_keyframe+empty_moov", frag_duration="1000000")
    content = path.read_bytes()
    fragment = content.index(b"moof", len(content) // 2)
    path.write_bytes(content[: fragment - 500] + bytes(1_000) + content[fragment + 500 :])
    recording = decode(path)
    assert len(recording.samples) < 7 * RATE
    assert recording.issues == ["truncated"]


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6])
def test_a_lost_ogg_page_is_a_gap(tmp_path: Path, share: float) -> None:
    assert_lost_page_is_a_gap(encoded(tmp_path / "a.opus", rate=48_000), share)


@needs_ffmpeg
@pytest.mark.parametrize("share", [0.25, 0.35, 0.6])
@pytest.mark.parametrize("rate", [44_100, 32_000, 16_000])
def test_a_lost_page_of_vorbis_is_a_gap(tmp_path: Path, rate: int, share: float) -> None:
    assert_lost_page_is_a_gap(write_vorbis(tmp_path / "a.ogg", knocks(10, rate), rate), share)


def assert_lost_page_is_a_gap(path: Path, share: float) -> None:
    intact, content = decode(path), path.read_bytes()
    page = content.index(b"OggS", int(share * len(content)))
    path.write_bytes(content[:page] + content[content.index(b"OggS", page + 4) :])
    recording, last = decode(path), 8 * intact.sample_rate
    assert [issue.split()[0] for issue in recording.issues] == ["gap"]
    assert_same(recording.samples[last:], intact.samples[last:], intact.sample_rate)


def knocks(seconds: float, rate: int) -> np.ndarray:
    """Tones that begin at once, for which Vorbis takes short blocks, and die away, no two alike."""
    time, samples = np.arange(round(seconds * rate)) / rate, np.zeros(round(seconds * rate))
    for number, first in enumerate(np.arange(0.15, seconds, 0.23)):
        after = np.maximum(time - first, 0)
        samples += (time >= first) * np.exp(-25 * after) * 0.4 * np.sin(2 * np.pi * (300 + 37 * number) * after)
    return samples[:, None]


def write_vorbis(path: Path, sound: np.ndarray, rate: int) -> Path:
    source = write_wav(path.with_suffix(".wav"), sound, rate)
    ffmpeg("-i", source, "-c:a", "libvorbis", path)
    return path


def frames_of(path: Path) -> np.ndarray:
    """What the decoder gives, one frame behind the other."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["ogg", "mka"])
@pytest.mark.parametrize("rate", [48_000, 44_100, 32_000, 24_000, 16_000])
def test_vorbis_blocks_that_ffmpeg_stamps_late_are_no_gaps(tmp_path: Path, rate: int, kind: str) -> None:
    path = write_vorbis(tmp_path / "a.ogg", knocks(3, rate), rate)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.duration]
    assert any(one.pts + one.duration < following.pts for one, following in pairwise(packets))  # by its own account
    ffmpeg("-i", path, "-c", "copy", tmp_path / "copied.mka")
    recording = decode(path if kind == "ogg" else tmp_path / "copied.mka")
    frames = frames_of(path)
    assert recording.issues == []
    assert len(frames) == 3 * rate
    assert len(recording.samples) - len(frames) <= (0 if kind == "ogg" else 0.03 * rate)  # its first packet is silent
    np.testing.assert_array_equal(recording.samples[-len(frames) :], frames)


@needs_ffmpeg
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("seconds", [0.3, 0.61, 0.9])
@pytest.mark.parametrize("rate", [44_100, 16_000, 8_000])
def test_vorbis_of_a_single_page_begins_and_ends_where_it_was_written(
    tmp_path: Path, rate: int, seconds: float, times: int
) -> None:
    written = knocks(seconds, rate)
    path = write_vorbis(tmp_path / "a.ogg", written, rate)
    content = path.read_bytes()
    assert content.count(b"OggS") == 3  # two of them of headers
    path.write_bytes(times * content)
    recording = decode(path)
    assert recording.issues == []
    assert len(recording.samples) == times * len(written)
    for found in np.split(recording.samples, times):
        assert lag(found, written[:, 0]) == 0
        assert difference(found, written[:, 0], 0) < 0.35  # a frame later: more than 1


PADDED = {  # bytes a sample, bits of it, whether these are the upper ones, whether the header is an extensible one
    "24 in 32": (4, 24, True, True),
    "24 in 32, old header": (4, 24, True, False),
    "24 in 32, lower bits": (4, 24, False, True),
    "24 in 32, lower bits, old header": (4, 24, False, False),
    "20 in 32": (4, 20, True, True),
    "20 in 24": (3, 20, True, True),
    "16 in 32": (4, 16, True, True),
    "16 in 24": (3, 16, True, False),
    "12 in 16": (2, 12, True, True),
    "32 in 32": (4, 32, True, True),
}


@pytest.mark.parametrize(("channels", "times"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("name", PADDED)
def test_samples_with_more_bytes_than_bits_are_what_was_written(
    tmp_path: Path, name: str, channels: int, times: int
) -> None:
    """Also behind them, where another chunk is, and in files that are joined."""
    width, bits, upper, extensible = PADDED[name]
    samples = sound(0.2, RATE, channels)
    whole = np.rint(samples * (2 ** (bits - 1) - 1)).astype("<i4")
    stored = (whole << (32 - bits if upper else 32 - 8 * width)).view(np.uint8).reshape(-1, 4)[:, 4 - width :].tobytes()
    tag = EXTENSIBLE if extensible else PCM
    block = channels * width
    form = struct.pack("<HHIIHH", tag, channels, RATE, RATE * block, block, 8 * width if extensible else bits)
    form += struct.pack("<HHIH", 22, bits, 0, PCM) + GUID if extensible else b""
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(stored)) + stored
    chunks += b"LIST" + struct.pack("<I", 16) + b"INFOISFT" + struct.pack("<I", 4) + b"Lavf"
    (tmp_path / "a.wav").write_bytes(times * (b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks))
    recording = decode(tmp_path / "a.wav", "first")
    assert recording.issues == []
    expected = np.tile(samples[:, 0], times)
    np.testing.assert_allclose(recording.samples, expected, rtol=0, atol=2.0 ** (1 - min(bits, 24)))


def test_a_wav_file_whose_header_states_too_little_is_read_to_its_end(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sound(1.0, RATE), RATE)
    whole, content = decode(path), bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    for at, stated in ((4, place - 4 + len(whole.samples)), (place, len(whole.samples))):  # in bytes: half of them
        content[at : at + 4] = struct.pack("<I", stated)
    path.write_bytes(content)
    np.testing.assert_array_equal(decode(path).samples, whole.samples)


BEHIND = {
    "a chunk": b"LIST" + struct.pack("<I", 8000) + bytes(range(250)) * 32,
    "a chunk, padded twice": b"\0\0LIST" + struct.pack("<I", 8000) + bytes(range(250)) * 32,
    "zeros": bytes(8000),
    "ones": b"\xff" * 8000,
    "ID3v2": b"ID3\3\0\0" + bytes(range(250)) * 32,
    "ID3v1": b"TAG\0" + bytes(124),
    "APE": b"APETAGEX" + bytes(range(250)) * 32,
}


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("samples", [8000, 8001])
def test_what_lies_behind_a_wav_file_is_no_sound(tmp_path: Path, samples: int, name: str) -> None:
    """Also where samples of one byte end at an odd place and no byte follows to make it even."""
    path, values = tmp_path / "a.wav", bytes(128 + round(90 * np.sin(n / 9)) for n in range(samples))
    chunks = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, PCM, 1, RATE, RATE, 1, 8)
    chunks += b"data" + struct.pack("<I", samples) + values
    path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks + BEHIND[name])
    assert len(decode(path).samples) == samples


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "flags", "pitch", "issues"),
    [
        ("a.mp4", ["-disposition:a:0", 0, "-disposition:a:1", "default"], 900, []),
        ("a.mkv", ["-disposition:a:0", 0, "-disposition:a:1", "default"], 900, []),
        ("b.mp4", ["-disposition:a:0", "default", "-disposition:a:1", 0], 300, []),
        ("a.ts", [], 300, ["stream 1 of 2"]),  # a container without such a flag
    ],
)
def test_of_two_sound_streams_the_default_one_is_taken(
    tmp_path: Path, name: str, flags: list[object], pitch: int, issues: list[str]
) -> None:
    tones = [one for hertz in (300, 900) for one in ("-f", "lavfi", "-i", f"sine={hertz}:d=2:r=48000")]
    ffmpeg(*tones, "-map", 0, "-map", 1, *flags, tmp_path / name)
    recording = decode(tmp_path / name, start=0.5, end=1.5)
    assert int(np.abs(np.fft.rfft(recording.samples)).argmax()) == pitch
    assert recording.issues == issues


@pytest.mark.parametrize("name", ["a.wav", "a.m4a", "a.mp3", "a.opus"])
def test_channels_that_cancel_in_the_mix_are_named_and_auto_takes_the_first(tmp_path: Path, name: str) -> None:
    one = sound(2.0, 48_000)
    codecs = {".wav": "pcm_s16le", ".mp3": "libmp3lame", ".opus": "libopus"}
    path = write_encoded(tmp_path / name, np.hstack([one, -one]), 48_000, codecs.get(Path(name).suffix, "aac"))
    first = decode(path, "first")
    assert (decode(path).issues, first.issues) == (["antiphase (channels: first)"], [])
    assert decode(path, start=0.5, end=1.0).issues == ["antiphase (channels: first)"]
    chosen = decode(path, "auto", start=0.5, end=1.0)
    assert chosen.issues == ["first-channel"]
    np.testing.assert_array_equal(chosen.samples, first.samples[24_000:48_000])


@pytest.mark.parametrize("other", ["the same", "another", "none"])
def test_channels_that_do_not_cancel_are_mixed(tmp_path: Path, other: str) -> None:
    one = sound(1.0, 48_000)
    second = {"the same": one, "another": sound(1.0, 48_000, seed=1), "none": 0 * one}[other]
    path = write_wav(tmp_path / "a.wav", np.hstack([one, second]), 48_000)
    mixed, chosen = decode(path), decode(path, "auto")
    assert (mixed.issues, chosen.issues) == ([], [])
    np.testing.assert_array_equal(mixed.samples, chosen.samples)


REFERRING = {
    "ffconcat": "ffconcat version 1.0\nfile other.wav\n",
    "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nother.wav\n#EXT-X-ENDLIST\n",
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "manifest": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="urn:mpeg:dash:'
    'profile:isoff-on-demand:2011" mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="audio/wav">'
    '<Representation id="1" bandwidth="1"><BaseURL>other.wav</BaseURL></Representation></AdaptationSet></Period></MPD>',
}


@pytest.mark.parametrize("suffix", [".wav", ".txt"])
@pytest.mark.parametrize("kind", REFERRING)
def test_a_file_that_refers_to_another_is_not_followed(tmp_path: Path, kind: str, suffix: str) -> None:
    write_wav(tmp_path / "other.wav", sound(1.0, RATE), RATE)
    path = tmp_path / f"a{suffix}"
    path.write_text(REFERRING[kind])
    assert decode(path).issues == ["undecodable"]


def mlv_header(number: int) -> bytes:
    """Of one of two files of a Magic Lantern recording."""
    return b"MLVI" + struct.pack("<I8sQHHIHHIIII", 52, b"v2.0", 77, number, 2, 0, 0, 1, 0, 1, 25, 1)


def test_a_recording_in_several_files_is_not_followed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(mlv_header(0) + b"WAVI" + struct.pack("<IQHHIIHH", 32, 0, 1, 1, RATE, 2 * RATE, 2, 16))
    frame = b"AUDF" + struct.pack("<IQII", 24 + RATE, 0, 0, 0) + bytes(range(250)) * (RATE // 250)
    path.with_suffix(".w00").write_bytes(mlv_header(1) + frame)
    assert decode(path).issues == ["undecodable"]


def test_time_stamps_that_jump_cost_no_memory(tmp_path: Path) -> None:
    """A packet of an hour-long file that claims to be of next year."""
    path = tmp_path / "a.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8_000, layout="mono")
        for stamp in (0, 8_000, 8_000 * 86_400 * 366):
            frame = av.AudioFrame.from_ndarray(np.full((1, 8_000), 99, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 8_000, stamp, Fraction(1, 8_000)
            container.mux(stream.encode(frame))
    assert len(decode(path).samples) == 3 * 8_000
