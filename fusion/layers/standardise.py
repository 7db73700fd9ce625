"""Inputs on one scale: each column of the features minus its mean, divided by its standard deviation, once values far
beyond those of train are put on the limits of its column. And scores on the scale of train's: what a head gives times
their standard deviation, plus their median.

All are of the train split (`pipeline.store.columns`), and are buffers of the model: they lie beside the weights in
model.safetensors and in an exported graph.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fusion.batch import Batch, Group, Output
from fusion.layers.primitives import Limits, Unchanged
from pipeline.store import Columns


class StandardiseColumns(nn.Module):
    """(limited x - mean) * scale, with the columns of one modality; nothing changes until `fit`.

    A column that is constant on the train split gives zeros, whatever it holds elsewhere, and so does padding.

    Shape:
        x: (utterances, positions, features), or (utterances, positions, layers, features)
        mask: (utterances, positions)
        returns: as x
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, layers: int) -> None:
        super().__init__()
        self.stored = (layers, features) if layers > 1 else (features,)
        self.register_buffer("mean", torch.zeros(self.stored))
        self.register_buffer("scale", torch.ones(self.stored))
        self.limits = Limits(*self.stored)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        limited = self.limits(x.reshape(*x.shape[:2], *self.stored))
        return limited.sub_(self.mean).mul_(self.scale).mul_(self._real(mask).to(x.dtype))

    def beyond(self, x: Tensor, mask: Tensor) -> Tensor:
        """Boolean, as x: which values lie beyond the limits."""
        return self.limits.beyond(x.reshape(*x.shape[:2], *self.stored)) & self._real(mask)

    def fit(self, columns: Columns) -> None:
        """Take mean, scale and limits of `columns`; without rows they stay as they are."""
        if columns.rows:
            found, varies = columns.scale, columns.finite & ~columns.constant
            self.mean.copy_(torch.from_numpy(np.where(columns.finite, found.centre, 0)))
            self.scale.copy_(
                torch.from_numpy(np.divide(1, found.spread, out=np.zeros_like(found.spread), where=varies))
            )
            self.limits.fit(found.low, found.high)

    def _real(self, mask: Tensor) -> Tensor:
        return mask.view(*mask.shape, *[1] * len(self.stored))


class Standardise(nn.Module):
    """A batch of features as they are stored -> the same with the columns of its modalities on one scale.

    Args:
        audio, text: (features, layers) as stored.
        modalities: those that the model looks at; the other one stays as it is.
    """

    def __init__(
        self, audio: tuple[int, int], text: tuple[int, int], modalities: Collection[str] = ("audio", "text")
    ) -> None:
        super().__init__()
        self.audio = StandardiseColumns(*audio) if "audio" in modalities else Unchanged()
        self.text = StandardiseColumns(*text) if "text" in modalities else Unchanged()

    def forward(self, batch: Batch) -> Batch:
        return batch.encoded(self._group)

    def fit(self, columns_of: Callable[[str], Columns]) -> None:
        """Take the columns of the train split, which `columns_of` gives by modality, of each modality it looks at."""
        for name, part in self.named_children():
            if isinstance(part, StandardiseColumns):
                part.fit(columns_of(name))

    def beyond(self, batch: Batch) -> dict[str, Tensor]:
        """By modality, how many values of an utterance lie beyond the limits of each column, (utterances, *stored)."""

        def count(name: str, part: StandardiseColumns) -> Tensor:
            return batch.each(lambda group: part.beyond(*group.modality(name)).sum(dim=1))

        parts = dict(self.named_children())
        return {name: count(name, part) for name, part in parts.items() if isinstance(part, StandardiseColumns)}

    def _group(self, group: Group) -> tuple[Tensor, Tensor]:
        return self.audio(group.audio, group.audio_mask), self.text(group.text, group.text_mask)


class ScoreScale(nn.Module):
    """The output of a model whose heads give scores around 0, of about 1 -> the same on the scale of train's scores."""

    centre: Tensor
    unit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("unit", torch.ones(()))

    def forward(self, output: Output) -> Output:
        return replace(
            output,
            logits=self._scaled(output.logits),
            audio_logits=None if output.audio_logits is None else self._scaled(output.audio_logits),
            text_logits=None if output.text_logits is None else self._scaled(output.text_logits),
            earlier={stage: self(one) for stage, one in output.earlier.items()},
        )

    def fit(self, centre: float, unit: float) -> None:
        """Take the scale of these scores."""
        self.centre.fill_(centre)
        self.unit.fill_(unit)

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits.float() * self.unit + self.centre
