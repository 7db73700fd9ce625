"""How much is computed: as a user does it, or at toy size, which shows that the check itself works."""

from dataclasses import dataclass

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Encoders:
    """The shape of the encoders with random weights, and what they are given."""

    hidden: int
    heads: int
    layers: int
    inner: int
    channels: int  # of the convolutions
    position_groups: int  # of the positional convolution
    clip_samples: tuple[int, ...]  # the last one is longer than a window
    window_seconds: float
    overlap_seconds: float


@dataclass(frozen=True)
class Corpus:
    """Conversations of features that are made."""

    conversations: tuple[int, int, int]  # of train, validation, test
    turns: tuple[int, int]  # fewest and most of a conversation
    frames: tuple[int, int]  # of an utterance
    tokens: tuple[int, int]
    dim: int
    labels: int


@dataclass(frozen=True)
class Size:
    """All of it; seconds and parts are those of the speed measurements."""

    name: str
    encoders: Encoders
    small: Corpus  # on which every model is tried
    many_keys: Corpus  # utterances with more frames than attention kernels' small case takes
    many_turns: Corpus
    meld: Corpus  # in place of MELD's own lengths, where these are not there
    model: tuple[str, ...]  # overrides of section `model`
    keys: tuple[int, int]  # audio_frames of the runs that are repeated
    demo: tuple[str, ...]  # overrides of params.yaml
    processes: tuple[int, ...]
    process_share: float  # of MELD's conversations, for several processes
    epochs: int  # that are timed
    extraction_seconds: dict[str, float]  # of audio, by precision
    extraction_layers: int
    long_clip_seconds: float
    memory_bytes: int  # that an encoder is left with


FULL = Size(
    name="full",
    encoders=Encoders(
        hidden=768,
        heads=12,
        layers=4,
        inner=3_072,
        channels=512,
        position_groups=16,
        clip_samples=(400, 720, 5_003, 16_000, 48_000, 160_000, 400_000),
        window_seconds=20.0,
        overlap_seconds=4.0,
    ),
    small=Corpus((48, 8, 8), (3, 15), (20, 300), (4, 40), 768, 7),
    many_keys=Corpus((12, 4, 4), (4, 10), (150, 260), (140, 240), 256, 7),
    many_turns=Corpus((6, 2, 2), (80, 80), (10, 60), (4, 20), 256, 7),
    meld=Corpus((1_038, 114, 280), (2, 17), (10, 300), (3, 30), 768, 7),
    model=(),
    keys=(32, 200),
    demo=(),
    processes=(1, 4, 8),
    process_share=0.25,
    epochs=4,
    extraction_seconds={"float32": 1_800.0, "bfloat16": 7_200.0},
    extraction_layers=12,
    long_clip_seconds=1_200.0,
    memory_bytes=2 << 30,
)
TOY = Size(
    name="toy",
    encoders=Encoders(
        hidden=64,
        heads=2,
        layers=2,
        inner=128,
        channels=32,
        position_groups=4,
        clip_samples=(400, 5_003, 48_000),
        window_seconds=2.0,
        overlap_seconds=0.5,
    ),
    small=Corpus((4, 2, 2), (2, 4), (2, 12), (2, 5), 8, 2),
    many_keys=Corpus((2, 1, 1), (2, 3), (40, 50), (36, 40), 8, 2),
    many_turns=Corpus((2, 1, 1), (8, 8), (2, 6), (2, 4), 8, 2),
    meld=Corpus((8, 2, 2), (2, 4), (2, 12), (2, 5), 8, 2),
    model=("model.dim=8", "model.heads=2"),
    keys=(8, 40),
    demo=("model.dim=8", "model.heads=2", "model.audio_frames=8", "train.epochs=1", "train.seeds=[0]"),
    processes=(1, 2),
    process_share=0.5,
    epochs=2,
    extraction_seconds={"float32": 4.0, "bfloat16": 4.0},
    extraction_layers=2,
    long_clip_seconds=20.0,
    memory_bytes=2 << 30,
)
