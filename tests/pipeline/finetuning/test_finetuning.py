"""Fine-tuning: it learns, repeats itself to the bit, survives kills, and never reads the test split."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from fusion.objective import compute_all, floor_scores
from fusion.objective.tasks import LabelTask
from pipeline.encoders import is_whole, load_speech_encoder, load_text_encoder, shuffled_batches
from pipeline.encoders.tiny import build_speech, build_text
from pipeline.errors import BusyError, DataError, EncoderError, StoreError
from pipeline.extraction import extract_audio, extract_text
from pipeline.finetuning import finetune_audio, finetune_text, turn_off
from pipeline.finetuning.examples import Example, choose, majority, scores
from pipeline.finetuning.learners import load_speech_learner
from pipeline.finetuning.stage import Outcome, only_device
from pipeline.inspect import inspect_file
from pipeline.join import join
from pipeline.manifest import Utterance, learned_key, manifest_order, read_manifest, write_manifest
from pipeline.params import AudioParams, DatasetParams, FinetuneAudioParams, TextParams
from pipeline.preparation import prepare
from pipeline.settings import sole_writer, sync_folder
from pipeline.store import read_part
from tests.forked import exit_status, fork
from tests.pipeline.encoders.test_speech import noise, toy_folder
from tests.pipeline.made import sound, write_rows, write_wav

RATE = 16_000
PITCHES = {"calm": 180, "tense": 900}  # Hz
WORDS = {"calm": "slow quiet lake", "tense": "run fast alarm"}
LEARNING = {"epochs": 4, "learning_rate": 0.01, "batch_size": 8, "warmup_share": 0.0}


class Corpus:
    """Utterances whose label shows in the pitch and by the words, and toy encoders at a fraction of the tiny ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rows = [
            self._row(f"{split}{number}", split, number)
            for split, count in (("train", 24), ("validation", 10), ("test", 6))
            for number in range(count)
        ]
        rows += [{**self._row("bare", "train", 0), "label": ""}, {**self._row("mute", "train", 1), "audio": ""}]
        rows += [{**self._row("silent", "validation", 0), "text": ""}]
        dataset = DatasetParams(name="table", root=str(root), table=write_rows(root / "t.csv", rows).name)
        self.manifest = root / "manifest.jsonl"
        write_manifest(self.manifest, prepare(dataset).utterances)
        self.speech = build_speech(root / "speech", hidden=16, channels=8, layers=1)
        self.text = build_text(root / "text", WORDS.values(), hidden=16, layers=1)
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}  # as bert-base-uncased has it
        named = {
            re.sub("|".join(old), lambda found: old[found[0]], name): one for name, one in weights(self.text).items()
        }
        save_file(named, self.text / "model.safetensors", {"format": "pt"})

    def _row(self, name: str, split: str, number: int) -> dict[str, str]:
        label = list(PITCHES)[number % 2]
        seconds = 0.06 + 0.02 * (number % 5)
        tone = 0.3 * np.sin(2 * np.pi * PITCHES[label] * np.arange(round(seconds * RATE))[:, None] / RATE)
        write_wav(self.root / f"{name}.wav", tone + sound(seconds, RATE, seed=number, level=0.05), RATE)
        text = f"{WORDS[label]} {number}"
        return {"id": name, "split": split, "label": label, "audio": f"{name}.wav", "text": text}

    def audio(self, output: Path, manifest: Path | None = None, **finetune: Any) -> Outcome:
        settings = FinetuneAudioParams(**{"encoder": str(self.speech), **LEARNING, **finetune})
        return finetune_audio(
            manifest or self.manifest, output, AudioParams(finetune=settings), self.root, "downmix", "cpu"
        )

    def words(self, output: Path, **finetune: Any) -> Outcome:
        settings = {"encoder": str(self.text), **LEARNING, **finetune}
        return finetune_text(self.manifest, output, TextParams(finetune=settings), "cpu")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tuned(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both fine-tuned encoders, `audio` and `text`."""
    folder = tmp_path_factory.mktemp("tuned")
    corpus.audio(folder / "audio")
    corpus.words(folder / "text")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("modality", ["audio", "words"])
def test_a_planted_signal_is_learned(corpus: Corpus, tmp_path: Path, modality: str) -> None:
    outcome: Outcome = getattr(corpus, modality)(tmp_path / "out", metric="uar", epochs=8)
    assert outcome.floor == 0.5
    assert outcome.best.scores["uar"] > 0.8
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the work folder is gone


def test_the_line_of_outcome_says_what_was_left_out_and_what_to_do(corpus: Corpus, tmp_path: Path) -> None:
    outcome = corpus.audio(tmp_path / "out", epochs=1)
    assert (outcome.chosen.unlabelled, outcome.chosen.absent) == (1, 1)
    line = outcome.summary()
    assert re.search(r"out: 1 epoch, best 1, validation weighted_f1 [01]\.\d{3} \(majority 0\.\d{3}\);", line)
    assert "learned from 24 utterances, chosen on 11 (1 without a label, 1 without audio, left out)" in line
    assert f"to encode with it, set audio.encoder: {tmp_path / 'out'}" in line
    named = AudioParams(
        encoder=str(tmp_path / "out"), finetune=FinetuneAudioParams(encoder=str(corpus.speech), epochs=1)
    )
    assert corpus.audio(tmp_path / "out", epochs=1).summary().endswith("there already; nothing is trained")
    with pytest.raises(StoreError, match="holds an encoder that was fine-tuned with other parameters"):
        corpus.audio(tmp_path / "out", epochs=2)
    shutil.rmtree(tmp_path / "out")
    again = finetune_audio(corpus.manifest, tmp_path / "out", named, corpus.root, "downmix", "cpu")
    assert again.summary().endswith("audio.encoder names it")


def test_the_folder_is_an_encoder_with_other_features(corpus: Corpus, tuned: Path) -> None:
    clips = noise(8000, 3000)
    base, learned = (
        load_speech_encoder(AudioParams(encoder=str(path)), "cpu") for path in (corpus.speech, tuned / "audio")
    )
    assert learned.identity.fields["weights"] != base.identity.fields["weights"]
    assert not np.allclose(base.encode(clips)[0], learned.encode(clips)[0], atol=1e-3)
    before, after = (load_text_encoder(TextParams(encoder=str(path)), "cpu") for path in (corpus.text, tuned / "text"))
    assert before.identity.fields["tokenizer"] == after.identity.fields["tokenizer"]
    tokens = [before.tokenize("run to the lake")]
    assert tokens == [after.tokenize("run to the lake")]
    assert not np.allclose(before.encode(tokens)[0], after.encode(tokens)[0], atol=1e-3)


def test_the_folder_lists_whose_labels_it_learned(corpus: Corpus, tuned: Path) -> None:
    for modality, chosen in (("audio", "mute"), ("text", "silent")):
        learned = [one for one in read_manifest(corpus.manifest) if one.label and one.split != "test"]
        expected = {learned_key(one, modality) for one in learned if one.id != chosen}
        assert set((tuned / modality / "learned.txt").read_text().split()) == expected


def test_features_are_marked_where_the_encoder_learned_the_label_also_in_a_copy(corpus: Corpus, tmp_path: Path) -> None:
    said = read_manifest(corpus.manifest)
    taught = {one.id for one in said if one.id in {"train3", "train7", "validation9"}}
    places = []
    for modality, encoder in (("audio", corpus.speech), ("text", corpus.text)):
        shutil.copytree(encoder, tmp_path / modality)
        lines = sorted(str(learned_key(one, modality)) for one in said if one.id in taught)
        (tmp_path / modality / "learned.txt").write_text("\n".join(lines))
        places.append(tmp_path / f"{modality}.h5")
    speech, words = AudioParams(encoder=str(tmp_path / "audio")), TextParams(encoder=str(tmp_path / "text"))
    extract_audio(corpus.manifest, places[0], speech, corpus.root, "downmix", "cpu")
    extract_text(corpus.manifest, places[1], words, "cpu")
    for name, copied in (("linked.h5", False), ("whole.h5", True)):
        features = join(corpus.manifest, *places, tmp_path / name, copy_parts=copied)
        table = features.utterances
        for modality in ("audio", "text"):
            keys = {learned_key(one, modality) for one in said if one.id in taught}
            expected = {one.id for one in said if learned_key(one, modality) in keys}  # the same again is known, too
            assert taught < expected < {*table.ids}
            part = getattr(features, modality)
            assert {name for name, known in zip(part.ids, part.learned, strict=True) if known} == expected
            found = inspect_file(tmp_path / name).to_text()
            assert f"the encoder was fine-tuned on the labels of {len(expected)} of these" in found
            tested = np.array(table.splits) == "test"
            assert features.count_learned(modality, tested) == sum(name.startswith("test") for name in expected)
            again = features.resplit(dict.fromkeys(table.conversations, "test"))
            assert again.count_learned(modality, np.ones(len(table), bool)) == len(expected)
    (tmp_path / "text" / "learned.txt").unlink()  # with the same weights other marks are other work
    outcome = extract_text(corpus.manifest, places[1], words, "cpu", overwrite=True)
    assert not outcome.there
    join(corpus.manifest, *places, tmp_path / "whole.h5", copy_parts=True, overwrite=True)
    assert read_part(tmp_path / "whole.h5", "text").learned is None
    extract_text(corpus.manifest, tmp_path / "frozen.h5", TextParams(encoder=str(corpus.text)), "cpu")
    assert read_part(tmp_path / "frozen.h5").learned is None


def test_the_folder_names_weights_as_its_start_does_and_no_place(corpus: Corpus, tuned: Path) -> None:
    assert weights(corpus.speech).keys() == weights(tuned / "audio").keys()
    for name in ("audio", "text"):
        for path in (tuned / name).iterdir():
            assert str(corpus.root).encode() not in path.read_bytes(), path
            assert str(tuned).encode() not in path.read_bytes(), path


@pytest.mark.parametrize("frozen", [True, False])
def test_the_front_end_moves_only_when_it_may(corpus: Corpus, tmp_path: Path, frozen: bool) -> None:
    corpus.audio(tmp_path / "out", epochs=1, freeze_front_end=frozen)
    before, after = weights(corpus.speech), weights(tmp_path / "out")
    same = {name: torch.equal(before[name], after[name]) for name in before}
    front = {name for name in before if name.startswith("feature_extractor.")}
    assert front
    assert all(same[name] for name in front) == frozen
    assert not any(same[name] for name in before if "encoder.layers.0.attention" in name and "k_proj.bias" not in name)


def test_the_test_split_changes_nothing(corpus: Corpus, tuned: Path, tmp_path: Path) -> None:
    records = read_manifest(corpus.manifest)
    garbled = [
        u.model_copy(update={"label": "garbled", "audio": "no-such.wav", "text": "x"}) if u.split == "test" else u
        for u in records
    ]
    write_manifest(tmp_path / "manifest.jsonl", garbled)
    corpus.audio(tmp_path / "garbled", manifest=tmp_path / "manifest.jsonl")
    assert content(tmp_path / "garbled") == content(tuned / "audio")


@pytest.mark.soak
def test_killed_again_and_again_the_folder_ends_the_same(corpus: Corpus, tuned: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments."""

    def finished_epochs() -> set[str]:
        return {path.parent.name for path in tmp_path.glob("killed.partial/checkpoint-*/whole")}

    def run() -> None:
        corpus.audio(tmp_path / "killed")

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    moments, kills, taken_up = random.Random(0), 0, set[str]()
    while kills < 4 and not (tmp_path / "killed").exists():
        child, before, started = fork(run), finished_epochs(), time.monotonic()
        while kills % 2 and finished_epochs() == before and time.monotonic() - started < 10:
            time.sleep(0.001)  # every other run gets as far as the end of an epoch
        time.sleep(moments.uniform(0.0, 0.02 if kills % 2 else 0.3))
        os.kill(child, signal.SIGKILL)
        exit_status(child)
        kills += 1
        taken_up |= finished_epochs()
    assert kills >= 2
    assert len(taken_up) >= 2
    assert exit_status(fork(run)) == 0
    assert content(tmp_path / "killed") == content(tuned / "audio")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed"]


class Killed(BaseException):
    """Ends a run at a chosen place, as a kill would."""


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_run_that_ended_behind_an_epoch_goes_on_with_the_next(
    corpus: Corpus, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """Also behind the last one, where only the folder is missing."""
    from pipeline.finetuning import trainer

    ended_at = []

    def end(folder: Path) -> None:
        sync_folder(folder)
        ended_at.append(folder)
        if len(ended_at) == epochs:
            raise Killed

    monkeypatch.setattr(trainer, "sync_folder", end)
    with pytest.raises(Killed):
        corpus.words(tmp_path / "text")
    assert not (tmp_path / "text").exists()
    corpus.words(tmp_path / "text")
    assert len(ended_at) == LEARNING["epochs"]  # none was trained twice
    assert content(tmp_path / "text") == content(tuned / "text")


@pytest.fixture
def interrupted(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The work folder of a run of seed 1 that ended with its second epoch."""
    from pipeline.finetuning import trainer

    ended = []

    def end(folder: Path) -> None:
        ended.append(folder)
        if len(ended) == 2:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "sync_folder", end)
        with pytest.raises(Killed):
            corpus.words(tmp_path / "text", seed=1)
    return tmp_path / "text.partial"


def test_a_damaged_checkpoint_is_trained_again(
    corpus: Corpus, interrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus.words(tmp_path / "undisturbed", seed=1)
    last = max(interrupted.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    for path in (last / "model.safetensors", last / "optimizer.pt", last / "trainer_state.json"):
        shutil.rmtree(tmp_path / "again.partial", ignore_errors=True)
        work = Path(shutil.copytree(interrupted, tmp_path / "again.partial"))
        damaged, changed = work / last.name / path.name, bytearray(path.read_bytes())
        changed[len(changed) // 2] ^= 4
        damaged.write_bytes(changed)
        caplog.clear()
        corpus.words(tmp_path / "again", seed=1)
        assert f"{last.name}: cut short or damaged" in caplog.text
        assert content(tmp_path / "again") == content(tmp_path / "undisturbed"), path
        shutil.rmtree(tmp_path / "again")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_encoder_is_not_used_and_fine_tuned_again(
    corpus: Corpus, tuned: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(tuned / "text", tmp_path / "text"))
    (folder / ".DS_Store").touch()
    assert is_whole(folder)
    changed = bytearray((folder / name).read_bytes())
    changed[-9] ^= 1
    (folder / name).write_bytes(changed)
    with pytest.raises(EncoderError, match="is damaged, or was edited since it was fine-tuned; run pipeline-finetune"):
        load_text_encoder(TextParams(encoder=str(folder)))
    corpus.words(folder)
    assert content(folder) == content(tuned / "text")


def test_other_settings_start_afresh_and_say_so(
    corpus: Corpus, tuned: Path, interrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus.words(tmp_path / "text")
    assert "of other parameters, utterances, weights or versions; fine-tuning starts afresh" in caplog.text
    assert content(tmp_path / "text") == content(tuned / "text")


def test_a_full_disk_is_one_line_and_no_folder(corpus: Corpus, tuned: Path, tmp_path: Path) -> None:
    @contextmanager
    def small_files() -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with (
        small_files(),
        pytest.raises(
            StoreError, match=r"checkpoint-\d+: cannot be written \(File too large\); raise the limit .* and run"
        ),
    ):
        corpus.words(tmp_path / "text")
    assert not (tmp_path / "text").exists()
    assert not list(tmp_path.glob("text.partial/checkpoint-*"))
    corpus.words(tmp_path / "text")
    assert content(tmp_path / "text") == content(tuned / "text")


def test_it_stops_when_validation_does_not_improve(corpus: Corpus, tmp_path: Path) -> None:
    outcome = corpus.words(tmp_path / "out", epochs=50, patience=2, learning_rate=1e-9)
    assert (outcome.best.number, outcome.epochs) == (1, 3)


def test_the_epoch_is_chosen_on_validation(corpus: Corpus, tuned: Path) -> None:
    """The card's best row is the chosen one."""
    lines = (tuned / "audio" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == LEARNING["epochs"]
    best = max(rows, key=lambda row: (float(row[2]), -int(row[0])))
    assert f"weights of epoch {best[0]}, the best on 11 utterances" in "\n".join(lines)


@pytest.mark.sampled(5)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("kind", ["hubert", "wavlm", "data2vec-audio", "whisper", "conformer-relative"])
def test_the_whole_family_learns_with_its_own_masking_of_short_clips(corpus: Corpus, tmp_path: Path, kind: str) -> None:
    """Clips of 3 to 7 frames, masks of 10: transformers alone ends with an error."""
    start = toy_folder(kind, tmp_path / kind)
    config = json.loads((start / "config.json").read_text())
    assert config.get("apply_spec_augment", True) == (kind != "whisper")
    config |= {"mask_time_prob": 0.6, "apply_spec_augment": True}
    if kind != "wavlm":  # for which transformers lacks a setting
        config |= {"mask_feature_prob": 0.3, "mask_feature_length": 64}
    (start / "config.json").write_text(json.dumps(config))
    corpus.audio(tmp_path / "out", encoder=str(start), epochs=1, freeze_front_end=False)
    assert load_speech_encoder(AudioParams(encoder=str(tmp_path / "out")), "cpu").row_shape == (32,)


def test_the_batch_does_not_change_what_is_learned_from_a_clip(corpus: Corpus) -> None:
    learner = load_speech_learner(FinetuneAudioParams(encoder=str(corpus.speech)), ["calm", "tense"])
    model = learner.model.eval()
    examples = [Example(learner.prepare(clip), 0) for clip in noise(400, 16000, 5003)]

    def logits(batch: list[Example]) -> torch.Tensor:
        arguments = dict(learner.collate(batch))
        arguments.pop("labels")
        with torch.inference_mode():
            found: torch.Tensor = model(**arguments).logits
        return found

    together = logits(examples)
    for index, example in enumerate(examples):
        assert torch.allclose(together[index], logits([example])[0], atol=1e-5)


@pytest.mark.soak
def test_masks_and_dropout_change_what_is_learned_and_the_folder_still_loads(corpus: Corpus, tmp_path: Path) -> None:
    learned = []
    for number, settings in enumerate(({}, {"dropout": 0.5}, {"mask_time": 0.5}, {"mask_features": 0.5})):
        corpus.audio(tmp_path / str(number), epochs=1, **settings)
        load_speech_encoder(AudioParams(encoder=str(tmp_path / str(number))), "cpu")
        learned.append(weights(tmp_path / str(number))["encoder.layers.0.final_layer_norm.weight"].tolist())
    assert all(first != second for index, first in enumerate(learned) for second in learned[:index])


def test_a_long_clip_is_cut_behind_its_normalisation(corpus: Corpus) -> None:
    learner = load_speech_learner(FinetuneAudioParams(encoder=str(corpus.speech), max_seconds=1.0), ["calm", "tense"])
    (clip,) = noise(40000)
    whole = (clip - clip.mean()) / torch.sqrt(clip.var(correction=0) + 1e-7)
    assert torch.equal(learner.prepare(clip), whole[:16000])


def test_off_leaves_a_note_and_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("audio: {finetune: {epochs: 0}}")
    script = (
        "import sys, contextlib\nfrom pipeline.cli import finetune_app\n"
        "sys.argv = ['pipeline-finetune', '--modality', 'audio']\n"
        "with contextlib.suppress(SystemExit):\n    finetune_app()\n"
        "print(*({'torch', 'transformers', 'numpy', 'h5py', 'sklearn'} & set(sys.modules)), 'none')"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "models/encoders/audio: fine-tuning is off (audio.finetune.epochs: 0)",
        "none",
    ], run.stderr
    folder = tmp_path / "models" / "encoders" / "audio"
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    with pytest.raises(EncoderError, match=r"Fine-tuning is off.*set audio\.finetune\.epochs above 0 in params\.yaml"):
        load_speech_encoder(AudioParams(encoder=str(folder)), "cpu")


def test_the_note_gives_way_to_an_encoder_and_an_encoder_not_to_the_note(corpus: Corpus, tmp_path: Path) -> None:
    turn_off(tmp_path / "out", "text")
    turn_off(tmp_path / "out", "text")
    corpus.words(tmp_path / "out", epochs=1)
    with pytest.raises(StoreError, match=r"holds a fine-tuned encoder, and text\.finetune\.epochs is 0"):
        turn_off(tmp_path / "out", "text")
    assert (tmp_path / "out" / "config.json").exists()


def test_a_folder_of_somebody_else_is_not_replaced(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists and is not a fine-tuned encoder; name another folder"):
        corpus.words(tmp_path)
    with pytest.raises(StoreError, match="exists and is not a fine-tuned encoder"):
        corpus.words(corpus.text)
    with pytest.raises(EncoderError, match=r"text\.finetune\.encoder .* is the folder that fine-tuning writes"):
        corpus.words(tmp_path / "new", encoder=str(tmp_path / "new"))


def test_two_runs_at_once_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with (
        sole_writer(tmp_path / "text"),
        pytest.raises(BusyError, match=f"another process is writing it .*{os.getpid()}"),
    ):
        corpus.words(tmp_path / "text")


def altered(corpus: Corpus, target: Path, change: Callable[[Utterance], dict[str, Any]]) -> Path:
    changed = [u.model_copy(update=change(u)) for u in read_manifest(corpus.manifest)]
    write_manifest(target, sorted(changed, key=manifest_order))
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda u: {"label": None}, "of the train split with a label and audio, found none; name the column of labels"),
        (lambda u: {"samples": 0}, "of the train split with a label and audio, found none; see its audio"),
        (lambda u: {"label": None if u.split == "validation" else u.label}, "of the validation split .* found none"),
        (lambda u: {"label": "calm"}, "every labelled utterance of train is 'calm'"),
        (lambda u: {"label": "odd" if u.split == "validation" else u.label}, "label 'odd' .* does not occur in train"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    corpus: Corpus, tmp_path: Path, change: Callable[[Utterance], dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        choose(read_manifest(altered(corpus, tmp_path / "m.jsonl", change)), "audio", "m.jsonl")


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({"encoder": "./no/such"}, "no such encoder folder: ./no/such"),
        ({"encoder": "log-mel"}, "log-mel has no weights that could learn"),
        ({"encoder": "text"}, "is a 'bert' model; expected one of wav2vec2, "),
    ],
)
def test_encoders_that_cannot_learn_are_refused(
    corpus: Corpus, tmp_path: Path, finetune: dict[str, Any], message: str
) -> None:
    if finetune["encoder"] == "text":
        finetune = {"encoder": str(corpus.text)}
    with pytest.raises(EncoderError, match=message):
        corpus.audio(tmp_path / "out", **finetune)
    with pytest.raises(EncoderError, match="is a 'wav2vec2' model; expected one of albert, bert, "):
        corpus.words(tmp_path / "out", encoder=str(corpus.speech))


def test_scores_that_are_not_finite_are_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"not finite any more; lower finetune\.learning_rate"):
        corpus.words(tmp_path / "out", learning_rate=1e30)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("audio.finetune.metric=f1", "'audio.finetune.metric' is 'f1'"),
        ("audio.finetune.epoch=3", "unknown key 'audio.finetune.epoch'; did you mean 'audio.finetune.epochs'?"),
        ("audio.finetune.epochs=-1", "'audio.finetune.epochs' is -1"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_status_2(tmp_path: Path, override: str, message: str) -> None:
    from pipeline.cli import finetune_app

    (tmp_path / "params.yaml").write_text("")
    arguments = ["--modality", "audio", "--params", str(tmp_path / "params.yaml"), "--set", override]
    result = CliRunner().invoke(finetune_app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_its_settings_are_no_part_of_the_features_identity(corpus: Corpus) -> None:
    settings = FinetuneAudioParams(epochs=3, seed=5)
    plain, set_up = (
        load_speech_encoder(params, "cpu")
        for params in (
            AudioParams(encoder=str(corpus.speech)),
            AudioParams(encoder=str(corpus.speech), finetune=settings),
        )
    )
    assert plain.identity == set_up.identity


def test_scores_mean_what_they_mean_for_fusion_models() -> None:
    random = np.random.default_rng(0)
    true, predicted, train = random.integers(0, 3, 60), random.integers(0, 4, 60), random.integers(0, 4, 60)
    task = LabelTask(4)
    tally = task.tally(true, np.eye(4)[predicted], np.array([0, 60]))[0]
    assert scores(true, predicted) == pytest.approx(compute_all(task.metrics, tally))
    assert majority(train, true) == pytest.approx(floor_scores(task, true, train))


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    from pipeline.finetuning.trainer import LabelLoss

    labels = [0, 0, 0, 1, 2, 2]
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    logits, true = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    expected = torch.nn.functional.cross_entropy(logits, true, torch.tensor(weights).float())
    assert torch.allclose(LabelLoss(labels, "balanced")({"logits": logits}, true), expected)


def test_every_epoch_has_every_example_once_in_another_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 203).tolist()
    epochs = [shuffled_batches(lengths, 8, (0, epoch)) for epoch in range(3)]
    for batches in epochs:
        assert sorted(index for batch in batches for index in batch) == list(range(203))
        assert [len(batch) for batch in batches] == [8] * 25 + [3]
        padding = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches) / sum(lengths)
        assert padding < 1.25
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == shuffled_batches(lengths, 8, (0, 0))


@pytest.mark.parametrize(
    ("visible", "device", "expected"), [("", "cuda:1", "1"), ("2,3", "cuda:1", "3"), ("2,3", "cuda", "2")]
)
def test_one_gpu_is_taken(monkeypatch: pytest.MonkeyPatch, visible: str, device: str, expected: str) -> None:
    """The Trainer would split batches over all it sees, and the patches that keep padding out with them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert only_device(device) == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


CHANGES: dict[str, Callable[[Corpus, Path], Callable[[Utterance], dict[str, Any]]]] = {
    "a split": lambda corpus, folder: lambda u: {"split": "train"} if u.id == "validation0" else {},
    "the sound": lambda corpus, folder: lambda u: {"content": "0" * 32} if u.id == "train0" else {},
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_split_or_sound_is_another_encoder(corpus: Corpus, tmp_path: Path, what: str) -> None:
    corpus.audio(tmp_path / "out", epochs=1)
    manifest = altered(corpus, tmp_path / "m.jsonl", CHANGES[what](corpus, tmp_path))
    with pytest.raises(StoreError, match="holds an encoder that was fine-tuned with other parameters"):
        corpus.audio(tmp_path / "out", manifest, epochs=1)


def test_what_makes_the_inputs_of_an_encoder_is_part_of_what_it_learned_from(corpus: Corpus, tmp_path: Path) -> None:
    speech, text = (shutil.copytree(one, tmp_path / one.name) for one in (corpus.speech, corpus.text))
    corpus.audio(tmp_path / "audio", encoder=str(speech), epochs=1)
    corpus.words(tmp_path / "words", encoder=str(text), epochs=1)
    settings = json.loads((speech / "preprocessor_config.json").read_text())
    settings["do_normalize"] = not settings["do_normalize"]
    (speech / "preprocessor_config.json").write_text(json.dumps(settings))
    rules = json.loads((text / "tokenizer_config.json").read_text())
    (text / "tokenizer_config.json").write_text(json.dumps(rules | {"do_lower_case": False}))
    with pytest.raises(StoreError, match="fine-tuned with other parameters"):
        corpus.audio(tmp_path / "audio", encoder=str(speech), epochs=1)
    with pytest.raises(StoreError, match="fine-tuned with other parameters"):
        corpus.words(tmp_path / "words", encoder=str(text), epochs=1)


def test_a_special_token_without_an_embedding_is_named(corpus: Corpus, tmp_path: Path) -> None:
    text = shutil.copytree(corpus.text, tmp_path / "text")
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.add_special_tokens({"additional_special_tokens": ["quiet lake"]})  # words of the corpus
    tokenizer.save_pretrained(text)
    with pytest.raises(EncoderError, match="a text holds 'quiet lake', of which the encoder has no embedding"):
        corpus.words(tmp_path / "out", encoder=str(text), epochs=1)
