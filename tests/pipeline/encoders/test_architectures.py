"""Every architecture of the tables, as a toy with random weights: exact, with transformers' own layers, from whatever
head it was saved with; all others are refused by name.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers.models.auto import modeling_auto

from pipeline.encoders import REFUSED, SPEECH, TEXT, SpeechEncoder, TextEncoder, load_speech_encoder, load_text_encoder
from pipeline.encoders.loading import load_pretrained
from pipeline.encoders.tiny import text_tokenizer
from pipeline.errors import EncoderError
from pipeline.finetuning.examples import Example
from pipeline.finetuning.learners import Learner, TextLearner, load_speech_learner
from pipeline.params import AudioParams, FinetuneAudioParams, FinetuneTextParams, TextParams
from pipeline.settings import PrecisionError
from scripts import encoders_page, exactness_page
from tests.pipeline.encoders.test_speech import TOLERANCE, TOYS, noise, toy_config

pytestmark = [
    pytest.mark.arithmetic,
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),  # WavLM's own way
]

LAYERS = 3
WORDS = ["joy", "grief", "calm", "wrath", "dread", "shame", "pride", "hope"]
SAMPLES = (400, 16000, 5003)  # of clips
SPEECH_CASES = [*((kind, "full") for kind in TOYS), ("whisper", "clip")]
LENGTHS = (1, 3, 17, 40, 54)  # tokens; 54 and two special ones fill most of the 60 positions
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "d_inner"), 48),
    **dict.fromkeys(("d_kv", "d_head", "head_dim"), 8),
    "max_position_embeddings": 60,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
OWN: dict[str, dict[str, Any]] = {  # what is smaller, or more telling, than the default of an architecture
    "big_bird": {"block_size": 4, "num_random_blocks": 1},
    "convbert": {"head_ratio": 2, "conv_kernel_size": 5},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 16,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "conv_kernel_size": 3,
    },
    "cohere2": {"sliding_window": 8},
    "esm": {"mask_token_id": 4, "token_dropout": True, "emb_layer_norm_before": False},
    "falcon": {"num_kv_heads": 4, "num_attention_heads": 4, "new_decoder_architecture": True},
    "flaubert": {"layerdrop": 0.9},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt_neo": {"attention_types": [[["local", "global", "local"], 1]], "window_size": 8, "intermediate_size": None},
    "gptj": {"rotary_dim": 4},
    "llama": {"num_key_value_heads": 2},
    "longformer": {"attention_window": [8] * LAYERS},
    "luke": {"entity_vocab_size": 4, "entity_emb_size": 8},
    "mistral": {"sliding_window": 8},
    "mobilebert": {
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
        "true_hidden_size": 16,
        "num_feedforward_networks": 2,
    },
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "mpt": {"max_seq_len": 60},
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "starcoder2": {"sliding_window": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}

BEGINNING = {"gemma", "gemma2", "gemma3_text", "llama", "mistral", "opt"}  # language models that read a token first
RELATIVE = {"deberta", "deberta-v2", "mt5", "t5", "umt5", "xlnet"}  # positions without an end


def texts(kind: str) -> list[str]:
    """Of `LENGTHS` tokens, the special ones not counted."""
    generator, causal = np.random.default_rng(0), TEXT[kind].causal
    return [("" if causal else " ").join(generator.choice(list("abcdefg") if causal else WORDS, n)) for n in LENGTHS]


def text_config(kind: str, **options: Any) -> Any:
    """A toy's configuration: of the small values, those that the architecture has."""
    own = transformers.CONFIG_MAPPING[kind]
    default = own()
    small = {name: value for name, value in SMALL.items() if hasattr(default, name)}
    small.pop({"xlnet": "max_position_embeddings", "falcon": "head_dim"}.get(kind, ""), None)  # not to be set
    return own(**{**small, "vocab_size": len(tokenizer(kind)), **OWN.get(kind, {}), **options})


