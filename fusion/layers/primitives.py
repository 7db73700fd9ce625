"""Small parts: dropout of sequences, two linear maps, gates, mixes, projections, unit vectors, limits of what goes in,
what takes the place of a part that is switched off, and how a model is looked into while it runs.
"""

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SequenceDropout(nn.Module):
    """Drops a dimension at all positions of an utterance, or at none.

    Neighbouring frames are much alike: what is dropped at one would be learned from the next. One decision for all
    positions is also a hundred times less work than one for each.

    Shape:
        x: (utterances, positions, dim)
        returns: (utterances, positions, dim)
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout1d(x.transpose(1, 2), self.share, self.training).transpose(1, 2)


class Limits(nn.Module):
    """What lies beyond a limit of its column is put on it. There are none until `fit`, nor in weights saved without.

    Shape:
        x: (..., *shape)
        returns: as x
    """

    low: Tensor
    high: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.full(shape, -torch.inf))
        self.register_buffer("high", torch.full(shape, torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def beyond(self, x: Tensor) -> Tensor:
        """Boolean, as x: what lies beyond them."""
        return (x < self.low) | (x > self.high)

    def fit(self, low: np.ndarray, high: np.ndarray) -> None:
        """Take these; one that is no number is none."""
        self.low.copy_(torch.from_numpy(np.where(np.isnan(low), -np.inf, low)))
        self.high.copy_(torch.from_numpy(np.where(np.isnan(high), np.inf, high)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        own = {f"{prefix}{name}": buffer for name, buffer in self.named_buffers()}
        super()._load_from_state_dict(own | dict(state_dict), prefix, *others)


def feed_forward(dim: int, dropout: float, expansion: int = 2) -> nn.Sequential:
    """FFN(x) = W2 gelu(W1 x), (utterances, positions, dim) -> the same."""
    return nn.Sequential(
        nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim), SequenceDropout(dropout)
    )


def classifier(features: int, dim: int, classes: int, dropout: float) -> nn.Sequential:
    """MLP, (utterances, features) -> (utterances, classes)."""
    return nn.Sequential(
        nn.Dropout(dropout), nn.Linear(features, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, classes)
    )


def relu_layers(features: int, dim: int, layers: int, dropout: float) -> nn.Sequential:
    """`layers` times x = relu(W x), (utterances, features) -> (utterances, dim), with dropout of what goes in."""
    network = nn.Sequential(nn.Dropout(dropout))
    for layer in range(layers):
        network.extend([nn.Linear(dim if layer else features, dim), nn.ReLU()])
    return network


class Gate(nn.Module):
    """sigmoid(W [x; y]): how far to open, for each dimension or for each position as a whole.

    Shape:
        x, y: (..., dim)
        returns: (..., width), where width is dim, or 1 for one decision per position
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(torch.cat([x, y], dim=-1)).sigmoid()


class WeightedMix(nn.Module):
    """Weighted mean of the versions, by learned weights that are equal at first.

    Shape:
        versions: so many tensors of one shape
        returns: that shape
    """

    def __init__(self, versions: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(versions))

    def forward(self, *versions: Tensor) -> Tensor:
        weighted = (weight * version for weight, version in zip(self.weights(), versions, strict=True))
        return reduce(torch.add, weighted)

    def weights(self) -> Tensor:
        """(versions,), summing to 1."""
        return self.scores.softmax(dim=0)

    def views(self, *versions: Tensor) -> dict[str, Tensor]:
        return {"weights": self.weights()}


Value = TypeVar("Value")


class Constant(nn.Module, Generic[Value]):
    """The same value whatever the inputs."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value

    def forward(self, *inputs: object) -> Value:
        return self.value

    weights = forward  # of an attention that is switched off


class Unchanged(nn.Module):
    """The first input as it is."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x


Part = TypeVar("Part", bound=nn.Module)


class Parts(nn.ModuleDict, Generic[Part]):
    """`nn.ModuleDict` whose parts are of one type, by name."""

    def values(self) -> ValuesView[Part]:
        return cast(ValuesView[Part], super().values())

    def items(self) -> ItemsView[str, Part]:
        return cast(ItemsView[str, Part], super().items())


class InputProjection(nn.Module):
    """LN(W x), after a learned mix of the encoder's layers when several are stored.

    Shape:
        x: (utterances, positions, features), or (utterances, positions, layers, features)
        returns: (utterances, positions, dim)
    """

    def __init__(self, features: int, layers: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.stored = (layers, features)
        self.mix = WeightedMix(layers) if layers > 1 else Unchanged()
        self.linear = nn.Linear(features, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = SequenceDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        layers = x.reshape(*x.shape[:2], *self.stored).unbind(2)
        return self.dropout(self.norm(self.linear(self.mix(*layers))))


class Embedding(nn.Module):
    """A linear map to vectors of length 1, (utterances, dim) -> (utterances, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x), dim=-1)


@contextmanager
def collect_views(model: nn.Module, wanted: bool) -> Iterator[dict[str, Tensor]]:
    """Collects what the parts of `model` show of themselves while the context is open; nothing unless `wanted`.

    A part shows itself by a method `views`, which takes what its `forward` takes and returns named tensors. They are
    collected under the part's own name in the model, such as `levels.raw.audio.gate`, without gradient.
    """
    collected: dict[str, Tensor] = {}

    def collect_from(name: str) -> Any:
        def hook(part: Any, inputs: tuple[Any, ...], output: Any) -> None:
            with torch.no_grad():
                shown = part.views(*inputs)
            collected.update({f"{name}.{key}": value for key, value in shown.items()})

        return hook

    with ExitStack() as stack:
        for name, part in model.named_modules() if wanted else ():
            if hasattr(part, "views"):
                stack.enter_context(part.register_forward_hook(collect_from(name)))
        yield collected


def zero_padding(shown: Mapping[str, Tensor | float], mask: Tensor) -> dict[str, Tensor]:
    """The tensors among `shown`, zero where `mask` (broadcastable) is false.

    What is no tensor is the constant of a part that is switched off, and not worth a look.
    """
    return {name: value * mask for name, value in shown.items() if isinstance(value, Tensor)}


def dominate(x: Tensor) -> bool:
    """Whether launching an operation on `x` takes longer than computing it, as on a GPU at the sizes of this project.

    A layer that can do the same in fewer operations does so there. On a CPU sums keep their order, results their bits.
    """
    return x.is_cuda
