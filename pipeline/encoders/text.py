"""Text encoders: the BERT family. A text's features do not depend on the texts that share its batch (attention mask).

Every token is kept, with the special tokens at both ends ([CLS] and [SEP]). A text longer than the model's positions
is encoded in overlapping windows instead of being cut.

Axes: texts, tokens, layers, dim.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.encoders.batching import Rows, windows
from pipeline.encoders.loading import Source, choose_device, find_model, load_pretrained, resolve_layers, weights_hash
from pipeline.encoders.precision import Probe, cast_products, ready_for_inference, reduce_precision
from pipeline.encoders.tiny import TINY_TEXT
from pipeline.encoders.transfer import fetched, fitting, upload
from pipeline.errors import EncoderError
from pipeline.params import TextParams
from pipeline.settings import full_float32
from pipeline.store import Dtype, Identity

VERSION = 1  # raise it when a change alters the features
LARGEST_BATCH = {"cpu": 4096, "cuda": 65_536}  # tokens; more of them make nothing faster
READY_MASK = ("bert", "camembert", "data2vec-text", "electra", "roberta", "xlm-roberta")  # take masks as they are used
PROBE_TOKENS = (1, 5, 17, 50)
PROBE = "a"  # a text that every vocabulary can hold, to see which special tokens surround it


class TextEncoder:
    """Texts -> tokens; made by `load_text_encoder`.

    Attributes:
        identity: what the features depend on.
        row_shape: of one token, (dim,) or (layers, dim).
    """

    def __init__(
        self, model: Any, tokenizer: Any, identity: Identity, layers: list[int], params: TextParams, device: str
    ) -> None:
        self.identity = identity
        dim = int(model.config.hidden_size)
        self.row_shape = (dim,) if params.mix == "mean" else (len(layers), dim)
        self._tokenizer = tokenizer
        self._prefix, self._suffix = special_tokens(tokenizer)
        self._window = longest_sequence(model, tokenizer) - len(self._prefix) - len(self._suffix)
        self._overlap = min(params.overlap_tokens, self._window // 2)
        self._pad = tokenizer.pad_token_id or 0
        self._layers, self._mix, self.device = layers, params.mix, torch.device(device)
        self._reduced = False
        self._model = model.to(self.device)
        self._ready_mask = model.config.model_type in READY_MASK and model.config._attn_implementation == "sdpa"
        ready_for_inference(self._model)
        self._bytes_per_token = 4 * (8 * dim + 2 * model.config.intermediate_size + len(layers) * dim)

    def reduce(self) -> None:
        """Compute in bfloat16 from now on."""
        self._reduced = True
        cast_products(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Token numbers of `text`, all of them, without special tokens."""
        return self._tokenizer(text, add_special_tokens=False, truncation=False, padding=False, verbose=False)[
            "input_ids"
        ]

    def tokens(self, token_ids: Sequence[int]) -> int:
        """How many rows `encode` gives for these token numbers."""
        return len(self._prefix) + len(token_ids) + len(self._suffix)

    def budget(self) -> int:
        """Tokens in a batch, padding included, that fit the memory which is free now."""
        return fitting(self._bytes_per_token, self.device, LARGEST_BATCH[self.device.type])

    def encode(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Token numbers of each text -> (tokens, *row_shape) float32, special tokens included."""
        return self.start(texts, "float32")()

    @torch.inference_mode()
    def start(self, texts: Sequence[Sequence[int]], dtype: Dtype) -> Rows:
        """Begin to encode: the device works on while the caller goes on, until it asks for the rows, in `dtype`."""
        fitting = [token_ids for token_ids in texts if len(token_ids) <= self._window]
        with full_float32():
            encoded = iter(self._forward(fitting) if fitting else [])
            rows = [next(encoded) if len(ids) <= self._window else self._encode_long(ids) for ids in texts]
        flat = torch.cat(rows)  # (all tokens, layers, dim)
        mixed = flat.mean(dim=1) if self._mix == "mean" else flat
        return fetched(mixed.to(getattr(torch, dtype)), [len(row) for row in rows])

    def _encode_long(self, token_ids: Sequence[int]) -> Tensor:
        before, after = len(self._prefix), len(self._suffix)
        pieces = []
        for window in windows(len(token_ids), self._window, self._overlap):
            rows = self._forward([token_ids[window.start : window.end]])[0]
            first = 0 if window.start == 0 else before + window.keep_start - window.start
            last = len(rows) if window.end == len(token_ids) else before + window.keep_end - window.start
            pieces.append(rows[first:last])
        joined = torch.cat(pieces)
        assert len(joined) == before + len(token_ids) + after
        return joined

    def _forward(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Token numbers -> (tokens, layers, dim) float32 each."""
        states, lengths = self._states(texts)
        stacked = torch.stack([states[layer].float() for layer in self._layers], dim=2)
        return [stacked[index, :length] for index, length in enumerate(lengths)]

    def _states(self, texts: Sequence[Sequence[int]]) -> tuple[Sequence[Tensor], list[int]]:
        """Hidden states (texts, tokens, dim) by layer, and the tokens of each text, special ones included."""
        whole = [torch.tensor([*self._prefix, *token_ids, *self._suffix]) for token_ids in texts]
        lengths = [len(tokens) for tokens in whole]
        padded = nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=self._pad)
        batch, sent = upload([padded, torch.tensor(lengths)], self.device)  # (texts, tokens), (texts,)
        mask = torch.arange(batch.shape[1], device=self.device)[None] < sent[:, None]
        if self._ready_mask:  # else the model looks at every mask whether it hides anything, and a GPU waits
            attended = mask[:, None, None].expand(-1, 1, batch.shape[1], -1) if min(lengths) < max(lengths) else None
        else:
            attended = mask.long()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced):
            found = self._model(input_ids=batch, attention_mask=attended, output_hidden_states=True)
        return found.hidden_states, lengths

    def probes(self) -> list[Probe]:
        """Token numbers at random, from one to fifty; the longest window too, through one layer."""
        numbers = random_tokens(int(self._model.config.vocab_size), self._window)
        return [Probe([numbers[:tokens] for tokens in PROBE_TOKENS]), Probe([numbers], 1)]

    def look(self, inputs: Sequence[Sequence[int]], depth: int | None) -> dict[str, Tensor]:
        """By layer, the rows (all tokens, dim) of texts that are encoded together."""
        blocks = self._model.encoder.layer
        self._model.encoder.layer = blocks[:depth]
        try:
            states, lengths = self._states(inputs)
        finally:
            self._model.encoder.layer = blocks
        return {
            layer_name(number): torch.cat([rows[:length] for rows, length in zip(state.float(), lengths, strict=True)])
            for number, state in enumerate(states)
        }