def tokenizer(kind: str) -> Any:
    """Words; of a language model bytes, without padding and classes, with a token that begins a text or without."""
    found: Any = text_tokenizer(WORDS)
    if TEXT[kind].causal:
        signs = ["<s>", "</s>", *sorted(ByteLevel.alphabet()), "Ġa"]
        bytewise = Tokenizer(BPE({sign: number for number, sign in enumerate(signs)}, [("Ġ", "a")]))
        bytewise.pre_tokenizer, bytewise.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
        if kind in BEGINNING:
            bytewise.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
        found = transformers.PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token="<s>", eos_token="</s>")
    found.model_max_length = int(1e30)  # as where a tokenizer does not say its limit
    return found


def randomised(model: Any) -> Any:
    """Weights that let everything show: biases, norms, embeddings of padding."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator) * (0.15 if weight.dim() > 1 else 0.1)
            weight.copy_(1 + drawn if weight.dim() == 1 and name.endswith("weight") else drawn)
    return model.eval()


def text_folder(kind: str, folder: Path, **options: Any) -> Path:
    loader = getattr(transformers, TEXT[kind].loader)
    randomised(loader.from_config(text_config(kind, **options))).save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder


def load(folder: Path, layers: Any = "last") -> TextEncoder:
    return load_text_encoder(TextParams(encoder=str(folder), layers=layers, mix="stack"), "cpu")


def encoded(encoder: TextEncoder, some: list[str]) -> list[np.ndarray]:
    return encoder.encode([encoder.tokenize(text) for text in some])


def own_states(kind: str, folder: Path, text: str) -> torch.Tensor:
    """What transformers gives for a text, by a model that saw none before: (tokens, layers, dim)."""
    model = getattr(transformers, TEXT[kind].loader).from_pretrained(folder).eval()
    batch = tokenizer(kind)(text, return_tensors="pt")
    with torch.inference_mode():
        states = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True).hidden_states
    return torch.stack([state[0, : batch.input_ids.shape[1]] for state in states], dim=1)


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.sampled(3)
def test_a_text_architecture_is_exact_and_has_the_layers_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = text_folder(kind, tmp_path)
    said = texts(kind)
    expected = [own_states(kind, folder, text).numpy() for text in said]
    every = tuple(range(LAYERS + 1))
    together = load(folder, every)
    for order in (said, said[::-1]):
        for found, states in zip(encoded(together, order), expected if order is said else expected[::-1], strict=True):
            assert np.abs(found - states).max() < TOLERANCE
    for layers in ((0,), (2,), (LAYERS,)):  # whatever else is asked for
        for found, states in zip(encoded(load(folder, layers), said), expected, strict=True):
            assert np.abs(found - states[:, layers]).max() < TOLERANCE
    assert all(np.abs(states[:, 1:] - states[:, :-1]).max() > 0.01 for states in expected)  # layers that differ
    long = " ".join(WORDS * 20)  # longer than the positions, which the tokenizer does not know
    (rows,) = encoded(together, [long])
    assert len(rows) == together.tokens(together.tokenize(long)) > 160
    assert np.isfinite(rows).all()
    if kind in RELATIVE:
        assert np.abs(rows - own_states(kind, folder, long).numpy()).max() < TOLERANCE


LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    },
    "original_max_position_embeddings": 30,
}
YARN = {"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 30}
MAKES = [
    ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    ("gemma3_text", {"use_bidirectional_attention": True}),  # EmbeddingGemma
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, "tie_word_embeddings": True},
    ),
    ("llama", {"rope_parameters": {**YARN, "rope_type": "yarn"}}),
    ("llama", {"rope_parameters": {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
    ("phi3", LONGROPE),  # other factors beyond 30 positions, for all texts of a batch
    ("qwen2", {"use_sliding_window": False}),
]


@pytest.mark.parametrize(("kind", "options"), MAKES)
def test_each_make_of_a_language_model_is_exact(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = text_folder(kind, tmp_path, **options)
    encoder = load(folder, (0, 2, LAYERS))
    for text, found in zip(texts(kind), encoded(encoder, texts(kind)), strict=True):
        assert np.abs(found - encoded(encoder, [text])[0]).max() < TOLERANCE
        if len(text) < 28:
            assert np.abs(found - own_states(kind, folder, text).numpy()[:, [0, 2, LAYERS]]).max() < TOLERANCE


DAMAGES = {
    "config.json": [b"null", b"[1]", b"[" * 50_000, b'{"model_type": "gpt2", "n_layer": 1000000000}', b"\xff"],
    "model.safetensors": [b"", b"\xff" * 100, b"\2" + bytes(7) + b"[]", b"\0\0\xff\0" + bytes(100)],
    "model.safetensors.index.json": [b"", b"null", b"{}", b'{"weight_map": []}', b"[" * 50_000],
    "tokenizer.json": [b"", b"null", b"[" * 50_000],
    "tokenizer_config.json": [b"[1]", b"[" * 50_000],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_named_whichever_file_it_is(tmp_path: Path, name: str) -> None:
    folder = text_folder("gpt2", tmp_path / "models" / "own")
    for content in DAMAGES[name]:
        (folder / name).write_bytes(content)
        if name == "model.safetensors.index.json":
            (folder / "model.safetensors").unlink(missing_ok=True)
        with pytest.raises(EncoderError, match="own"):
            load_text_encoder(TextParams(encoder=str(folder), precision="bfloat16"), "cpu")


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "opt"])
def test_half_precision_weights_stay_as_they_are_and_give_what_they_give_in_float32(
    kind: str, half: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From several files, which an index names; a reference in float32 widens one matrix at a time."""
    model = transformers.AutoModel.from_pretrained(text_folder(kind, tmp_path / "first"))
    folders = tmp_path / "narrow", tmp_path / "wide"
    for folder, precision in zip(folders, (half, torch.float32), strict=True):
        model.to(precision).save_pretrained(folder, max_shard_size="20KB")
        tokenizer(kind).save_pretrained(folder)
        assert (folder / "model.safetensors.index.json").is_file()
    loaded = []

    def load_and_keep(*arguments: Any, **options: Any) -> Any:
        loaded.append(load_pretrained(*arguments, **options))
        assert {weight.dtype for weight in loaded[-1].parameters()} == {options["dtype"]}
        return loaded[-1]

    monkeypatch.setattr("pipeline.encoders.text.load_pretrained", load_and_keep)
    for asked, expected in (("bfloat16", {half, torch.bfloat16}), ("float32", {torch.float32})):
        narrow, wide = (
            load_text_encoder(TextParams(encoder=str(folder), precision=asked, layers="all"), "cpu")  # type: ignore[arg-type]
            for folder in folders
        )
        assert {weight.dtype for weight in loaded[-2].parameters() if weight.dim() > 1} == expected
        assert narrow.identity.fields["weights"] == wide.identity.fields["weights"]
        for one, other in zip(encoded(narrow, texts(kind)), encoded(wide, texts(kind)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_last_layer_of_other_dimensions_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"a 'opt' model .*: its last layer has 16 dimensions, the others 32"):
        load(text_folder("opt", tmp_path, word_embed_proj_dim=16))
    assert load(tmp_path, (2,)).row_shape == (1, 32)


def test_a_text_that_names_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    own = tokenizer("gpt2")
    own.add_special_tokens({"additional_special_tokens": ["<image>"]})
    encoder = load(text_folder("gpt2", tmp_path))
    own.save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="a text holds '<image>', of which the encoder has no embedding"):
        load(tmp_path).tokenize("a <image>")
    assert encoder.tokenize("abc") == load(tmp_path).tokenize("abc")


