"""The self-check of training in bfloat16: what the parts of a model give under autocast, against float32.

Every part's output is compared, and not the logits alone: so few numbers, near zero before training, would differ by
chance. Conversations are looked at together and one of them alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fusion.batch import Batch
from fusion.data import Split
from pipeline.settings import check_agreement

CONVERSATIONS = 4
NARROWEST = 16  # numbers in a row that is compared, where the model has such rows

proven: set[tuple[str, str]] = set()  # module and device: once a process is enough


def check_precision(module: nn.Module, split: Split) -> None:
    """Raise PrecisionError where `module` gives other outputs in bfloat16 than in float32, on batches of `split`."""
    proof = str(module), str(split.device)
    if proof in proven:
        return
    learning = module.training
    module.eval()
    for conversations in (CONVERSATIONS, 1):
        batch = next(iter(split.batches(conversations)))
        expected, found = (_outputs(module, batch, reduced) for reduced in (False, True))
        widest = max(rows.shape[-1] for rows in expected.values())
        wide = [name for name, rows in expected.items() if rows.shape[-1] >= min(NARROWEST, widest)]
        check_agreement(
            {name: expected[name] for name in wide},
            found,
            wide,
            who="the model",
            key="train.precision",
            device=split.device,
        )
    module.train(learning)
    proven.add(proof)


@torch.no_grad()
def _outputs(module: nn.Module, batch: Batch, reduced: bool) -> dict[str, Tensor]:
    """What each part gives for the batch, (..., width), in the order of computation; numbered where called again."""
    seen: dict[str, Tensor] = {}
    with _watching(module, seen), torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=reduced):
        module(batch)
    return seen


@contextmanager
def _watching(module: nn.Module, seen: dict[str, Tensor]) -> Iterator[None]:
    def watch(name: str, part: nn.Module) -> torch.utils.hooks.RemovableHandle:
        calls = 0

        def keep(part: nn.Module, args: object, output: object) -> None:
            nonlocal calls
            calls += 1
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 1:
                seen[name if calls == 1 else f"{name} (call {calls})"] = output.float()

        return part.register_forward_hook(keep)

    handles = [watch(name, part) for name, part in module.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
