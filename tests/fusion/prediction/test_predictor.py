"""Predictions from recordings: those of cached features, turn by turn those of the whole, and what may be missing."""

import math
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.errors import FeatureError, ModelError, RecordingError
from fusion.evaluation import evaluate
from fusion.models import MODELS
from fusion.params import EvaluateParams
from fusion.prediction import Prediction, Predictor, Turn
from pipeline.errors import DataError
from pipeline.extraction import extract_audio, extract_text
from pipeline.join import join
from pipeline.media.decoding import decode
from pipeline.params import AudioParams, TextParams
from pipeline.store import Features, Identity
from tests.demo import DEMO
from tests.fusion.made import tiny_recipe, train_made
from tests.fusion.recorded import Recorded, without

pytestmark = pytest.mark.arithmetic

# Of probabilities, from AVX2 to AMX. Encoded alone or in a batch, features differ by 2e-6 in float32, so that now and
# then one is stored as the next float16. Where one in 400 is (AVX2 against AVX-512), a probability moves by up to 4e-5;
# here it was at most 1.2e-6. In bfloat16 it was 1.9e-4, since features in a batch are then others by 4e-3: that must
# not pass.
TOLERANCE = 1e-4


def turns_of(recorded: Recorded, conversation: int = 0, split: str = "test") -> list[Turn]:
    """A conversation of the split as a user would give it."""
    names = sorted({u.conversation for u in recorded.utterances if u.split == split})
    return [
        Turn(u.text, recorded.root / u.audio, speaker=u.speaker, conversation=u.conversation)
        for u in recorded.utterances
        if u.conversation == names[conversation] and u.audio is not None
    ]


def answers(predictions: list[Prediction]) -> np.ndarray:
    return np.array([list(one.probabilities.values()) or [one.score] for one in predictions])


def assert_same(found: list[Prediction], expected: list[Prediction]) -> None:
    np.testing.assert_allclose(answers(found), answers(expected), rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def predictor(recorded: Recorded) -> Iterator[Predictor]:
    with Predictor.load(recorded.train(seeds=(0, 1)), "cpu") as loaded:
        yield loaded


@pytest.mark.sampled(2)
@pytest.mark.parametrize("target", ["label", "score"])
def test_recordings_give_what_evaluation_gives_on_their_cached_features(recorded: Recorded, target: str) -> None:
    models = recorded.train(seeds=(0, 1), target=target)
    evaluation = evaluate(recorded.features, models, EvaluateParams(resamples=10), torch.device("cpu"))
    with Predictor.load(models, "cpu") as predictor:
        found = {one.id: one for one in predictor.predict_table(recorded.table, recorded.root)}
    expected = np.mean([seed.answers for seed in evaluation.seeds], axis=0)
    np.testing.assert_allclose(answers([found[name] for name in evaluation.ids]), expected, rtol=0, atol=TOLERANCE)
    assert {one.status for one in found.values()} == {"ok"}
    assert {one.seeds for one in found.values()} == {(0, 1)}
    assert len(found) == len(recorded.utterances)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MODELS)
def test_turn_by_turn_a_model_of_the_past_says_what_it_says_at_once(recorded: Recorded, name: str) -> None:
    turns = turns_of(recorded)[:4]
    with Predictor.load(recorded.train(name, direction="past"), "cpu") as predictor:
        assert predictor.direction == "past"
        running = predictor.conversation()
        assert_same([running.add(turn) for turn in turns], predictor.predict(turns))


@pytest.mark.parametrize("name", ["concat", "dialoguegcn", "dialoguernn"])
def test_who_speaks_reaches_the_models_that_look_at_it(recorded: Recorded, name: str) -> None:
    turns = turns_of(recorded)[:4]
    with Predictor.load(recorded.train(name, direction="past"), "cpu") as predictor:
        named, nameless = predictor.predict(turns), predictor.predict([replace(turn, speaker=None) for turn in turns])
    assert bool(np.abs(answers(named) - answers(nameless)).max() > 0) is (name != "concat")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["hbaf", "hcam"])
def test_turn_by_turn_a_model_of_both_directions_says_what_it_says_of_the_conversation_so_far(
    recorded: Recorded, name: str
) -> None:
    turns = turns_of(recorded)[:4]
    with Predictor.load(recorded.train(name, direction="both"), "cpu") as predictor:
        running = predictor.conversation()
        streamed = [running.add(turn) for turn in turns]
        assert_same(streamed, [predictor.predict(turns[:count])[-1] for count in range(1, len(turns) + 1)])
        assert np.abs(answers(streamed) - answers(predictor.predict(turns)))[:-1].max() > TOLERANCE


