"""Pretrains the packaged tiny encoders on the train split of the embedded corpus, without its labels.

    python scripts/pretrain_tiny.py [--output pipeline/encoders/weights]

Takes about seven minutes on one core. The result is committed, so nobody has to run this; on one machine with one set
of library versions it gives the same weights each time.

**Speech.** A real wav2vec2 learns from 960 hours what a toy cannot learn from fifteen minutes, so the toy is taught
what prosody is made of instead. From each frame of its last layer a linear map must tell low-level descriptors of that
frame (log-mel bands, energy, voicing, pitch) and of the whole clip (height and spread of the pitch, spectral movement,
letters of the transcript per second), with pitch also relative to the speaker's usual one. The map is thrown away.

**Text.** Masked language modelling on the transcripts, on sentences of the same grammar (none of them in the validation
or test split), and on sentences as in a dictionary ("Livid means furious and angry."), which stand for the books from
which a real BERT learns what words mean; these group words by mood, as no label of the corpus does. Beside the hidden
words, a linear map of the tokens' mean must tell which words the whole sentence holds, rare ones above all, so that
pooled features keep them.
"""

import argparse
import csv
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import make_demo
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.functional import resample
from torchaudio.transforms import MelSpectrogram
from transformers import AutoTokenizer, BertForMaskedLM, BertModel, Wav2Vec2Model

from pipeline.encoders import TINY_SPEECH, TINY_TEXT
from pipeline.encoders.tiny import SPECIAL_TOKENS, WEIGHTS, build_speech, build_text

SEED = 0
SENTENCES = 4_000  # of the corpus' grammar
EXPLANATIONS = 2_000  # as in a dictionary
DEMO = Path(__file__).parents[1] / "data" / "demo"
SAMPLE_RATE = 16_000
WINDOW, HOP = 400, 320  # samples of a wav2vec2 frame and from one to the next
PITCH_WINDOW = 800  # samples: three periods of the lowest pitch
PITCH_RANGE = (60, 450)  # Hz
MEL_BANDS = 40
SPEEDS = (0.84, 0.89, 0.95, 1.0, 1.06, 1.12, 1.19)
VOICED = 0.6  # of the autocorrelation at lag 0

DICTIONARY = (
    "{feeling} means {feeling2} and {feeling3}.",
    "{quality} means {quality2}, it makes people {feeling}.",
    "Who is {feeling} says: {manner}, {manner2}.",
    "{manner}: that is to be {feeling} and {feeling2}.",
    "A {quality}, {quality2} thing, says who is {feeling}: {manner}.",
)
MANNERS = {
    "joy": (
        "I love it",
        "we laughed",
        "hooray, we won",
        "let us celebrate",
        "I cannot stop smiling",
        "good news",
        "a dream come true",
        "I am proud",
        "we danced",
        "we are celebrating",
    ),
    "anger": (
        "I hate it",
        "how dare you",
        "I am sick of it",
        "he lied to me",
        "I will not tolerate it",
        "shut up",
        "I am fed up",
        "do not shout",
        "he broke it on purpose",
    ),
    "sadness": (
        "I miss it",
        "I cried",
        "I wept",
        "all hope is gone",
        "I lost it",
        "it hurts to lose it",
        "I am in tears",
        "I am all alone",
        "he is gone",
    ),
}

Row = dict[str, str]


@dataclass(frozen=True)
class Clip:
    samples: Tensor  # (samples,), mean 0 and variance 1, as the encoder gets it
    targets: Tensor  # (frames, targets)
    known: Tensor  # (frames, targets), bool: an unvoiced frame has no pitch


def read_rows() -> list[Row]:
    """The corpus' table without labels and cues."""
    with (DEMO / "utterances.csv").open(encoding="utf-8", newline="") as file:
        return [{key: row[key] for key in ("split", "speaker", "text", "audio")} for row in csv.DictReader(file)]


