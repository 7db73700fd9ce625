"""The GRU on the CPU against that of torch and against finite differences."""

import pytest
import torch
from torch import Tensor, nn

from fusion.layers import SequenceGRU
from fusion.layers.recurrent import Recurrence, run_grus


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_are_those_of_finite_differences(padded: bool) -> None:
    keep = (random(5, 2, 3, 1, seed=9) > -0.5).double() if padded else None
    inputs = [random(5, 2, 3, 12), random(2, 12, 4, seed=1), random(2, 12, seed=2)]
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda pushes, weight, bias: Recurrence.apply(pushes, keep, weight, bias), inputs)


def test_states_and_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    grus = nn.ModuleList(nn.GRU(6, 4, batch_first=True) for _ in range(2)).double()
    x = random(2, 7, 3, 6)
    expected = torch.stack([gru(one.transpose(0, 1))[0].transpose(0, 1) for gru, one in zip(grus, x, strict=True)])
    weight = random(*expected.shape, seed=3)
    (expected * weight).sum().backward()
    gradients = [parameter.grad for parameter in grus.parameters()]
    grus.zero_grad()
    found = run_grus(grus, x, None)
    torch.testing.assert_close(found, expected)
    (found * weight).sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in grus.parameters()], gradients)


@pytest.mark.parametrize("direction", ["past", "both"])
def test_both_ways_to_run_agree(direction: str) -> None:
    torch.manual_seed(0)
    layer = SequenceGRU(8, direction)  # type: ignore[arg-type]
    x, mask = random(4, 5, 8).float(), torch.arange(5) < torch.tensor([5, 2, 0, 4])[:, None]
    torch.testing.assert_close(
        torch.cat(layer.on_cpu(x, mask), -1) * mask[..., None],
        torch.cat(layer.with_cudnn(x, mask), -1) * mask[..., None],
    )