def test_several_seeds_are_averaged(recorded: Recorded, predictor: Predictor) -> None:
    turns, alone = turns_of(recorded), []
    for seed in (0, 1):
        with Predictor.load(recorded.train(seeds=(0, 1)) / f"seed-{seed}", "cpu") as one:
            assert one.seeds == (seed,)
            alone.append(answers(one.predict(turns)))
    np.testing.assert_allclose(answers(predictor.predict(turns)), np.mean(alone, axis=0), rtol=0, atol=1e-6)


def test_a_prediction_names_the_most_probable_label_and_its_turn(recorded: Recorded, predictor: Predictor) -> None:
    turns = turns_of(recorded)
    for number, (turn, one) in enumerate(zip(turns, predictor.predict(turns), strict=True)):
        assert (one.conversation, one.turn, one.speaker) == (turn.conversation, number, turn.speaker)
        assert one.id == f"{turn.conversation}/{number}"
        assert list(one.probabilities) == list(predictor.labels) == recorded.features.label_names
        assert one.label == max(one.probabilities, key=lambda label: one.probabilities[label])
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert one.score is None


def test_conversations_may_be_mixed(recorded: Recorded, predictor: Predictor) -> None:
    first, second = turns_of(recorded, 0), turns_of(recorded, 1)
    mixed = [turn for pair in zip(first, second, strict=False) for turn in pair]
    found = predictor.predict(mixed)
    assert [one.conversation for one in found] == [turn.conversation for turn in mixed]
    count = len(mixed) // 2
    assert_same(found[::2], predictor.predict(first[:count]))
    assert_same(found[1::2], predictor.predict(second[:count]))


def test_threads_may_share_a_predictor(recorded: Recorded, predictor: Predictor) -> None:
    turns = [turn for conversation in range(2) for turn in turns_of(recorded, conversation)]
    given = [[Turn(words)] for turn in turns for words in (turn.text, f"{turn.text} {turn.text}")]
    given += [[replace(turn, text="")] for turn in turns]
    alone = [predictor.predict(one) for one in given]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(predictor.predict, given * 2))
    finally:
        sys.setswitchinterval(switch)
    for expected, found in zip(alone * 2, together, strict=True):
        assert_same(found, expected)


