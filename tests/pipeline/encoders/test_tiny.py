"""The tiny encoders are ordinary Hugging Face folders, the same each time, and carry what the demo needs."""

import csv
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from transformers import AutoFeatureExtractor, AutoTokenizer, BertModel, Wav2Vec2Model

from pipeline.encoders import TINY_SPEECH, TINY_TEXT
from pipeline.encoders.tiny import build_speech, build_text

DEMO = Path(__file__).parents[3] / "data" / "demo"
TEXTS = ["The train leaves at nine.", "I am so happy about the train!", "So am I, Anna."]

Norm = Literal["group", "layer"]
Row = dict[str, str]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Short clips one by one: on a busy machine several threads wait for one another far longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_rows(cue: str) -> list[Row]:
    with (DEMO / "utterances.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["cue"] == cue]


def read_clip(path: Path) -> torch.Tensor:
    """(1, samples), mean 0 and variance 1."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    with av.open(str(path)) as container:
        decoded = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
    pieces = [piece.to_ndarray() for piece in [*decoded, *resampler.resample(None)]]
    samples = torch.from_numpy(np.concatenate(pieces, axis=1))
    return (samples - samples.mean()) / (samples.std() + 1e-7)


def accuracy(rows: list[Row], vectors: list[np.ndarray]) -> float:
    """Of a linear classifier fitted on train, over the turns of validation and test."""
    features, labels = np.stack(vectors), np.array([row["label"] for row in rows])
    train = np.array([row["split"] == "train" for row in rows])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000))
    return float(classifier.fit(features[train], labels[train]).score(features[~train], labels[~train]))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_same_seed_gives_the_same_speech_bytes(tmp_path: Path, norm: Norm) -> None:
    first, second, other = (
        contents(build_speech(tmp_path / name, norm=norm, seed=seed)) for name, seed in [("a", 3), ("b", 3), ("c", 4)]
    )
    assert set(first) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]


def test_the_same_seed_gives_the_same_text_bytes(tmp_path: Path) -> None:
    first, second, other = (
        contents(build_text(tmp_path / name, TEXTS, seed=seed)) for name, seed in [("a", 3), ("b", 3), ("c", 4)]
    )
    assert set(first) >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]


def test_building_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    build_speech(tmp_path / "speech")
    build_text(tmp_path / "text", TEXTS)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("samples", [400, 719, 720, 16_000])
def test_frames_follow_the_formula_of_wav2vec2(tmp_path: Path, norm: Norm, samples: int) -> None:
    model = Wav2Vec2Model.from_pretrained(build_speech(tmp_path, norm=norm, hidden=32, layers=1))
    with torch.inference_mode():
        frames = model(torch.randn(1, samples)).last_hidden_state
    assert frames.shape == (1, (samples - 400) // 320 + 1, 32)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_built_speech_folders_have_the_norm_asked_for(tmp_path: Path, norm: Norm) -> None:
    model, found = Wav2Vec2Model.from_pretrained(build_speech(tmp_path, norm=norm), output_loading_info=True)
    assert model.config.feat_extract_norm == norm
    assert model.config.do_stable_layer_norm == (norm == "layer")
    assert not any(found.values())


@pytest.mark.parametrize("folder", [TINY_TEXT, None], ids=["shipped", "built"])
def test_the_tokenizer_knows_its_words_and_spells_all_others(tmp_path: Path, folder: Path | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder or build_text(tmp_path, TEXTS))
    assert tokenizer.is_fast
    assert tokenizer.tokenize("So the TRAIN leaves.") == ["so", "the", "train", "leaves", "."]
    assert tokenizer.decode(tokenizer("I am so happy.", add_special_tokens=False)["input_ids"]) == "i am so happy."
    assert tokenizer.unk_token_id not in tokenizer(string.printable + " Zyzzyva's caf\u00e9 (quixotic) #1")["input_ids"]
    ids = tokenizer("at nine")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_shipped_weights_are_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in TINY_SPEECH.parent.rglob("*") if path.is_file()) < 5_000_000
    _, speech = Wav2Vec2Model.from_pretrained(TINY_SPEECH, output_loading_info=True)
    _, text = BertModel.from_pretrained(TINY_TEXT, add_pooling_layer=False, output_loading_info=True)
    assert not any(speech.values())
    assert not any(text.values())
    preprocessor = AutoFeatureExtractor.from_pretrained(TINY_SPEECH)
    assert preprocessor.do_normalize
    assert preprocessor.sampling_rate == 16_000


@pytest.mark.soak
@pytest.mark.usefixtures("one_thread")
def test_shipped_speech_frames_carry_prosody() -> None:
    rows = read_rows("prosody")[::2]
    model = Wav2Vec2Model.from_pretrained(TINY_SPEECH).eval()
    with torch.inference_mode():
        vectors = [model(read_clip(DEMO / row["audio"])).last_hidden_state[0].mean(0).numpy() for row in rows]
    assert accuracy(rows, vectors) > 0.75


@pytest.mark.usefixtures("one_thread")
def test_shipped_text_tokens_carry_words() -> None:
    rows = read_rows("words")
    tokenizer = AutoTokenizer.from_pretrained(TINY_TEXT)
    model = BertModel.from_pretrained(TINY_TEXT, add_pooling_layer=False).eval()
    with torch.inference_mode():
        tokens = [model(**tokenizer(row["text"], return_tensors="pt")).last_hidden_state[0] for row in rows]
    assert accuracy(rows, [words.mean(0).numpy() for words in tokens]) > 0.85
