"""Speech and text encoders of the real architectures at toy size, so that everything runs with no network.

`build_speech` and `build_text` write ordinary Hugging Face folders with random weights from a seed: the same
arguments give the same bytes. The folders `TINY_SPEECH` and `TINY_TEXT`, which come with the package, were built so
and then pretrained on the embedded corpus by `scripts/pretrain_tiny.py`.

They stand in for real encoders: same classes, same file formats, same frame rate, less than a hundredth of the size.
"""

import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import BertModel, BertTokenizer, Wav2Vec2Model


WEIGHTS = Path(__file__).parent / "weights"
TINY_SPEECH = WEIGHTS / "tiny-wav2vec2"
TINY_TEXT = WEIGHTS / "tiny-bert"

KERNELS = (10, 3, 3, 3, 3, 2, 2)  # as in wav2vec2-base: a frame sees 400 samples,
STRIDES = (5, 2, 2, 2, 2, 2, 2)  # and the next one begins 320 samples later
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_speech(
    folder: Path,
    *,
    norm: Literal["group", "layer"] = "group",
    seed: int = 0,
    hidden: int = 96,
    channels: int = 32,
    layers: int = 3,
) -> Path:
    """Writes a toy `Wav2Vec2Model` with its preprocessor to `folder`, and returns `folder`.

    `norm` is that of the convolutions: `group` over time in the first one, as in wav2vec2-base, or `layer` in each,
    with the transformer's norms moved to the front (`do_stable_layer_norm`), as in wav2vec2-large-lv60.
    """
    from transformers import Wav2Vec2FeatureExtractor

    speech_model(norm=norm, seed=seed, hidden=hidden, channels=channels, layers=layers).save_pretrained(folder)
    # the large models with layer norm were trained with an attention mask, those with group norm without
    preprocessor = Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16_000, do_normalize=True, return_attention_mask=norm == "layer"
    )
    preprocessor.save_pretrained(folder)
    return folder


def build_text(folder: Path, texts: Iterable[str], *, seed: int = 0, hidden: int = 96, layers: int = 2) -> Path:
    """Writes a toy `BertModel` and a tokenizer for `texts` to `folder`, and returns `folder`."""
    tokenizer = text_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")
    text_model(len(tokenizer), seed=seed, hidden=hidden, layers=layers).save_pretrained(folder)
    return folder


def speech_model(
    *, norm: Literal["group", "layer"], seed: int, hidden: int, channels: int, layers: int
) -> "Wav2Vec2Model":
    """A `Wav2Vec2Model` with random weights: (clips, samples) -> (clips, frames, hidden)."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        conv_dim=[channels] * len(KERNELS),
        conv_kernel=list(KERNELS),
        conv_stride=list(STRIDES),
        feat_extract_norm=norm,
        conv_bias=norm == "layer",
        do_stable_layer_norm=norm == "layer",
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.05,
        attention_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,  # no masking, hence no weights for it
        mask_feature_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Wav2Vec2Model(config).eval()


def text_model(vocabulary: int, *, seed: int, hidden: int, layers: int) -> "BertModel":
    """A `BertModel` without pooler, with random weights: (texts, tokens) -> (texts, tokens, hidden)."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertModel(config, add_pooling_layer=False).eval()


def text_tokenizer(texts: Iterable[str], words: int = 4000) -> "BertTokenizer":
    """A lower-casing WordPiece tokenizer that knows the most frequent words of `texts` and spells out all others.

    Spelling needs every printable ASCII character, at the start of a word and within one, so no English text holds an
    unknown token. The WordPiece trainer of the tokenizers library is not used: it numbers its pieces in the order of
    a randomly seeded hash table, so that each run gives another vocabulary.
    """
    from transformers import BertTokenizer

    split = BertTokenizer().backend_tokenizer
    counts = Counter(
        word for text in texts for word, _ in split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(text))
    )
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:words]
    characters = sorted(set(string.digits + string.punctuation + string.ascii_lowercase))
    spelling = [*characters, *(f"##{character}" for character in characters)]
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *spelling, *frequent])
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=512)
