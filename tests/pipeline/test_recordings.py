"""Turns -> features in memory: those of the stages, by the very encoders that an identity names, whatever is amiss."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.encoders.speech import SPEAKER_SECONDS
from pipeline.errors import DataError, EncoderError
from pipeline.extraction import extract_audio, extract_text
from pipeline.join import join
from pipeline.manifest import content_key, read_manifest, write_manifest
from pipeline.media.decoding import decode
from pipeline.params import AudioParams, DatasetParams, TextParams
from pipeline.preparation import prepare
from pipeline.recordings import LONGEST_TEXT, EncodedTurn, Spoken, TurnEncoder, Waveform, read_turns, speak
from pipeline.settings import SettingsError
from pipeline.store import Identity, Part, read_part
from tests.demo import DEMO, conversations, prepared
from tests.pipeline.made import sound, write_rows, write_wav

RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both parts of five conversations of the demo, float32, and their table."""
    folder = tmp_path_factory.mktemp("recordings")
    names = conversations()
    utterances = prepared([*names["train"][:3], names["validation"][0], names["test"][0]], folder)
    write_manifest(folder / "manifest.jsonl", utterances)
    audio, text = AudioParams(dtype="float32"), TextParams(dtype="float32")
    extract_audio(folder / "manifest.jsonl", folder / "audio.h5", audio, DEMO, "downmix", "cpu")
    extract_text(folder / "manifest.jsonl", folder / "text.h5", text, "cpu")
    return folder


@pytest.fixture(scope="module")
def audio(folder: Path) -> Part:
    return read_part(folder / "audio.h5")


@pytest.fixture(scope="module")
def text(folder: Path) -> Part:
    return read_part(folder / "text.h5")


@pytest.fixture(scope="module")
def encoder(audio: Part, text: Part) -> Iterator[TurnEncoder]:
    with TurnEncoder(audio.identity, text.identity, device="cpu") as encoder:
        yield encoder


def said(text: str = "", sound: Path | Waveform | None = None, **times: Any) -> Spoken:
    return speak("c", 0, text, sound, **times)


def encode(encoder: TurnEncoder, *turns: Spoken) -> list[EncodedTurn]:
    return encoder.encode(turns)


def altered(part: Part, **fields: Any) -> Identity:
    return Identity({**part.identity.fields, **fields})


@pytest.mark.arithmetic
def test_features_are_those_of_the_stages(folder: Path, audio: Part, text: Part, encoder: TurnEncoder) -> None:
    turns = read_turns(folder / "utterances.csv", DEMO)
    records = {record.id: record for record in read_manifest(folder / "manifest.jsonl")}
    assert {turn.utterance.id for turn in turns} == set(records)
    for turn, found in zip(turns, encoder.encode(turns), strict=True):
        for part, modality, rows in ((audio, "audio", found.audio), (text, "text", found.text)):
            expected = part.rows(part.ids.index(content_key(records[turn.utterance.id], modality)))
            assert rows is not None
            assert rows.dtype == expected.dtype == np.float32
            np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-4)  # DESIGN 3.3: other neighbours
        assert found.status == "ok"


def test_features_say_how_channels_became_one(audio: Part) -> None:
    assert audio.identity.fields["channels"] == "downmix"


def test_channels_become_one_as_in_the_features_of_the_model(tmp_path: Path, audio: Part) -> None:
    both = np.concatenate([np.zeros((RATE, 1)), sound(1.0, RATE)], axis=1)
    path = write_wav(tmp_path / "half.wav", both, RATE)
    statuses = {}
    for channels in ("downmix", "first"):
        with TurnEncoder(altered(audio, channels=channels), None, device="cpu") as encoder:
            statuses[channels] = encode(encoder, said(sound=path))[0].status
    assert statuses == {"downmix": "ok", "first": "silent"}


