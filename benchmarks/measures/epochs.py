"""What one training run came to: its epochs by the clock, what it scored, and how much of its batches was padding."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusion.batch import Batch


@dataclass(frozen=True)
class EpochTime:
    """One epoch; times are those of `time.perf_counter`."""

    stage: str
    began: float
    learned: float  # the first validation batch is asked for
    ended: float
    score: float  # of the whole model on validation

    @property
    def seconds(self) -> float:
        """Of learning and validation."""
        return self.ended - self.began


@dataclass(frozen=True)
class Padding:
    """Shares of the positions of all batches that hold nothing."""

    audio: float
    text: float


@dataclass(frozen=True)
class Training:
    """A finished run of one way to train."""

    epochs: list[EpochTime]
    loaded: float  # the data is ready; the clock's time
    score: float  # of the trained model on validation
    utterances: int  # of train
    padding: Padding | None


def epoch_seconds(epochs: Sequence[EpochTime]) -> float:
    """Median of the epochs of each stage, weighted by how many each has."""
    return _typical(epochs, [epoch.seconds for epoch in epochs])


def train_seconds(epochs: Sequence[EpochTime]) -> float:
    """Likewise, of learning alone."""
    return _typical(epochs, [epoch.learned - epoch.began for epoch in epochs])


def _typical(epochs: Sequence[EpochTime], seconds: Sequence[float]) -> float:
    by_stage: dict[str, list[float]] = {}
    for epoch, value in zip(epochs, seconds, strict=True):
        by_stage.setdefault(epoch.stage, []).append(value)
    return sum(len(values) * statistics.median(values) for values in by_stage.values()) / len(epochs)


def last_stage(epochs: Sequence[EpochTime]) -> list[EpochTime]:
    """Those of the whole model."""
    return [epoch for epoch in epochs if epoch.stage == epochs[-1].stage]


def reach(epochs: Sequence[EpochTime], score: float) -> EpochTime | None:
    """The first epoch of the whole model that scores so high."""
    return next((epoch for epoch in last_stage(epochs) if epoch.score >= score), None)


def count_padding(batches: Iterable[Batch]) -> Padding:
    """Of all positions of the masks of `batches`."""
    real, all_positions = [0, 0], [0, 0]
    for batch in batches:
        for group in batch.groups:
            for index, mask in enumerate((group.audio_mask, group.text_mask)):
                real[index] += int(mask.sum())
                all_positions[index] += mask.numel()
    return Padding(*(1 - found / max(1, held) for found, held in zip(real, all_positions, strict=True)))
