"""Encoders that learn: Hugging Face's own classification models, exact under padding, saved without the classifier; and
the self-check of those that learn in bfloat16.

Axes: clips, samples, texts, tokens.

It is that of extraction (`pipeline.encoders.precision`), on the model as it is about to learn.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.encoders import (
    EGEMAPS,
    LOG_MEL,
    NO_CONTEXT,
    PROBE_FRAMES,
    PROBE_TOKENS,
    TEXT,
    TINY_SPEECH,
    TINY_TEXT,
    Convolutions,
    Passage,
    Probe,
    Reader,
    Said,
    Source,
    Spectra,
    TextContext,
    encoded,
    find_model,
    frame_mask,
    load_config,
    load_pretrained,
    load_tokenizer,
    longest_sequence,
    make_exact,
    noise_and_tones,
    padded,
    padding_of,
    prepared,
    preprocessing,
    random_tokens,
    ready_for_a_text,
    reduce_precision,
    restore_names,
    separator,
    special_tokens,
    token_numbers,
    vocabulary_hash,
    weights_hash,
    widen_narrow_groups,
)
from pipeline.errors import EncoderError
from pipeline.finetuning.examples import Example
from pipeline.params import Context, FinetuneAudioParams, FinetuneTextParams

DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout", "mlp_dropout")  # what configurations call it


class Learner(Protocol):
    """An encoder with a classifier on top.

    Attributes:
        model: transformers' classification model; its `base_model` is the encoder.
        source: where it started.
        weights: hash of the weights that it started with.
        prepares: how its inputs are made from clips or texts, as a hash or in words.
        reads: what it is given besides an utterance, as the section of params.yaml says it.
    """

    model: Any
    source: Source
    weights: str
    prepares: str
    reads: Mapping[str, Any]

    def collate(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        """The model's arguments for a batch, with `labels`."""

    def probes(self) -> list[Tensor]:
        """A few inputs, the same every time, to see how the model computes."""

    def rows(self, example: Tensor) -> int:
        """Rows of a hidden state that belong to an input."""

    def save(self, folder: Path) -> None:
        """Write the encoder, without the classifier, as an ordinary Hugging Face folder."""


