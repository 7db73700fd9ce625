"""Text encoders: BERT and the like. A text's features do not depend on the texts that share its batch: attention is
masked, and what a mask does not keep apart is encoded one text at a time (`pipeline.encoders.architectures`).

Every token is kept, with the special tokens at both ends ([CLS] and [SEP]); of an utterance that is read with the turns
around it, its own tokens (`pipeline.encoders.context`). A text longer than the model's positions is encoded in
overlapping windows instead of being cut.

Axes: texts, tokens, layers, dim.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.encoders.architectures import TEXT, cut, hidden_states
from pipeline.encoders.batching import Rows, windows
from pipeline.encoders.context import PROBE, Passage, Reader, Reading, TextContext, separator, special_tokens
from pipeline.encoders.loading import (
    Source,
    choose_device,
    find_model,
    load_config,
    load_pretrained,
    mixed,
    resolve_layers,
    row_shape,
    stored_precision,
    weights_hash,
)
from pipeline.encoders.precision import (
    Probe,
    cast_products,
    pack_products,
    ready_for_inference,
    reduce_precision,
    stay_narrow,
)
from pipeline.encoders.tiny import TINY_TEXT
from pipeline.encoders.transfer import fetched, fitting, upload
from pipeline.errors import EncoderError
from pipeline.params import TextParams
from pipeline.settings import full_float32
from pipeline.store import Dtype, Identity

LARGEST_BATCH = {"cpu": 1024, "cuda": 65_536}  # tokens; more of them make nothing faster
LONGEST = 4096  # tokens encoded at once, whatever a model takes: the memory for attention grows with the square
ENDLESS = 2048  # likewise, where positions are relative and have no end
PROBE_TOKENS = (1, 5, 17, 50)


class TextEncoder:
    """Texts -> tokens; made by `load_text_encoder`.

    Attributes:
        identity: what the features depend on.
        row_shape: of one token, (dim,) or (layers, dim).
        context: what is read with an utterance.
    """

    def __init__(
        self, model: Any, tokenizer: Any, identity: Identity, layers: list[int], params: TextParams, device: str
    ) -> None:
        self.identity = identity
        dim = int(model.config.hidden_size)
        self._architecture = TEXT[model.config.model_type]
        self.row_shape = row_shape(params.mix, len(layers), dim)
        self._tokenizer = tokenizer
        self._prefix, self._suffix = special_tokens(tokenizer)
        longest = longest_sequence(model, tokenizer, layers[-1], f"text.encoder {params.encoder}")
        self.window = longest - len(self._prefix) - len(self._suffix)
        self.overlap = min(params.overlap_tokens, self.window // 2)
        self._model = model.to(torch.device(device))
        self.context = TextContext.of(dict(params))
        self._own_alone = any(self.context)
        self._reader = Reader(self.tokenize, separator(tokenizer, self._architecture.causal), self.window)
        self._pad = padding_of(tokenizer, model.config.vocab_size)
        self._layers, self._mix, self.device = layers, params.mix, torch.device(device)
        self._reduced = False
        self._end_widening = stay_narrow(self._model) if self._architecture.causal else lambda: None
        # one that looks back alone makes its own mask, which a ready one would take the place of
        takes_ready = self._architecture.ready_mask and not looks_back(model.config)
        self._ready_mask = takes_ready and model.config._attn_implementation == "sdpa"
        ready_for_inference(self._model)
        inner = getattr(model.config, "intermediate_size", None) or 4 * dim
        self._bytes_per_token = 4 * (8 * dim + 2 * inner + len(layers) * dim)

    def reduce(self) -> None:
        """Compute in bfloat16 from now on."""
        self._reduced = True
        self._end_widening()
        cast_products(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Token numbers of `text`, all of them, without special tokens; raises as `token_numbers`."""
        return token_numbers(self._tokenizer, text, self._model.config.vocab_size)

    def read(self, passage: Passage) -> Reading:
        """Token numbers of an utterance and of what is read with it."""
        return self._reader.read(passage)

    def tokens(self, token_ids: Sequence[int]) -> int:
        """How many rows `encode` gives for an utterance of these token numbers."""
        return len(token_ids) if self._own_alone else len(self._prefix) + len(token_ids) + len(self._suffix)

    def length(self, reading: Reading) -> int:
        """How many tokens the model is given for a reading; 0 where the utterance has none."""
        there = len(reading.before) + len(reading.own) + len(reading.after) + len(self._prefix) + len(self._suffix)
        return there if self.tokens(reading.own) else 0

    def budget(self) -> int:
        """Tokens in a batch, padding included, that fit the memory which is free now."""
        return fitting(self._bytes_per_token, self.device, LARGEST_BATCH[self.device.type])

    def encode(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Token numbers of each text -> (tokens, *row_shape) float32: its own, and special ones without a context."""
        return self.start([Reading([], token_ids, []) for token_ids in texts], "float32")()

    @torch.inference_mode()
    def start(self, readings: Sequence[Reading], dtype: Dtype) -> Rows:
        """Begin to encode: the device works on while the caller goes on, until it asks for the rows, in `dtype`."""
        whole = [[*one.before, *one.own, *one.after] for one in readings if self._is_short(one)]
        with full_float32():
            encoded = iter(self.forward(whole) if whole else [])
            rows = [
                self._kept(next(encoded) if self._is_short(one) else self._encode_long(one.own), one)
                for one in readings
                if self.length(one)
            ]
        counts = [self.tokens(one.own) for one in readings]
        if not rows:
            return lambda: [np.empty((0, *self.row_shape), dtype) for _ in readings]
        flat = torch.cat(rows)  # (all tokens, layers, dim)
        return fetched(mixed(flat, self._mix).to(getattr(torch, dtype)), counts)

    def _is_short(self, reading: Reading) -> bool:
        """Whether it has tokens, and is encoded at once."""
        return self.length(reading) > 0 and len(reading.own) <= self.window

    def _kept(self, rows: Tensor, reading: Reading) -> Tensor:
        """The rows of the utterance, of all (tokens, layers, dim) that the model was given."""
        first = len(self._prefix) + len(reading.before)
        return rows[first : first + len(reading.own)] if self._own_alone else rows

    def _encode_long(self, token_ids: Sequence[int]) -> Tensor:
        before, after = len(self._prefix), len(self._suffix)
        pieces = []
        for window in windows(len(token_ids), self.window, self.overlap):
            rows = self.forward([token_ids[window.start : window.end]])[0]
            first = 0 if window.start == 0 else before + window.keep_start - window.start
            last = len(rows) if window.end == len(token_ids) else before + window.keep_end - window.start
            pieces.append(rows[first:last])
        joined = torch.cat(pieces)
        assert len(joined) == before + len(token_ids) + after
        return joined

    def forward(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Token numbers -> (tokens, layers, dim) float32 each."""
        states = self._states(texts, self._layers)
        each = zip(*(states[layer] for layer in self._layers), strict=True)
        return [torch.stack([rows.float() for rows in layers], dim=1) for layers in each]

    def _states(self, texts: Sequence[Sequence[int]], wanted: Sequence[int]) -> dict[int, list[Tensor]]:
        """Hidden states (tokens, dim) of each text, special tokens included, by layer."""
        if self._architecture.alone and len(texts) > 1:
            each = [self._states([token_ids], wanted) for token_ids in texts]
            return {layer: [states[layer][0] for states in each] for layer in wanted}
        whole = [torch.tensor([*self._prefix, *token_ids, *self._suffix]) for token_ids in texts]
        lengths = [len(tokens) for tokens in whole]
        padded = nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=self._pad)
        batch, sent = upload([padded, torch.tensor(lengths)], self.device)  # (texts, tokens), (texts,)
        mask = torch.arange(batch.shape[1], device=self.device)[None] < sent[:, None]
        attended: Tensor | None
        if self._ready_mask:  # else the model looks at every mask whether it hides anything, and a GPU waits
            attended = mask[:, None, None].expand(-1, 1, batch.shape[1], -1) if min(lengths) < max(lengths) else None
        else:
            attended = mask.long()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced):
            states = hidden_states(self._model, self._architecture, wanted, batch, attended)
        return {layer: [rows[:length] for rows, length in zip(states[layer], lengths, strict=True)] for layer in wanted}

    def probes(self) -> list[Probe]:
        """Token numbers at random, from one to fifty; the longest window too, through one layer."""
        numbers = random_tokens(int(self._model.config.vocab_size), self.window)
        return [Probe([numbers[:tokens] for tokens in PROBE_TOKENS]), Probe([numbers], 1)]

    def look(self, inputs: Sequence[Sequence[int]], depth: int | None) -> dict[str, Tensor]:
        """By layer, the rows (all tokens, dim) of texts that are encoded together."""
        deepest = min(depth or self._layers[-1], self._layers[-1])
        states = self._states(inputs, range(deepest + 1))
        return {layer_name(number): torch.cat(rows).float() for number, rows in states.items()}


