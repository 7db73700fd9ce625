"""The audio and text stages: resumption, byte identity, changed recordings, memory."""

import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.encoders import batches_under_budget
from pipeline.errors import ClipError, DataError, EncoderError, StoreError
from pipeline.extraction import Work, extract_audio, extract_text, fill
from pipeline.extraction.engine import LocalEngine
from pipeline.extraction.progress import Progress, Unit
from pipeline.extraction.stage import Outcome
from pipeline.imports import import_features
from pipeline.imports.layout import Given
from pipeline.inspect import inspect_file
from pipeline.join import join, stand_ins
from pipeline.manifest import (
    SOURCES,
    SPLITS,
    Utterance,
    content_key,
    manifest_order,
    read_manifest,
    read_sources,
    write_manifest,
    write_sources,
)
from pipeline.media import Decoders, clips
from pipeline.params import AudioParams, DatasetParams, ImportParams, TextParams
from pipeline.settings import cores
from pipeline.store import Features, Identity, PartLayout, SlotWriter, read_features, read_part
from tests.demo import DEMO, conversations, prepared
from tests.forked import exit_status, fork
from tests.pipeline.made import write_features
from tests.pipeline.tight import Tight


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen conversations of the demo, two utterances of them without sound, one without text."""
    names = conversations()
    folder = tmp_path_factory.mktemp("manifest")
    records = prepared([*names["train"][:8], *names["validation"][:3], *names["test"][:3]], folder)
    absent = {"audio": None, "samples": 0, "sample_rate": None, "channels": None, "status": "no-audio"}
    records[3] = records[3].model_copy(update=absent)
    records[7] = records[7].model_copy(update=absent)
    records[5] = records[5].model_copy(update={"text": "", "status": "no-text"})
    write_manifest(folder / "manifest.jsonl", records)
    return folder / "manifest.jsonl"


def audio(manifest: Path, target: Path, **params: object) -> Path:
    extract_audio(manifest, target, AudioParams(batch=10.0, **params), DEMO, "downmix", "cpu")  # type: ignore[arg-type]
    return target


@pytest.fixture(scope="module")
def encoded(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """audio.h5 and text.h5."""
    folder = tmp_path_factory.mktemp("encoded")
    audio(manifest, folder / "audio.h5")
    extract_text(manifest, folder / "text.h5", TextParams(), "cpu")
    return folder


def test_every_utterance_gets_its_own_features(manifest: Path, joined: Path) -> None:
    from pipeline.encoders import load_speech_encoder
    from pipeline.media import resample
    from pipeline.media.decoding import decode

    part = read_features(joined).audio
    assert part is not None
    encoder = load_speech_encoder(AudioParams(), "cpu")
    for index, utterance in list(enumerate(read_manifest(manifest)))[::7]:
        if utterance.audio is None:
            continue
        recording = decode(DEMO / utterance.audio)
        alone = encoder.encode([resample(recording.samples, recording.sample_rate, 16000)])[0]
        assert np.allclose(part.rows(index), alone, atol=5e-3)  # float16 of values of order 1


def test_an_absent_modality_is_empty_and_its_turn_stays(manifest: Path, joined: Path) -> None:
    records, features = read_manifest(manifest), read_features(joined)
    part, text = features.audio, features.text
    assert part is not None
    assert text is not None
    assert part.ids == text.ids == [record.id for record in records]
    assert [len(part.rows(index)) == 0 for index in range(len(records))] == [r.audio is None for r in records]
    assert [len(text.rows(index)) == 0 for index in range(len(records))] == [not r.text for r in records]


def test_the_same_input_gives_the_same_bytes(manifest: Path, encoded: Path, tmp_path: Path) -> None:
    assert audio(manifest, tmp_path / "again.h5").read_bytes() == (encoded / "audio.h5").read_bytes()


def test_the_bytes_do_not_depend_on_the_number_of_cores(manifest: Path, encoded: Path, tmp_path: Path) -> None:
    """Batches are encoded side by side, each by one core, clips of several lengths among them."""
    for number in (1, 2, 5):
        with cores(number):
            found = audio(manifest, tmp_path / f"{number}.h5")
            assert torch.get_num_threads() == number
        assert found.read_bytes() == (encoded / "audio.h5").read_bytes()


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_again_and_again_the_file_ends_the_same_and_nothing_is_encoded_twice(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """SIGKILL at random moments of runs that log what they encode."""
    log, target = tmp_path / "log", tmp_path / "killed.h5"
    write = SlotWriter.write

    def logged(writer: SlotWriter, indices: Sequence[int], rows: Sequence[np.ndarray]) -> None:
        if indices and writer.layout.rows[indices[0]]:
            with log.open("a") as file:
                file.write(" ".join(map(str, indices)) + "\n")
        write(writer, indices, rows)

    def run() -> None:
        extract_audio(manifest, target, AudioParams(batch=4.0), DEMO, "downmix", "cpu")

    monkeypatch.setattr(SlotWriter, "write", logged)
    monkeypatch.setattr(clips, "Decoders", partial(Decoders, workers=1))  # the quickest to start
    torch.set_num_threads(1)  # no thread pool that a fork would lose
    run()
    whole, undisturbed = target.read_bytes(), log.read_text().splitlines()
    target.unlink()
    log.write_text("")
    moments, killed = random.Random(0), 0
    while killed < kills and not target.exists():
        size, patience = log.stat().st_size, moments.choice([0.0, 0.1, 30.0])
        child, deadline = fork(run), time.monotonic() + patience
        while not target.with_name("killed.h5.partial").exists():
            time.sleep(0.001)
        while log.stat().st_size == size and time.monotonic() < deadline:
            time.sleep(0.001)  # many runs come to a batch, and some to none
        time.sleep(moments.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert exit_status(child) == -signal.SIGKILL
        killed += 1
    assert (killed, exit_status(fork(run))) == (kills, 0)
    assert target.read_bytes() == whole
    encoded = log.read_text().splitlines()
    assert sorted(set(encoded)) == sorted(undisturbed)
    # a batch is logged when it is encoded; the one whose writing a kill interrupts is there once more
    assert len(encoded) - len(undisturbed) <= kills


def test_a_recording_that_changed_since_the_manifest_is_refused(tmp_path: Path) -> None:
    import wave

    def tone(samples: int) -> None:
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(np.arange(samples, dtype="<i2").tobytes())

    tone(4000)
    record = {"id": "a", "conversation": "a", "turn": 0, "split": "train", "audio": "a.wav"}
    write_manifest(tmp_path / "manifest.jsonl", [Utterance(**record, samples=4000, sample_rate=16000, channels=1)])  # type: ignore[arg-type]
    tone(4100)
    arguments = (tmp_path / "manifest.jsonl", tmp_path / "audio.h5", AudioParams(), tmp_path, "downmix", "cpu")
    with pytest.raises(
        DataError, match=r"'a\.wav': .*a\.wav has changed .* \(found 4100 samples, expected 4000 samples\)"
    ):
        extract_audio(*arguments)  # type: ignore[arg-type]
    tone(4000)
    (changed,) = (one.model_copy(update={"content": "of another"}) for one in read_manifest(arguments[0]))
    write_manifest(arguments[0], [changed])
    with pytest.raises(DataError, match=r"a\.wav has changed since the manifest was made; run pipeline-prepare again"):
        extract_audio(*arguments)  # type: ignore[arg-type]
    (tmp_path / "a.wav").unlink()
    with pytest.raises(DataError, match="no such file, though the manifest has it"):
        extract_audio(*arguments)  # type: ignore[arg-type]


@pytest.fixture
def recordings(manifest: Path, tmp_path: Path) -> tuple[Path, list[Utterance]]:
    """A root of its own with the recordings of ten utterances, and their records in manifest order."""
    records = [record for record in read_manifest(manifest) if record.audio][:10]
    for record in records:
        (tmp_path / "root" / str(record.audio)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DEMO / str(record.audio), tmp_path / "root" / str(record.audio))
    renumbered = [r.model_copy(update={"conversation": "c", "turn": n, "split": "test"}) for n, r in enumerate(records)]
    write_manifest(tmp_path / "ten.jsonl", renumbered)
    return tmp_path / "root", renumbered


def extract(recordings: tuple[Path, list[Utterance]], overwrite: bool = False, **params: object) -> Outcome:
    given = AudioParams(encoder="log-mel", **params)  # type: ignore[arg-type]
    root = recordings[0]
    manifest, target = root.parent / "ten.jsonl", root.parent / "audio.h5"
    return extract_audio(manifest, target, given, root, "downmix", "cpu", overwrite)


def test_finished_features_are_replaced_only_where_that_is_said(recordings: tuple[Path, list[Utterance]]) -> None:
    target, manifest = recordings[0].parent / "audio.h5", recordings[0].parent / "ten.jsonl"
    rows, before = extract(recordings).rows, target.read_bytes()
    again = extract(recordings)
    assert (again.there, again.encoded, again.rows, target.read_bytes()) == (True, 0, rows, before)
    assert again.summary("recordings", "frames").endswith("frames; they were there already, nothing was encoded")
    for other in ({"dtype": "float32"}, {"normalise": "clip-band"}):
        with pytest.raises(StoreError, match="holds features of other encoder settings; name another file"):
            extract(recordings, **other)
    write_manifest(manifest, read_manifest(manifest)[:9])
    with pytest.raises(StoreError, match="holds features of other input; name another file"):
        extract(recordings)
    assert target.read_bytes() == before
    assert extract(recordings, overwrite=True).encoded == 9
    target.write_text("mine")
    with pytest.raises(StoreError, match=r"holds something that cannot be used \(.*not a feature file"):
        extract(recordings)


def test_a_recording_that_vanishes_during_the_run_stops_it_and_what_is_finished_is_kept(
    recordings: tuple[Path, list[Utterance]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, records = recordings
    shortest = root / str(min(records, key=lambda record: record.samples).audio)  # the last one to be encoded
    away = shortest.with_suffix(".away")
    advance = Progress.advance

    def vanish(progress: Progress, length: int) -> None:
        if shortest.exists():
            shortest.rename(away)
        advance(progress, length)

    monkeypatch.setattr(Progress, "advance", vanish)
    with pytest.raises(ClipError, match="no such file, though the manifest has it"):
        extract(recordings, batch=0.1)
    monkeypatch.setattr(Progress, "advance", advance)
    assert not (root.parent / "audio.h5").exists()
    away.rename(shortest)
    outcome = extract(recordings, batch=0.1)
    assert (outcome.encoded, outcome.kept) == (1, 9)


def test_marked_a_vanished_recording_leaves_its_utterance_empty_and_named(
    recordings: tuple[Path, list[Utterance]],
) -> None:
    root, records = recordings
    (root / str(records[4].audio)).unlink()
    outcome = extract(recordings, on_error="mark")
    part = read_part(root.parent / "audio.h5")
    assert outcome.failures == {records[4].audio: "missing-file"}
    assert part.failed == {content_key(records[4], "audio"): "missing-file"}
    extract_text(root.parent / "ten.jsonl", root.parent / "text.h5", TextParams(), "cpu")
    write_manifest(root.parent / "ten.jsonl", [record.model_copy(update={"split": "train"}) for record in records])
    view = join(*(root.parent / name for name in ("ten.jsonl", "audio.h5", "text.h5", "feats.h5"))).audio
    assert view is not None
    assert view.failed == {records[4].id: "missing-file"}
    assert [len(view.rows(index)) == 0 for index in range(10)] == [index == 4 for index in range(10)]
    assert (outcome.encoded, outcome.rows) == (9, len(part.values))
    assert f"missing-file: '{records[4].audio}'" in outcome.summary("recordings", "frames")


def test_marking_everything_is_a_mistake(recordings: tuple[Path, list[Utterance]]) -> None:
    root, records = recordings
    for record in records:
        (root / str(record.audio)).unlink()
    with pytest.raises(DataError, match=r"none of the 10 utterances could be read \(missing-file\); fix dataset.root"):
        extract(recordings, on_error="mark")


def test_an_interrupted_run_goes_on_with_the_batches_that_it_found(
    recordings: tuple[Path, list[Utterance]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The free memory of another moment must not put other clips together."""
    asked: list[int] = []
    from pipeline.extraction import stage as module

    class StoppedError(Exception):
        pass

    def batches(lengths: list[int], budget: int) -> list[list[int]]:
        asked.append(budget)
        return batches_under_budget(lengths, budget)

    def interrupt(*arguments: object) -> None:
        raise StoppedError

    monkeypatch.setattr(module, "batches_under_budget", batches)
    with monkeypatch.context() as patched:
        patched.setattr(module.Progress, "advance", interrupt)
        with pytest.raises(StoppedError):
            extract(recordings)
    monkeypatch.setattr("pipeline.encoders.speech.LogMel.budget_seconds", lambda self: 1.0)
    extract(recordings)
    assert asked == [60 * 16000, 60 * 16000]
    (recordings[0].parent / "audio.h5").unlink()
    extract(recordings)  # a fresh run finds its own
    assert asked[2] == 16000