class SpeechLearner:
    """A wav2vec2-family model: (clips, samples) -> (clips, classes), from the mean over time."""

    reads: Mapping[str, Any] = {}

    def __init__(self, model: Any, source: Source, params: FinetuneAudioParams) -> None:
        self.model, self.source = model, source
        self._normalise, self.sample_rate = preprocessing(source)
        self._longest = int(params.max_seconds * self.sample_rate)
        encoder = model.base_model
        self._convolutions = Convolutions.of(encoder.config)
        self._shortest_batch = _room_for_masks(encoder.config, self._convolutions)
        self.weights = weights_hash(encoder)
        self.prepares = f"{self.sample_rate} Hz, normalised: {self._normalise}"
        make_exact(encoder)
        if params.precision == "bfloat16":
            widen_narrow_groups(encoder)
        if params.freeze_front_end:
            self.model.freeze_feature_encoder()

    def prepare(self, clip: Tensor) -> Tensor:
        """A clip at the model's rate as extraction prepares it, its beginning where it is too long: (samples,)."""
        return prepared(clip, self._normalise, self._convolutions.receptive_field)[: self._longest]

    def collate(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        """Batch of (clips, samples)."""
        batch, mask = padded([example.input for example in examples], self._shortest_batch)
        return {"input_values": batch, "attention_mask": mask.long(), "labels": _labels(examples)}

    def probes(self) -> list[Tensor]:
        """Noise and tones of several lengths."""
        lengths = [self._convolutions.samples(frames) for frames in PROBE_FRAMES]
        clips = noise_and_tones(lengths, self.sample_rate, torch.Generator().manual_seed(0))
        return [self.prepare(clip) for clip in clips]

    def rows(self, example: Tensor) -> int:
        """Frames of a clip."""
        return self._convolutions.frames(len(example))

    def save(self, folder: Path) -> None:
        """Write the encoder and its preprocessor."""
        from transformers import Wav2Vec2FeatureExtractor

        restore_names(self.model.base_model)
        self.model.base_model.save_pretrained(folder)
        Wav2Vec2FeatureExtractor(
            sampling_rate=self.sample_rate, do_normalize=self._normalise, return_attention_mask=True
        ).save_pretrained(folder)


class WhisperLearner:
    """Whisper's encoder: (clips, bands, spectra) -> (clips, classes), from the mean over a clip's own frames.

    transformers' classifier takes the mean over all 30 s, most of them silence. Layers are never dropped.
    """

    reads: Mapping[str, Any] = {}

    def __init__(self, model: Any, source: Source, params: FinetuneAudioParams, context: Context) -> None:
        self.model, self.source = model, source
        self._spectra = Spectra.of(source, model.config, context)
        self.sample_rate = self._spectra.sample_rate
        self._longest = min(int(params.max_seconds * self.sample_rate), self._spectra.longest * self._spectra.hop)
        self.weights = f"{weights_hash(model.encoder)} {context}"
        self.prepares = self._spectra.extractor.to_json_string()
        model.encoder.embed_positions.requires_grad_(False)  # of sines
        model.forward = partial(_classify, model)
        if params.freeze_front_end:
            for convolution in (model.encoder.conv1, model.encoder.conv2):
                convolution.requires_grad_(False)

    def prepare(self, clip: Tensor) -> Tensor:
        """A clip at the model's rate, its beginning where it is too long: (samples,)."""
        return clip[: self._longest]

    def collate(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        """Batch of (clips, bands, spectra), how many frames of each clip the encoder sees, and how many are its own."""
        spectra = [self._spectra(example.input) for example in examples]
        return {
            "input_features": nn.utils.rnn.pad_sequence([one.T for one in spectra], batch_first=True).transpose(1, 2),
            "seen": torch.tensor([one.shape[1] // 2 for one in spectra]),
            "own": torch.tensor([self.rows(example.input) for example in examples]),
            "labels": _labels(examples),
        }

    def probes(self) -> list[Tensor]:
        """Noise and tones of several lengths."""
        lengths = [frames * self._spectra.hop for frames in PROBE_FRAMES]
        clips = noise_and_tones(lengths, self.sample_rate, torch.Generator().manual_seed(0))
        return [self.prepare(clip) for clip in clips]

    def rows(self, example: Tensor) -> int:
        """Frames of a clip."""
        return self._spectra.frames(len(example))

    def save(self, folder: Path) -> None:
        """Write the encoder and its preprocessor."""
        weights = {f"encoder.{name}": weight for name, weight in self.model.encoder.state_dict().items()}
        self.model.save_pretrained(folder, state_dict=weights)
        self._spectra.extractor.save_pretrained(folder)


def _classify(
    model: Any, input_features: Tensor, seen: Tensor, own: Tensor, output_hidden_states: bool = False
) -> Mapping[str, Any]:
    from transformers import WhisperModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    real = frame_mask(own.tolist(), input_features.device)  # (clips, own frames)
    if model.training:  # SpecAugment, of a clip's own spectra, two to a frame
        more = input_features.shape[2] // 2 - real.shape[1]
        maskable: Any = nn.functional.pad(real, (0, more)).repeat_interleave(2, dim=1).long()
        input_features = WhisperModel._mask_input_features(model, input_features.clone(), maskable)
    depth, weighted = model.config.num_hidden_layers, model.config.use_weighted_layer_sum
    spectra = [one[:, : 2 * frames] for one, frames in zip(input_features, seen.tolist(), strict=True)]
    states = encoded(model.encoder, spectra, range(depth + 1) if weighted or output_hidden_states else [depth])
    x = states[depth]
    if weighted:
        x = sum(share * state for share, state in zip(model.layer_weights.softmax(0), states.values(), strict=True))
    x = model.projector(x[:, : real.shape[1]]) * real[..., None]  # (clips, own frames, dim)
    logits = model.classifier(x.sum(dim=1) / own[:, None])
    return SequenceClassifierOutput(
        logits=logits, hidden_states=tuple(states.values()) if output_hidden_states else None
    )


def load_speech_learner(
    params: FinetuneAudioParams, labels: Sequence[str], context: Context = "full"
) -> SpeechLearner | WhisperLearner:
    """The speech encoder that `params` names, with a classifier of `labels`.

    Raises:
        EncoderError: it cannot be found or loaded, or its architecture is not supported.
    """
    from transformers import AutoModelForAudioClassification

    if params.encoder in (LOG_MEL, *EGEMAPS):
        raise EncoderError(f"audio.finetune.encoder: {params.encoder} has no weights that could learn; name a model")
    source = find_model(params.encoder, params.revision, {"tiny": TINY_SPEECH})
    config = load_config(source, "audio", f"audio.finetune.encoder {params.encoder}").config
    whisper = config.model_type == "whisper"
    regularisation = {
        "dropout" if whisper else "hidden_dropout": params.dropout,
        "mask_time_prob": params.mask_time,
        "mask_feature_prob": params.mask_features,
        "apply_spec_augment": True if params.mask_time or params.mask_features else None,
        # a classifier that weighs all states needs all of them
        "layerdrop": 0.0 if getattr(config, "use_weighted_layer_sum", False) and not whisper else None,
    }
    options = _given(regularisation) | _naming(labels)
    model = load_pretrained(AutoModelForAudioClassification, source, trainable=True, dtype=torch.float32, **options)
    return WhisperLearner(model, source, params, context) if whisper else SpeechLearner(model, source, params)


class TextLearner:
    """A text encoder: (texts, tokens) -> (texts, classes), from the mean over the states of an utterance's own tokens.

    Extraction keeps these rows, and special tokens beside them where no other turns are read. The architecture's own
    classifier is not used: most read [CLS] alone, which is not kept where other turns are read.
    """

    def __init__(self, params: FinetuneTextParams, labels: Sequence[str], context: TextContext = NO_CONTEXT) -> None:
        """Load it; `context` is what it reads with an utterance.

        Raises:
            EncoderError: it cannot be found, loaded or run, or its architecture is not supported.
        """
        from transformers import AutoModelForSequenceClassification

        who = f"text.finetune.encoder {params.encoder}"
        self.source = find_model(params.encoder, params.revision, {"tiny": TINY_TEXT})
        found = load_config(self.source, "text", who)
        if not found.architecture.learns:
            learning = ", ".join(name for name, architecture in TEXT.items() if architecture.learns)
            raise EncoderError(
                f"{who} is a '{found.config.model_type}' model, which encodes but has no classifier here that could "
                f"learn; expected one of {learning}"
            )
        options = _dropout(found.config, params.dropout, who) | _naming(labels)
        self.model = load_pretrained(
            AutoModelForSequenceClassification, self.source, trainable=True, dtype=torch.float32, **options
        )
        encoder = self.model.base_model
        self.weights = weights_hash(encoder)
        self._tokenizer = load_tokenizer(self.source, int(encoder.config.vocab_size))
        self.prepares = vocabulary_hash(self._tokenizer)
        self._padding = padding_of(self._tokenizer, int(encoder.config.vocab_size))
        self._prefix, self._suffix = special_tokens(self._tokenizer)
        depth = int(encoder.config.num_hidden_layers)
        longest = min(params.max_tokens, longest_sequence(encoder.eval(), self._tokenizer, depth, who))
        self.model.train()  # which may drop layers, and with them states
        self._longest = longest - len(self._prefix) - len(self._suffix)
        self.reads: Mapping[str, Any] = context._asdict() if any(context) else {}
        self._reader = Reader(self._numbers, separator(self._tokenizer, causal=False), self._longest)
        self.model.of_own_tokens = nn.Linear(int(encoder.config.hidden_size), len(labels))
        self.model.forward = partial(_one_by_one if found.architecture.alone else _classify_own_tokens, self.model)

    def tokenize(self, text: str) -> Tensor:
        """Token numbers of a text by itself, as `read` has them."""
        return self.read(Passage("", "", Said(None, text)))

    def read(self, passage: Passage) -> Tensor:
        """An utterance and what is read with it: (tokens, 2), token numbers and whether each is the utterance's own.

        Of an utterance that is too long by itself its beginning.
        """
        before, own, after = self._reader.read(passage)
        return self._marked([*self._prefix, *before], own[: self._longest], [*after, *self._suffix])

    def _marked(self, before: Sequence[int], own: Sequence[int], after: Sequence[int]) -> Tensor:
        marks = [0] * len(before) + [1] * len(own) + [0] * len(after)
        return torch.tensor([[*before, *own, *after], marks]).T

    def _numbers(self, text: str) -> list[int]:
        # cut later: a tokenizer that was asked to cut remembers it, and would be saved as another one
        return token_numbers(self._tokenizer, text, int(self.model.config.vocab_size))

    def collate(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        """Batch of (texts, tokens)."""
        numbers, own = (
            nn.utils.rnn.pad_sequence([example.input[:, column] for example in examples], True, padding)
            for column, padding in enumerate((self._padding, 0))
        )
        lengths = torch.tensor([len(example.input) for example in examples])
        mask = torch.arange(numbers.shape[1])[None] < lengths[:, None]
        return {"input_ids": numbers, "attention_mask": mask.long(), "own": own, "labels": _labels(examples)}

    def probes(self) -> list[Tensor]:
        """Token numbers at random."""
        numbers = random_tokens(self.model.config.vocab_size, max(PROBE_TOKENS))
        return [self._marked(self._prefix, numbers[:tokens][: self._longest], self._suffix) for tokens in PROBE_TOKENS]

    def rows(self, example: Tensor) -> int:
        """Tokens of a text."""
        return len(example)

    def save(self, folder: Path) -> None:
        """Write the encoder and its tokenizer."""
        self.model.base_model.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)


def _labels(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([example.label for example in examples])


def _dropout(config: Any, share: float | None, who: str) -> dict[str, float]:
    """The option that sets the dropout of hidden states, by the name that the architecture has for it."""
    if share is None:
        return {}
    for name in DROPOUT:
        if hasattr(config, name):
            return {name: share}
    raise EncoderError(f"{who}: a '{config.model_type}' model has no dropout to set; leave text.finetune.dropout null")


def _dropout_share(config: Any) -> float:
    return next((float(getattr(config, name)) for name in DROPOUT if hasattr(config, name)), 0.0)


def _classify_own_tokens(
    model: Any, input_ids: Tensor, own: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
) -> Any:
    from transformers.modeling_outputs import SequenceClassifierOutput

    masked = {} if attention_mask is None else {"attention_mask": attention_mask}
    found = model.base_model(input_ids=input_ids, output_hidden_states=output_hidden_states, **masked)
    x = found[0]  # (texts, tokens, dim)
    real = own[..., None].to(x.dtype)
    mean = (x * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)  # (texts, dim)
    logits = model.of_own_tokens(nn.functional.dropout(mean, _dropout_share(model.config), model.training))
    return SequenceClassifierOutput(logits=logits, hidden_states=found.hidden_states if output_hidden_states else None)


def _one_by_one(model: Any, input_ids: Tensor, own: Tensor, attention_mask: Tensor, **options: Any) -> Any:
    """As `_classify_own_tokens`, each text by itself, without padding; states come back padded with zeros."""
    from transformers.modeling_outputs import SequenceClassifierOutput

    found = []
    for row, mine, mask in zip(input_ids, own, attention_mask.bool(), strict=True):
        ready_for_a_text(model.base_model)
        found.append(_classify_own_tokens(model, row[mask][None], mine[mask][None], **options))
    states = None
    if options.get("output_hidden_states"):
        layers = zip(*(one.hidden_states for one in found), strict=True)
        states = tuple(nn.utils.rnn.pad_sequence([rows[0] for rows in layer], batch_first=True) for layer in layers)
    return SequenceClassifierOutput(logits=torch.cat([one.logits for one in found]), hidden_states=states)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _naming(labels: Sequence[str]) -> dict[str, Any]:
    """Options that give a model its classes."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def _room_for_masks(config: Any, convolutions: Convolutions) -> int:
    """Samples that a batch must be wide for its spans of masked frames (SpecAugment) to fit; padding changes nothing.

    Spans of masked dimensions are cut to the model's width. Without this, transformers ends with an error.
    """
    config.mask_feature_length = min(config.mask_feature_length, config.hidden_size)
    masks = getattr(config, "apply_spec_augment", True) and config.mask_time_prob > 0
    return convolutions.samples(config.mask_time_length) if masks else 0


def check_precision(learner: Learner, device: str, key: str) -> None:
    """Raise PrecisionError where `learner.model` gives other states in bfloat16 than in float32 on `device`.

    `key` is the parameter that asks for bfloat16.
    """
    model = learner.model
    learning = model.training
    model.to(device).eval()
    layers = _UnderAutocast(learner, torch.device(device))
    who = f"encoder {learner.source.name}"
    reduce_precision(layers, [layers.last], who=who, key=key, weights=f"fine-tuning {learner.weights}")
    model.train(learning)


class _UnderAutocast:
    """A learner as `reduce_precision` looks at it."""

    def __init__(self, learner: Learner, device: torch.device) -> None:
        self.device = device
        self.last = f"layer {learner.model.config.num_hidden_layers}"
        self._learner, self._reduced = learner, False

    def reduce(self) -> None:
        self._reduced = True

    def probes(self) -> Sequence[Probe]:
        return [Probe(self._learner.probes())]

    def look(self, inputs: Sequence[Tensor], depth: int | None) -> dict[str, Tensor]:
        batch = self._learner.collate([Example(one, 0) for one in inputs])
        arguments: dict[str, Any] = {name: x.to(self.device) for name, x in batch.items() if name != "labels"}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced):
            states = self._learner.model(**arguments, output_hidden_states=True).hidden_states
        lengths = [self._learner.rows(one) for one in inputs]
        return {
            f"layer {number}": torch.cat([rows[:count] for rows, count in zip(state.float(), lengths, strict=True)])
            for number, state in enumerate(states)
        }
