"""What both encoders do to a model that only infers: weights made ready once, rows fetched without waiting."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.engine import Rows


def ready_for_inference(module: nn.Module, reduced: bool) -> None:
    """Do once what a forward pass would do each time: weight norm, and in reduced precision casting the weights.

    Norms stay in float32, and with them the stream that the layers add to.
    """
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    module.requires_grad_(False)
    if reduced:
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv1d):
                part.to(torch.bfloat16)


def fetched(flat: Tensor, lengths: Sequence[int]) -> Rows:
    """Start to copy rows (all rows, ...) to the host; what is returned waits for them and splits them by `lengths`."""
    if flat.device.type == "cpu":
        whole = flat.numpy()
        return lambda: _split(whole, lengths)
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    host.copy_(flat, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(flat.device))  # that of the copy, whichever device is the current one

    def wait() -> list[np.ndarray]:
        copied.synchronize()
        return _split(host.numpy(), lengths)

    return wait


def _split(rows: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(lengths)[:-1])