def random_tokens(vocabulary: int, count: int) -> list[int]:
    """Token numbers, the same every time."""
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def layer_name(number: int) -> str:
    """What messages call a hidden state."""
    return f"layer {number}" if number else "layer 0 (embeddings)"


def load_text_encoder(params: TextParams, device: str = "auto") -> TextEncoder:
    """The encoder that `params` names, ready on `device`; the model is cut at the highest layer asked for.

    Raises:
        EncoderError: it cannot be found, loaded or run, or its architecture is not supported.
    """
    device = choose_device(device)
    source = find_model(params.encoder, params.revision, {"tiny": TINY_TEXT})
    found = load_config(source, "text", f"text.encoder {params.encoder}")
    import transformers

    layers = resolve_layers(params.layers, int(found.config.num_hidden_layers), params.encoder)
    as_it_is = found.architecture.causal and params.precision == "bfloat16"
    model = load_pretrained(
        getattr(transformers, found.architecture.loader),
        source,
        cut=lambda model: cut(model, found.architecture, layers[-1]),
        dtype=stored_precision(source) if as_it_is else torch.float32,
    )
    tokenizer = load_tokenizer(source, int(model.config.vocab_size))
    weights, context = weights_hash(model), TextContext.of(dict(params))
    identity = Identity(
        {
            "modality": "text",
            "model": source.name,
            "revision": source.revision,
            "architecture": model.config.model_type,
            "weights": weights,
            "tokenizer": vocabulary_hash(tokenizer),
            "layers": layers,
            "mix": params.mix,
            "overlap_tokens": params.overlap_tokens,
            **(context._asdict() if any(context) else {}),
            **({"is_decoder": True} if looks_back(model.config) else {}),
            "precision": params.precision,
            "dtype": params.dtype,
            "version": found.architecture.version,
        }
    )
    encoder = TextEncoder(model, tokenizer, identity, layers, params, device)
    if params.precision == "bfloat16":
        names = [layer_name(layer) for layer in layers]
        reduce_precision(encoder, names, who=f"encoder {params.encoder}", key="text.precision", weights=weights)
    else:
        pack_products(model)
    return encoder


