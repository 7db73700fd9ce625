"""The loss of a batch under the parameters of section `loss`, and its means over an epoch."""

from collections.abc import Collection
from dataclasses import fields

import torch
from torch import Tensor

from fusion.batch import Batch, Output
from fusion.data import Split
from fusion.losses import Losses, fusion_loss
from fusion.params import LossParams
from pipeline.store import UNLABELLED


def label_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights (classes,) with which every label of `labels` (utterances,) weighs the same in sum, 1 on average.

    A class without an utterance gets 1; -1 marks unlabelled utterances.
    """
    counts = torch.bincount(labels[labels != UNLABELLED], minlength=classes)
    weights = counts.sum() / (counts.clamp(min=1) * (counts > 0).sum())
    return weights.where(counts > 0, 1.0)


class Criterion:
    """The loss of one batch under the parameters of section `loss`; `branches` are the heads that learn."""

    def __init__(self, params: LossParams, train: Split, classes: int) -> None:
        self.arguments = params.model_dump(exclude={"class_weights"})
        balanced = params.class_weights == "balanced"
        self.class_weights = label_weights(train.labels, classes).to(train.device) if balanced else None

    def __call__(self, output: Output, batch: Batch, branches: Collection[str]) -> Losses:
        return fusion_loss(
            output,
            batch.labels,
            batch.audio_mask.any(1),
            batch.text_mask.any(1),
            class_weights=self.class_weights,
            branches=branches,
            **self.arguments,
        )


class LossMeans:
    """Means of losses over the labelled utterances of an epoch, summed on the device until `compute` asks."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.names = [field.name for field in fields(Losses)]

    def add(self, losses: Losses, batch: Batch) -> None:
        """Count the losses of one batch."""
        count = (batch.labels != UNLABELLED).sum()
        self.sums.append(torch.stack([getattr(losses, name).detach() for name in self.names]) * count)
        self.counts.append(count)

    def compute(self) -> dict[str, float]:
        """By name, `total` and the terms; the only wait for the device in an epoch."""
        means = torch.stack(self.sums).sum(0) / torch.stack(self.counts).sum()
        return dict(zip(self.names, means.tolist(), strict=True))
