"""The loss of a batch under the parameters of section `loss`, and its means over an epoch."""

from collections.abc import Collection
from dataclasses import fields

import torch
from torch import Tensor

from fusion.batch import Batch, Output
from fusion.data import Split
from fusion.losses import Losses, fusion_loss
from fusion.params import LossParams, losses_of
from fusion.tasks import Task

HEAD_LOSS = {"class_weights", "label_smoothing"}  # keys of section `loss` that change what a head's loss is


class Criterion:
    """The loss of one batch under the parameters of section `loss`; `branches` are the heads that learn."""

    def __init__(self, params: LossParams, train: Split, task: Task) -> None:
        self.task = task
        balanced = params.class_weights == "balanced"
        self.head_loss = task.head_loss(task.truth(train), balanced, params.label_smoothing, train.device)
        self.arguments = params.model_dump(include=losses_of(task.target) - HEAD_LOSS)

    def __call__(self, output: Output, batch: Batch, branches: Collection[str]) -> Losses:
        truth = self.task.truth(batch)
        return fusion_loss(
            output,
            truth,
            self.task.counted(truth),
            batch.audio_present,
            batch.text_present,
            head_loss=self.head_loss,
            branches=branches,
            **self.arguments,
        )


class LossMeans:
    """Means of losses over the utterances of an epoch that count, summed on the device until `compute` asks."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.names = [field.name for field in fields(Losses)]

    def add(self, losses: Losses, count: Tensor) -> None:
        """Count the losses of one batch, in which so many utterances (a scalar) took part."""
        self.sums.append(torch.stack([getattr(losses, name).detach() for name in self.names]) * count)
        self.counts.append(count)

    def compute(self) -> dict[str, float]:
        """By name, `total` and the terms; the only wait for the device in an epoch."""
        means = torch.stack(self.sums).sum(0) / torch.stack(self.counts).sum()
        return dict(zip(self.names, means.tolist(), strict=True))