class KilledError(Exception):
    """Stands for the end of the process."""


def tight_work(largest: float, at_fetching: bool = False, found: bool = False) -> Work:
    """Work in batches of 1, 3, 4, 6, 12 and 2 utterances: the last one would fit into the memory again."""
    lengths = [12, *[4] * 3, *[3] * 4, *[2] * 6, *[1] * 14]
    layout = PartLayout([str(n) for n in range(len(lengths))], [1] * len(lengths), (3,), "float32", Identity({}), "")
    engine = LocalEngine(int, Tight(largest, at_fetching=at_fetching).start, str)
    return Work(layout, lengths, Unit("h", "h", 1, digits=0), budget=12, found=found, engine=engine)


@pytest.mark.parametrize(
    ("largest", "at_fetching", "found", "last_words"),  # `last_words`: what the killed process does not come to
    [
        (2, False, True, "write"),
        (3, True, False, "write"),
        (3, False, True, "take_note"),
        (2, True, False, "take_note"),
    ],
)
@pytest.mark.sampled(4)
def test_killed_anywhere_a_run_that_ran_out_of_memory_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, at_fetching: bool, found: bool, last_words: str
) -> None:
    fill(tmp_path / "whole.h5", tight_work(largest, at_fetching, found), "")
    whole, method = (tmp_path / "whole.h5").read_bytes(), getattr(SlotWriter, last_words)
    batches = len(batches_under_budget(tight_work(1).lengths, 12))
    for end in range(1, batches + 1):
        calls = itertools.count()

        def ending(*arguments: Any, end: int = end, calls: Any = calls, **numbers: Any) -> None:
            if next(calls) >= end:  # the first call is made before the first batch
                raise KilledError
            method(*arguments, **numbers)

        with monkeypatch.context() as patched:
            patched.setattr(SlotWriter, last_words, ending)
            with pytest.raises(KilledError):
                fill(tmp_path / "killed.h5", tight_work(largest, at_fetching, found), "")
        outcome = fill(tmp_path / "killed.h5", tight_work(largest, at_fetching, found), "")
        assert outcome.kept + outcome.encoded == outcome.utterances
        assert (tmp_path / "killed.h5").read_bytes() == whole
        (tmp_path / "killed.h5").unlink()


