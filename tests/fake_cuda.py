"""A GPU that is not there: shapes, types and devices of tensors on `cuda`, without their numbers.

torch's FakeTensorMode gives all of that but three things, which need CUDA's driver and are made up here: whether there
is autocast, cuDNN's GRU, and the walk through the graph on the way back.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import rnn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDNN_GRU = 3  # cuDNN's number of that kind of network


class CudnnGRU(torch.autograd.Function):
    """A one-layer GRU of one direction: torch's own rules for cuDNN's forward pass, gradients of the right shapes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, state, *weights)
        sizes = (CUDNN_GRU, state.shape[-1], 0, 1)
        with torch.autocast("cuda", enabled=False):
            found = torch.ops.aten._cudnn_rnn(
                x, weights, 4, None, state, None, *sizes, True, 0.0, True, False, [], None
            )
        return found[0], found[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors)


class Functions:
    """What `torch.nn.GRU` calls."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch._VF, name)

    @staticmethod
    def gru(x: Tensor, state: Tensor, weights: list[Tensor], *options: Any) -> tuple[Tensor, Tensor]:
        given = [x, state, *weights]
        assert all(tensor.is_cuda for tensor in given)
        if torch.is_autocast_enabled("cuda"):  # as the rule of autocast for it does
            given = [tensor.to(torch.bfloat16) for tensor in given]
        assert len({tensor.dtype for tensor in given}) == 1
        return CudnnGRU.apply(*given)


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Inside, `cuda` is a device; what was made outside can be moved to it."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(rnn, "_VF", Functions())
        patch.setattr(torch.nn.GRU, "flatten_parameters", lambda gru: None)  # it asks where a weight lies
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode


class Seen(TorchDispatchMode):
    """Counts operations, and those for which Python would wait until the GPU has come so far.

    A number or a shape that depends on values is an error in FakeTensorMode itself: `item`, `tolist`, `nonzero`,
    indexing by a mask, a tensor in an `if`. What is left are copies from one device to the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.operations[name] += 1
        given, made = (_tensors(x) for x in ((args, kwargs), found))
        self.types |= {x.dtype for x in made}
        if name not in ("_to_copy", "copy_"):
            given = [x for x in given if x.dim()]  # a number on the CPU goes along with the call
        if len({x.device.type for x in (*given, *made)}) > 1:
            self.copies[name] += 1
        return found


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@torch.no_grad()
def send_back(loss: Tensor) -> None:
    """What `loss.backward()` does, whose engine asks CUDA's driver for streams.

    Gradients are summed to the shape and cast to the type that a node expects, as the engine does; another device is an
    error.
    """
    waiting: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    assert loss.grad_fn is not None
    waiting[loss.grad_fn][0] = torch.ones_like(loss)
    for node in reversed(_inputs_first(loss.grad_fn)):
        given = [waiting[node].get(index) for index in range(len(node._input_metadata))]
        if all(gradient is None for gradient in given):
            continue
        found = (node if callable(node) else node.apply)(*given)
        found = found if isinstance(found, tuple) else (found,)
        for (following, index), gradient in zip(node.next_functions, found, strict=True):
            if following is None or gradient is None:
                continue
            expected = following._input_metadata[index]
            assert gradient.device == expected.device, node
            gradient = gradient.sum_to_size(tuple(expected.shape)).to(expected.dtype)
            before = waiting[following].get(index)
            waiting[following][index] = gradient if before is None else before + gradient


def _inputs_first(root: Any) -> list[Any]:
    """All nodes of the graph, each behind those that it leads to."""
    order: list[Any] = []
    seen, path = {root}, [(root, iter(root.next_functions))]
    while path:
        node, following = path[-1]
        for other, _ in following:
            if other is not None and other not in seen:
                seen.add(other)
                path.append((other, iter(other.next_functions)))
                break
        else:
            order.append(node)
            path.pop()
    return order