def test_a_text_without_tokens_has_no_rows_where_nothing_surrounds_it(tmp_path: Path) -> None:
    encoder = load(text_folder("gpt2", tmp_path))
    assert [rows.shape for rows in encoded(encoder, ["", "abc", ""])] == [(0, 1, 32), (3, 1, 32), (0, 1, 32)]
    assert [rows.shape for rows in encoded(encoder, [""])] == [(0, 1, 32)]


def heads(kind: str) -> Iterator[str]:
    """The classes of transformers that put something on top of an architecture, or train it."""
    for name in dir(modeling_auto):
        if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING_NAMES"):
            found = getattr(modeling_auto, name).get(kind, ())
            names = [found] if isinstance(found, str) else found
            yield from (one for one in names if getattr(transformers, one).config_class.model_type == kind)


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.sampled(10)
def test_a_text_encoder_is_read_from_whatever_head_it_was_saved_with(kind: str, tmp_path: Path) -> None:
    tokenizer(kind).save_pretrained(tmp_path)
    weights: dict[str, torch.Tensor] = {}
    for name in sorted(set(heads(kind))):  # all of them in one file
        randomised(getattr(transformers, name)(text_config(kind))).save_pretrained(tmp_path)
        weights |= load_file(tmp_path / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    said = texts(kind)[1]
    expected = own_states(kind, tmp_path, said).numpy()
    for layers, states in (("last", expected[:, -1:]), ((1,), expected[:, 1:2])):
        (rows,) = encoded(load(tmp_path, layers), [said])
        assert np.abs(rows - states).max() < TOLERANCE


@pytest.mark.parametrize("kind", [kind for kind, architecture in TEXT.items() if architecture.learns])
@pytest.mark.sampled(5)
def test_a_text_architecture_learns_by_texts_that_share_a_batch_or_not(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = finetune_text(text_folder(kind, tmp_path / "start"))
    learner.model.eval()
    examples = [Example(learner.tokenize(text), 0) for text in [*texts(kind), " ".join(WORDS * 20)]]
    together = scores(learner, examples)
    for example, found in zip(examples, together, strict=True):
        assert (found - scores(learner, [example])[0]).abs().max() < TOLERANCE
    together.sum().backward()
    assert all(
        weight.grad is not None for name, weight in learner.model.base_model.named_parameters() if ".query." in name
    )
    learner.save(tmp_path / "learned")
    left, right = (encoded(load(tmp_path / name), texts(kind)) for name in ("start", "learned"))
    assert all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))  # no step was taken