def test_pieces_of_other_batches_are_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has set a smaller batch meanwhile."""
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "advance", lambda *arguments: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            fill(tmp_path / "features.h5", replace(tight_work(1), budget=48), "")
    encoder = Tight()
    work = replace(tight_work(1), budget=24, engine=LocalEngine(int, encoder.start, str))
    fill(tmp_path / "features.h5", work, "")
    assert max(encoder.sizes) == max(map(len, batches_under_budget(work.lengths, 24)))


def test_one_utterance_that_exceeds_the_memory_says_what_helps_its_modality(
    recordings: tuple[Path, list[Utterance]], manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("pipeline.encoders.speech.SpeechEncoder.start", start)
    monkeypatch.setattr("pipeline.encoders.text.TextEncoder.start", start)
    reason = r"alone exceeds the memory \(CUDA out of memory. Tried to allocate 2.00 GiB.\)"
    with pytest.raises(
        EncoderError, match=f"{reason}; lower audio.window_seconds, or encode on the cpu \\(--device\\)$"
    ):
        extract(recordings)
    with pytest.raises(EncoderError, match=f"{reason}; shorten its text, or encode on the cpu \\(--device\\)$"):
        extract_text(manifest, tmp_path / "text.h5", TextParams(), "cpu")


@pytest.fixture(scope="module")
def joined(manifest: Path, encoded: Path) -> Path:
    join(manifest, encoded / "audio.h5", encoded / "text.h5", encoded / "feats.h5")
    return encoded / "feats.h5"


def test_the_joint_file_carries_all_that_training_needs(manifest: Path, joined: Path) -> None:
    records, features = read_manifest(manifest), read_features(joined)
    assert features.label_names == ["anger", "joy", "neutral", "sadness"]
    assert [features.label_names[label] for label in features.utterances.labels] == [r.label for r in records]
    assert features.utterances.conversations == [record.conversation for record in records]
    assert features.utterances.splits == [record.split for record in records]
    assert features.utterances.speakers == [record.speaker for record in records]
    assert joined.stat().st_size < 100_000  # links cost no copy


def test_copy_gives_one_file_that_needs_no_other(manifest: Path, joined: Path, tmp_path: Path) -> None:
    copied = join(manifest, joined.parent / "audio.h5", joined.parent / "text.h5", tmp_path / "feats.h5", True)
    assert copied.digest == read_features(joined).digest
    assert [path.name for path in tmp_path.iterdir()] == ["feats.h5"]


def test_inspect_counts_what_is_there(manifest: Path, joined: Path) -> None:
    report = inspect_file(joined, verify=True)
    records = read_manifest(manifest)
    assert report.utterances == len(records)
    assert report.conversations == 14
    assert sum(sum(labels.values()) for labels in report.splits.values()) == len(records)
    assert (report.parts["audio"].empty, report.parts["text"].empty) == (2, 1)
    assert report.parts["audio"].encoder["model"] == "tiny"
    assert "every utterance matches its checksum" in report.to_text()


def test_inspect_names_the_damaged_utterance(joined: Path, tmp_path: Path) -> None:
    part = read_part(joined.parent / "audio.h5")
    content = bytearray((joined.parent / "audio.h5").read_bytes())
    middle = part.offsets[10] * part.values[:1].nbytes
    content[content.index(part.values.tobytes()) + middle] ^= 1
    (tmp_path / "audio.h5").write_bytes(content)

    with pytest.raises(StoreError, match=f"1 of .* utterances do not match their checksum: '{part.ids[10]}'"):
        inspect_file(tmp_path / "audio.h5", verify=True)


def test_features_are_found_by_content_whatever_the_names_splits_and_order(
    manifest: Path, joined: Path, tmp_path: Path
) -> None:
    """Also where conversations and ids hold the split, as those of some corpora do, and where turns say the same."""
    before, features = read_manifest(manifest), read_features(joined)
    moved = [
        u.model_copy(update={"id": f"{split}/{u.id}", "conversation": f"{split}/{u.conversation}", "split": split})
        for u in before
        for split in [SPLITS[(SPLITS.index(u.split) + 1 + (u.conversation > "c010")) % 3]]
    ]
    write_manifest(tmp_path / "manifest.jsonl", sorted(moved, key=manifest_order))
    for modality, name in SOURCES.items():
        write_sources(manifest, before)
        write_sources(tmp_path / "manifest.jsonl", moved)
        assert (tmp_path / name).read_bytes() == manifest.with_name(name).read_bytes()
        assert read_sources(tmp_path / name, modality) == read_sources(manifest, modality)
    parts = (shutil.copy(joined.parent / name, tmp_path) for name in ("audio.h5", "text.h5"))
    again = join(tmp_path / "manifest.jsonl", *map(Path, parts), tmp_path / "feats.h5")
    assert again.digest != features.digest
    places = [features.utterances.ids.index(name.partition("/")[2]) for name in again.utterances.ids]
    assert places != sorted(places)
    for part, earlier in ((again.audio, features.audio), (again.text, features.text)):
        assert part is not None
        assert earlier is not None
        assert len(earlier.values) <= earlier.offsets[-1]
        for index, place in enumerate(places):
            np.testing.assert_array_equal(part.rows(index), earlier.rows(place))


def test_an_encoder_is_given_each_recording_and_text_once(manifest: Path, encoded: Path) -> None:
    records = read_manifest(manifest)
    assert read_part(encoded / "text.h5").offsets[-1] < read_features(encoded / "feats.h5").text.offsets[-1]  # type: ignore[union-attr]
    assert len(read_part(encoded / "text.h5").ids) == len({record.text for record in records} - {""})
    assert len(read_part(encoded / "audio.h5").ids) == len({record.audio for record in records} - {None})


def test_a_part_may_lie_in_a_joint_file_of_its_own(manifest: Path, joined: Path, tmp_path: Path) -> None:
    """Such as vectors that were imported, beside text that is encoded."""
    text = Path(shutil.copy(joined.parent / "text.h5", tmp_path))
    whole = tmp_path / "whole.h5"
    alone = join(manifest, joined.parent / "audio.h5", joined.parent / "text.h5", whole, copy_parts=True)
    again = join(manifest, whole, text, tmp_path / "feats.h5")
    assert again.digest == alone.digest
    assert (again.audio.path, again.text.path) == (whole, text)  # type: ignore[union-attr]
    with h5py.File(tmp_path / "feats.h5") as file:
        assert file["audio/values"].shape == again.audio.values.shape  # type: ignore[union-attr]
    with pytest.raises(StoreError, match=r"takes its audio from \S+/whole\.h5; join that file instead"):
        join(manifest, tmp_path / "feats.h5", text, tmp_path / "more.h5")
    with pytest.raises(StoreError, match=r"whole\.h5: is the file that holds the audio, which would be lost"):
        join(manifest, whole, text, whole, overwrite=True)
    records = read_manifest(manifest)
    fewer = [one for one in records if one.conversation != records[-1].conversation]
    write_manifest(tmp_path / "fewer.jsonl", fewer)
    few = join(tmp_path / "fewer.jsonl", whole, text, tmp_path / "few.h5", copy_parts=True)
    assert few.utterances.ids == [one.id for one in fewer]
    for part, of in ((few.audio, alone.audio), (few.text, alone.text)):
        np.testing.assert_array_equal(part.rows(2), of.rows(alone.utterances.ids.index(fewer[2].id)))  # type: ignore[union-attr]
    audio, ids = alone.audio, alone.utterances.ids
    assert audio is not None
    given = [audio.rows(index) for index in range(len(ids))]
    write_features(whole, alone.utterances, alone.label_names, (given, audio.identity), None)
    with pytest.raises(StoreError, match=r"whole\.h5: holds no text features"):
        join(manifest, whole, whole, tmp_path / "more.h5")


def test_an_import_is_joined_by_id_and_what_it_lacks_is_named(
    manifest: Path, joined: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records, text = read_manifest(manifest), Path(shutil.copy(joined.parent / "text.h5", tmp_path))
    vectors = {record.id: np.full((1, 3), number, np.float32) for number, record in enumerate(records)}
    np.savez(tmp_path / "vectors.npz", **vectors)  # type: ignore[arg-type]
    of_another_table = DatasetParams.model_validate({"split": "speaker", "columns": {"id": "clip", "label": "mood"}})

    def join_imported(table: list[Utterance]) -> Features:
        write_manifest(tmp_path / "table.jsonl", table)
        given = [Given("audio", str(tmp_path / "vectors.npz"))]
        imported = tmp_path / "imported.h5"
        import_features(tmp_path / "table.jsonl", given, imported, ImportParams(), of_another_table, overwrite=True)
        return join(manifest, imported, text, tmp_path / "feats.h5", overwrite=True)

    features = join_imported(records)
    assert features.utterances.splits == [record.split for record in records]
    for number, record in enumerate(records):
        np.testing.assert_array_equal(features.audio.rows(number), vectors[record.id])  # type: ignore[union-attr]
    assert not caplog.messages
    last = records[-1].conversation
    features = join_imported([record for record in records if record.conversation != last])
    lengths = np.diff(features.audio.offsets)  # type: ignore[union-attr]
    assert [bool(length) for length in lengths] == [record.conversation != last for record in records]
    count = sum(record.conversation == last for record in records)
    assert f"imported.h5: lacks {count} utterances, whose audio is empty: '{last}/0'" in caplog.text
    with pytest.raises(StoreError, match=r"no more than places, so .*; import it again with --table \S+manifest"):
        join_imported([*records[:-1]])
    with pytest.raises(StoreError, match=r"none of its utterances, such as 'x/\S+', is one of \S+manifest"):
        join_imported([record.model_copy(update={"id": f"x/{record.id}"}) for record in records])


class Told:
    """A manifest, and an import whose table says something else of the same ids."""

    def __init__(self, manifest: Path, text: Path, root: Path, in_rows: bool = False) -> None:
        self.records, self.root, self.manifest = read_manifest(manifest), root, root / "told.jsonl"
        self.text = Path(shutil.copy(text, root))
        if in_rows:  # a table without conversations: ids are the numbers of its rows
            self.records = [
                record.model_copy(update={"id": f"{row:03d}/0", "conversation": f"{row:03d}", "turn": 0})
                for row, record in enumerate(self.records)
            ]
        write_manifest(self.manifest, self.records)

    def join(self, **changed: Callable[[Utterance], Any]) -> Features:
        table = [
            record.model_copy(update={key: change(record) for key, change in changed.items()})
            for record in self.records
        ]
        write_manifest(self.root / "table.jsonl", table)
        np.savez(self.root / "vectors.npz", **{record.id: np.ones((1, 3)) for record in table})  # type: ignore[arg-type]
        given, imported = [Given("audio", str(self.root / "vectors.npz"))], self.root / "imported.h5"
        import_features(self.root / "table.jsonl", given, imported, ImportParams(), DatasetParams(), overwrite=True)
        return join(self.manifest, imported, self.text, self.root / "feats.h5", overwrite=True)

    def turned(self, what: str) -> Callable[[Utterance], Any]:
        """What another row says: the last of the first, and so on."""
        other = dict(zip([record.id for record in self.records], self.records[::-1], strict=True))
        return lambda record: getattr(other[record.id], what)


@pytest.fixture(params=[False, True], ids=["conversations", "rows"])
def told(request: pytest.FixtureRequest, manifest: Path, joined: Path, tmp_path: Path) -> Told:
    return Told(manifest, joined.parent / "text.h5", tmp_path, in_rows=request.param)


def nothing(_: Utterance) -> None:
    return None


def test_an_import_whose_ids_are_places_is_refused_where_its_turns_are_other_ones(told: Told) -> None:
    """As tables without ids give them whose rows lie in another order; other ids say what they mean."""
    with pytest.raises(StoreError, match=r"have another label than in .*: import it again with --table \S+told.jsonl"):
        told.join(label=told.turned("label"), speaker=told.turned("speaker"))


def test_labels_that_were_corrected_or_coded_otherwise_are_the_manifests(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    names = sorted({record.label for record in told.records if record.label})
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    first = next(record for record in told.records if record.label)
    corrected = told.join(label=lambda record: following[record.label] if record is first else record.label)
    coded = told.join(label=lambda record: record.label and following[record.label])
    assert len(caplog.messages) == 2
    assert all("another label than in" in said and "the manifest's is taken" in said for said in caplog.messages)
    for features in (corrected, coded):
        labels = [None if label < 0 else features.label_names[label] for label in features.utterances.labels]
        assert labels == [record.label for record in told.records]


def test_rows_that_are_shifted_by_one_are_noticed_in_a_sorted_table(
    manifest: Path, joined: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where labels differ only at the ends of their blocks."""
    told = Told(manifest, joined.parent / "text.h5", tmp_path, in_rows=True)
    count = len(told.records)
    told.records = [
        record.model_copy(update={"label": f"label {12 * row // count % 4}"}) for row, record in enumerate(told.records)
    ]
    write_manifest(told.manifest, told.records)
    following = dict(zip([record.id for record in told.records[:-1]], told.records[1:], strict=True))
    with pytest.raises(StoreError, match=r"11 of \d+ utterances have another label than in"):
        told.join(label=lambda record: following.get(record.id, record).label)
    told.join()
    assert not caplog.messages


