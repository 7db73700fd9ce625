"""A linear model beside a deep one: what a model answers is never far from what a linear model makes of the features.

    logits = deep * logits + linear(features)

The linear model (`fusion.linear`) and the weight of each of the two are fitted after training, the latter on
validation; then the linear model alone is fitted again on train and validation. Both are buffers of the model: they lie
beside the weights in model.safetensors and in an exported graph.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy  # see `fusion.objective.statistics`
import torch
from torch import Tensor, nn

from fusion.batch import Batch, Group, Output
from fusion.layers.primitives import Limits

STATISTICS = ("mean", "deviation", "mean of the turn before", "mean of the turn after")  # of an utterance's rows
SCALES = (-4.0, 2.0)  # logarithms of what a deep model's logits may be multiplied by
DOUBT = 5.0  # of log-likelihood on validation: what moving one of the weights from one half to 0 or to 1 has to gain


@dataclass(frozen=True, eq=False)
class LinearWeights:
    """A linear model of the raw features.

    Shape:
        bias: (outputs,)
        centres: by modality, (statistics, dim), what `STATISTICS` are on average
        limits: by modality, (statistics, dim, 2), the lowest and the highest that they may be
        weights: by modality, (statistics, outputs, dim), zero where the model does not look
    """

    bias: np.ndarray
    centres: Mapping[str, np.ndarray]
    limits: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]


class LinearModality(nn.Module):
    """The part of one modality: weights * (limited statistics of its rows - centres), 0 where an utterance has none.

    Shape:
        returns: (utterances, outputs)
    """

    centres: Tensor
    weights: Tensor

    def __init__(self, name: str, dim: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.name = name
        self.stored = (layers, dim)
        self.register_buffer("centres", torch.zeros(len(STATISTICS), dim))
        self.register_buffer("weights", torch.zeros(len(STATISTICS), outputs, dim))
        self.limits = Limits(len(STATISTICS), 1, dim)

    def forward(self, batch: Batch) -> Tensor:
        own, deviation, before, after = batch.each(self._group)  # (utterances, outputs)
        earlier, later = batch.turns.to_grid(before), batch.turns.to_grid(after)  # (conversations, turns, outputs)
        none = torch.zeros_like(earlier[:, :1])
        beside = torch.cat([none, earlier], dim=1)[:, :-1] + torch.cat([later, none], dim=1)[:, 1:]
        return own + deviation + batch.turns.to_flat(beside)

    def _group(self, group: Group) -> tuple[Tensor, ...]:
        x, mask = group.modality(self.name)
        x = x.detach().reshape(*x.shape[:2], *self.stored).mean(dim=2)  # (utterances, positions, dim)
        real, count = mask[:, :, None], mask.sum(dim=1, keepdim=True)
        mean = (x * real).sum(dim=1) / count.clamp_min(1)  # (utterances, dim)
        deviation = (((x - mean[:, None]) ** 2 * real).sum(dim=1) / count.clamp_min(1)).sqrt()
        found = self.limits(torch.stack([mean, deviation, mean, mean])) - self.centres[:, None]
        return tuple(torch.bmm(found * (count > 0), self.weights.transpose(1, 2)))


class LinearPath(nn.Module):
    """The linear model, and the weight of the deep one. Until `fit`, answers are those of the deep model alone.

    Args:
        audio, text: (dim, layers) as stored.
        outputs: of each head.
        modalities: those that the model looks at.
    """

    deep: Tensor
    bias: Tensor

    def __init__(
        self, audio: tuple[int, int], text: tuple[int, int], outputs: int, modalities: Collection[str]
    ) -> None:
        super().__init__()
        sizes = {"audio": audio, "text": text}
        self.register_buffer("deep", torch.ones(()))
        self.register_buffer("bias", torch.zeros(outputs))
        self.parts = nn.ModuleDict({name: LinearModality(name, *sizes[name], outputs) for name in modalities})

    def forward(self, batch: Batch) -> Tensor:
        """(utterances, outputs) of the linear model."""
        found = [part(batch) for part in self.parts.values()]
        return self.bias + torch.stack(found).sum(dim=0)

    def join(self, output: Output, linear: Tensor) -> Output:
        """The same output with the fused logits of both."""
        return replace(output, logits=self.deep * output.logits + linear)

    @torch.no_grad()
    def fit(self, linear: LinearWeights) -> None:
        """Become `linear`, with as much weight as the deep model."""
        self.bias.copy_(torch.from_numpy(linear.bias))
        for name, part in self.parts.items():
            assert isinstance(part, LinearModality)
            part.centres.zero_()
            part.weights.zero_()
            if name in linear.weights:
                part.centres.copy_(torch.from_numpy(linear.centres[name]))
                part.limits.fit(*linear.limits[name].transpose(2, 0, 1)[:, :, None])
                part.weights.copy_(torch.from_numpy(linear.weights[name]))

    @torch.no_grad()
    def weigh(self, deep: float, linear: float) -> None:
        """Give both models their weights."""
        self.deep.fill_(deep)
        self.bias.mul_(linear)
        for part in self.parts.values():
            assert isinstance(part, LinearModality)
            part.weights.mul_(linear)


def path_weights(deep: np.ndarray, linear: np.ndarray, truth: np.ndarray, scores: bool) -> tuple[float, float]:
    """The weights of the deep and of the linear model under which `truth` is most likely.

    Errors of scores count as normal. Few utterances say little: both weights start from one half, and `DOUBT` holds
    them there. A deep model is often surer than it is right, so its half is that of its logits at the scale that makes
    truth most likely by them alone. A model that has learned nothing may get the weight 0. Of scores the linear model
    gets at most 1: more would undo how it was shrunk on train, and what is fitted again on more is shrunk less. A
    `truth` that is one and the same everywhere says nothing: both keep one half.

    Shape:
        deep, linear: (utterances, outputs)
        truth: (utterances,), labels or scores, none missing
    """

    def unlikely(mixed: np.ndarray) -> float:
        if scores:
            return float(len(truth) / 2 * np.log(np.mean((mixed[:, 0] - truth) ** 2) + 1e-12))
        return float(-scipy.special.log_softmax(mixed, axis=1)[np.arange(len(truth)), truth].sum())

    def cost(weights: np.ndarray) -> float:
        mixed = weights[0] * scale * deep + weights[1] * linear
        return unlikely(mixed) + float(DOUBT * np.square(2 * weights - 1).sum())

    if scores and np.ptp(truth) == 0:
        return 0.5, 0.5
    scale = 1.0
    if not scores:
        alone = scipy.optimize.minimize_scalar(
            lambda logarithm: unlikely(np.exp(logarithm) * deep), bounds=SCALES, method="bounded"
        )
        scale = float(np.exp(alone.x))
    most = (0, 1) if scores else (0, None)
    found = scipy.optimize.minimize(cost, np.full(2, 0.5), method="Nelder-Mead", bounds=[(0, None), most])
    return scale * float(found.x[0]), float(found.x[1])