def scores(learner: Learner, examples: list[Example]) -> torch.Tensor:
    batch = dict(learner.collate(examples))
    del batch["labels"]
    logits: torch.Tensor = learner.model(**batch)["logits"]
    return logits


def speech_folder(kind: str, folder: Path, head: str = "AutoModel", **options: Any) -> Path:
    config = toy_config(kind)
    for name, value in options.items():
        setattr(config, name, value)
    model = getattr(transformers, head)
    randomised(model.from_config(config) if head.startswith("Auto") else model(config)).save_pretrained(folder)
    return folder


def load_audio(folder: Path, layers: Any = "last", context: Any = "full") -> SpeechEncoder:
    return load_speech_encoder(AudioParams(encoder=str(folder), layers=layers, mix="stack", context=context), "cpu")


def finetune_text(folder: Path) -> TextLearner:
    return TextLearner(FinetuneTextParams(encoder=str(folder)), ["calm", "tense"])


def finetune_audio(folder: Path) -> Learner:
    return load_speech_learner(FinetuneAudioParams(encoder=str(folder)), ["calm", "tense"])


def own_frames(folder: Path, clip: torch.Tensor, context: str = "full") -> np.ndarray:
    """What transformers gives for a clip: (frames, layers, dim)."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    if model.config.model_type == "whisper":
        return whisper_frames(model.encoder, clip, context)
    normed = (clip - clip.mean()) / torch.sqrt(clip.var(correction=0) + 1e-7)
    with torch.inference_mode():
        output = model(normed[None], output_hidden_states=True)
    # of models with norms in front, transformers 5 leaves the norm behind the last layer out of hidden_states[-1] alone
    states = [*output.hidden_states[:-1], output.last_hidden_state]
    return np.stack([state[0].numpy() for state in states], axis=1)


def whisper_frames(encoder: Any, clip: torch.Tensor, context: str) -> np.ndarray:
    """Of `clip`, by an encoder that transformers takes for one of fewer positions."""
    frames = -(-len(clip) // 320)
    if context == "clip":
        encoder.config.max_source_positions = frames + 50  # a second of silence
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[: frames + 50])
    positions, bands = encoder.config.max_source_positions, encoder.config.num_mel_bins
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands)
    made = extractor(clip.numpy(), sampling_rate=16000, max_length=320 * positions, return_tensors="pt")
    with torch.inference_mode():
        states = encoder(made.input_features, output_hidden_states=True).hidden_states
    return np.stack([state[0, :frames].numpy() for state in states], axis=1)


def test_speech_toys_are_of_all_architectures() -> None:
    assert {toy_config(kind).model_type for kind in TOYS} == set(SPEECH)


@pytest.mark.parametrize(("kind", "context"), SPEECH_CASES)
def test_a_speech_architecture_is_exact_and_has_the_layers_of_transformers(
    kind: str, context: str, tmp_path: Path
) -> None:
    folder, clips = speech_folder(kind, tmp_path), noise(*SAMPLES)
    expected = [own_frames(folder, clip, context) for clip in clips]
    for layers in ((0, 1, 2), (0,), (1,), (2,)):
        for found, states in zip(load_audio(folder, layers, context).encode(clips), expected, strict=True):
            assert np.abs(found - states[:, layers]).max() < TOLERANCE


@pytest.mark.parametrize(("kind", "context"), SPEECH_CASES)
def test_threads_may_share_a_speech_encoder_whose_modules_keep_nothing_of_a_batch(
    kind: str, context: str, tmp_path: Path
) -> None:
    """Of a Conformer, which keeps positions, batches are not encoded side by side."""
    encoder = load_audio(speech_folder(kind, tmp_path), context=context)
    assert (encoder.side_by_side == 0) == ("conformer" in kind)
    encoder.encode(noise(16000, 5003))  # what is packed is packed now
    kept: dict[tuple[torch.nn.Module, str], Any] = {}  # by module and attribute

    def keep(module: torch.nn.Module, args: object) -> None:
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        if any(kept.setdefault((module, name), one) is not one for name, one in {**vars(module), **own}.items()):
            changed.append(type(module).__name__)

    changed: list[str] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        for samples in ((5003, 400), (20_000,), (400, 720)):
            encoder.encode(noise(*samples))
    finally:
        hook.remove()
    assert kept
    assert bool(changed) == (kind == "conformer-rotary"), changed


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", TOYS)
def test_a_speech_encoder_is_read_from_whatever_head_it_was_saved_with(kind: str, tmp_path: Path) -> None:
    (clip,) = noise(5003)
    for name in sorted(set(heads(toy_config(kind).model_type)) - {"WhisperForCausalLM"}):
        speech_folder(kind, tmp_path, name, use_weighted_layer_sum=True)  # of SUPERB
        (frames,) = load_audio(tmp_path).encode([clip])
        assert np.abs(frames[:, 0] - own_frames(tmp_path, clip)[:, -1]).max() < TOLERANCE, name


def test_a_decoder_of_whisper_alone_is_no_speech_encoder(tmp_path: Path) -> None:
    folder = speech_folder("whisper", tmp_path, "WhisperForCausalLM")
    with pytest.raises(EncoderError, match=r"37 weights are missing, such as 'encoder\.conv1\.bias'"):
        load_audio(folder)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("kind", "context"), SPEECH_CASES)
def test_a_speech_architecture_that_weighs_its_layers_learns_and_drops_none(
    kind: str, context: Any, tmp_path: Path
) -> None:
    head = "AutoModelForAudioClassification"
    options = {"use_weighted_layer_sum": True, "layerdrop": 0.9, "hidden_dropout": 0.0, "dropout": 0.0}
    folder = speech_folder(kind, tmp_path / "start", head, **options)
    learner = load_speech_learner(FinetuneAudioParams(encoder=str(folder)), ["calm", "tense"], context)
    learner.save(tmp_path / "learned")
    left, right = (load_audio(tmp_path / name, context=context).encode(noise(5003)) for name in ("start", "learned"))
    assert np.array_equal(left[0], right[0])  # no step was taken
    learner = load_speech_learner(FinetuneAudioParams(encoder=str(folder)), ["calm", "tense"], context)
    examples = [Example(learner.prepare(clip), 0) for clip in noise(16000, 5003, 400)]
    for _ in range(3):
        scores(learner, examples)
    learner.model.eval()
    together = scores(learner, examples)
    for example, found in zip(examples, together, strict=True):
        assert (found - scores(learner, [example])[0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", [*REFUSED, "bart", "vit", "an-architecture-of-next-year"])
@pytest.mark.parametrize("load_encoder", [load, load_audio, finetune_text, finetune_audio])
def test_other_architectures_are_refused_by_name(kind: str, load_encoder: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    supported = ", ".join(SPEECH if load_encoder in (load_audio, finetune_audio) else TEXT)
    with pytest.raises(EncoderError, match=rf"is a '{kind}' model.*; expected one of {supported}"):
        load_encoder(tmp_path)


QUANTISED: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
}


def with_quantisation(folder: Path, quantisation: dict[str, Any] | None) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantisation}))
    return folder


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_are_refused_by_their_method(method: str, tmp_path: Path) -> None:
    text = with_quantisation(text_folder("bert", tmp_path / "text"), QUANTISED[method])
    speech = with_quantisation(speech_folder("hubert", tmp_path / "speech"), QUANTISED[method])
    for load_encoder, folder in ((load, text), (finetune_text, text), (load_audio, speech), (finetune_audio, speech)):
        with pytest.raises(EncoderError, match=rf"weights are quantised \({method}\), .*; name the model without"):
            load_encoder(folder)


def test_a_model_that_states_no_quantisation_is_loaded(tmp_path: Path) -> None:
    assert encoded(load(with_quantisation(text_folder("bert", tmp_path), None)), ["a"])


def test_a_text_encoder_without_a_classifier_is_not_fine_tuned(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"is a 't5' model, which encodes but .* expected one of albert, .*, xlnet"):
        finetune_text(text_folder("t5", tmp_path))


@pytest.mark.parametrize(
    ("kind", "options"), [("xmod", {"default_language": None}), ("nystromformer", {"segment_means_seq_len": 32})]
)
def test_a_model_that_cannot_run_as_it_is_is_named(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = text_folder(kind, tmp_path, **options)
    for load_encoder in (load, finetune_text):
        with pytest.raises(EncoderError, match=f"a '{kind}' model that cannot encode a short text: "):
            load_encoder(folder)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model."])
def test_weights_of_a_wrapped_module_are_refused_with_their_name(wrapper: str, tmp_path: Path) -> None:
    folder = text_folder("bert", tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({f"{wrapper}{name}": weight for name, weight in weights.items()}, folder / "model.safetensors")
    with pytest.raises(EncoderError, match=rf"The checkpoint calls it '{wrapper}embeddings\.LayerNorm\.bias': save"):
        load(folder)


def test_weights_that_were_cloned_without_git_lfs_are_named(tmp_path: Path) -> None:
    folder = text_folder("bert", tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(EncoderError, match=r"model\.safetensors is a pointer of Git LFS, .*; run git lfs pull"):
        load(folder)


@pytest.mark.parametrize("stated", [-1, 0, 2, 8, 10**6])
def test_a_tokenizer_that_states_an_odd_limit_does_not_stop_a_model(stated: int, tmp_path: Path) -> None:
    folder, own = text_folder("bert", tmp_path), tokenizer("bert")
    own.model_max_length = stated
    own.save_pretrained(folder)
    (rows,) = encoded(load(folder), [" ".join(WORDS * 20)])
    assert len(rows) == 162


@pytest.mark.parametrize("layers", ["last", (1,)])
def test_a_weight_that_is_not_kept_may_be_missing_or_misshapen(layers: Any, tmp_path: Path) -> None:
    folder = text_folder("bert", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.2.output.dense.bias"] = torch.zeros(5)
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if layers == "last":
        with pytest.raises(
            EncoderError, match=r"1 weights are missing, such as 'encoder\.layer\.1\.output\.dense\.bias'"
        ):
            load(folder, layers)
    else:
        assert load(folder, layers).row_shape == (1, 32)


@pytest.mark.parametrize("kind", ["big_bird", "deberta"])
def test_an_architecture_that_has_no_bfloat16_is_named(kind: str, tmp_path: Path) -> None:
    params = TextParams(encoder=str(text_folder(kind, tmp_path)), precision="bfloat16")
    with pytest.raises(PrecisionError, match=r"cannot compute in bfloat16 \(.*\); set text.precision: float32"):
        load_text_encoder(params, "cpu")


def test_the_page_lists_the_table() -> None:
    content = encoders_page.PAGE.read_text(encoding="utf-8")
    assert content == encoders_page.page(content), "run python scripts/encoders_page.py"
    measured = content.partition(exactness_page.BEGIN)[2].partition(exactness_page.END)[0].splitlines()
    rows = [line.split(" | ") for line in measured if line.startswith("| `")]
    named = {row[0].strip("| `") for row in rows}
    assert named == {*SPEECH, *TEXT}, "run python scripts/exactness_page.py"
    assert all(float(difference.strip(" |")) < TOLERANCE for row in rows for difference in row[1:])
