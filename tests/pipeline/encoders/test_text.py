"""Text encoders: exact under padding, nothing cut, faithful to transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.encoders import TINY_SPEECH, TINY_TEXT, TextEncoder, load_text_encoder
from pipeline.errors import EncoderError
from pipeline.params import TextParams

pytestmark = pytest.mark.arithmetic

TEXTS = ["Yes.", "I cannot believe that you did this to me, of all people!", "😀 naïve Zażółć", "???"]


def load(folder: Path | str = "tiny", **params: Any) -> TextEncoder:
    return load_text_encoder(TextParams(encoder=str(folder), **params), "cpu")


def test_batch_neighbours_do_not_change_tokens(minilm: Path) -> None:
    for folder in (TINY_TEXT, minilm):
        encoder = load(folder, layers=(0, 1, 2), mix="stack")
        token_ids = [encoder.tokenize(text) for text in TEXTS]
        for together, ids in zip(encoder.encode(token_ids), token_ids, strict=True):
            # the promise, see test_speech; at most 1.9e-6 was seen, from AVX2 to AMX
            assert np.abs(together - encoder.encode([ids])[0]).max() < 1e-4


def test_states_are_those_of_transformers(minilm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = load(minilm, layers=(3, 6), mix="stack")
    rows = encoder.encode([encoder.tokenize(TEXTS[1])])[0]
    tokens = AutoTokenizer.from_pretrained(minilm)(TEXTS[1], return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(minilm).eval()(**tokens, output_hidden_states=True).hidden_states
    assert np.allclose(rows[:, 0], states[3][0], atol=1e-4)
    assert np.allclose(rows[:, 1], states[6][0], atol=1e-4)


def tiny_with(folder: Path, **config: Any) -> Path:
    """A copy of the tiny encoder whose config.json says otherwise."""
    shutil.copytree(TINY_TEXT, folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | config))
    return folder


@pytest.mark.parametrize(
    "config", [{"is_decoder": True}, {"return_dict": False}], ids=lambda config: next(iter(config))
)
def test_what_a_config_says_is_done_alone_as_in_a_batch(tmp_path: Path, config: dict[str, bool]) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = tiny_with(tmp_path / "saved", **config)
    encoder, model, tokenizer = (
        load(folder),
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    for together, text in zip(encoder.encode([encoder.tokenize(text) for text in TEXTS]), TEXTS, strict=True):
        with torch.inference_mode():
            expected = model(tokenizer(text, return_tensors="pt")["input_ids"], return_dict=True).last_hidden_state[0]
        assert np.abs(together - expected.numpy()).max() < 1e-4
    plain = load(tiny_with(tmp_path / "plain" / "saved"))
    assert (encoder.identity == plain.identity) == ("is_decoder" not in config)


def test_a_tokenizer_of_sentencepiece_alone_is_read(tmp_path: Path) -> None:
    """As DeBERTa-v3 lies on the hub."""
    import sentencepiece
    from transformers import DebertaV2Config, DebertaV2Model

    DebertaV2Model(
        DebertaV2Config(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    ).save_pretrained(tmp_path)
    (tmp_path / "words.txt").write_text("\n".join(f"I am happy, you are sad {number}" for number in range(100)))
    special = {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "pad_piece": "[PAD]", "unk_piece": "[UNK]"}
    numbers = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"), model_prefix=str(tmp_path / "spm"), vocab_size=32, minloglevel=2,
        **special, **numbers,
    )  # fmt: skip
    encoder = load(tmp_path)
    rows = encoder.encode([ids := encoder.tokenize("I am sad")])[0]
    assert len(rows) == len(ids) + 2 > 2


def test_rows_are_known_before_encoding() -> None:
    encoder = load()
    for text in TEXTS:
        ids = encoder.tokenize(text)
        assert len(encoder.encode([ids])[0]) == encoder.tokens(ids) == len(ids) + 2  # [CLS] and [SEP]


def test_no_token_of_a_long_text_is_lost(minilm: Path) -> None:
    """MiniLM's own tokenizer file cuts at 128 tokens; 2,000 words must all be there."""
    encoder = load(minilm)
    words = " ".join(["happy", "sad"] * 1000)
    ids = encoder.tokenize(words)
    rows = encoder.encode([encoder.tokenize("Yes."), ids])[1]
    assert len(ids) == 2000
    assert rows.shape == (2002, 384)
    assert np.isfinite(rows).all()


def test_windows_agree_with_the_whole_away_from_the_seams() -> None:
    """A window's first and last kept tokens are those of the text: [CLS] comes first, [SEP] last."""
    encoder = load(overlap_tokens=64)
    encoder.window, encoder.overlap = 40, 16
    whole = load()
    ids = whole.tokenize(" ".join(TEXTS[:2] * 8))
    joined, reference = encoder.encode([ids])[0], whole.encode([ids])[0]
    assert joined.shape == reference.shape
    cosine = (joined * reference).sum(1) / np.linalg.norm(joined, axis=1) / np.linalg.norm(reference, axis=1)
    assert np.median(cosine) > 0.8


@pytest.mark.parametrize(("mix", "shape"), [("mean", (96,)), ("sum", (96,)), ("concat", (288,)), ("stack", (3, 96))])
def test_layers_are_mixed_as_asked(mix: str, shape: tuple[int, ...]) -> None:
    encoder, stack = load(layers="all", mix=mix), load(layers=(0, 1, 2), mix="stack")
    ids = encoder.tokenize(TEXTS[1])
    states, (rows,) = torch.from_numpy(stack.encode([ids])[0]), encoder.encode([ids])
    expected = {"mean": states.mean(1), "sum": states.sum(1), "concat": states.flatten(1), "stack": states}[mix]
    assert rows.shape[1:] == encoder.row_shape == shape
    assert np.allclose(rows, expected, atol=1e-5)


def test_identity_follows_what_features_depend_on(minilm: Path) -> None:
    variants = [load(), load(layers=(1,)), load(layers=(1, 2)), load(layers=(1, 2), mix="stack"), load(minilm)]
    assert len({encoder.identity for encoder in variants}) == len(variants)
    assert load().identity == load().identity


def test_a_speech_model_is_no_text_encoder() -> None:
    with pytest.raises(EncoderError, match="is a 'wav2vec2' model; expected one of albert, bert, "):
        load(TINY_SPEECH)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(EncoderError, match="no such encoder folder"):
        load("./no/such/folder")


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"has no config\.json"):
        load(tmp_path)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    folder = tiny_with(tmp_path / "tuned")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(EncoderError, match=r"tuned holds a LoRA or PEFT adapter.*merge it"):
        load(folder)


def test_a_config_of_fewer_layers_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"weights are unexpected.*such as one of fewer layers.*text\.layers"):
        load(tiny_with(tmp_path / "less", num_hidden_layers=1))


def test_the_model_inside_a_folder_is_named(tmp_path: Path) -> None:
    tiny_with(tmp_path / "0_Transformer")
    with pytest.raises(EncoderError, match=r"did you mean .*0_Transformer\?"):
        load(tmp_path)


def test_a_folder_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    """Otherwise every word would be unknown, and the features would say nothing."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((TINY_TEXT / name).read_bytes())
    with pytest.raises(EncoderError, match=r"tokenizer knows \d+ tokens and its model \d+|tokenizer cannot be loaded"):
        load(tmp_path)
