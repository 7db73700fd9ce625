"""Looking into a model while it runs, without a line about it in the model's equations."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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
