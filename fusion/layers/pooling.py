"""A sequence of any length to one vector."""

import torch
from torch import Tensor, nn

from fusion.layers.attention import masked_softmax


class MeanPooling(nn.Module):
    """Mean over the real positions; zeros where an utterance has none.

    Shape:
        x: (utterances, positions, dim)
        mask: (utterances, positions)
        returns: (utterances, dim)
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)


class LastPooling(nn.Module):
    """The last real position; zeros where an utterance has none. Shape as `MeanPooling`."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        position = torch.arange(mask.shape[1], device=mask.device)
        last = mask & (position == mask.sum(dim=1, keepdim=True) - 1)
        return (last[:, None, :].to(x.dtype) @ x).squeeze(1)


class LastStates(nn.Module):
    """The last state of each direction: of a stream whose first half runs forth and whose other half runs back.

    Zeros where an utterance has no position. Shape as `MeanPooling`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last = LastPooling()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        forth, back = x.chunk(2, dim=-1)
        first = mask & (torch.arange(mask.shape[1], device=mask.device) == 0)
        return torch.cat([self.last(forth, mask), (first[:, None, :].to(x.dtype) @ back).squeeze(1)], dim=-1)


class AttentionPooling(nn.Module):
    """Mean over the real positions, weighted by a learned score of each; zeros where an utterance has none.

    Shape:
        x: (utterances, positions, dim)
        mask: (utterances, positions)
        returns: (utterances, dim)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)  # the softmax cancels a bias

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (self.weights(x, mask)[:, None, :] @ x).squeeze(1)

    def weights(self, x: Tensor, mask: Tensor) -> Tensor:
        """(utterances, positions), each row summing to 1, or to 0 where nothing is real."""
        return masked_softmax(self.score(x).squeeze(-1), mask)

    def views(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"weights": self.weights(x, mask)}