def read_clip(path: Path) -> Tensor:
    """(samples,) at `SAMPLE_RATE`, normalised to mean 0 and variance 1."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    with av.open(str(path)) as container:
        decoded = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
    pieces = [piece.to_ndarray()[0] for piece in [*decoded, *resampler.resample(None)]]
    samples = torch.from_numpy(np.concatenate(pieces))
    return (samples - samples.mean()) / (samples.std() + 1e-7)


def pitch_track(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Pitch (frames,) in octaves above 100 Hz, and voicing (frames,) from 0 to 1, by autocorrelation."""
    margin = (PITCH_WINDOW - WINDOW) // 2
    taper = torch.hann_window(PITCH_WINDOW)
    windows = functional.pad(samples, (margin, margin)).unfold(0, PITCH_WINDOW, HOP) * taper
    correlation, expected = _autocorrelation(windows), _autocorrelation(taper)
    correlation = correlation / (correlation[:, :1] + 1.0) * expected[0] / expected  # 1.0: silence is unvoiced
    shortest, longest = SAMPLE_RATE // PITCH_RANGE[1], SAMPLE_RATE // PITCH_RANGE[0]
    voicing, lag = correlation[:, shortest : longest + 1].max(1)
    return torch.log2(SAMPLE_RATE / (lag + shortest) / 100), voicing.clamp(0, 1)


def usual_pitches(rows: Sequence[Row], clips: Sequence[Tensor]) -> dict[str, float]:
    """Every speaker's median pitch, in octaves above 100 Hz."""
    tracks = defaultdict(list)
    for row, samples in zip(rows, clips, strict=True):
        pitch, voicing = pitch_track(samples)
        tracks[row["speaker"]].append(pitch[voicing > VOICED])
    return {speaker: torch.cat(pitches).median().item() for speaker, pitches in tracks.items()}


def describe(samples: Tensor, letters: int, usual_pitch: float) -> Clip:
    """The descriptors that the speech model must tell from `samples`.

    `letters` is the length of the transcript, `usual_pitch` the speaker's median, in octaves above 100 Hz.
    """
    mel = MelSpectrogram(SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MEL_BANDS, center=False)
    bands = torch.log(mel(samples) + 1e-2).T  # (frames, bands)
    energy = torch.log(samples.unfold(0, WINDOW, HOP).square().mean(1) + 1e-3)
    pitch, voicing = pitch_track(samples)
    voiced = voicing > VOICED
    low, median, high = pitch[voiced].quantile(torch.tensor([0.1, 0.5, 0.9]))
    clip = torch.stack(
        [
            median,
            median - usual_pitch,
            high - low,
            (pitch[voiced] - median).abs().mean(),
            bands.diff(dim=0).abs().mean(),
            torch.tensor(math.log(letters * SAMPLE_RATE / len(samples))),
            voiced.float().mean(),
        ]
    )
    frame = torch.stack([energy, voicing, pitch, pitch - usual_pitch], dim=1)
    targets = torch.cat([bands, frame, clip.expand(len(frame), -1)], dim=1)
    known = torch.ones_like(targets, dtype=torch.bool)
    known[:, MEL_BANDS + 2 : MEL_BANDS + 4] = voiced[:, None]
    return Clip(samples, targets, known)


def _autocorrelation(windows: Tensor) -> Tensor:
    """(..., samples) -> (..., lags), as many."""
    samples = windows.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(windows, 2 * samples).abs() ** 2)[..., :samples]


def change_speed(samples: Tensor, speed: float) -> Tensor:
    """The clip played faster or slower: another voice, higher or lower, that talks at another rate."""
    if speed == 1:
        return samples
    changed = resample(samples, round(100 * speed), 100)
    return (changed - changed.mean()) / (changed.std() + 1e-7)


def normalise(clips: Sequence[Clip]) -> list[Clip]:
    """The same clips with every target at mean 0 and variance 1 over all known frames."""
    targets, known = torch.cat([clip.targets for clip in clips]), torch.cat([clip.known for clip in clips])
    count = known.sum(0)
    mean = (targets * known).sum(0) / count
    deviation = (((targets - mean) * known).square().sum(0) / count).sqrt()
    return [Clip(clip.samples, (clip.targets - mean) / deviation, clip.known) for clip in clips]