def test_what_is_encoded_at_a_time_changes_nothing(
    recorded: Recorded, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = predictor.predict_table(recorded.table, recorded.root)
    monkeypatch.setattr("fusion.prediction.recordings.TURNS", 1)
    apart = predictor.predict_table(recorded.table, recorded.root)
    assert [one.id for one in apart] == [one.id for one in together]
    assert_same(apart, together)


def test_audio_and_text_may_be_missing_anywhere(recorded: Recorded, predictor: Predictor) -> None:
    whole = turns_of(recorded)
    turns = [
        replace(whole[0], audio=None),
        replace(whole[1], text=""),
        replace(whole[2], text=" \n", audio=None),
        replace(whole[0], audio="nowhere.wav"),
    ]
    found = predictor.predict(turns)
    assert [one.status for one in found] == ["no-audio", "no-text", "no-audio+no-text+context-only", "missing-file"]
    assert np.isfinite(answers(found)).all()


def test_none_is_a_text_that_is_missing(recorded: Recorded, predictor: Predictor) -> None:
    given = turns_of(recorded)[0]
    found = predictor.predict([replace(given, text=None)])
    assert [one.status for one in found] == ["no-text"]
    assert_same(found, predictor.predict([replace(given, text="")]))


def test_what_is_no_turn_is_refused_with_what_was_expected(predictor: Predictor) -> None:
    with pytest.raises(RecordingError, match="the text of a turn is 5; expected a str, or None"):
        Turn(5)  # type: ignore[arg-type]
    with pytest.raises(RecordingError, match="the audio of a turn is 5; expected a path, samples in a numpy array"):
        Turn("Hello.", 5)  # type: ignore[arg-type]
    with pytest.raises(
        RecordingError, match=r"is a list of length 16000; expected .*\(np\.asarray\(x, np\.float32\)\)"
    ) as error:
        Turn("Hello.", [0.25] * 16_000)  # type: ignore[arg-type]
    assert "0.25" not in str(error.value)
    for field, value in (
        *{"speaker": math.nan, "conversation": 3, "start": "0.5", "end": math.inf}.items(),
        *{"start": True, "end": False}.items(),
    ):
        with pytest.raises(RecordingError, match=f"the {field} of a turn is .*; expected"):
            Turn("Hello.", **{field: value})  # type: ignore[arg-type]
    with pytest.raises(RecordingError, match=r"found one Turn; give it in a list: predict\(\[turn\]\)"):
        predictor.predict(Turn("Hello."))  # type: ignore[arg-type]
    with pytest.raises(RecordingError, match=r"predict takes turns, found None; expected a list"):
        predictor.predict(None)  # type: ignore[arg-type]
    with pytest.raises(RecordingError, match=r"found 'Hello\.' as turn 1; expected Turn"):
        predictor.predict([Turn("Hello."), "Hello."])  # type: ignore[list-item]
    with pytest.raises(RecordingError, match=r"add takes a turn, found 'Hello\.'; expected Turn"):
        predictor.conversation().add("Hello.")  # type: ignore[arg-type]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", MODELS)
def test_a_single_turn_of_which_nothing_is_known_is_answered(recorded: Recorded, name: str) -> None:
    with Predictor.load(recorded.train(name, direction="past"), "cpu") as predictor:
        (found,) = predictor.predict([Turn()])
        (worded,) = predictor.predict([Turn("Hello.")])
    assert found.status.endswith("context-only")
    assert np.isfinite(answers([found, worded])).all()


@pytest.mark.parametrize(("name", "modalities"), [("text", "both"), ("hbaf", "text"), ("audio", "both")])
def test_a_modality_that_the_model_does_not_look_at_is_neither_opened_nor_missed(
    recorded: Recorded, name: str, modalities: str
) -> None:
    models = recorded.train(name, modalities=modalities)
    audio = name == "audio"
    given = turns_of(recorded)[0]
    with Predictor.load(models, "cpu", "nowhere" if not audio else None, "nowhere" if audio else None) as predictor:
        (found,) = predictor.predict([replace(given, text="") if audio else replace(given, audio="nowhere.wav")])
        (whole,) = predictor.predict([given])
    assert found.status == "ok"
    assert_same([found], [whole])


def test_samples_are_taken_as_a_recording_of_them(recorded: Recorded, predictor: Predictor) -> None:
    given = turns_of(recorded)[0]
    assert isinstance(given.audio, Path)
    recording = decode(given.audio)
    samples = replace(given, audio=recording.samples, sample_rate=recording.sample_rate)
    assert_same(predictor.predict([samples]), predictor.predict([given]))
    with pytest.raises(RecordingError, match="turn 0: its audio are samples; give their sample_rate"):
        predictor.predict([replace(samples, sample_rate=None)])
    for wrong in (np.zeros((2, 3), np.float32), np.zeros(3, np.int16)):
        with pytest.raises(DataError, match=r"expected .*mix several channels to one, and divide whole numbers"):
            predictor.predict([Turn(audio=wrong, sample_rate=16000)])


def test_a_closed_predictor_refuses_recordings_and_still_reads_words(recorded: Recorded) -> None:
    given = turns_of(recorded)[0]
    with Predictor.load(recorded.train(seeds=(0, 1)), "cpu") as predictor:
        read = predictor.predict([replace(given, audio=None)])
    assert_same(predictor.predict([replace(given, audio=None)]), read)
    with pytest.raises(RecordingError, match="this predictor is closed and decodes no more recordings; load another"):
        predictor.predict([given])


def test_a_turn_that_is_refused_leaves_the_conversation_as_it_was(recorded: Recorded, predictor: Predictor) -> None:
    first, second = turns_of(recorded)[:2]
    running, undisturbed = predictor.conversation(), predictor.conversation()
    running.add(first)
    with pytest.raises(DataError, match="speaker 'a\\\\x00' holds control characters"):
        running.add(replace(second, speaker="a\0"))
    undisturbed.add(first)
    assert len(running) == 1
    assert_same([running.add(second)], [undisturbed.add(second)])


def test_no_turn_gives_no_prediction(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


def test_features_give_what_recordings_give(recorded: Recorded, predictor: Predictor) -> None:
    spoken = {one.id: one for one in predictor.predict_table(recorded.table, recorded.root)}
    cached = predictor.predict_features(recorded.features)
    assert_same(cached, [spoken[one.id] for one in cached])
    assert_same(cached, predictor.predict_features(str(recorded.features.path)))
    assert [replace(one, probabilities={}) for one in cached] == [
        replace(spoken[one.id], probabilities={}, label=one.label, true=None, carried={}) for one in cached
    ]
    test = predictor.predict_features(recorded.features, "test")
    assert [one.id for one in test] == [u.id for u in recorded.utterances if u.split == "test"]


def test_features_need_no_labels_and_may_lack_a_modality(recorded: Recorded, predictor: Predictor) -> None:
    unlabelled = np.full_like(recorded.features.utterances.labels, -1)
    bare = replace(
        recorded.features, label_names=[], utterances=replace(recorded.features.utterances, labels=unlabelled)
    )
    assert predictor.predict_features(bare) == predictor.predict_features(recorded.features)
    deaf = predictor.predict_features(without(bare, "audio"), "test")
    assert {one.status for one in deaf} == {"no-audio"}
    told = predictor.predict([replace(turn, audio=None) for turn in turns_of(recorded)])
    assert_same([one for one in deaf if one.conversation == told[0].conversation], told)
    with pytest.raises(FeatureError, match="the model looks at audio and text, of which nothing is in the file"):
        predictor.predict_features(without(without(bare, "audio"), "text"))
    with pytest.raises(FeatureError, match="there is no split 'other'; it has train, validation, test"):
        predictor.predict_features(bare, "other")


def test_features_of_other_encoders_are_refused(recorded: Recorded, predictor: Predictor) -> None:
    assert recorded.features.text is not None
    other = Identity({**recorded.features.text.identity.fields, "weights": "t2"})
    features: Features = replace(recorded.features, text=replace(recorded.features.text, identity=other))
    with pytest.raises(ModelError, match="trained on text features of"):
        predictor.predict_features(features)


@pytest.fixture(scope="module")
def read_in_context(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The same corpus, each text of which is read with the turns around it."""
    folder = tmp_path_factory.mktemp("context")
    manifest = Path(shutil.copy(recorded.folder / "manifest.jsonl", folder))
    shutil.copy(recorded.table, folder)
    extract_text(manifest, folder / "text.h5", TextParams(past_turns=2, future_turns=1, speakers=True), "cpu")
    features = join(manifest, recorded.folder / "audio.h5", folder / "text.h5", folder / "feats.h5", copy_parts=True)
    return replace(recorded, folder=folder, features=features)


def test_words_are_read_with_the_turns_around_them_as_in_the_features_of_the_model(read_in_context: Recorded) -> None:
    """Also in a stream, where a turn's words are read once more with those behind it."""
    turns = turns_of(read_in_context)[:4]
    turns[2] = replace(turns[2], text="")
    with Predictor.load(read_in_context.train(direction="past"), "cpu") as predictor:
        cached = predictor.predict_features(read_in_context.features)
        found = {one.id: one for one in predictor.predict_table(read_in_context.table, read_in_context.root)}
        assert_same([found[one.id] for one in cached], cached)
        assert predictor.direction == "both"
        running = predictor.conversation()
        streamed = [running.add(turn) for turn in turns]
        assert_same(streamed, [predictor.predict(turns[:count])[-1] for count in range(1, len(turns) + 1)])
        alone = [predictor.predict([turn])[0] for turn in turns]
        assert np.abs(answers(streamed) - answers(alone))[1].max() > TOLERANCE


def test_speakers_are_listened_to_over_the_whole_table_and_a_clip_alone_is_warned_of(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log_mel = AudioParams(encoder="log-mel")  # by speaker, if nothing else is said
    folder = recorded.folder
    extract_audio(folder / "manifest.jsonl", tmp_path / "audio.h5", log_mel, DEMO, "downmix", "cpu")
    shutil.copy(folder / "text.h5", tmp_path)
    features = join(folder / "manifest.jsonl", tmp_path / "audio.h5", tmp_path / "text.h5", tmp_path / "feats.h5")
    train_made(features, tmp_path / "models", tiny_recipe({"name": "audio"}, epochs=1))
    monkeypatch.setattr("fusion.prediction.recordings.TURNS", 1)
    turns = [
        Turn(u.text, DEMO / str(u.audio), speaker=u.speaker, conversation=u.conversation) for u in recorded.utterances
    ]
    with Predictor.load(tmp_path / "models", "cpu") as predictor:
        cached = {one.id: one for one in predictor.predict_features(features)}
        found = predictor.predict(turns)
        assert_same(found, [cached[one.id] for one in recorded.utterances])
        assert "are the only clip of their speaker" not in caplog.text
        conversation = predictor.conversation("a")
        for turn in turns[:2]:
            conversation.add(replace(turn, conversation="a"))
    assert caplog.text.count("1 of 1 clips are the only clip of their speaker") == 1