def looks_back(config: Any) -> bool:
    """Whether a model that mostly sees whole texts was saved as a decoder, whose tokens see those before them alone."""
    return bool(getattr(config, "is_decoder", False)) and not TEXT[config.model_type].causal


def load_tokenizer(source: Source, vocabulary: int) -> Any:
    """The tokenizer, which must be the model's own: one without its files would read every word as unknown."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)
    except Exception as error:  # whatever a damaged folder makes the libraries raise
        reason = " ".join(str(error).split())[:300]
        if find_spec("sentencepiece") is None and any(Path(source.location).glob("*.model")):
            reason = "its file *.model is SentencePiece's; pip install sentencepiece protobuf"
        raise EncoderError(f"encoder {source.location}: its tokenizer cannot be loaded: {reason}") from None
    # special tokens of other uses may exceed the embeddings: Gemma 3 has one for images
    if len(tokenizer) < vocabulary / 2 or min(len(tokenizer), tokenizer.vocab_size) > vocabulary:
        raise EncoderError(
            f"encoder {source.location}: its tokenizer knows {len(tokenizer)} tokens and its model {vocabulary}; "
            "they do not belong together, or tokenizer files (tokenizer.json, vocab.txt) are missing in the folder"
        )
    return tokenizer


def token_numbers(tokenizer: Any, text: str, embeddings: int) -> list[int]:
    """Token numbers of `text`, all of them, without special tokens.

    Raises:
        EncoderError: it names a special token that the model, of so many `embeddings`, has none of.
    """
    options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
    numbers = list(tokenizer(text, **options)["input_ids"])
    if (largest := max(numbers, default=0)) >= embeddings:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise EncoderError(f"a text holds {token!r}, of which the encoder has no embedding; take it out of the text")
    return numbers


def padding_of(tokenizer: Any, embeddings: int) -> int:
    """A token number to pad with, which is masked, whatever it is."""
    number = tokenizer.pad_token_id or 0
    return number if number < embeddings else 0


def vocabulary_hash(tokenizer: Any) -> str:
    """Hash (hex) of the whole tokenizer: vocabulary and rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(content.encode()).hexdigest()