def test_words_of_another_kind_are_not_compared(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    told.join(label=lambda record: f"another {record.label}")
    assert not caplog.messages


def test_speakers_show_another_order_only_where_nothing_else_orders_the_rows(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.join(speaker=told.turned("speaker"))  # labels are the same
    assert "utterances have another speaker than in" in caplog.text
    if told.records[0].conversation.isdecimal():
        with pytest.raises(StoreError, match="have another speaker than in"):
            told.join(speaker=told.turned("speaker"), label=nothing)
    else:
        told.join(speaker=told.turned("speaker"), label=nothing)


def test_numbers_of_rows_are_named_where_nothing_shows_that_they_are_the_same(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.join(speaker=nothing, label=nothing)
    assert ("its ids are the numbers of rows" in caplog.text) == told.records[0].conversation.isdecimal()


def test_conversations_that_are_numbered_are_no_rows(
    manifest: Path, joined: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(manifest, joined.parent / "text.h5", tmp_path)
    told.records = [
        record.model_copy(update={"id": record.id.lstrip("c"), "conversation": record.conversation.lstrip("c")})
        for record in told.records
    ]
    write_manifest(told.manifest, told.records)
    told.join(speaker=nothing, label=nothing)
    assert not caplog.messages


def test_swapped_parts_are_refused(manifest: Path, joined: Path, tmp_path: Path) -> None:

    with pytest.raises(StoreError, match="holds text features, expected audio; are audio and text swapped"):
        join(manifest, joined.parent / "text.h5", joined.parent / "audio.h5", tmp_path / "feats.h5")


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_a_modality_that_the_corpus_lacks_loads_no_encoder_and_joins_without_a_warning(
    modality: str, manifest: Path, tmp_path: Path
) -> None:
    absent = {"audio": {"audio": None, "samples": 0, "sample_rate": None, "channels": None}, "text": {"text": ""}}
    records = [
        record.model_copy(update={**absent[modality], "status": f"no-{modality}"}) for record in read_manifest(manifest)
    ]
    write_manifest(tmp_path / "manifest.jsonl", records)
    write_sources(tmp_path / "manifest.jsonl", records)
    nowhere = {"encoder": str(tmp_path / "no such encoder")}
    for name in ("manifest.jsonl", SOURCES[modality]):
        target = tmp_path / f"{modality}.h5"
        if modality == "audio":
            done = extract_audio(tmp_path / name, target, AudioParams(**nowhere), DEMO, "downmix", "cpu")  # type: ignore[arg-type]
        else:
            done = extract_text(tmp_path / name, target, TextParams(**nowhere), "cpu")  # type: ignore[arg-type]
        assert f"the corpus has no {modality}: nothing to encode" in done.summary("inputs", "rows")
    if modality == "audio":
        extract_text(tmp_path / "manifest.jsonl", tmp_path / "text.h5", TextParams(encoder="tiny"), "cpu")
    else:
        audio(tmp_path / "manifest.jsonl", tmp_path / "audio.h5")
    features = join(*(tmp_path / name for name in ("manifest.jsonl", "audio.h5", "text.h5", "feats.h5")))
    part = getattr(features, modality)
    assert not len(part.values)
    assert part.identity == Identity({"modality": modality, "model": "none"})
    assert not any(modality in line.partition(":")[0] for line in stand_ins(features, "table"))