def speech_batches(variants: Sequence[Clip], size: int, generator: torch.Generator) -> Iterator[list[Clip]]:
    """One pass over the recordings, each at one of its speeds, in batches of about the same length."""
    recordings = len(variants) // len(SPEEDS)
    speeds = torch.randint(len(SPEEDS), (recordings,), generator=generator).tolist()
    clips = [variants[index * len(SPEEDS) + speed] for index, speed in enumerate(speeds)]
    lengths = torch.tensor([float(len(clip.samples)) for clip in clips])
    order = torch.argsort(lengths * (1 + 0.1 * torch.rand(len(clips), generator=generator))).tolist()
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    for position in torch.randperm(len(batches), generator=generator).tolist():
        yield [clips[index] for index in batches[position]]


def cut(clips: Sequence[Clip]) -> tuple[Tensor, Tensor, Tensor]:
    """The clips cut to the shortest, so that none is padded: samples, targets, known, each (clips, ...).

    Lengths are rounded down to ten frames, since each new one costs the convolutions a preparation.
    """
    frames = min(len(clip.targets) for clip in clips) // 10 * 10
    return (
        torch.stack([clip.samples[: (frames - 1) * HOP + WINDOW] for clip in clips]),
        torch.stack([clip.targets[:frames] for clip in clips]),
        torch.stack([clip.known[:frames] for clip in clips]),
    )


def pretrain_speech(folder: Path, rows: Sequence[Row], epochs: int) -> None:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    recordings = [read_clip(DEMO / row["audio"]) for row in rows]
    usual = usual_pitches(rows, recordings)
    described = [
        describe(change_speed(samples, speed), len(row["text"]), usual[row["speaker"]] + math.log2(speed))
        for row, samples in zip(rows, recordings, strict=True)
        for speed in SPEEDS
    ]
    clips = normalise(described)
    model = Wav2Vec2Model.from_pretrained(build_speech(folder, seed=SEED)).train()
    count = clips[0].targets.shape[1]
    head = nn.Linear(model.config.hidden_size, count)
    weights = torch.ones(count)
    weights[MEL_BANDS:] = 5.0  # a few prosodic targets against many bands
    batch_size = 12
    steps = epochs * math.ceil(len(recordings) / batch_size)
    optimizer, schedule = make_optimizer([*model.parameters(), *head.parameters()], 2e-3, steps)
    for epoch in range(epochs):
        losses = []
        for batch in speech_batches(clips, batch_size, generator):
            samples, targets, known = cut(batch)
            samples = samples + 0.02 * torch.randn(samples.shape, generator=generator)
            errors = (head(model(samples).last_hidden_state) - targets).square() * weights
            step(errors[known].mean(), optimizer, schedule)
            losses.append([errors[..., part].mean().item() for part in (slice(MEL_BANDS), slice(MEL_BANDS + 4, None))])
        bands, clip = np.mean(losses, axis=0)
        print(f"speech epoch {epoch + 1}/{epochs}: error of bands {bands:.3f}, of the clip's targets {clip / 5:.3f}")
    model.eval().save_pretrained(folder)


def write_sentences(count: int, excluded: set[str]) -> list[str]:
    """`count` sentences of the corpus' grammar, none of them in `excluded`."""
    generator = random.Random(SEED)
    conversations = (make_demo.write_conversation(generator, "", "") for _ in itertools.count())
    texts = (turn.text for turns in conversations for turn in turns)
    return list(itertools.islice((text for text in texts if text not in excluded), count))


def write_dictionary(count: int) -> list[str]:
    """`count` sentences that explain words of feeling by one another."""
    generator = random.Random(SEED)
    sentences = []
    for _ in range(count):
        mood = generator.choice(list(MANNERS))
        feeling, feeling2, feeling3 = generator.sample(make_demo.FEELINGS[mood], 3)
        quality, quality2 = generator.sample(make_demo.QUALITIES[mood], 2)
        manner, manner2 = generator.sample(MANNERS[mood], 2)
        template = generator.choice(DICTIONARY)
        sentences.append(
            template.format(
                feeling=feeling,
                feeling2=feeling2,
                feeling3=feeling3,
                quality=quality,
                quality2=quality2,
                manner=manner,
                manner2=manner2,
            )
        )
    return sentences