def test_statuses_are_those_of_prepare(tmp_path: Path, encoder: TurnEncoder) -> None:
    write_wav(tmp_path / "good.wav", sound(0.3, RATE), RATE)
    write_wav(tmp_path / "silent.wav", np.zeros((RATE // 2, 1)), RATE)
    write_wav(tmp_path / "short.wav", sound(0.01, RATE), RATE)
    (tmp_path / "text.wav").write_text("not a recording")
    names = ["good.wav", "silent.wav", "short.wav", "text.wav", "missing.wav", ""]
    rows = [
        {"conversation": f"c{index}", "text": words, "audio": name, "split": split}
        for index, (name, words, split) in enumerate(
            zip(names * 2, ["Hello."] * 6 + [""] * 6, ["train", "validation", "test"] * 4, strict=True)
        )
    ]
    write_rows(tmp_path / "t.csv", rows)
    expected = {
        u.id: u.status for u in prepare(DatasetParams(name="table", root=str(tmp_path), table="t.csv")).utterances
    }
    turns = read_turns(tmp_path / "t.csv", tmp_path)
    for turn, found in zip(turns, encoder.encode(turns), strict=True):
        nothing = found.audio is None and found.text is None
        assert found.status == expected[turn.utterance.id] + "+context-only" * nothing


def test_ids_of_several_rows_are_counted_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(
        tmp_path / "t.csv",
        [{"id": name, "conversation": "c", "text": "hello"} for name in ("a", "b", "b", "b", "c", "c")],
    )
    assert len(read_turns(tmp_path / "t.csv", tmp_path)) == 6
    assert (
        "t.csv: 2 ids are shared by several rows, such as 'b' (3 rows); predictions are told apart by conversation and "
        "turn"
    ) in caplog.text


def test_a_recording_of_several_turns_is_cut(tmp_path: Path, encoder: TurnEncoder) -> None:
    whole = sound(2.0, RATE)
    path = write_wav(tmp_path / "film.wav", whole, RATE)
    part = write_wav(tmp_path / "part.wav", whole[RATE // 2 : RATE], RATE)
    wave = Waveform(decode(path).samples, float(RATE))  # type: ignore[arg-type]  # as other libraries have it
    cut, piece, first, alone = encode(
        encoder,
        said(sound=path, start=0.5, end=1.0),
        said(sound=wave, start=0.5, end=1.0),
        said(sound=path, end=0.5),
        said(sound=part),
    )
    assert cut.audio is not None
    assert alone.audio is not None
    np.testing.assert_allclose(cut.audio, alone.audio, atol=1e-4)
    np.testing.assert_allclose(piece.audio, alone.audio, atol=1e-4)  # type: ignore[arg-type]
    assert first.audio is not None


def test_of_a_text_without_end_so_much_is_read(encoder: TurnEncoder) -> None:
    words = "word " * (LONGEST_TEXT // 5)
    long, cut = encode(encoder, said(words + "more " * 200_000), said(words))
    assert (long.status, cut.status) == ("no-audio+cut-text", "no-audio")
    np.testing.assert_allclose(long.text, cut.text, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("words", ["\x1b[31mred\x1b[0m", "a\0b", "\ud800", "‮abc", "=HYPERLINK(1)", "\x85"])
def test_any_text_is_encoded(encoder: TurnEncoder, words: str) -> None:
    (found,) = encode(encoder, said(words))
    assert found.text is not None
    assert np.isfinite(found.text).all()


def test_labels_scores_and_splits_of_a_table_are_not_looked_at(tmp_path: Path) -> None:
    row = {"text": "Hello.", "split": "elsewhere", "label": "new", "score": "high", "utterance": "Bye."}
    write_rows(tmp_path / "t.csv", [row])
    (turn,) = read_turns(tmp_path / "t.csv", tmp_path)
    assert (turn.utterance.text, turn.utterance.label, turn.utterance.score) == ("Hello.", None, None)
    (other,) = read_turns(tmp_path / "t.csv", tmp_path, overrides=["dataset.columns.text=utterance"])
    assert other.utterance.text == "Bye."
    with pytest.raises(SettingsError, match=r"did you mean 'dataset\.columns\.text'"):
        read_turns(tmp_path / "t.csv", tmp_path, overrides=["dataset.columns.txt=utterance"])
    with pytest.raises(DataError, match=r"none\.csv: no such table; name another one \(--table\)"):
        read_turns(tmp_path / "none.csv", tmp_path)


def test_an_encoder_of_a_folder_is_the_models_by_its_weights(
    tmp_path: Path, folder: Path, stable_speech_folder: Path, speech_folder: Path, audio: Part
) -> None:
    from pipeline.encoders import load_speech_encoder

    there = shutil.copytree(speech_folder, tmp_path / "of another name")
    identity = load_speech_encoder(AudioParams(encoder=str(speech_folder)), "cpu").identity
    turn = said(sound=Waveform(sound(0.5, RATE)[:, 0].astype(np.float32), RATE))
    with TurnEncoder(identity, None, audio_folder=there, device="cpu") as encoder:
        assert encode(encoder, turn)[0].audio is not None
    with TurnEncoder(identity, None, device="cpu") as encoder, pytest.raises(EncoderError) as caught:
        encoder.load()
    weights = str(identity.fields["weights"])
    assert f"an encoder folder called 'group' (weights {weights[:12]})" in str(caught.value)
    assert "say where the folder lies (--audio-encoder)" in str(caught.value)
    with (
        TurnEncoder(identity, None, audio_folder=stable_speech_folder, device="cpu") as encoder,
        pytest.raises(EncoderError) as caught,
    ):
        encode(encoder, turn)
    assert f'"{weights}"}} for the model' in str(caught.value)
    assert 'weights {"weights":"' in str(caught.value)


def test_another_version_of_a_built_in_encoder_is_refused_and_both_are_named(text: Part) -> None:
    with TurnEncoder(None, altered(text, version=99), device="cpu") as encoder, pytest.raises(EncoderError) as caught:
        encoder.load()
    assert 'version {"version":1} here, {"version":99} for the model' in str(caught.value)


STRANGE = {
    "a path": {"model": "/etc"},
    "a path with a revision": {"model": "../../etc", "revision": "a" * 40},
    "an address": {"model": "https://example.org/x", "revision": "a" * 40},
    "a folder of two": {"model": "a/b/c", "revision": "main"},
    "an option": {"model": "-x", "revision": "main"},
    "no name": {"model": None},
    "a list": {"model": ["tiny"]},
    "a revision that is a path": {"model": "bert", "revision": "../../x"},
}


@pytest.mark.parametrize("fields", STRANGE.values(), ids=STRANGE)
def test_a_strange_name_is_neither_opened_nor_asked_for(
    text: Part, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the name was looked up")

    monkeypatch.setattr("pipeline.encoders.text.find_model", asked)
    with (
        TurnEncoder(None, altered(text, **fields), device="cpu") as encoder,
        pytest.raises(EncoderError, match=r"which it does not hold; say where the folder lies \(--text-encoder\)"),
    ):
        encoder.load()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": "every"}, r"'text\.layers' is 'every'"),
        ({"layers": [10**30]}, r"'text\.layers'|asked for layer"),
        ({"dtype": "object"}, r"'text\.dtype' is 'object'"),
        ({"overlap_tokens": -1}, r"'text\.overlap_tokens' is -1"),
        ({"model": "imported"}, "were imported, which no encoder can make of others"),
    ],
)
def test_an_identity_that_no_encoder_has_is_refused(text: Part, fields: dict[str, Any], message: str) -> None:
    with (
        TurnEncoder(None, altered(text, **fields), device="cpu") as encoder,
        pytest.raises(EncoderError, match=message),
    ):
        encoder.load()


def test_channels_that_are_not_known_are_refused(audio: Part) -> None:
    with (
        TurnEncoder(altered(audio, channels="all"), None, device="cpu") as encoder,
        pytest.raises(DataError, match="channels 'all' are none of"),
    ):
        encode(encoder, said("Hello."))


@pytest.mark.parametrize("params", [AudioParams(encoder="log-mel", dtype="float32"), AudioParams(normalise="speaker")])
def test_frames_of_a_table_are_normalised_by_its_speakers_as_those_of_a_corpus(
    folder: Path, tmp_path: Path, params: AudioParams
) -> None:
    utterances = read_manifest(folder / "manifest.jsonl")
    extract_audio(folder / "manifest.jsonl", tmp_path / "audio.h5", params, DEMO, "downmix", "cpu")
    part = read_part(tmp_path / "audio.h5")
    rows = {name: part.rows(place) for place, name in enumerate(part.ids)}
    spoken = [
        speak(u.conversation, u.turn, "", DEMO / str(u.audio) if u.audio else None, speaker=u.speaker)
        for u in utterances
    ]
    with TurnEncoder(part.identity, None, device="cpu") as encoder:
        found = encoder.encode(spoken)
    names = {u.speaker for u in utterances}
    assert len(names) > 1
    for name in names:
        own = [
            (rows[str(content_key(u, "audio"))], turn.audio)
            for u, turn in zip(utterances, found, strict=True)
            if u.speaker == name and turn.audio is not None
        ]
        together = np.concatenate([stored for stored, _ in own])
        np.testing.assert_allclose(together.astype(float).mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(together.std(axis=0), 1, atol=0.02)
        for stored, encoded in own:
            np.testing.assert_allclose(encoded, stored, atol=1e-4)


def test_the_part_of_a_speaker_that_is_listened_to_does_not_depend_on_names(
    audio: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.encoders.speech.SPEAKER_SECONDS", 1)
    waves = [Waveform(sound(1 + seed, RATE, seed=seed)[:, 0].astype(np.float32), RATE) for seed in (0, 1)]
    by_speaker = altered(audio, frames="speaker", speaker_seconds=1)
    with TurnEncoder(by_speaker, None, device="cpu") as encoder:
        one, other = (
            encoder.encode([speak(name, 0, "", wave, speaker="a") for name, wave in zip(names, waves, strict=True)])
            for names in ("bc", "cb")
        )
    for turn, again in zip(one, other, strict=True):
        assert turn.audio is not None
        assert again.audio is not None
        np.testing.assert_allclose(turn.audio, again.audio, atol=1e-4)


def test_a_clip_of_a_single_row_that_its_speaker_makes_zero_is_named(
    audio: Part, caplog: pytest.LogCaptureFixture
) -> None:
    wave, another = (Waveform(sound(0.025, RATE, seed=seed)[:, 0].astype(np.float32), RATE) for seed in (0, 1))
    by_speaker = altered(audio, frames="speaker", speaker_seconds=SPEAKER_SECONDS)
    with TurnEncoder(by_speaker, None, device="cpu") as encoder:
        (turn,) = encode(encoder, said(sound=wave, speaker="a"))
        assert turn.audio is not None
        assert not turn.audio.any()
        assert "are all zero once they are normalised by speaker: 1, such as 'c/0'" in caplog.text
        caplog.clear()
        turn, _ = encode(encoder, said(sound=wave, speaker="a"), speak("d", 0, "", another, speaker="a"))
        assert turn.audio is not None
        assert turn.audio.any()
        assert not caplog.text


def test_a_text_without_end_is_read_with_its_neighbours_as_in_the_features(tmp_path: Path) -> None:
    long = " ".join(f"word{number}" for number in range(LONGEST_TEXT // 5))
    rows = [
        {"conversation": f"c{index}", "text": text, "split": split}
        for index, split in enumerate(("train", "validation", "test"))
        for text in ("Hello.", long, "Really?", "Yes.")
    ]
    write_rows(tmp_path / "t.csv", rows)
    utterances = prepare(DatasetParams(name="table", root=str(tmp_path), table="t.csv")).utterances
    write_manifest(tmp_path / "manifest.jsonl", utterances)
    params = TextParams(dtype="float32", past_turns=1, future_turns=1)
    extract_text(tmp_path / "manifest.jsonl", tmp_path / "text.h5", params, "cpu")
    part = read_part(tmp_path / "text.h5")
    with TurnEncoder(None, part.identity, device="cpu") as encoder:
        found = encoder.encode(read_turns(tmp_path / "t.csv", tmp_path)[:4])
    extract_audio(tmp_path / "manifest.jsonl", tmp_path / "audio.h5", AudioParams(), tmp_path, "downmix", "cpu")
    cached = join(tmp_path / "manifest.jsonl", tmp_path / "audio.h5", tmp_path / "text.h5", tmp_path / "feats.h5").text
    assert cached is not None
    for turn in (0, 2, 3):  # the long one itself is cut
        rows_of_turn = found[turn].text
        assert rows_of_turn is not None
        np.testing.assert_allclose(rows_of_turn, cached.rows(cached.ids.index(f"c0/{turn}")), rtol=0, atol=1e-4)


@pytest.mark.parametrize("loudest", [32767.0, 127.0, 1e30, -1e30])
def test_samples_far_outside_of_the_range_of_floats_are_refused(loudest: float) -> None:
    samples = sound(0.3, RATE)[:, 0].astype(np.float32)
    samples[5] = loudest
    with pytest.raises(
        DataError, match=r"turn 0: audio with samples up to .*; expected floats in \[-1, 1\]: divide whole"
    ):
        said(sound=Waveform(samples, RATE))


def test_samples_that_exceed_the_range_a_little_or_are_not_finite_have_their_status(encoder: TurnEncoder) -> None:
    samples = sound(0.3, RATE)[:, 0].astype(np.float32)
    samples[5] = 2.0
    broken = samples.copy()
    broken[6] = np.nan
    found = encode(encoder, said(sound=Waveform(samples, RATE)), said(sound=Waveform(broken, RATE)))
    assert [one.status for one in found] == ["no-text", "not-finite+no-text+context-only"]