def _built_for(config: Any) -> int:
    """Positions that a model was built for, 0 where they have no end.

    Of Phi-3's `longrope` those of its short factors: which factors hold is decided by the longest text of a batch.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if rope.get("rope_type") == "longrope":
        positions = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    return int(positions or 0)


def longest_sequence(model: Any, tokenizer: Any, depth: int, who: str) -> int:
    """The longest sequence that the model takes, special tokens included: found by trying, on the processor.

    Raises:
        EncoderError: it cannot even encode a short text, up to hidden state `depth`.
    """
    architecture = TEXT[model.config.model_type]
    token = tokenizer(PROBE, add_special_tokens=False)["input_ids"][0]  # padding would take no position

    def attempt(tokens: int, wanted: Sequence[int] = ()) -> Exception | None:
        numbers = torch.full((1, tokens), token)
        try:
            with torch.inference_mode():
                states = hidden_states(model, architecture, wanted, numbers, torch.ones_like(numbers))
            if dims := {state.shape[-1] for state in states.values()} - {int(model.config.hidden_size)}:
                raise ValueError(f"its last layer has {dims.pop()} dimensions, the others {model.config.hidden_size}")
        except (IndexError, RuntimeError, TypeError, ValueError) as error:  # as each architecture has it
            return error
        return None

    misfit = attempt(4, [depth])
    if misfit:
        reason = " ".join(str(misfit).split())[:300]
        raise EncoderError(f"{who}: a '{model.config.model_type}' model that cannot encode a short text: {reason}")
    built_for = _built_for(model.config)
    rotary = any(name.endswith("inv_freq") for name, _ in model.named_buffers())  # takes any length, not built for it
    most = built_for if built_for and (rotary or architecture.causal) else max(ENDLESS, min(built_for, LONGEST))
    stated = tokenizer.model_max_length  # some state nonsense
    most = int(min(most, LONGEST, stated if stated > tokenizer.num_special_tokens_to_add() else LONGEST))
    if attempt(most) is None:
        return most
    taken = 4
    while most - taken > 1:
        middle = (taken + most) // 2
        taken, most = (taken, middle) if attempt(middle) else (middle, most)
    return taken