def mask_tokens(tokens: Tensor, mask_token: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hides a quarter of the words: tokens to read, and where to predict (texts, tokens) bool."""
    chosen = torch.rand(tokens.shape, generator=generator) < 0.25
    chosen &= tokens >= len(SPECIAL_TOKENS)
    hidden = torch.rand(tokens.shape, generator=generator) < 0.8  # the others are read as they are, as BERT's were
    return tokens.masked_fill(chosen & hidden, mask_token), chosen


def word_weights(tokens: Tensor, rarity: Tensor) -> Tensor:
    """Which words each text holds, weighted by rarity: (texts, tokens) -> (texts, vocabulary), each summing to 1."""
    held = torch.zeros(len(tokens), len(rarity)).scatter_(1, tokens, 1.0) * rarity
    return held / held.sum(1, keepdim=True)


def pretrain_text(folder: Path, texts: Sequence[str], epochs: int) -> None:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(build_text(folder, texts, seed=SEED))
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
    model = BertForMaskedLM(encoder.config).train()
    model.bert.load_state_dict(encoder.state_dict())
    pooled_head = nn.Linear(encoder.config.hidden_size, len(tokenizer))
    tokens = [torch.tensor(ids) for ids in tokenizer(list(texts))["input_ids"]]
    counts = torch.bincount(torch.cat(tokens), minlength=len(tokenizer))
    rarity = torch.log(len(texts) / counts.clamp(min=1)).clamp(min=0)
    rarity[: len(SPECIAL_TOKENS)] = 0
    batch_size = 64
    steps = epochs * math.ceil(len(texts) / batch_size)
    optimizer, schedule = make_optimizer([*model.parameters(), *pooled_head.parameters()], 2e-3, steps)
    for epoch in range(epochs):
        losses = []
        for indices in torch.randperm(len(texts), generator=generator).split(batch_size):
            batch = tokenizer([texts[index] for index in indices], padding=True, return_tensors="pt")
            masked, chosen = mask_tokens(batch["input_ids"], tokenizer.mask_token_id, generator)
            mask = batch["attention_mask"]
            output = model(input_ids=masked, attention_mask=mask, output_hidden_states=True)
            hidden_words = functional.cross_entropy(output.logits[chosen], batch["input_ids"][chosen])
            mean = (output.hidden_states[-1] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            all_words = functional.cross_entropy(pooled_head(mean), word_weights(batch["input_ids"], rarity))
            step(hidden_words + all_words, optimizer, schedule)
            losses.append([hidden_words.item(), all_words.item()])
        hidden, held = np.mean(losses, axis=0)
        print(f"text epoch {epoch + 1}/{epochs}: loss of hidden words {hidden:.3f}, of the words held {held:.3f}")
    model.bert.eval().save_pretrained(folder)


def make_optimizer(
    parameters: list[nn.Parameter], rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW whose learning rate rises over the first twentieth of the steps and then falls to zero."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.05)
    return optimizer, schedule


def step(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrains the packaged tiny encoders.")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--speech-epochs", type=int, default=40, help="0: leave the speech model as it is")
    parser.add_argument("--text-epochs", type=int, default=12, help="0: leave the text model as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    rows = read_rows()
    train = [row for row in rows if row["split"] == "train"]
    if arguments.text_epochs:
        held_out = {row["text"] for row in rows if row["split"] != "train"}
        texts = [row["text"] for row in train] + write_sentences(SENTENCES, held_out)
        texts += write_dictionary(EXPLANATIONS)
        pretrain_text(arguments.output / TINY_TEXT.name, texts, arguments.text_epochs)
    if arguments.speech_epochs:
        pretrain_speech(arguments.output / TINY_SPEECH.name, train, arguments.speech_epochs)


if __name__ == "__main__":
    main()