def random_tokens(vocabulary: int, count: int) -> list[int]:
    """Token numbers, the same every time."""
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def layer_name(number: int) -> str:
    """What messages call a hidden state."""
    return f"layer {number}" if number else "layer 0 (embeddings)"


def load_text_encoder(params: TextParams, device: str = "auto") -> TextEncoder:
    """The encoder that `params` names, ready on `device`; the model is cut at the highest layer asked for.

    Raises:
        EncoderError: it cannot be found or loaded, or is not of the BERT family.
    """
    from transformers import AutoModel

    device = choose_device(device)
    source = find_model(params.encoder, params.revision, {"tiny": TINY_TEXT})
    model = load_pretrained(AutoModel, source, dtype=torch.float32)
    blocks = getattr(getattr(model, "encoder", None), "layer", None)
    if blocks is None:
        raise EncoderError(
            f"text.encoder {params.encoder} is a '{model.config.model_type}' model; expected one of the BERT family "
            "(BERT, RoBERTa, ELECTRA, MPNet, ...)"
        )
    tokenizer = load_tokenizer(source, int(model.config.vocab_size))
    layers = resolve_layers(params.layers, len(blocks), params.encoder)
    model.encoder.layer = blocks[: layers[-1]]
    model.pooler = None  # it reads [CLS] for tasks that are not ours
    weights = weights_hash(model)
    identity = Identity(
        {
            "modality": "text",
            "model": source.name,
            "revision": source.revision,
            "architecture": model.config.model_type,
            "weights": weights,
            "tokenizer": _vocabulary_hash(tokenizer),
            "layers": layers,
            "mix": params.mix,
            "overlap_tokens": params.overlap_tokens,
            "precision": params.precision,
            "dtype": params.dtype,
            "version": VERSION,
        }
    )
    encoder = TextEncoder(model, tokenizer, identity, layers, params, device)
    if params.precision == "bfloat16":
        names = [layer_name(layer) for layer in layers]
        reduce_precision(encoder, names, who=f"encoder {params.encoder}", key="text.precision", weights=weights)
    return encoder


def load_tokenizer(source: Source, vocabulary: int) -> Any:
    """The tokenizer, which must be the model's own: one without its files would read every word as unknown."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)
    except Exception as error:  # whatever a damaged folder makes the libraries raise
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(f"encoder {source.location}: its tokenizer cannot be loaded: {reason}") from None
    if not vocabulary / 2 <= len(tokenizer) <= vocabulary:
        raise EncoderError(
            f"encoder {source.location}: its tokenizer knows {len(tokenizer)} tokens and its model {vocabulary}; "
            "they do not belong together, or tokenizer files (tokenizer.json, vocab.txt) are missing in the folder"
        )
    return tokenizer


def _vocabulary_hash(tokenizer: Any) -> str:
    """Hash (hex) of the whole tokenizer: vocabulary and rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(content.encode()).hexdigest()


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token numbers that the tokenizer puts before and after a text."""
    bare = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE, add_special_tokens=True, truncation=False, padding=False)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise EncoderError("the tokenizer changes a text when it adds special tokens; no such tokenizer is supported")


def longest_sequence(model: Any, tokenizer: Any) -> int:
    """The longest sequence that the model was built for, special tokens included."""
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text"):
        positions -= model.config.pad_token_id + 1  # their first position is behind that of the padding
    return min(positions, int(min(tokenizer.model_max_length, positions)))
