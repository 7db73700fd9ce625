"""Where the processor waits for the GPU, by torch's own warnings, in an epoch of training and in a batch."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from gpu_check.context import Case, Context
from gpu_check.encoders import build_encoder, clips_of, load_encoder
from gpu_check.features import load_data, made_features, recipe_of

ROOT = Path(__file__).parents[2]
LISTED = 12  # places
FROM_TORCH = "synchronizing CUDA operation"


def check_waits(context: Context) -> None:
    """Warnings of an epoch (two epochs less one: what starts and ends a run is left out), and of a batch."""
    features = made_features(context, context.size.small)
    for model in ("hbaf", "hcam"):
        with context.case(f"an epoch of {model}") as case:
            counts, steps = [], []
            for epochs in (1, 2):
                recipe = recipe_of(context, model, f"train.epochs={epochs}")
                data = load_data(features, recipe, context.device)
                with counted_steps() as done:
                    counts.append(waits_of(partial(data.fit, recipe)))
                steps.append(done[0])
            case["steps"] = steps[1] - steps[0]
            _list(context, case, counts[1] - counts[0])
    for precision in ("float32", "bfloat16"):
        with context.case(f"a batch of wav2vec2, {precision}") as case:
            encoder = load_encoder(context, build_encoder(context, "wav2vec2 group norm"), precision)
            clips = clips_of(context)[:-1]  # none in windows
            encoder.encode(clips)
            case["clips"] = len(clips)
            _list(context, case, waits_of(partial(encoder.encode, clips)))


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Counts the steps of all optimizers, in the one element."""
    steps = [0]

    def count(*_: Any) -> None:
        steps[0] += 1

    handle = register_optimizer_step_post_hook(count)
    try:
        yield steps
    finally:
        handle.remove()


def waits_of(run: Callable[[], Any]) -> Counter[str]:
    """How often each line of code waited for the GPU."""
    has_gpu = torch.cuda.is_available()
    before = torch.cuda.get_sync_debug_mode() if has_gpu else 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if has_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            if has_gpu:
                torch.cuda.set_sync_debug_mode(before)
    return Counter(_place(one) for one in caught if FROM_TORCH in str(one.message))


def _place(warning: warnings.WarningMessage) -> str:
    path = Path(warning.filename)
    if path.is_relative_to(ROOT):
        return f"{path.relative_to(ROOT)}:{warning.lineno}"
    return f"{'/'.join(path.parts[-2:])}:{warning.lineno}"


def _list(context: Context, case: Case, waits: Counter[str]) -> None:
    if not context.has_gpu:
        case.needs_a_gpu = True
        return
    case["waits"] = waits.total()
    case.notes += [f"{count} x {place}" for place, count in waits.most_common(LISTED)]
